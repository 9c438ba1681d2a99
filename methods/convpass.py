"""Convpass (Jie & Deng, 2022): a bottleneck with a 3×3 convolution beside the attention and beside the MLP of every block."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import of_each, regridded
from bench.model.dropout import Dropout
from bench.model.method import Count, EncoderMethod, Share
from bench.model.placement import PlacedInHalves, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT

GELU = 1.702  # quick GELU, x·σ(1.702x), is silu(1.702x)/1.702
Joined = tuple[Tensor, ...]


class Bypass(nn.Module):
    """Up(dropout(act(conv(act(Down(x)))))) for x (B, g, g, before); act is quick GELU."""

    def __init__(self, before: int, width: int, method: "Convpass") -> None:
        super().__init__()
        self.down, self.up = nn.Linear(before, method.hidden), nn.Linear(method.hidden, width)
        self.conv, self.dropout = nn.Conv2d(method.hidden, method.hidden, 3, padding=1), Dropout(method.dropout)
        for name, parameter in self.named_parameters():
            (nn.init.xavier_uniform_ if name in ("down.weight", "conv.weight") else nn.init.zeros_)(parameter)
        if not method.xavier:
            nn.init.dirac_(self.conv.weight)  # what comes in goes out

    def forward(self, x: Tensor, onto: Tensor, joined: Joined) -> Tensor:
        """onto + s times it, on the grid of `onto`."""
        down, of_down, of_conv, up, of_up = joined
        z = F.conv2d(F.silu(F.linear(x, down, of_down)).permute(0, 3, 1, 2), self.conv.weight, of_conv, padding=1).permute(0, 2, 3, 1)
        z = regridded(self.dropout(F.silu(z)), onto.shape[1])  # as many means as it would be after Up, of fewer channels
        return onto + F.linear(z, up, of_up)


class ConvpassTuner(PlacedTuner):
    """x + attention(norm1(x)) + s·bypass(norm1(x)), then the same of the MLP and norm2. bypasses: of each half, one a tuned block."""

    def __init__(self, sam: Sam, method: "Convpass") -> None:
        super().__init__(sam, method.placed(sam))
        self.scale = method.scale
        self.bypasses: Any = self.in_halves(method.targeted, partial(Bypass, method=method))

    def joined(self, down: Tensor, of_down: Tensor, of_conv: Tensor, up: Tensor, of_up: Tensor) -> Joined:
        """Weights and biases with the scale and GELU's number in them, so that SiLU stands between them."""
        return GELU * down, GELU * of_down, GELU * of_conv, self.scale / GELU * up, self.scale * of_up

    def prepared(self, vit: ImageEncoderViT) -> dict[str, list[Joined]]:
        parts = {half: [(*b.down.parameters(), b.conv.bias, *b.up.parameters()) for b in own] for half, own in self.bypasses.items()}
        return {half: of_each(self.joined, *zip(*own, strict=True)) for half, own in parts.items()}

    def step(self, i: int, block: Block, x: Tensor, carry: dict[str, list[Joined]]) -> tuple[Tensor, dict[str, list[Joined]]]:
        y = block.norm1(x)
        x = self.beside("attention", i, y, attend(block, x, normed=y)[0], carry)
        y = block.norm2(x)
        return self.beside("mlp", i, y, feed_forward(block, x, normed=y), carry), carry

    def beside(self, half: str, i: int, y: Tensor, out: Tensor, carry: dict[str, list[Joined]]) -> Tensor:
        """What a half of the block made of y, with its bypass."""
        return self.bypasses[half][i](y, out, carry[half][i]) if half in carry else out


@METHODS.register("convpass")
@dataclass(frozen=True)
class Convpass(PlacedInHalves, EncoderMethod):
    """Both bypasses of a block or, by `targets` "attention", the first alone (Convpass-attn), with the authors' initialisation.

    xavier: the convolution starts as Xavier's uniform numbers, else as the identity. This, and one scale of 0.01, 0.1, 1, 10 and 100, the
    authors took for each data set. The convolution sees the whole grid, also where attention is in windows, as in their Swin; they convolve
    a class token by itself, and SAM has none.
    """

    hidden: Count = 8
    scale: float = 1.0
    xavier: bool = False
    dropout: Share = 0.1
    targets: str = "attention+mlp"
    space: ClassVar[Space] = {"scale": OneOf((0.01, 0.1, 1.0, 10.0, 100.0)), "xavier": OneOf((False, True))}
    title: ClassVar[str] = "Convpass"
    source: ClassVar[str] = "Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022 (arXiv 2207.07039)"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "a bottleneck with a 3×3 convolution beside attention and MLP"
    pyramid: ClassVar[str] = "reads what the attention reads; Up widens, and the map is averaged to the grid that the block gives"
    rates: ClassVar[str] = "1e-3, AdamW, weight decay 1e-4"
    oracle: ClassVar[str] = "the authors' code, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        return ConvpassTuner(sam, self)
