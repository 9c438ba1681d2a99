"""Visual prompt tuning (Jia et al., ECCV 2022): learnable tokens that the image tokens attend to."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.attention import KeyValues
from bench.model.by_block import by_block
from bench.model.dropout import Dropout
from bench.model.method import LATER, Count, EncoderMethod, Share
from bench.model.placement import Placed, PlacedTuner
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend, feed_forward, residual
from bench.model.sam_modules import Block


class DeepTuner(PlacedTuner):
    """New tokens for every tuned block; what the block makes of them is dropped. gated: the image reads them by a softmax of its own,
    times a number for each head that starts at 0."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], tokens: int, dropout: float, gated: bool) -> None:
        super().__init__(sam, blocks)
        self.tokens = by_block([(tokens, size.before) for size in self.sizes], partial(drawn, sam.config.patch_size))
        self.dropout = Dropout(dropout)
        heads = [sam.image_encoder.blocks[n].attn.num_heads for n in blocks]
        self.gates = by_block([(count,) for count in heads], nn.init.zeros_) if gated else None

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        tokens = block.norm1(self.dropout(self.tokens[i].expand(len(x), -1, -1)))  # (B, P, C)
        if self.gates is None:
            return feed_forward(block, attend(block, x, tokens)[0]), None
        _, keys, values = project(block.attn.qkv, tokens).chunk(3, -1)
        besides = KeyValues(torch.stack([keys, values], 1), self.gates[i].tanh())
        return feed_forward(block, attend(block, x, besides=besides)[0]), None


class ShallowTuner(Tuner):
    """Tokens that enter at the first block and travel on: attention and MLP with their residuals, like image tokens. A block that widens
    image tokens widens them too; none are pooled."""

    def __init__(self, sam: Sam, tokens: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(drawn(sam.config.patch_size, torch.empty(tokens, sam.config.blocks[0].before)))
        self.dropout = Dropout(dropout)

    def begin(self, image: Tensor, x: Tensor) -> Tensor:
        return self.dropout(self.tokens.expand(len(x), -1, -1))  # (B, P, C)

    def step(self, i: int, block: Block, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        x, attended = attend(block, x, block.norm1(carry))
        return feed_forward(block, x), feed_forward(block, residual(block, carry) + attended)


@dataclass(frozen=True)
class VPT(EncoderMethod):
    """What both have in common. Dropout is drawn for each image, as in the original; that is revision 2 where there is any."""

    space: ClassVar[Space] = {"tokens": OneOf((1, 5, 10, 50))}
    tokens: Count = 5
    dropout: Share = 0.0
    source: ClassVar[str] = "Jia et al., Visual Prompt Tuning, ECCV 2022"
    also_loads: ClassVar[tuple[int, ...]] = (1,)
    family: ClassVar[str] = "prompt"
    rates: ClassVar[str] = "SGD, searched: 0.1 to 50 × batch/256, decay 0 to 0.01"
    oracle: ClassVar[str] = "its formula, 1e-4"

    @property
    def revision(self) -> int:  # type: ignore[override]
        """1: one dropout mask for all images of a batch, which is the same where there is no dropout."""
        return 2 if self.dropout else 1


@METHODS.register("vpt_shallow")
@dataclass(frozen=True)
class VPTShallow(VPT):
    """`tokens` prompt tokens in front of the first block (p·C parameters).

    The paper leaves windowed ViTs open. Here every window of a block sees a copy of the tokens, and the copies are averaged
    over the windows of an image afterwards, so that `tokens` tokens per image leave the block (VPT's rule for Swin).
    Tokens are drawn from U(-v, v), v = sqrt(6 / (3·patch² + C)), pass norm1 like any token, and have no position.
    """

    title: ClassVar[str] = "VPT-shallow"
    trained: ClassVar[str] = "prompt tokens at the first block"
    pyramid: ClassVar[str] = "tokens have the first block's width; a block that widens image tokens widens them, none are pooled"

    def tuner(self, sam: Sam) -> Tuner:
        return ShallowTuner(sam, self.tokens, self.dropout)


@METHODS.register("vpt_deep")
@dataclass(frozen=True)
class VPTDeep(Placed, VPT):
    """`tokens` new prompt tokens for every block (N·p·C parameters), initialised as in VPTShallow.

    gated: with the zero-initialised attention of LLaMA-Adapter (Zhang et al., ICLR 2024), so that it starts as the frozen model.
    """

    gated: bool = field(default=False, metadata=LATER)
    title: ClassVar[str] = "VPT-deep"
    trained: ClassVar[str] = "prompt tokens at every block"
    pyramid: ClassVar[str] = "tokens have the width that the block gets; they are not pooled"

    def tuner(self, sam: Sam) -> Tuner:
        return DeepTuner(sam, self.placed(sam), self.tokens, self.dropout, self.gated)


def drawn(patch: int, tokens: Tensor) -> Tensor:
    bound = math.sqrt(6 / (3 * patch * patch + tokens.shape[-1]))
    return tokens.uniform_(-bound, bound)
