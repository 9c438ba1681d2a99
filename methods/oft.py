"""OFT (Qiu et al., NeurIPS 2023): what a linear layer reads is turned first, some channels among themselves, by learned rotations."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.linear_layers import Blocks, Layers, whole_layers
from bench.model.method import EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.rotations import RotatingTuner
from bench.model.sam import Sam
from bench.types import Range


class OFTTuner(RotatingTuner):
    """Block-diagonal rotations, as one factor."""

    peft_axes: ClassVar = {"oft_R.weight": ""}

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        return {"oft_R.weight": self.layers[name].turns[i][0]}

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"peft_type": "OFT", "r": 0, "oft_block_size": self.block_size, "use_cayley_neumann": False}, {}

    @classmethod
    def like_peft(cls, sam: Sam, blocks: Blocks, layers: Layers, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(sam, blocks, layers, config["oft_block_size"])


@METHODS.register("oft")
@dataclass(frozen=True)
class OFT(PlacedInLayers, EncoderMethod):
    """W·R·x, R block-diagonal with blocks of `block_size` that Cayley's transform (I − Q)(I + Q)⁻¹ keeps orthogonal; not its constrained
    variant (COFT). Equal to Hugging Face peft's OFT without the Neumann series, which approximates the inverse.

    block_size: where it does not divide the width that a layer reads, the nearest size that does is taken, as peft takes it. 32 is the
    default of peft, where the authors keep OFT; their first code has 4 blocks, of any size. SAM has one layer for q, k and v, which is
    turned as one where all three are targets: what they read is the same. `targets=q+v` has a rotation for each.
    """

    block_size: Annotated[int, Range(2, 65_536)] = 32
    targets: str = "qkv"
    space: ClassVar[Space] = {"block_size": OneOf((8, 16, 32, 64))}
    title: ClassVar[str] = "OFT"
    source: ClassVar[str] = "Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, NeurIPS 2023 (arXiv 2306.07280)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a block-diagonal rotation of what q, k and v read"
    pyramid: ClassVar[str] = "turns what the block gets, in blocks that divide its width"
    rates: ClassVar[str] = "6e-5 (one subject) or 1e-5 (control), AdamW, weight decay 0.01"
    oracle: ClassVar[str] = "peft 0.21 OFTModel, 1e-5"

    def tuner(self, sam: Sam) -> OFTTuner:
        return OFTTuner(sam, self.placed(sam), whole_layers(self.targeted), self.block_size)
