"""Full fine-tuning of SAM, as MedSAM (Ma et al., Nature Communications 2024) does it."""

from dataclasses import dataclass
from typing import ClassVar

from bench.decoder import Decoder
from bench.method import Method
from bench.registry import METHODS
from bench.retuned import RetunedDecoder, RetunedTuner, retuned
from bench.sam import Sam, Tuner


@METHODS.register("full")
@dataclass(frozen=True)
class FullFineTuning(Method):
    """Every weight of the image encoder, and of the mask decoder those that its single mask is made with. The prompt encoder is
    frozen: it already says all there is to say of a box or a point (MedSAM, "Model training").

    The upper bound in parameters, with a copy of SAM of its own: in memory, AdamW's two moments on top of it, and on disk.
    """

    title: ClassVar[str] = "Full fine-tuning"
    source: ClassVar[str] = "Ma et al., Segment Anything in Medical Images, Nature Communications 2024"
    retunes_backbone: ClassVar[bool] = True

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return RetunedTuner(retuned(sam.image_encoder, lambda name: True)), RetunedDecoder(sam)
