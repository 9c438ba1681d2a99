"""Full fine-tuning of SAM, as MedSAM (Ma et al., Nature Communications 2024) does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from bench.model.decoder import Decoder
from bench.model.method import Method
from bench.model.retuned import RetunedDecoder, RetunedTuner, retuned
from bench.model.sam import Sam, Tuner


@METHODS.register("full")
@dataclass(frozen=True)
class FullFineTuning(Method):
    """Every weight of the image encoder, and of the mask decoder those that its single mask is made with. The prompt encoder is
    frozen, as in MedSAM, whose authors find that it encodes a box well enough as it is.

    The upper bound in parameters, with a copy of SAM of its own: in memory, AdamW's two moments on top of it, and on disk.
    """

    title: ClassVar[str] = "Full fine-tuning"
    source: ClassVar[str] = "Ma et al., Segment Anything in Medical Images, Nature Communications 2024"
    family: ClassVar[str] = "selective"
    trained: ClassVar[str] = "image encoder and mask decoder, in a copy of SAM"
    pyramid: ClassVar[str] = "all weights of the encoder, the pyramid and the finer maps' projections"
    rates: ClassVar[str] = "AdamW 1e-4, decay 0.01"
    oracle: ClassVar[str] = "gradients of stock modules made trainable, 1e-3 of each"

    def groups(self) -> Mapping[str, str]:
        return {"tuner": "encoder", "decoder": "decoder"}

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return RetunedTuner(retuned(sam.image_encoder, lambda name: True)), RetunedDecoder(sam)
