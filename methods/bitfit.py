"""BitFit (Ben Zaken et al., ACL 2022): bias terms alone are tuned."""

from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from bench.model.method import EncoderMethod
from bench.model.retuned import RetunedTuner, retuned
from bench.model.sam import Sam, Tuner


@METHODS.register("bitfit")
@dataclass(frozen=True)
class BitFit(EncoderMethod):
    """All bias terms of the image encoder: of the patch embedding, of every block's projections, MLP and norms, and of the neck's
    norms (its convolutions have none). Relative positions are embeddings, not biases. The task's head, which BitFit trains too,
    is here the choice of a decoder.
    """

    title: ClassVar[str] = "BitFit"
    source: ClassVar[str] = "Ben Zaken et al., BitFit, ACL 2022"
    family: ClassVar[str] = "selective"
    trained: ClassVar[str] = "biases"
    pyramid: ClassVar[str] = "all biases; the pyramid's convolutions have some"
    rates: ClassVar[str] = "AdamW 1e-3 (BERT on GLUE)"
    oracle: ClassVar[str] = "gradients of stock modules made trainable, 1e-3 of each"

    def tuner(self, sam: Sam) -> Tuner:
        return RetunedTuner(retuned(sam.image_encoder, lambda name: name.endswith(".bias")))
