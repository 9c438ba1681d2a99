"""DoRA (Liu et al., ICML 2024): LoRA turns the rows of a linear layer's weight, and their lengths are learned apart."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import LAYERS, THIRDS, part
from bench.model.method import LATER, Count, EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.products import Projection, project
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT
from methods.lora import LoRATuner, by_parts


class DoRATuner(LoRATuner):
    """W' = m·(W + s·BA) / ‖W + s·BA‖, row by row: a row is what makes one output. The bias stays as it is.

    a, b and so on as LoRA's; magnitude m: (N, n, o) of the n parts of "qkv", proj_magnitude and so on those of the other layers, which
    start as ‖W‖. As the paper's section 4.3 has it, no gradient goes through the norm.
    """

    peft_axes: ClassVar = {**LoRATuner.peft_axes, "lora_magnitude_vector": "o"}

    def __init__(self, sam: Sam, blocks: tuple[int, ...], rank: int, scale: float, targets: tuple[str, ...] = ("q", "v")) -> None:
        super().__init__(sam, blocks, rank, scale, targets)
        tuned = [block for _, block in self.of(sam.image_encoder)]
        for name, parts in self.parts.items():
            weights = [by_parts(name, block.get_submodule(LAYERS[name]).weight)[list(parts)] for block in tuned]
            self._add(name, "magnitude", by_block([weight.shape[:2] for weight in weights], torch.Tensor.zero_))
            for i, weight in enumerate(weights):
                self.own(name, "magnitude", i).data.copy_(torch.linalg.vector_norm(weight, dim=-1))

    def around(self, i: int, layer: nn.Linear, name: str) -> Projection:
        at = list(self.parts[name])
        a, b = self.terms(name, i)
        bias = by_parts(name, layer.bias)[at]
        gain = self.own(name, "magnitude", i) / self._lengths(i, layer, name)  # (n, o)

        def projection(tokens: Tensor) -> Tensor:
            out = list(project(layer, tokens).chunk(3 if name == "qkv" else 1, -1))
            for j, third in enumerate(at):
                out[third] = bias[j] + gain[j] * (out[third] - bias[j] + self.scale * (tokens @ a[j].T @ b[j].T))
            return torch.cat(out, -1)

        return projection

    @torch.no_grad()
    def _lengths(self, i: int, layer: nn.Linear, name: str) -> Tensor:
        """‖W + s·BA‖, (n, o)."""
        a, b = self.terms(name, i)
        return torch.linalg.vector_norm(by_parts(name, layer.weight)[list(self.parts[name])] + self.scale * (b @ a), dim=-1)

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        directions, layer = super().merged_layer(i, name, weight), "qkv" if name in THIRDS else name
        gain = self.own(layer, "magnitude", i)[self._at(name)] / torch.linalg.vector_norm(directions, dim=-1)
        return gain[:, None] * directions

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        length = self.own("qkv" if name in THIRDS else name, "magnitude", i)[self._at(name)]
        return {**super().peft_part(i, name), "lora_magnitude_vector": length}

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config, shared = super().peft_whole()
        return {**config, "use_dora": True}, shared

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        """As LoRA's, with the lengths of all rows: those of what is not tuned as they are."""
        adapter = super().peft(vit)
        for _, path, names in self.whole(vit):
            for third in {*THIRDS} - {*names} if path.endswith("qkv") else ():
                own = part(vit.get_submodule(path).weight, third)
                part(adapter.tensors[f"{path}.lora_magnitude_vector"], third).copy_(torch.linalg.vector_norm(own, dim=-1))
        return adapter


@METHODS.register("dora")
@dataclass(frozen=True)
class DoRA(PlacedInLayers, EncoderMethod):
    """Rank `rank`, scaled by alpha/rank; alpha 0 means alpha = rank. Equal to Hugging Face peft's DoRA on the same layers.

    The paper tunes language models, at ranks of 16 and 32. Here the layers and the rank are those of `lora`, so that the two methods
    differ in nothing else. No dropout. targets: as `lora` has them.
    """

    rank: Count = 4
    alpha: float = 0.0
    space: ClassVar[Space] = {"rank": OneOf((2, 4, 8, 16))}
    targets: str = field(default="q+v", metadata=LATER)
    title: ClassVar[str] = "DoRA"
    source: ClassVar[str] = "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024 (arXiv 2402.09353)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank additions to q and v, with the rows' lengths learned apart"
    pyramid: ClassVar[str] = "as `lora`"
    rates: ClassVar[str] = "2e-4 (LLaMA-2 7B)"
    oracle: ClassVar[str] = "peft's DoRA, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        return DoRATuner(sam, self.placed(sam), self.rank, (self.alpha or self.rank) / self.rank, self.targeted)
