"""SAM as it is, zero-shot: nothing to train."""

from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from bench.model.decoder import Decoder
from bench.model.method import Method
from bench.model.sam import Sam, Tuner


@METHODS.register("sam")
@dataclass(frozen=True)
class ZeroShot(Method):
    """The frozen SAM with its own single-mask token (`multimask_output=False`); the paper does not say which token it took."""

    title: ClassVar[str] = "SAM"
    trains: ClassVar[bool] = False
    source: ClassVar[str] = "Kirillov et al., Segment Anything, ICCV 2023"
    trained: ClassVar[str] = "nothing: zero-shot"
    oracle: ClassVar[str] = "segment-anything's decoder, 1e-5; its encoder bit for bit"

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return Tuner(), Decoder()
