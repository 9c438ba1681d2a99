"""BOFT (Liu et al., ICLR 2024): OFT whose rotation is a product of sparse ones, laid out as a butterfly, so that all channels may mix."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import LAYERS, THIRDS, places, weight_of
from bench.model.method import EncoderMethod
from bench.model.placement import Placed
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT
from bench.model.targets import LINEAR
from methods.oft import OFTTuner, above_diagonal, whole_layers


class BOFTTuner(OFTTuner):
    """As `OFTTuner`, of `factors` butterfly factors, with a scale for each output."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], names: Sequence[str], block_size: int, factors: int) -> None:
        super().__init__(sam, blocks, names, block_size, factors, scaled=True)

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        """None where q, k or v is turned apart from the others, as for OFT."""
        if any(name in self.layers for name in THIRDS):
            return None
        config = {"peft_type": "BOFT", "boft_block_size": self.block_size, "boft_block_num": 0, "boft_n_butterfly_factor": self.factors}
        tensors = {}
        for i, (above, _) in enumerate(self.of(vit)):
            for name, layer in self.layers.items():
                tensors[f"{above}.{LAYERS[name]}.boft_R"] = layer.cayley[str(self.block_size)].skew(layer.turns[i])
                tensors[f"{above}.{LAYERS[name]}.boft_s"] = layer.scale[i][:, None].clone()
        return PeftAdapter(config, tensors)

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tuner = cls(sam, *places(adapter), adapter.config["boft_block_size"], adapter.config["boft_n_butterfly_factor"])
        for i, (above, _) in enumerate(tuner.of(sam.image_encoder)):
            for name, layer in tuner.layers.items():
                layer.turns[i].copy_(above_diagonal(adapter.tensors[f"{above}.{LAYERS[name]}.boft_R"]))
                layer.scale[i].copy_(adapter.tensors[f"{above}.{LAYERS[name]}.boft_s"][:, 0])
        return tuner


@METHODS.register("boft")
@dataclass(frozen=True)
class BOFT(Placed, EncoderMethod):
    """s ⊙ W·R·x, R = the product of `factors` m rotations, each of C/b blocks of `block_size` b: the first of channels side by side, and
    of the l-th one half of a block lies 2^(l − 1)·b/2 channels from the other. Equal to Hugging Face peft's BOFT, the authors' own code,
    where m = 1 unless it can compile for a GPU; with one factor and without s it is `oft`. No dropout of factors.

    m = 2 and b = 8 are one of the paper's settings; peft's default, m = 1 and b = 4, is no butterfly. Of SAM's one layer for q, k and v as
    `oft` says. (b·2^(m − 1) divides the widths of every backbone.)
    """

    block_size: int = 8
    factors: int = 2
    targets: str = "qkv"
    target_words: ClassVar = LINEAR
    space: ClassVar[Space] = {"block_size": OneOf((4, 8)), "factors": OneOf((1, 2))}
    title: ClassVar[str] = "BOFT"
    source: ClassVar[str] = "Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, ICLR 2024"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a butterfly of rotations of what q, k and v read, and a scale for each of their channels"
    pyramid: ClassVar[str] = "turns what the block gets and scales at the width that it gives"
    rates: ClassVar[str] = "1e-5 (control, the authors' example in peft)"
    oracle: ClassVar[str] = "peft 0.21 BOFTModel, 1e-5"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(block_size=2, factors=1)
        if self.factors > 1 and self.block_size % 2:
            raise RequestError(f"{self.name}(block_size={self.block_size},factors={self.factors}): an even block_size is needed.")

    def tuner(self, sam: Sam) -> Tuner:
        blocks, names, mixed = self.placed(sam), whole_layers(self.targeted), self.block_size * 2 ** (self.factors - 1)
        for i, name in product(blocks, names):
            width = weight_of(sam.image_encoder.blocks[i], name).shape[1]
            if width % mixed:
                call = f"{self.name}(block_size={self.block_size},factors={self.factors})"
                raise RequestError(f"{call} mixes runs of {mixed} channels, and {name} of block {i} reads {width}, no multiple.")
        return BOFTTuner(sam, blocks, names, self.block_size, self.factors)
