"""HQ-SAM as a tuning method: the HQ decoder alone on the frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from bench.model.decoder import Decoder, HQDecoder
from bench.model.method import Method
from bench.model.sam import Sam, Tuner


@METHODS.register("hq_sam")
@dataclass(frozen=True)
class HQSam(Method):
    """The HQ token and its maps learn, from PyTorch's default initialisation; the encoder is the frozen one."""

    title: ClassVar[str] = "HQ-SAM"
    source: ClassVar[str] = "Ke et al., Segment Anything in High Quality, NeurIPS 2023"

    def groups(self) -> Mapping[str, str]:
        return {"decoder": "hq"}

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return Tuner(), HQDecoder(sam)
