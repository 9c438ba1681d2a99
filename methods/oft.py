"""OFT (Qiu et al., NeurIPS 2023): what a linear layer reads is turned first, some channels among themselves, by learned rotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import LAYERS, THIRDS, LinearTuner, places, weight_of
from bench.model.method import EncoderMethod
from bench.model.placement import Placed
from bench.model.products import Projection, product
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT
from bench.model.targets import LINEAR


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

    def rotations(self, i: int, kind: torch.dtype = torch.float32) -> Tensor:
        """Those of tuned block i, (m, D, b, b)."""
        found: Tensor = self.cayley[str(self.sizes[i])](self.turns[i].to(kind))
        return found

    def forward(self, i: int, weight: Tensor, bias: Tensor) -> Projection:
        rotations = list(enumerate(self.rotations(i)))

        def projection(x: Tensor) -> Tensor:
            for level, turns in reversed(rotations):
                x = turned(x, turns, level)
            return product(x, weight, bias) if self.scale is None else torch.addcmul(bias, product(x, weight), self.scale[i])

        return projection

    def merged(self, i: int, weight: Tensor) -> Tensor:
        """W·Rᵀ, or that times the scale, (o, c) as precise as `weight`."""
        for level, turns in enumerate(self.rotations(i, weight.dtype)):
            weight = turned(weight, turns.mT, level)
        return weight if self.scale is None else weight * self.scale[i][:, None]


class OFTTuner(LinearTuner):
    """A rotation for each of `names` (bench.model.linear_layers.LAYERS) in every tuned block."""

    def __init__(
        self, sam: Sam, blocks: tuple[int, ...], names: Sequence[str], block_size: int, factors: int = 1, scaled: bool = False
    ) -> None:
        super().__init__(sam, blocks)
        self.block_size, self.factors = block_size, factors
        tuned = [block for _, block in self.of(sam.image_encoder)]
        weights = {name: [weight_of(block, name) for block in tuned] for name in names}
        sizes = {name: [nearest_divisor(weight.shape[1], block_size) for weight in own] for name, own in weights.items()}
        self.layers = nn.ModuleDict({name: Rotation(weights[name], sizes[name], factors, scaled) for name in names})

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        """None where q, k or v is turned apart from the others: peft's rotation is of all that SAM's one layer for them reads."""
        if any(name in self.layers for name in THIRDS):
            return None
        config = {"peft_type": "OFT", "r": 0, "oft_block_size": self.block_size, "use_cayley_neumann": False}
        blocks = [(i, above) for i, (above, _) in enumerate(self.of(vit))]
        tensors = {f"{above}.{LAYERS[name]}.oft_R.weight": layer.turns[i][0] for name, layer in self.layers.items() for i, above in blocks}
        return PeftAdapter(config, tensors)

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tuner = cls(sam, *places(adapter), adapter.config["oft_block_size"])
        for name, own in (tuner.peft(sam.image_encoder) or adapter).tensors.items():
            own.copy_(adapter.tensors[name])
        return tuner


def nearest_divisor(width: int, size: int) -> int:
    """The divisor of `width` that is nearest to `size`, of two such the smaller one."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - size), d))


def whole_layers(targets: Sequence[str]) -> tuple[str, ...]:
    """The layers of some targets: q, k and v together are one."""
    together = set(THIRDS) <= set(targets)
    return ("qkv",) * together + tuple(target for target in targets if not together or target not in THIRDS)


@METHODS.register("oft")
@dataclass(frozen=True)
class OFT(Placed, EncoderMethod):
    """W·R·x, R block-diagonal with blocks of `block_size` that Cayley's transform (I − Q)(I + Q)⁻¹ keeps orthogonal; not its constrained
    variant (COFT). Equal to Hugging Face peft's OFT without the Neumann series, which approximates the inverse.

    block_size: where it does not divide the width that a layer reads, the nearest size that does is taken, as peft takes it. 32 is the
    default of peft, where the authors keep OFT; their first code has 4 blocks, of any size. SAM has one layer for q, k and v, which is
    turned as one where all three are targets: what they read is the same. `targets=q+v` has a rotation for each.
    """

    block_size: int = 32
    targets: str = "qkv"
    target_words: ClassVar = LINEAR
    space: ClassVar[Space] = {"block_size": OneOf((8, 16, 32, 64))}
    title: ClassVar[str] = "OFT"
    source: ClassVar[str] = "Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, NeurIPS 2023 (arXiv 2306.07280)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a block-diagonal rotation of what q, k and v read"
    pyramid: ClassVar[str] = "turns what the block gets, in blocks that divide its width"
    rates: ClassVar[str] = "6e-5 (one subject) or 1e-5 (control), AdamW, weight decay 0.01"
    oracle: ClassVar[str] = "peft 0.21 OFTModel, 1e-5"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(block_size=2)

    def tuner(self, sam: Sam) -> Tuner:
        return OFTTuner(sam, self.placed(sam), whole_layers(self.targeted), self.block_size)
