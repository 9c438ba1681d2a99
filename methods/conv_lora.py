"""Conv-LoRA (Zhong et al., ICLR 2024): LoRA with a mixture of convolutions, each at a scale of its own, in the bottleneck."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block, of_each
from bench.model.dropout import noise
from bench.model.linear_layers import lowered
from bench.model.method import Count, EncoderMethod
from bench.model.placement import Placed, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT
from bench.model.upsampling import interpolated
from bench.types import Range
from methods.lora import uniform_rows

NOISE_FLOOR = 1e-2  # the least standard deviation of the gates' noise


class Record(NamedTuple):
    """Of a block, what the gates' loss is made of: of each window of each image the mean of z (B, windows, r), the draws and which of M
    experts is used, (B, windows, M) both."""

    mean: Tensor
    drawn: Tensor
    used: Tensor


Carry = tuple[
    list[tuple[Tensor, ...]], tuple[Record, ...]
]  # what is prepared of each block, and in training what was recorded of those so far


class ConvLoRATuner(PlacedTuner):
    """qkv(x) + s·B(z + E_e(z)) with z = Ax, a map (r, side, side) of one window, for which one expert e of M is chosen.

    E_e: to (e + 1) times the side (bicubic), 3×3 convolution, GELU, and back. The expert is the one with the largest gate, a linear
    map of the window's mean of z; in training each gate has noise, whose deviation is softplus of another such map.
    a: (N, r, C), b: (N, 3C, r), or one each block where blocks differ in width; gates and deviations: (N, r, M), filters:
    (N, M, r, r, 3, 3), biases: (N, M, r). scales_SIDE: `there_and_back` of each expert, (M, 2, 6·side, side).
    """

    identity: Tensor

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
        self.register_buffer("identity", torch.eye(experts, device=sam.device), persistent=False)
        for side in {
            block.window_size or size.grid_before for size, (_, block) in zip(self.sizes, self.of(sam.image_encoder), strict=True)
        }:
            scales = torch.stack([there_and_back(side, times + 1) for times in range(experts)])
            self.register_buffer(f"scales_{side}", scales.to(sam.device), persistent=False)

    def prepared(self, vit: ImageEncoderViT | None = None) -> Carry:
        def joined(a: Tensor, b: Tensor, gates: Tensor, deviations: Tensor, filters: Tensor, biases: Tensor) -> tuple[Tensor, ...]:
            return a.mT, self.scale * b.mT, torch.cat([gates, deviations], -1), filters.flatten(-4), biases

        return of_each(joined, self.a, self.b, self.gates, self.deviations, self.filters, self.biases), ()

    def step(self, i: int, block: Block, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        side, (prepared, records) = block.window_size or x.shape[1], carry
        down, up, routes, filters, biases = prepared[i]

        def qkv(tokens: Tensor) -> Tensor:  # (B·windows, side², C)
            nonlocal records
            frozen, low = lowered(block.attn.qkv, tokens, down)
            mean = low.float().mean(1).unflatten(0, (len(x), -1))
            chosen, drawn = self._routed(mean, routes)
            used = self.identity[chosen]
            records = records if drawn is None else (*records, Record(mean, drawn, used))
            scales = getattr(self, f"scales_{side}")[chosen.flatten()[:, None].expand(-1, low.shape[-1])]
            mixed = _mixed(low.mT.unflatten(-1, (side, side)), scales, used.flatten(0, 1) @ filters, used.flatten(0, 1) @ biases)
            return torch.addmm(frozen.flatten(0, 1), (low + mixed.flatten(2).mT).flatten(0, 1), up).view(frozen.shape)

        x, _ = attend(block, x, qkv=qkv, by_window=True)
        return feed_forward(block, x), (prepared, records)

    @torch.no_grad()
    def _routed(self, mean: Tensor, routes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The expert of each window, (B, windows), and in training what was drawn for that."""
        if not self.training:
            return (mean @ routes.chunk(2, -1)[0]).argmax(-1), None
        drawn = noise(*mean.shape[:2], len(self.identity), like=mean)
        return _gates(mean, routes, drawn)[2].argmax(-1), drawn

    def penalty(self, carry: Carry) -> Tensor | None:
        """How unevenly each image's windows are spread over the experts, of all blocks with so many windows at once."""
        alike: dict[int, list[tuple[Tensor, ...]]] = {}
        for (_, _, routes, _, _), record in zip(*carry, strict=False):
            alike.setdefault(record.mean.shape[1], []).append((routes[None], *record))
        unbalanced = [_unbalanced(*map(torch.stack, zip(*blocks, strict=True))) for blocks in alike.values()]
        return self.balance * sum(unbalanced[1:], unbalanced[0]) if unbalanced else None


def _gates(mean: Tensor, routes: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of windows' means (…, r) the gates, their noise's deviations and the gates with noise, (…, M) each."""
    clean, deviation = (mean @ routes).chunk(2, -1)
    deviation = F.softplus(deviation) + NOISE_FLOOR
    return clean, deviation, torch.addcmul(clean, deviation, drawn)


def _unbalanced(routes: Tensor, mean: Tensor, drawn: Tensor, used: Tensor) -> Tensor:
    """The sum over N blocks, (B,), of what they recorded. routes: (N, 1, r, 2·M)."""
    clean, deviation, noisy = _gates(mean, routes, drawn)
    first, second = noisy.topk(2).values.split(1, -1)
    # The chance that an expert would be chosen if its own noise were drawn again: its gate must pass the best of the others.
    rival = torch.where(noisy > second, second, first)
    chance = torch.special.ndtr((clean - rival) / deviation)
    return (_spread(used.sum(2)) + _spread(chance.sum(2))).sum(0)


def _spread(shares: Tensor) -> Tensor:
    """The squared coefficient of variation of each row, (N, B, M) -> (N, B)."""
    return shares.var(-1) / (shares.mean(-1) ** 2 + 1e-10)


def there_and_back(side: int, times: int) -> Tensor:
    """Bicubic interpolation of a line of `side` places to so many `times` as many, and of those back to it, as matrices: of the finer ones
    those that are read, four around each place, and one on either side for the convolution, (2, 6·side, side). What lies beyond an end
    is 0, which is the convolution's padding; nothing is read of what lies between two places' six."""
    line = torch.arange(side, device="cpu")
    finer = ((2 * line + 1) * times - 1)[:, None] // 2 + torch.arange(-2, 4, device="cpu")  # (side, 6)
    near, inside = finer.clamp(0, times * side - 1), (finer >= 0) & (finer < times * side)
    there = _bicubic(side, times * side)[near] * inside[..., None]
    read = _bicubic(times * side, side).gather(1, near) * inside * torch.tensor([0, 1, 1, 1, 1, 0], device="cpu")
    return torch.stack([there, read[..., None] * torch.eye(side, device="cpu")[:, None]]).flatten(1, 2)


def _bicubic(before: int, after: int) -> Tensor:
    """What each of `before` places weighs in each of `after`, (after, before)."""
    return interpolated(torch.eye(before, device="cpu")[None, None], (after, before), "bicubic")[0, 0]


def _mixed(z: Tensor, scales: Tensor, filters: Tensor, biases: Tensor) -> Tensor:
    """Each of W maps (W, r, side, side) through its expert: of scales (W, r, 2, 6·side, side), filters (W, r·r·9) and biases (W, r).
    All are one grouped convolution: who is asked need not be known to the host, and may not change a graph's shapes."""
    (there, back), filters = scales.unbind(2), filters.view(-1, z.shape[1], 3, 3)
    fine = there @ z @ there.mT  # (W, r, 6·side, 6·side)
    convolved = F.conv2d(fine.flatten(0, 1)[None], filters, biases.flatten(), padding=1, groups=len(z))
    return back.mT @ F.gelu(convolved).view(fine.shape) @ back


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
