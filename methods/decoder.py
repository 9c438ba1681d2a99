"""SAM's own mask decoder, tuned on the frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.model.decoder import Decoder
from bench.model.decoder_choice import DecoderChoice
from bench.model.method import LATER, Method
from bench.model.sam import Sam, Tuner


@METHODS.register("decoder")
@dataclass(frozen=True)
class DecoderTuning(Method):
    """All weights of the mask decoder that its single mask is made with; image and prompt encoder are frozen.

    The usual baseline beside encoder methods, which often tune the decoder as well: `lora(decoder=tuned)` is both.
    how: "tuned", or what else an encoder method's `decoder` has for SAM's own, "lora(rank=8)", "bitfit", "layernorm".
    """

    how: str = field(default="tuned", metadata=LATER)
    title: ClassVar[str] = "Decoder fine-tuning"
    source: ClassVar[str] = "Kirillov et al., Segment Anything, ICCV 2023 (the mask decoder)"
    family: ClassVar[str] = "decoder"
    trained: ClassVar[str] = "SAM's own mask decoder"
    pyramid: ClassVar[str] = "the single mask's weights; the two projections of finer maps are the encoder's here, computed once an image"
    oracle: ClassVar[str] = "gradients of stock modules made trainable, 1e-3 of each"

    def __post_init__(self) -> None:
        choice = DecoderChoice.of(self.how)
        if choice.name in ("sam", "hq"):
            raise RequestError(f"decoder(how={self.how}): a word that tunes SAM's own decoder is needed, as tuned or lora(rank=8).")
        object.__setattr__(self, "how", choice.text)

    def groups(self) -> Mapping[str, str]:
        return DecoderChoice.of(self.how).groups

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return Tuner(), DecoderChoice.of(self.how).build(sam)
