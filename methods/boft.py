"""BOFT (Liu et al., ICLR 2024): OFT whose rotation is a product of sparse ones, laid out as a butterfly, so that all channels may mix."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import Blocks, Layers, weight_of, whole_layers
from bench.model.method import EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.rotations import Cayley, RotatingTuner, above_diagonal
from bench.model.sam import Sam
from bench.model.sam_modules import ImageEncoderViT
from bench.types import Range


class BOFTTuner(RotatingTuner):
    """Butterflies of rotations, with a scale for each output. peft's adapters have Q, of which what is above its diagonal is trained."""

    peft_axes: ClassVar = {"boft_R": "", "boft_s": "o"}

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        return {"boft_R": self.layers[name].turns[i], "boft_s": self.layers[name].scale[i][:, None]}

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"peft_type": "BOFT", "boft_block_size": self.block_size, "boft_block_num": 0, "boft_n_butterfly_factor": self.factors}, {}

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        adapter = super().peft(vit)
        return adapter and _with_turns(adapter, Cayley(self.block_size).skew)

    @classmethod
    def like_peft(cls, sam: Sam, blocks: Blocks, layers: Layers, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(sam, blocks, layers, config["boft_block_size"], config["boft_n_butterfly_factor"], scaled=True)

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        return super().of_peft(sam, _with_turns(adapter, above_diagonal))


def _with_turns(adapter: PeftAdapter, change: Callable[[Tensor], Tensor]) -> PeftAdapter:
    return adapter._replace(tensors={name: change(x) if name.endswith("boft_R") else x for name, x in adapter.tensors.items()})


@METHODS.register("boft")
@dataclass(frozen=True)
class BOFT(PlacedInLayers, EncoderMethod):
    """s ⊙ W·R·x, R = the product of `factors` m rotations, each of C/b blocks of `block_size` b: the first of channels side by side, and
    of the l-th one half of a block lies 2^(l − 1)·b/2 channels from the other. Equal to Hugging Face peft's BOFT, the authors' own code,
    where m = 1 unless it can compile for a GPU; with one factor and without s it is `oft`. No dropout of factors. m = 2 and b = 8 are one
    of the paper's settings, and b·2^(m − 1) divides every backbone's widths; peft's m = 1 is no butterfly.
    """

    block_size: Annotated[int, Range(2, 65_536)] = 8
    factors: Annotated[int, Range(1, 16)] = 2
    targets: str = "qkv"
    space: ClassVar[Space] = {"block_size": OneOf((4, 8)), "factors": OneOf((1, 2))}
    title: ClassVar[str] = "BOFT"
    source: ClassVar[str] = "Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, ICLR 2024"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a butterfly of rotations of what q, k and v read, and a scale for each of their channels"
    pyramid: ClassVar[str] = "turns what the block gets and scales at the width that it gives"
    rates: ClassVar[str] = "1e-5 (control, the authors' example in peft)"
    oracle: ClassVar[str] = "peft 0.21 BOFTModel, 1e-5"

    def tuner(self, sam: Sam) -> BOFTTuner:
        blocks, names, call = self.placed(sam), whole_layers(self.targeted), f"boft(block_size={self.block_size},factors={self.factors})"
        if self.factors > 1 and self.block_size % 2:
            raise RequestError(f"{call}: an even block_size is needed.")
        mixed = self.block_size * 2 ** (self.factors - 1)
        for i, name in product(blocks, names):
            if (width := weight_of(sam.image_encoder.blocks[i], name).shape[1]) % mixed:
                raise RequestError(f"{call} mixes runs of {mixed} channels, and {name} of block {i} reads {width}, no multiple.")
        return BOFTTuner(sam, blocks, names, self.block_size, self.factors, scaled=True)
