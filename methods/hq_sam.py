"""HQ-SAM as a tuning method: the HQ decoder alone on the frozen encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bench.grid.registry import METHODS
from bench.model import mask_maps
from bench.model.decoder import Decoder, HQDecoder, Init
from bench.model.method import LATER, Method
from bench.model.sam import Sam, Tuner


class SummedDecoder(HQDecoder):
    """The HQ decoder in training; after it, the logits of SAM's own single mask are added to those of the HQ mask.

    Both are products of weights and channels, so they are one product of the channels of both, HQ's first.
    """

    def weights(self, sam: Sam, out: Tensor) -> Tensor:
        weights = super().weights(sam, out)
        return weights if self.training else torch.cat([weights, Decoder.weights(self, sam, out)], -1)

    def masks(self, upscaled: Tensor, image_maps: Tensor | None, index: Tensor) -> Tensor:
        maps = super().masks(upscaled, image_maps, index)
        return maps if self.training else torch.cat([maps, upscaled], 1)

    def read(self, weights: Tensor, upscaled: Tensor) -> Tensor:
        channels = upscaled.shape[-1]
        masks = super().read(weights[:, :channels], upscaled)
        return masks if self.training else masks + mask_maps.masks(weights[:, channels:], upscaled)


@METHODS.register("hq_sam")
@dataclass(frozen=True)
class HQSam(Method):
    """The HQ token and its maps learn, from PyTorch's default initialisation, or from SAM-HQ's own weights (init=released, on a backbone
    such as hq_vit_l); the encoder is the frozen one.

    add_sam_logits: whether the logits of SAM's mask are added to the HQ mask's when a trained model predicts, as HQ-SAM's authors do
    for the numbers of their paper (their loss sees the HQ mask alone). Off, it is the HQ mask alone, as in CAT-SAM's decoder.
    """

    add_sam_logits: bool = field(default=False, metadata=LATER)
    init: Init = field(default="random", metadata=LATER)
    title: ClassVar[str] = "HQ-SAM"
    source: ClassVar[str] = "Ke et al., Segment Anything in High Quality, NeurIPS 2023"
    family: ClassVar[str] = "decoder"
    trained: ClassVar[str] = "the HQ decoder's parts"
    pyramid: ClassVar[str] = "reads the first global block, whose grid is the decoder's in every Hiera"
    rates: ClassVar[str] = "Adam 1e-3, decay 0"
    oracle: ClassVar[str] = "CAT-SAM's code, which has the same decoder, 1e-4"

    def groups(self) -> Mapping[str, str]:
        return {"decoder": "hq"}

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return Tuner(), (SummedDecoder if self.add_sam_logits else HQDecoder)(sam, self.init)
