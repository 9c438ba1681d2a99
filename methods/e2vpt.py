"""E²VPT (Han et al., ICCV 2023): prompts among the image tokens, and among the keys and values of every attention."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.attention import KeyValues
from bench.model.by_block import by_block, of_each
from bench.model.dropout import Dropout
from bench.model.method import Count, EncoderMethod, Share
from bench.model.placement import Placed, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT
from methods.vpt import drawn


class E2VPTTuner(PlacedTuner):
    """New tokens for every tuned block, whose outputs are dropped, weighed by a mask that all blocks share: a number for each segment of
    each token. Keys and values of a block are the same vectors, (K, C)."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], tokens: int, pairs: int, segments: int, dropout: float) -> None:
        super().__init__(sam, blocks)
        self.tokens = by_block([(tokens, size.before) for size in self.sizes], partial(drawn, sam.config.patch_size))
        head = sam.config.blocks[0].width // sam.image_encoder.blocks[0].attn.num_heads  # channels, as many in all blocks
        bound = math.sqrt(6 / (pairs * head))  # He et al.'s initialisation of (heads, K, c)
        self.pairs = by_block([(pairs, size.width) for size in self.sizes], lambda tensor: tensor.uniform_(-bound, bound))
        self.mask = nn.Parameter(torch.ones(tokens, segments))
        self.dropout = Dropout(dropout)  # of tokens, as in the original

    def prepared(self, vit: ImageEncoderViT) -> list[tuple[Tensor, Tensor]]:
        """The weighed tokens, and the pairs, of each block: channel j is of segment j mod R, as in the original."""
        mask = self.mask[:, None]

        def weighed(tokens: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
            return (tokens.unflatten(-1, (-1, mask.shape[-1])) * mask).flatten(-2), pairs

        return of_each(weighed, self.tokens, self.pairs)

    def step(self, i: int, block: Block, x: Tensor, carry: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        tokens, pairs = carry[i]
        tokens = self.dropout(tokens.expand(len(x), -1, -1))  # (B, P, C)
        x, _ = attend(block, x, block.norm1(tokens), besides=KeyValues(pairs.expand(len(x), 2, -1, -1)))
        return feed_forward(block, x), carry


@METHODS.register("e2vpt")
@dataclass(frozen=True)
class E2VPT(Placed, EncoderMethod):
    """`tokens` prompts for every block, as VPT-deep has them, with a learned soft mask of their `segments`; and `pairs` learned keys,
    which are the values too (the paper's parameter sharing), that every window's attention sees.

    This is what the original trains before it prunes. Its other mask, a number for each whole token, is left out: the norm in front of
    attention undoes it, so that it has no gradient but rounding (1e-4 of the segments', in the authors' code).
    """

    tokens: Count = 5
    pairs: Count = 5
    segments: Count = 16
    dropout: Share = 0.1
    space: ClassVar[Space] = {"tokens": OneOf((1, 5, 10, 50)), "pairs": OneOf((1, 5, 10, 50))}
    family: ClassVar[str] = "prompt"
    title: ClassVar[str] = "E²VPT"
    source: ClassVar[str] = "Han et al., E²VPT: An Effective and Efficient Approach for Visual Prompt Tuning, ICCV 2023"
    trained: ClassVar[str] = "prompt tokens, keys and values at every block, and a mask of the tokens"
    pyramid: ClassVar[str] = "tokens have the width that the block gets, keys and values the one it gives; they are not pooled"
    rates: ClassVar[str] = "SGD, searched: rate and decay (0 to 0.01)"
    oracle: ClassVar[str] = "its authors' code, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        blocks = self.placed(sam)
        if wrong := sorted(width for i in blocks if (width := sam.config.blocks[i].before) % self.segments):
            raise RequestError(f"{self.name}(segments={self.segments}): tokens of {wrong[0]} channels cannot be cut into so many alike.")
        return E2VPTTuner(sam, blocks, self.tokens, self.pairs, self.segments, self.dropout)
