"""Explicit visual prompting (Liu et al., CVPR 2023), and SAM-Adapter (Chen et al., ICCVW 2023), which takes it to SAM."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.model.by_block import by_width, of_width, regridded
from bench.model.method import Count, EncoderMethod
from bench.model.placement import Placed, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block
from methods.cat_sam import high_pass, linear, patch_filters


class ExplicitTuner(PlacedTuner):
    """P_i = Up(GELU(Tune_i(F_pe + F_hfc))) is added to the input of block i, with Up shared by all blocks.

    F_pe: a linear projection of the patch embedding, positions not yet added; F_hfc: the high-frequency components of the normalised
    image (what is left without the centred quarter of its spectrum), a patch embedding of their own. Both (B, g, g, C/reduction).

    On a backbone whose blocks differ, both are on the decoder's grid, and P_i is brought to the block's; blocks of one width have an Up of
    their own.
    """

    def __init__(self, sam: Sam, blocks: tuple[int, ...], reduction: int) -> None:
        super().__init__(sam, blocks)
        config = sam.config
        e = config.width // reduction
        self.grid = config.grid
        self.embedding, self.handcrafted = linear(config.blocks[0].before, e), patch_filters(config.patch_size, e)
        self.tune = nn.ModuleList(linear(e, e) for _ in blocks)
        self.up = by_width(self.sizes, lambda width: linear(e, width))

    def begin(self, image: Tensor, x: Tensor) -> Tensor:
        return self.embedding(regridded(x, self.grid)) + self.handcrafted(high_pass(image)).permute(0, 2, 3, 1)

    def step(self, i: int, block: Block, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        prompt = of_width(self.up, x.shape[-1])(F.gelu(self.tune[i](carry)))  # (B, g, g, C)
        return feed_forward(block, attend(block, x + regridded(prompt, x.shape[1]))[0]), carry


@dataclass(frozen=True)
class Explicit(Placed, EncoderMethod):
    """What EVP and SAM-Adapter have in common: all of what they add to the encoder."""

    reduction: Count = 32

    def tuner(self, sam: Sam) -> Tuner:
        self.at_most(reduction=sam.config.width)  # this backbone's
        return ExplicitTuner(sam, self.placed(sam), self.reduction)


@METHODS.register("evp")
@dataclass(frozen=True)
class EVP(Explicit):
    """The authors' plain-ViT variant: high-pass filter with a mask of a quarter, prompts at every block, reduction 32 (on SegFormer's
    narrower stages they take 4), their initialisation; it does not start as the frozen model.

    The original trains its segmentation head, which SAM does not have; here `decoder` says what is trained beside the encoder.
    """

    title: ClassVar[str] = "EVP"
    source: ClassVar[str] = "Liu et al., Explicit Visual Prompting for Low-Level Structure Segmentations, CVPR 2023 (arXiv 2303.10883)"
    family: ClassVar[str] = "prompt"
    trained: ClassVar[str] = "prompts of patch embedding and high frequencies before every block"
    pyramid: ClassVar[str] = (
        "features on the decoder's grid; a prompt is repeated or averaged to the block's grid, and blocks of one width share an Up"
    )
    rates: ClassVar[str] = "AdamW 5e-4 (shadows)"
    oracle: ClassVar[str] = "its formula, 1e-4"


@METHODS.register("sam_adapter")
@dataclass(frozen=True)
class SamAdapter(Explicit):
    """What the paper describes: EVP's prompts, with the same defaults, before every block of SAM's encoder, windowed or global, made of
    the patch embedding and the high-frequency components.

    The released code is not that. Before its prompts' linear layer it reads the patch embedding (B, g, g, C) as (B, C, g·g) without
    turning it, so that an entry of F_pe is a mixture of channels and places. With the same weights its encoder's output and this one
    are up to 2.4e-2 apart; with that one line mended, 8e-7. Nothing here repeats it: numbers of the released code are of its own.

    The original differs from EVP in the decoder: SAM's own mask decoder is trained too, from SAM's weights, and no prompts are given.
    So `decoder` is "tuned" unless said otherwise; prompts are given here, as to every method.
    """

    decoder: str = "tuned"
    title: ClassVar[str] = "SAM-Adapter"
    source: ClassVar[str] = "Chen et al., SAM-Adapter: Adapting Segment Anything in Underperformed Scenes, ICCVW 2023 (arXiv 2304.09148)"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "EVP's prompts, and SAM's mask decoder"
    pyramid: ClassVar[str] = "as `evp`"
    rates: ClassVar[str] = "AdamW 2e-4"
    oracle: ClassVar[str] = "its formula, 1e-4"
