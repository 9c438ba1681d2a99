"""Conv-LoRA (Zhong et al., ICLR 2024): LoRA with a mixture of convolutions, each at a scale of its own, in the bottleneck."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.dropout import noise
from bench.model.method import Count, EncoderMethod
from bench.model.placement import Placed, PlacedTuner
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block
from bench.model.upsampling import resized
from bench.types import Range
from methods.lora import uniform_rows

NOISE_FLOOR = 1e-2  # the least standard deviation of the gates' noise


class ConvLoRATuner(PlacedTuner):
    """qkv(x) + s·B(z + E_e(z)) with z = Ax, a map (r, side, side) of one window, for which one expert e of M is chosen.

    E_e: to (e + 1) times the side (bicubic), 3×3 convolution, GELU, and back. The expert is the one with the largest gate, a linear
    map of the window's mean of z; in training each gate has noise, whose deviation is softplus of another such map.
    a: (N, r, C), b: (N, 3C, r), or one each block where blocks differ in width; gates and deviations: (N, r, M), filters:
    (N, M, r, r, 3, 3), biases: (N, M, r).
    The carry is the load-balancing loss of each image, (B,), summed over blocks.
    """

    def __init__(self, sam: Sam, blocks: tuple[int, ...], rank: int, scale: float, experts: int, balance: float) -> None:
        super().__init__(sam, blocks)
        depth = len(blocks)
        self.scale, self.balance = scale, balance
        self.a = by_block([(rank, size.before) for size in self.sizes], uniform_rows)
        self.b = by_block([(3 * size.width, rank) for size in self.sizes], nn.init.zeros_)
        self.gates, self.deviations = (nn.Parameter(torch.zeros(depth, rank, experts)) for _ in range(2))
        self.filters = nn.Parameter(torch.empty(depth, experts, rank, rank, 3, 3))
        self.biases = nn.Parameter(torch.zeros(depth, experts, rank))
        nn.init.kaiming_uniform_(self.filters.data.view(-1, 9 * rank), a=math.sqrt(5))

    def step(self, i: int, block: Block, x: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        side = block.window_size or x.shape[1]

        def qkv(tokens: Tensor) -> Tensor:  # (B·windows, side², C)
            nonlocal carry
            z = (tokens @ self.a[i].T).mT.unflatten(-1, (side, side))  # (B·windows, r, side, side)
            chosen, unbalanced = self._routed(i, z, len(x))
            carry = unbalanced if carry is None else carry + unbalanced
            z = z + self._mixed(i, z, chosen)
            return project(block.attn.qkv, tokens) + self.scale * (z.flatten(2).mT @ self.b[i].T)

        x, _ = attend(block, x, qkv=qkv, by_window=True)
        return feed_forward(block, x), carry

    def penalty(self, carry: Tensor) -> Tensor:
        return self.balance * carry

    def _routed(self, i: int, z: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """The expert of each window, (B·windows,), and how unevenly each image's windows are spread over the experts, (B,)."""
        mean = z.float().mean((2, 3))
        clean = mean @ self.gates[i]  # (B·windows, M)
        if not self.training:
            return clean.argmax(-1), clean.new_zeros(images)
        deviation = F.softplus(mean @ self.deviations[i]) + NOISE_FLOOR
        noisy = clean + deviation * noise(images, len(z) // images, clean.shape[-1], like=clean).flatten(0, 1)
        chosen = noisy.argmax(-1)
        first, second = noisy.topk(2).values.split(1, -1)
        # The chance that an expert would be chosen if its own noise were drawn again: its gate must pass the best of the others.
        rival = torch.where(noisy > second, second, first)
        chance = torch.special.ndtr((clean - rival) / deviation)
        used = F.one_hot(chosen, clean.shape[-1]).to(chance)
        importance, load = (each.unflatten(0, (images, -1)).sum(1) for each in (used, chance))  # (B, M)
        return chosen, _spread(importance) + _spread(load)

    def _mixed(self, i: int, z: Tensor, chosen: Tensor) -> Tensor:
        """Each window's map through its expert. A graph, whose shapes may not follow the image, asks them all, and so does a GPU, which
        would have to wait for the host to see who is asked."""
        if torch.compiler.is_compiling() or z.device.type != "cpu":
            experts = range(self.filters.shape[1])
            return sum(((chosen == e)[:, None, None, None] * self._expert(i, e, z) for e in experts), torch.zeros_like(z))
        out = torch.zeros_like(z)
        for expert in chosen.unique().tolist():
            mine = (chosen == expert).nonzero()[:, 0]
            out = out.index_add(0, mine, self._expert(i, expert, z[mine]).to(z.dtype))
        return out

    def _expert(self, i: int, expert: int, z: Tensor) -> Tensor:
        high, wide = z.shape[-2:]
        if expert:
            z = _resized(z, ((expert + 1) * high, (expert + 1) * wide))
        z = F.gelu(F.conv2d(z, self.filters[i, expert], self.biases[i, expert], padding=1))
        return _resized(z, (high, wide)) if expert else z


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, c, h, w) -> (n, c, H, W)."""
    return resized(maps.flatten(0, 1), size, "bicubic").unflatten(0, maps.shape[:2])


def _spread(shares: Tensor) -> Tensor:
    """The squared coefficient of variation of each row, (B, M) -> (B,)."""
    return shares.var(-1) / (shares.mean(-1) ** 2 + 1e-10)


@METHODS.register("conv_lora")
@dataclass(frozen=True)
class ConvLoRA(Placed, EncoderMethod):
    """The authors' released code with its settings for SAM: one LoRA around the fused projection of q, k and v, rank 3, alpha 32,
    8 experts at 1 to 8 times the side, one of them for each map, load-balancing loss times 0.01. The skip connection around the
    experts, their GELU and the bicubic interpolation are the code's too.

    Nothing is open for SAM's windows: a layer in the place of SAM's projection sees a window's tokens with its padding, so in
    windowed blocks the convolutions work, and an expert is chosen, in each window; in global ones, on the whole map. The
    load-balancing loss is each image's own, so that cutting a batch into parts does not change it; the code's default is one image at
    a time. With one expert a map, the importance in it has no gradient; the load has. The original also trains SAM's mask decoder
    and gives no prompts; here `decoder` says what is trained beside the encoder.
    """

    rank: Count = 3
    alpha: float = 32.0
    experts: Annotated[int, Range(2, 1024)] = 8
    balance: Annotated[float, Range(0)] = 0.01
    space: ClassVar[Space] = {"rank": OneOf((2, 3, 4, 8))}
    title: ClassVar[str] = "Conv-LoRA"
    source: ClassVar[str] = "Zhong et al., Convolution Meets LoRA, ICLR 2024 (arXiv 2401.17868)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank additions with a mixture of convolutions at eight scales"
    pyramid: ClassVar[str] = "as `lora`; z is on the grid that the block gets, before queries are pooled"
    rates: ClassVar[str] = "1e-4; 3e-4 for leaves and roads"
    oracle: ClassVar[str] = "its formula, 1e-4"

    def tuner(self, sam: Sam) -> Tuner:
        return ConvLoRATuner(sam, self.placed(sam), self.rank, self.alpha / self.rank, self.experts, self.balance)
