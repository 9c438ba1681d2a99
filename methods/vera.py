"""VeRA (Kopiczko et al., ICLR 2024): LoRA with two random, frozen matrices that all layers share; learned are two vectors a layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import LAYERS, THIRDS, LinearTuner, part, places, weight_of
from bench.model.method import EncoderMethod
from bench.model.placement import Placed
from bench.model.products import Projection, product, project
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import Block, ImageEncoderViT
from bench.model.targets import LINEAR


def random_pair(rank: int, before: int, after: int, seed: int) -> tuple[Tensor, Tensor]:
    """A (r, before) and B (after, r), the same for a seed everywhere: Kaiming's uniform, drawn as Hugging Face peft draws them."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def drawn(rows: int, columns: int) -> Tensor:
        most = math.sqrt(3) * (math.sqrt(2) / math.sqrt(columns))
        return torch.empty(rows, columns, device="cpu").uniform_(-most, most, generator=generator)

    return drawn(rank, before), drawn(after, rank)


class Vectors(nn.Module):
    """Of a layer of every tuned block, d (N, r) and b (N, o), or one each block."""

    def __init__(self, weights: Sequence[Tensor], rank: int, d_initial: float) -> None:
        super().__init__()
        self.d = by_block([(rank,)] * len(weights), partial(nn.init.constant_, val=d_initial))
        self.b = by_block([(len(weight),) for weight in weights], nn.init.zeros_)

    def around(self, i: int, up: Tensor) -> Tensor:
        """diag(d) Bᵀ diag(b), (r, o), of Bᵀ."""
        return self.d[i][:, None] * up * self.b[i]


class VeRATuner(LinearTuner):
    """W·x + b ⊙ B·(d ⊙ A·x) for each of `names` in every tuned block.

    down: A (r, c), up: B (o, r) of the widest of them, of which a narrower one has the first columns and rows, as in peft. They follow
    from a seed: they are not trained, and not stored among what is.
    """

    down: Tensor
    up: Tensor

    def __init__(self, sam: Sam, blocks: tuple[int, ...], names: Sequence[str], rank: int, d_initial: float, seed: int) -> None:
        super().__init__(sam, blocks)
        weights = {name: [weight_of(block, name) for _, block in self.of(sam.image_encoder)] for name in names}
        self.layers = nn.ModuleDict({name: Vectors(own, rank, d_initial) for name, own in weights.items()})
        widest = [max(weight.shape[side] for own in weights.values() for weight in own) for side in (1, 0)]
        self.rank, self.seed = rank, seed
        for name, matrix in zip(("down", "up"), random_pair(rank, widest[0], widest[1], seed), strict=True):
            self.register_buffer(name, matrix.to(sam.device), persistent=False)

    def layer(self, i: int, block: Block, name: str) -> Projection | None:
        return self._around(i, block.get_submodule(LAYERS[name]), (name,)) if name in self.layers else None

    def qkv(self, i: int, block: Block) -> Projection | None:
        return self._around(i, block.attn.qkv, THIRDS) if any(name in self.layers for name in THIRDS) else None

    def _around(self, i: int, layer: nn.Linear, parts: Sequence[str]) -> Projection:
        """What stands in for a layer of tuned block i that has these parts, which all read A·x."""
        down, up = self.down[:, : layer.in_features], self.up[: layer.out_features // len(parts)].T
        none = torch.zeros_like(up)
        to_all = torch.cat([self.layers[name].around(i, up) if name in self.layers else none for name in parts], 1)  # (r, 3C or o)

        def projection(x: Tensor) -> Tensor:
            frozen, low = project(layer, x), product(x, down)
            return torch.addmm(frozen.flatten(0, -2), low.flatten(0, -2), to_all).view(frozen.shape)

        return projection

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        up, down = self.up[:rows].T.to(weight.dtype), self.down[:, :columns].to(weight.dtype)
        return weight + self.layers[name].around(i, up).T @ down

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        """On the fused projection, of the rank of all its tuned thirds together: each has the channels of its own, and what is not tuned
        none. None where other layers are tuned too, whose output would need other rows of B."""
        names = list(self.layers)
        if not set(names) <= set(THIRDS):
            return None
        up = self.up.new_zeros(3, len(self.up), len(names), self.rank)  # (q k v, C, of those that are tuned, r)
        for j, name in enumerate(names):
            up[THIRDS.index(name), :, j] = self.up
        tensors = {"vera_A": self.down.repeat(len(names), 1), "vera_B": up.flatten(2).flatten(0, 1)}
        for i, (above, _) in enumerate(self.of(vit)):
            none = torch.zeros_like(self.layers[names[0]].b[i])
            tensors[f"{above}.attn.qkv.vera_lambda_d"] = torch.cat([self.layers[name].d[i] for name in names])
            tensors[f"{above}.attn.qkv.vera_lambda_b"] = torch.cat([self.layers[n].b[i] if n in names else none for n in THIRDS])
        return PeftAdapter({"peft_type": "VERA", "r": len(names) * self.rank, "projection_prng_key": self.seed}, tensors)

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tensors = adapter.tensors
        names = [name for name in THIRDS if part(tensors["vera_B"], name).any()]
        tuner = cls(sam, places(adapter)[0], names, adapter.config["r"] // len(names), 0.0, adapter.config.get("projection_prng_key", 0))
        for i, (above, _) in enumerate(tuner.of(sam.image_encoder)):
            for name, d in zip(names, tensors[f"{above}.attn.qkv.vera_lambda_d"].chunk(len(names)), strict=True):
                tuner.layers[name].d[i].copy_(d)
                tuner.layers[name].b[i].copy_(part(tensors[f"{above}.attn.qkv.vera_lambda_b"], name))
        return tuner


@METHODS.register("vera")
@dataclass(frozen=True)
class VeRA(Placed, EncoderMethod):
    """W·x + b ⊙ B·(d ⊙ A·x), b = 0 and d = `d_initial` at first. Equal to Hugging Face peft's VeRA on the same layers, as are A and B.

    A and B are one pair for all layers, frozen; they follow from `projection_seed`, and not from the seed of a cell, so its weights are d
    and b alone. rank 256 is that of the paper's vision transformers and peft's default, d_initial its recommendation.
    """

    rank: int = 256
    d_initial: float = 0.1
    projection_seed: int = 0
    targets: str = "q+v"
    target_words: ClassVar = LINEAR
    space: ClassVar[Space] = {"rank": OneOf((64, 256, 1024))}
    title: ClassVar[str] = "VeRA"
    source: ClassVar[str] = "Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024 (arXiv 2310.11454)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "two vectors for q and v, around random matrices that all blocks share"
    pyramid: ClassVar[str] = "as `lora`; A and B are cut to the block's widths"
    oracle: ClassVar[str] = "peft 0.21 VeraModel, 1e-5"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rank=1, projection_seed=0)

    def tuner(self, sam: Sam) -> Tuner:
        return VeRATuner(sam, self.placed(sam), self.targeted, self.rank, self.d_initial, self.projection_seed)
