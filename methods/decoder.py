"""SAM's own mask decoder, fine-tuned on the frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from bench.model.decoder import Decoder
from bench.model.method import Method
from bench.model.retuned import RetunedDecoder
from bench.model.sam import Sam, Tuner


@METHODS.register("decoder")
@dataclass(frozen=True)
class DecoderTuning(Method):
    """All weights of the mask decoder that its single mask is made with; image and prompt encoder are frozen.

    The usual baseline beside encoder methods, which often tune the decoder as well: `lora(decoder=tuned)` is both.
    """

    title: ClassVar[str] = "Decoder fine-tuning"
    source: ClassVar[str] = "Kirillov et al., Segment Anything, ICCV 2023 (the mask decoder)"
    family: ClassVar[str] = "decoder"
    trained: ClassVar[str] = "SAM's own mask decoder"
    pyramid: ClassVar[str] = "the single mask's weights; the two projections of finer maps are the encoder's here, computed once an image"
    oracle: ClassVar[str] = "gradients of stock modules made trainable, 1e-3 of each"

    def groups(self) -> Mapping[str, str]:
        return {"decoder": "decoder"}

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return Tuner(), RetunedDecoder(sam)
