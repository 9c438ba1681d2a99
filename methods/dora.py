"""DoRA (Liu et al., ICML 2024): LoRA turns the rows of the query and value projections, and their lengths are learned apart."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.method import EncoderMethod
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT
from methods.lora import LoRATuner


class DoRATuner(LoRATuner):
    """W' = m·(W + s·BA) / ‖W + s·BA‖, row by row: a row is what makes one output. The bias stays as it is.

    a: (N, 2, r, C), b: (N, 2, C, r) as LoRA's, magnitude m: (N, 2, C), which starts as ‖W‖; index 0 is q, 1 is v. As the paper's section
    4.3 has it, no gradient goes through the norm.
    """

    def __init__(self, sam: Sam, rank: int, scale: float) -> None:
        super().__init__(sam, rank, scale)
        self.magnitude = by_block([(2, block.width) for block in sam.config.blocks], torch.Tensor.zero_)
        for own, block in zip(self.magnitude, sam.image_encoder.blocks, strict=True):
            own.data.copy_(torch.linalg.vector_norm(_query_and_value(block.attn.qkv.weight), dim=-1))

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        gain = self._gain(i, block, self._directions(i, block))  # (2, C)
        bias = _query_and_value(block.attn.qkv.bias)

        def qkv(tokens: Tensor) -> Tensor:
            q, k, v = project(block.attn.qkv, tokens).chunk(3, -1)
            q, v = (
                bias[j] + gain[j] * (frozen - bias[j] + self.scale * (tokens @ self.a[i][j].T @ self.b[i][j].T))
                for j, frozen in enumerate((q, v))
            )
            return torch.cat([q, k, v], -1)

        x, _ = attend(block, x, qkv=qkv)
        return feed_forward(block, x), None

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        tensors = {}
        for i, block in enumerate(vit.blocks):
            directions = self._directions(i, block)
            q, v = self._gain(i, block, directions)[..., None] * directions
            tensors[f"blocks.{i}.attn.qkv.weight"] = torch.cat([q, block.attn.qkv.weight.chunk(3)[1], v])
        return tensors

    @torch.no_grad()
    def peft(self, vit: ImageEncoderViT) -> PeftAdapter:
        """As LoRA's, with the lengths of all rows: those of k as they are."""
        config, tensors = super().peft(vit)
        for i, block in enumerate(vit.blocks):
            k = torch.linalg.vector_norm(block.attn.qkv.weight.chunk(3)[1], dim=-1)
            q, v = self.magnitude[i].detach()
            tensors[f"blocks.{i}.attn.qkv.lora_magnitude_vector"] = torch.cat([q, k, v])
        return PeftAdapter({**config, "use_dora": True}, tensors)

    @classmethod
    @torch.no_grad()
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tuner = super().of_peft(sam, adapter)
        for i, magnitude in enumerate(tuner.magnitude):
            q, _, v = adapter.tensors[f"blocks.{i}.attn.qkv.lora_magnitude_vector"].chunk(3)
            magnitude.copy_(torch.stack([q, v]))
        return tuner

    @torch.no_grad()
    def _directions(self, i: int, block: Block) -> Tensor:
        """W + s·BA of q and v, (2, C, C)."""
        return _query_and_value(block.attn.qkv.weight) + self.scale * (self.b[i] @ self.a[i])

    def _gain(self, i: int, block: Block, directions: Tensor) -> Tensor:
        """m / ‖W + s·BA‖, (2, C)."""
        return self.magnitude[i] / torch.linalg.vector_norm(directions, dim=-1)


def _query_and_value(fused: Tensor) -> Tensor:
    """The first and the last third of a fused projection's weight or bias: (3C, …) -> (2, C, …)."""
    q, _, v = fused.chunk(3)
    return torch.stack([q, v])


@METHODS.register("dora")
@dataclass(frozen=True)
class DoRA(EncoderMethod):
    """Rank `rank`, scaled by alpha/rank; alpha 0 means alpha = rank. Equal to Hugging Face peft's DoRA on the same layers.

    The paper tunes language models, at ranks of 16 and 32. Here the layers and the rank are those of `lora`, so that the two methods
    differ in nothing else. No dropout.
    """

    rank: int = 4
    alpha: float = 0.0
    space: ClassVar[Space] = {"rank": OneOf((2, 4, 8, 16))}
    title: ClassVar[str] = "DoRA"
    source: ClassVar[str] = "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024 (arXiv 2402.09353)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank additions to q and v, with the rows' lengths learned apart"
    pyramid: ClassVar[str] = "as `lora`"
    rates: ClassVar[str] = "2e-4 (LLaMA-2 7B)"
    oracle: ClassVar[str] = "peft's DoRA, 1e-4"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rank=1)

    def tuner(self, sam: Sam) -> Tuner:
        return DoRATuner(sam, self.rank, (self.alpha or self.rank) / self.rank)
