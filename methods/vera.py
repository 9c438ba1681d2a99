"""VeRA (Kopiczko et al., ICLR 2024): LoRA with two random, frozen matrices that all layers share; learned are two vectors a layer."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.linear_layers import THIRDS, AddingTuner, Blocks, Layers, thirds_in, together, weight_of
from bench.model.method import Count, EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.sam import Sam
from bench.types import SEED


class VeRATuner(AddingTuner):
    """W·x + b ⊙ B·(d ⊙ A·x) for each of `names`: d (N, r) and b (N, o) of N tuned blocks, or one each block.

    down is A (r, c) and up B (o, r) of the widest layer, of which others have the first columns and rows, as in peft.
    """

    peft_layers = THIRDS  # others' outputs would need other rows of B
    peft_axes: ClassVar = {"vera_lambda_d": "r", "vera_lambda_b": "o"}

    def __init__(self, sam: Sam, blocks: Blocks, names: Layers, rank: int, d_initial: float, seed: int) -> None:
        super().__init__(sam, blocks)
        self.layers, self.rank, self.seed, generator = names, rank, seed, torch.Generator("cpu").manual_seed(seed)
        self.shapes = {name: [weight_of(block, name).shape for _, block in self.of(sam.image_encoder)] for name in names}
        self.d = nn.ParameterDict({name: torch.full((len(blocks), rank), d_initial) for name in names})
        self.b = nn.ParameterDict({name: by_block([(o,) for o, _ in own], nn.init.zeros_) for name, own in self.shapes.items()})
        o, c = (max(shape[side] for own in self.shapes.values() for shape in own) for side in (0, 1))
        pair = [nn.init.kaiming_uniform_(torch.empty(shape, device="cpu"), generator=generator) for shape in ((rank, c), (o, rank))]
        self.down, self.up = (nn.Buffer(matrix.to(sam.device), persistent=False) for matrix in pair)

    def added(self, i: int, name: str) -> tuple[Tensor, Tensor]:
        parts = THIRDS if name == "qkv" else (name,)  # which all read the same A·x
        o, c = next(self.shapes[own][i] for own in parts if own in self.layers)
        up = self.up[:o].T
        around = [self.d[own][i][:, None] * up * self.b[own][i] if own in self.layers else torch.zeros_like(up) for own in parts]
        return self.down[:, :c], torch.cat(around, 1)

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        return {"vera_lambda_d": self.d[name][i], "vera_lambda_b": self.b[name][i]}

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        shared = {"vera_A": self.down.repeat(len(self.layers), 1), "vera_B": together(dict.fromkeys(self.layers, self.up), "or")}
        return {"peft_type": "VERA", "r": len(self.layers) * self.rank, "projection_prng_key": self.seed}, shared

    @classmethod
    def like_peft(cls, sam: Sam, blocks: Blocks, layers: Layers, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        names = thirds_in([tensors["vera_B"]])
        return cls(sam, blocks, names, config["r"] // len(names), 0.0, config.get("projection_prng_key", 0))


@METHODS.register("vera")
@dataclass(frozen=True)
class VeRA(PlacedInLayers, EncoderMethod):
    """W·x + b ⊙ B·(d ⊙ A·x), b = 0 and d = `d_initial` at first: Hugging Face peft's VeRA on the same layers, with the same A and B.

    They follow from `projection_seed` and are not stored. d_initial and rank are peft's; by the counts of the paper's ViTs rank is theirs.
    """

    rank: Count = 256
    d_initial: float = 0.1
    projection_seed: Annotated[int, SEED] = 0
    targets: str = "q+v"
    space: ClassVar[Space] = {"rank": OneOf((64, 256, 1024))}
    title: ClassVar[str] = "VeRA"
    source: ClassVar[str] = "Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024 (arXiv 2310.11454)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "two vectors for q and v, around random matrices that all blocks share"
    pyramid: ClassVar[str] = "as `lora`; A and B are cut to the block's widths"
    rates: ClassVar[str] = "2e-2 (peft's example, RoBERTa on MRPC)"
    oracle: ClassVar[str] = "peft 0.21 VeraModel, 1e-5"

    def tuner(self, sam: Sam) -> VeRATuner:
        return VeRATuner(sam, self.placed(sam), self.targeted, self.rank, self.d_initial, self.projection_seed)
