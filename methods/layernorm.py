"""LayerNorm tuning (LN-Tune, Basu et al., AAAI 2024): the norms' scales and biases alone are tuned."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.grid.registry import METHODS
from bench.model.method import EncoderMethod
from bench.model.retuned import RetunedTuner, retuned
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import LayerNorm2d


@METHODS.register("layernorm")
@dataclass(frozen=True)
class LayerNormTuning(EncoderMethod):
    """Weight and bias of every LayerNorm of the image encoder: both of each block and, in place of a ViT's last one, the neck's
    two. Zhao et al. (Tuning LayerNorm in Attention, ICLR 2024) tune the same in language models.
    """

    title: ClassVar[str] = "LN-Tune"
    source: ClassVar[str] = "Basu et al., Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024"
    family: ClassVar[str] = "selective"
    trained: ClassVar[str] = "norms"
    pyramid: ClassVar[str] = "the blocks' norms; the pyramid has none, SAM 3 has one before its first block"
    oracle: ClassVar[str] = "gradients of stock modules made trainable, 1e-3 of each"

    def tuner(self, sam: Sam) -> Tuner:
        vit = sam.image_encoder
        norms = tuple(f"{name}." for name, module in vit.named_modules() if isinstance(module, nn.LayerNorm | LayerNorm2d))
        return RetunedTuner(retuned(vit, lambda name: name.startswith(norms)))
