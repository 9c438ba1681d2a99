"""Rotations of what linear layers read, block-diagonal or as a butterfly of such: the mathematics of OFT and BOFT."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.model.by_block import by_block, of_each
from bench.model.linear_layers import WHOLE, Blocks, Layers, LinearTuner, weight_of
from bench.model.products import Projection, product
from bench.model.sam import Sam
from bench.model.scaling import scaled_onto


class Cayley(nn.Module):
    """(I − Q)(I + Q)⁻¹, which is orthogonal, of skew matrices Q (…, b, b), which are b(b − 1)/2 numbers: those above the diagonal, row by
    row."""

    index: Tensor
    sign: Tensor
    one: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(size, size, 1)
        index = torch.zeros(size, size, dtype=torch.long)
        index[rows, columns] = torch.arange(len(rows))
        sign = torch.ones(size, size).triu(1)
        for name, tensor in {"index": index + index.T, "sign": sign - sign.T, "one": torch.eye(size)}.items():
            self.register_buffer(name, tensor, persistent=False)

    def skew(self, above: Tensor) -> Tensor:
        """Q, (…, b, b)."""
        return above[..., self.index] * self.sign

    def forward(self, above: Tensor) -> Tensor:
        both = torch.addcmul(self.one, above[..., self.index], self.sign)  # I + Q, whose transpose is I − Q
        return torch.linalg.solve_ex(both, both.mT, left=False)[0]  # it always has an inverse, so no host has to ask a GPU


def above_diagonal(q: Tensor) -> Tensor:
    """The numbers that `Cayley` makes its matrices of."""
    rows, columns = torch.triu_indices(q.shape[-2], q.shape[-1], 1)
    return q[..., rows, columns]


def turned(x: Tensor, turns: Tensor, level: int) -> Tensor:
    """x (…, C) times a butterfly factor: on level 0, turns (D, b, b) are of b channels side by side, on level l of two runs of b/2 that lie
    2^l runs apart."""
    (count, size, _), sides, apart = turns.shape, 2 if level else 1, 2**level
    runs = x.reshape(-1, count // apart, sides, apart, size // sides).permute(1, 3, 0, 2, 4)  # (D/2^l, 2^l, n, 2, b/2)
    out = torch.bmm(runs.reshape(count, -1, size), turns).view(runs.shape)
    return out.permute(2, 0, 3, 1, 4).reshape(x.shape)


class Rotation(nn.Module):
    """x·R·Wᵀ in place of x·Wᵀ, where R is orthogonal, and times `scale` (o,) where that is trained; the bias stays as it is.

    turns: (N, m, D, b(b − 1)/2) of N tuned blocks and m butterfly factors of D = c/b rotations each, or one each block; 0 at first, where R
    is 1. One factor is OFT's block diagonal.
    """

    def __init__(self, weights: Sequence[Tensor], sizes: Sequence[int], factors: int = 1, scaled: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        shapes = [(factors, weight.shape[1] // size, size * (size - 1) // 2) for weight, size in zip(weights, sizes, strict=True)]
        self.turns = by_block(shapes, nn.init.zeros_)
        self.scale = by_block([(len(weight),) for weight in weights], nn.init.ones_) if scaled else None
        self.cayley = nn.ModuleDict({str(size): Cayley(size) for size in sizes})

    def rotations(self, turns: Tensor) -> Tensor:
        """Those of one tuned block, (m, D, b, b), or of several, of which these are the numbers, (…, m, D, b(b − 1)/2)."""
        size = next(size for size in self.sizes if size * (size - 1) // 2 == turns.shape[-1])
        found: Tensor = self.cayley[str(size)](turns)
        return found

    def prepared(self) -> list[tuple[Tensor, ...]]:
        """The rotations of each tuned block and, where it is trained, the scale."""
        scale = [] if self.scale is None else [self.scale]
        return of_each(lambda turns, *scale: (self.rotations(turns), *scale), self.turns, *scale)

    def forward(self, known: tuple[Tensor, ...], weight: Tensor, bias: Tensor) -> Projection:
        rotations, *scale = known
        levels = list(enumerate(rotations.unbind()))

        def projection(x: Tensor) -> Tensor:
            for level, turns in reversed(levels):
                x = turned(x, turns, level)
            return scaled_onto(bias, product(x, weight), *scale) if scale else product(x, weight, bias)

        return projection

    def merged(self, i: int, weight: Tensor) -> Tensor:
        """W·Rᵀ, or that times the scale, (o, c) as precise as `weight`."""
        for level, turns in enumerate(self.rotations(self.turns[i].to(weight.dtype))):
            weight = turned(weight, turns.mT, level)
        return weight if self.scale is None else weight * self.scale[i][:, None]


class RotatingTuner(LinearTuner):
    """A rotation for each of `names` (bench.model.linear_layers.LAYERS) in every tuned block; see `Rotation`. peft has none for q, k or v
    apart from the others: its rotation is of all that SAM's one layer for them reads."""

    peft_layers = WHOLE

    def __init__(self, sam: Sam, blocks: Blocks, names: Layers, block_size: int, factors: int = 1, scaled: bool = False) -> None:
        super().__init__(sam, blocks)
        self.block_size, self.factors = block_size, factors
        tuned = [block for _, block in self.of(sam.image_encoder)]
        weights = {name: [weight_of(block, name) for block in tuned] for name in names}
        sizes = {name: [nearest_divisor(weight.shape[1], block_size) for weight in own] for name, own in weights.items()}
        self.layers = nn.ModuleDict({name: Rotation(weights[name], sizes[name], factors, scaled) for name in names})


def nearest_divisor(width: int, size: int) -> int:
    """The divisor of `width` that is nearest to `size`, of two such the smaller one."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - size), d))
