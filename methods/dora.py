"""DoRA (Liu et al., ICML 2024): LoRA turns the rows of a linear layer's weight, and their lengths are learned apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import by_block, of_each
from bench.model.hugging_face import PeftAdapter
from bench.model.linear_layers import LAYERS, THIRDS, Prepared, part
from bench.model.method import LATER, Count, EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.products import Projection
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT
from bench.model.scaling import scaled_onto
from methods.lora import LoRATuner, by_parts, count_of


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

    def prepared(self, vit: ImageEncoderViT) -> Prepared:
        return {
            name: [sum(of, ()) for of in zip(added, self._gains(name, vit), strict=True)] for name, added in super().prepared(vit).items()
        }

    def _gains(self, name: str, vit: ImageEncoderViT) -> list[tuple[Tensor, Tensor]]:
        """Of each tuned block's layer m / ‖W + s·BA‖, and the bias without what that makes of it, both (3C or o,)."""
        at, layers = self.parts[name], [block.get_submodule(LAYERS[name]) for _, block in self.of(vit)]
        tuned = slice(at[0], at[-1] + 1, at[-1] - at[0] if len(at) == 2 else 1)
        biases = [by_parts(name, layer.bias)[tuned] for layer in layers]
        with torch.no_grad():
            rows = (
                torch.baddbmm(by_parts(name, layer.weight)[tuned], b, a, alpha=self.scale)
                for layer, (a, b) in zip(layers, [self.terms(name, i) for i in range(len(layers))], strict=True)
            )
            lengths = [torch.linalg.vector_norm(row, dim=-1) for row in rows]  # (n, o) each
        return of_each(partial(_gains, range(count_of(name)), at), getattr(self, self._named(name, "magnitude")), lengths, biases)

    def around(self, layer: nn.Linear, down: Tensor, up: Tensor, *more: Tensor) -> Projection:
        adding, (gain, rest) = super().around(layer, down, up), more
        return lambda tokens: scaled_onto(rest, adding(tokens), gain)

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
        assert adapter  # on all layers
        for _, path, names in self.whole(vit):
            for third in {*THIRDS} - {*names} if path.endswith("qkv") else ():
                own = part(vit.get_submodule(path).weight, third)
                part(adapter.tensors[f"{path}.lora_magnitude_vector"], third).copy_(torch.linalg.vector_norm(own, dim=-1))
        return adapter


def _gains(parts: Sequence[int], tuned: Sequence[int], magnitude: Tensor, length: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gains of all of a layer's parts from those of the tuned ones, (…, n, o), and what is left of the bias, (…, all outputs)."""
    gain = magnitude / length
    gains, rest = (dict(zip(tuned, of.unbind(-2), strict=True)) for of in (gain, bias - gain * bias))
    one = torch.ones_like(gains[tuned[0]])
    return torch.cat([gains.get(at, one) for at in parts], -1), torch.cat([rest.get(at, 0 * one) for at in parts], -1)


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
