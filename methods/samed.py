"""SAMed (Zhang & Liu, 2023): LoRA in the image encoder, the mask decoder fine-tuned, and no prompt."""

from dataclasses import dataclass
from typing import ClassVar

from bench.grid.registry import METHODS
from methods.lora import LoRA


@METHODS.register("samed")
@dataclass(frozen=True)
class SAMed(LoRA):
    """LoRA of rank 4 on q and v, unscaled; all weights of SAM's mask decoder that its mask is made with; and the prompt encoder's "no
    prompt" embedding, which is all that the decoder is told.

    The original predicts a mask for every class and the background, with a softmax over them; a cell here has one class, so it is SAM's
    single mask with a sigmoid. Its loss (0.8 Dice + 0.2 cross-entropy) and schedule (250 steps of warm-up, then polynomial) are no part.
    """

    decoder: str = "tuned"
    prompt_free: ClassVar[bool] = True
    title: ClassVar[str] = "SAMed"
    source: ClassVar[str] = "Zhang & Liu, Customized Segment Anything Model for Medical Image Segmentation, 2023 (arXiv 2304.13785)"
    trained: ClassVar[str] = "LoRA, SAM's mask decoder and its embedding of no prompt"
    pyramid: ClassVar[str] = "as `lora`"
    rates: ClassVar[str] = "AdamW 5e-3, decay 0.1"
    oracle: ClassVar[str] = "its authors' code, 1e-5"
