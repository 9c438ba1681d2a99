"""Mona (Yin et al., CVPR 2025): two adapters a block, whose bottleneck filters the map at three scales."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.grid.registry import METHODS
from bench.model.by_block import of_each
from bench.model.dropout import Dropout
from bench.model.method import LATER, Count, EncoderMethod, Share
from bench.model.placement import PlacedInHalves, PlacedTuner
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT

SIDES = (3, 5, 7)


class Adapter(nn.Module):
    """x + Up(dropout(GELU(filtered))), for x (B, g, g, C): Down(s₁·norm(x) + s₂·x), then the mean of three depthwise convolutions and a
    1×1 one, each with a skip connection."""

    def __init__(self, width: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_scale, self.skip_scale = nn.Parameter(torch.full((width,), 1e-6)), nn.Parameter(torch.ones(width))
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.filters = nn.ModuleList(nn.Conv2d(bottleneck, bottleneck, n, padding=n // 2, groups=bottleneck) for n in SIDES)
        self.mix = nn.Conv2d(bottleneck, bottleneck, 1)
        self.dropout = Dropout(dropout)
        for layer in (self.down, self.up):  # as the original backbone starts all its linear layers
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What `joined` takes."""
        return self.norm.weight, self.norm.bias, self.norm_scale, self.mix.weight, *self.filters.parameters()

    def forward(self, x: Tensor, joined: "Joined") -> Tensor:
        weight, bias, conv, of_conv, mix = joined
        z = self.down(_Read.apply(x, weight, bias, self.skip_scale, self.norm.eps)).permute(0, 3, 1, 2)  # (B, bottleneck, g, g)
        z = F.conv2d(z, conv, of_conv, padding=SIDES[-1] // 2, groups=z.shape[1])
        z = F.gelu(F.conv2d(z, mix, self.mix.bias))
        return project(self.up, self.dropout(z.permute(0, 2, 3, 1)), x)


Joined = tuple[Tensor, ...]


def joined(weight: Tensor, bias: Tensor, scale: Tensor, mix: Tensor, *filters: Tensor) -> Joined:
    """The norm's weight and bias times its scale, and one depthwise convolution, its bias, and one 1×1 convolution that hold the three,
    their mean and both skip connections. Of one adapter, or of more, (…, its shape)."""
    most, channels = SIDES[-1], mix.shape[-3]
    convs = [F.pad(conv, ((most - side) // 2,) * 4) if side < most else conv for conv, side in zip(filters[::2], SIDES, strict=True)]
    itself = F.pad(mix.new_ones(1, 1), (most // 2,) * 4)
    one = torch.eye(channels, dtype=mix.dtype, device=mix.device)[..., None, None]
    conv, of_conv = (sum(of[1:], start=of[0]) / len(SIDES) for of in (convs, filters[1::2]))
    return weight * scale, bias * scale, conv + itself, of_conv, mix + one


class _Read(torch.autograd.Function):
    """norm(x) + x·skip; its own gradients would take one more pass over x, and more memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor, eps: float) -> Tensor:
        normed, mean, scale = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, mean, scale, weight, bias, skip)
        return normed.addcmul_(x, skip)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, *of_norm, skip), asked = ctx.saved_tensors, ctx.needs_input_grad
        d_x, *others = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], *of_norm, asked[:3])
        itself = (_itself if torch.compiler.is_compiling() else _kept_itself)(of_norm[0].shape, of_norm[0].dtype, x.device)
        _, d_skip, _ = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], *itself, skip, None, (False, asked[3], False))
        return d_x.addcmul_(grad, skip) if asked[0] else None, *others, d_skip, None


def _itself(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and the scale of a norm that leaves its input as it is: the gradient of such a norm's weight is the skip connection's."""
    return torch.zeros(shape, dtype=dtype, device=device), torch.ones(shape, dtype=dtype, device=device)


_kept_itself = cache(_itself)


class MonaTuner(PlacedTuner):
    """One adapter after the attention with its residual connection, and one after the MLP with its own."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], targets: tuple[str, ...], bottleneck: int, dropout: float) -> None:
        super().__init__(sam, blocks)
        for target in targets:
            setattr(self, f"after_{target}", nn.ModuleList(Adapter(size.width, bottleneck, dropout) for size in self.sizes))

    def prepared(self, vit: ImageEncoderViT) -> dict[str, list[Joined]]:
        """Of each target, what is joined of each of its adapters."""
        own = {target: getattr(self, f"after_{target}") for target in PlacedInHalves.target_words if hasattr(self, f"after_{target}")}
        of_all = iter(of_each(joined, *zip(*(one.parts for adapters in own.values() for one in adapters), strict=True)))
        return {target: [next(of_all) for _ in adapters] for target, adapters in own.items()}

    def step(self, i: int, block: Block, x: Tensor, carry: dict[str, list[Joined]]) -> tuple[Tensor, dict[str, list[Joined]]]:
        x = self._after("attention", i, attend(block, x)[0], carry)
        return self._after("mlp", i, feed_forward(block, x), carry), carry

    def _after(self, target: str, i: int, x: Tensor, carry: dict[str, list[Joined]]) -> Tensor:
        return getattr(self, f"after_{target}")[i](x, carry[target][i]) if target in carry else x


@METHODS.register("mona")
@dataclass(frozen=True)
class Mona(PlacedInHalves, EncoderMethod):
    """The authors' defaults and initialisation; it does not start as the frozen model.

    Defined on Swin, whose windows are put together before an adapter reads the map; so they are here, and the filters see the whole
    map in every block. On vit_l its 7.0 M numbers make a file of 28 MB, the largest of all methods that add to the encoder.

    targets: after which halves of a block there is an adapter, attention+mlp, or one of them. norm_decay: whether the adapters' norms have
    weight decay, which they have not in the original.
    """

    bottleneck: Count = 64
    dropout: Share = 0.1
    targets: str = field(default="attention+mlp", metadata=LATER)
    norm_decay: bool = field(default=True, metadata=LATER)
    title: ClassVar[str] = "Mona"
    source: ClassVar[str] = "Yin et al., 5%>100%: Breaking Performance Shackles of Full Fine-Tuning, CVPR 2025 (arXiv 2408.08345)"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "adapters with depthwise filters after attention and MLP"
    pyramid: ClassVar[str] = "at the width and grid that the block gives"
    rates: ClassVar[str] = "AdamW 1e-4, decay 0.05"
    oracle: ClassVar[str] = "its formula, 1e-4"

    def decays(self, name: str) -> bool:
        return self.norm_decay or not (name.startswith("tuner.") and ".norm." in name)

    def tuner(self, sam: Sam) -> Tuner:
        return MonaTuner(sam, self.placed(sam), self.targeted, self.bottleneck, self.dropout)
