"""LoRA (Hu et al., ICLR 2022) on the query and value projections of every block."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.method import LATER, EncoderMethod
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT


def uniform_rows(matrices: Tensor) -> None:
    """Fills matrices (…, r, C) as PyTorch starts a linear layer of C inputs."""
    nn.init.kaiming_uniform_(matrices.view(-1, matrices.shape[-1]), a=math.sqrt(5))


class LoRATuner(Tuner):
    """q + s·B_q A_q x and v + s·B_v A_v x around the frozen projection, which is called and never replaced.

    a: (N, 2, r, C), b: (N, 2, C, r) of the N blocks from `first_block` on, or one each block where they differ in width; index 0 is q, 1
    is v.
    """

    def __init__(self, sam: Sam, rank: int, scale: float, first_block: int = 0) -> None:
        super().__init__()
        blocks = sam.config.blocks[first_block:]
        self.scale, self.first_block = scale, first_block
        self.a = by_block([(2, rank, block.before) for block in blocks], uniform_rows)
        self.b = by_block([(2, block.width, rank) for block in blocks], nn.init.zeros_)

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        at = i - self.first_block
        if at < 0:
            return super().step(i, block, x, carry)
        down, up = self.a[at].flatten(0, 1), self.b[at]  # (2r, C), (2, C, r)
        to_q, to_v = (up if self.scale == 1 else self.scale * up).mT  # each (r, C)
        none = torch.zeros_like(to_q)
        to_qkv = torch.cat([torch.cat([to_q, none, none], 1), torch.cat([none, none, to_v], 1)])  # (2r, 3C)

        def qkv(tokens: Tensor) -> Tensor:
            frozen, low = project(block.attn.qkv, tokens), tokens @ down.T
            return torch.addmm(frozen.flatten(0, -2), low.flatten(0, -2), to_qkv).view(frozen.shape)  # one pass over a wide map

        x, _ = attend(block, x, qkv=qkv)
        return feed_forward(block, x), None

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        found = {}
        for i, block in enumerate(vit.blocks[self.first_block :]):
            weight = block.attn.qkv.weight  # (3C, C)
            q, k, v = weight.double().chunk(3)
            to_q, to_v = (self.scale * (b.double() @ a.double()) for a, b in zip(self.a[i], self.b[i], strict=True))
            found[f"blocks.{self.first_block + i}.attn.qkv.weight"] = torch.cat([q + to_q, k, v + to_v]).to(weight.dtype)
        return found

    @torch.no_grad()
    def peft(self, vit: ImageEncoderViT) -> PeftAdapter:
        """Of rank 2r on the fused projection: q's rows read the first r channels, v's the others, k's none."""
        tensors, rank = {}, self.a[0].shape[1]
        for i, (a, b) in enumerate(zip(self.a, self.b, strict=True), self.first_block):
            up = b.new_zeros(3, b.shape[1], 2, rank)  # (q k v, C, of q and v, r)
            up[0, :, 0], up[2, :, 1] = b
            tensors[f"blocks.{i}.attn.qkv.lora_A.weight"] = a.detach().flatten(0, 1)
            tensors[f"blocks.{i}.attn.qkv.lora_B.weight"] = up.flatten(2).flatten(0, 1)
        return PeftAdapter({"peft_type": "LORA", "r": 2 * rank, "lora_alpha": 2 * rank * self.scale}, tensors)

    @classmethod
    @torch.no_grad()
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        """The tuner that `peft` made an adapter of; whether it did is seen by making it once more."""
        tensors, rank = adapter.tensors, adapter.config["r"] // 2
        first = min(int(name.split(".")[1]) for name in tensors)
        tuner = cls(sam, rank, adapter.config["lora_alpha"] / adapter.config["r"], *([first] if first else []))
        for i in range(sam.config.depth - first):
            up = tensors[f"blocks.{first + i}.attn.qkv.lora_B.weight"].unflatten(0, (3, -1)).unflatten(2, (2, rank))
            tuner.a[i].copy_(tensors[f"blocks.{first + i}.attn.qkv.lora_A.weight"].unflatten(0, (2, rank)))
            tuner.b[i].copy_(torch.stack([up[0, :, 0], up[2, :, 1]]))
        return tuner


@METHODS.register("lora")
@dataclass(frozen=True)
class LoRA(EncoderMethod):
    """Rank `rank`, scaled by alpha/rank; alpha 0 means alpha = rank. Equal to Hugging Face peft's LoRA on the same layers.

    first_block: the first one that is tuned, counted from 0; what the blocks before it say of an image is computed once and kept.
    """

    rank: int = 4
    alpha: float = 0.0
    space: ClassVar[Space] = {"rank": OneOf((2, 4, 8, 16))}
    first_block: int = field(default=0, metadata=LATER)
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al., LoRA, ICLR 2022"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank additions to q and v"
    pyramid: ClassVar[str] = "A reads the width that the block gets, B writes the one it gives"
    rates: ClassVar[str] = "AdamW 5e-4, decay 0.1 (RoBERTa on MNLI)"
    oracle: ClassVar[str] = "peft's LoRA, 1e-4"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rank=1, first_block=0)

    def tuner(self, sam: Sam) -> Tuner:
        self.at_most(first_block=sam.config.depth - 1)
        return LoRATuner(sam, self.rank, (self.alpha or self.rank) / self.rank, self.first_block)
