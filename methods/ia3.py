"""(IA)³ (Liu et al., NeurIPS 2022): keys, values and the MLP's hidden activations of every block, each channel times a learned number."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import places
from bench.model.method import EncoderMethod
from bench.model.placement import Placed, PlacedTuner
from bench.model.products import project
from bench.model.sam import Sam, Tuner, attend
from bench.model.sam_modules import Block, ImageEncoderViT


class IA3Tuner(PlacedTuner):
    """softmax(q·(l_k ⊙ k)ᵀ)·(l_v ⊙ v), and in the MLP W₂(l_ff ⊙ γ(W₁x)). keys l_k, values l_v: (N, C); hidden l_ff: (N, 4C); all 1 at
    first. Keys and values are scaled with their biases, which the paper's model does not have."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...]) -> None:
        super().__init__(sam, blocks)
        widths = [(size.width,) for size in self.sizes]
        self.keys, self.values = by_block(widths, nn.init.ones_), by_block(widths, nn.init.ones_)
        self.hidden = by_block([(block.mlp.lin1.out_features,) for _, block in self.of(sam.image_encoder)], nn.init.ones_)

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        x, _ = attend(block, x, qkv=lambda tokens: project(block.attn.qkv, tokens) * self._rows(i))
        mlp = block.mlp
        hidden = self.hidden[i] * mlp.act(project(mlp.lin1, block.norm2(x)))
        return project(mlp.lin2, hidden, onto=x), None

    def _rows(self, i: int) -> Tensor:
        """What the outputs of the fused projection are multiplied with, (3C,)."""
        return torch.cat([torch.ones_like(self.keys[i]), self.keys[i], self.values[i]])

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        tensors = {}
        for i, (name, block) in enumerate(self.of(vit)):
            rows = self._rows(i)
            tensors[f"{name}.attn.qkv.weight"] = block.attn.qkv.weight * rows[:, None]
            tensors[f"{name}.attn.qkv.bias"] = block.attn.qkv.bias * rows
            tensors[f"{name}.mlp.lin2.weight"] = block.mlp.lin2.weight * self.hidden[i]
        return tensors

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter:
        """On the fused projection, whose queries are times 1, and on what enters the MLP's second layer."""
        tensors = {}
        for i, (name, _) in enumerate(self.of(vit)):
            tensors[f"{name}.attn.qkv.ia3_l"] = self._rows(i)[:, None]
            tensors[f"{name}.mlp.lin2.ia3_l"] = self.hidden[i][None]
        return PeftAdapter({"peft_type": "IA3"}, tensors)

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tuner = cls(sam, places(adapter)[0])
        for i, (name, _) in enumerate(tuner.of(sam.image_encoder)):
            _, keys, values = adapter.tensors[f"{name}.attn.qkv.ia3_l"][:, 0].chunk(3)
            tuner.keys[i].copy_(keys)
            tuner.values[i].copy_(values)
            tuner.hidden[i].copy_(adapter.tensors[f"{name}.mlp.lin2.ia3_l"][0])
        return tuner


@METHODS.register("ia3")
@dataclass(frozen=True)
class IA3(Placed, EncoderMethod):
    """6·C numbers a block. Equal to Hugging Face peft's IA3 on k, v and the MLP's second layer."""

    title: ClassVar[str] = "(IA)³"
    source: ClassVar[str] = "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper, NeurIPS 2022 (arXiv 2205.05638)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a factor for each channel of k, v and the MLP"
    pyramid: ClassVar[str] = "at the width that the block gives"
    rates: ClassVar[str] = "Adafactor 3e-3"
    oracle: ClassVar[str] = "peft's IA3, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        return IA3Tuner(sam, self.placed(sam))
