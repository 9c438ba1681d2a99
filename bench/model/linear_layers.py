"""Tuners that compute some of a block's linear layers otherwise: its q, k and v, which are thirds of one, its output's and its MLP's."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.model.hugging_face import PeftAdapter
from bench.model.placement import PlacedTuner
from bench.model.products import Projection, product
from bench.model.sam import attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT

THIRDS = ("q", "k", "v")
LAYERS = {
    **dict.fromkeys(("qkv", *THIRDS), "attn.qkv"),
    "proj": "attn.proj",
    "lin1": "mlp.lin1",
    "lin2": "mlp.lin2",
}  # their names in a block


def part(of_layer: Tensor, name: str) -> Tensor:
    """A view of what one of LAYERS is of the weight (o, c), bias or output's channels (o,) of its whole layer."""
    return of_layer.chunk(3)[THIRDS.index(name)] if name in THIRDS else of_layer


def weight_of(block: Block, name: str) -> Tensor:
    """The frozen weight (o, c) of one of LAYERS."""
    return part(block.get_submodule(LAYERS[name]).weight, name)


def bias_of(block: Block, name: str) -> Tensor:
    """The frozen bias (o,) of one of LAYERS."""
    return part(block.get_submodule(LAYERS[name]).bias, name)


class LinearTuner(PlacedTuner):
    """Computes `layers` otherwise in every tuned block.

    layers: by their names in LAYERS, either "qkv" or thirds of it, what is trained for each, an nn.ModuleDict; of a tuner that has `layer`
    and `merged_layer` of its own their names are enough. It is called with the number of a tuned block,
    its weight (o, c) and bias (o,) for what stands in for the layer; `merged(i, weight)` is the weight with which a linear layer does that.
    """

    layers: Any

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        x, _ = attend(block, x, qkv=self.qkv(i, block), proj=self.layer(i, block, "proj"))
        return feed_forward(block, x, self.layer(i, block, "lin1"), self.layer(i, block, "lin2")), None

    def layer(self, i: int, block: Block, name: str) -> Projection | None:
        """What stands in for block i's layer; None where it stays as it is."""
        return self.layers[name](i, weight_of(block, name), bias_of(block, name)) if name in self.layers else None

    def qkv(self, i: int, block: Block) -> Projection | None:
        """The same of q, k and v together, (…, C) -> (…, 3C)."""
        if not any(name in self.layers for name in THIRDS):
            return self.layer(i, block, "qkv")
        thirds = [
            self.layer(i, block, name) or partial(product, weight=weight_of(block, name), bias=bias_of(block, name)) for name in THIRDS
        ]
        return lambda tokens: torch.cat([third(tokens) for third in thirds], -1)

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, (above, block) in enumerate(self.of(vit)):
            for name in self.layers:
                whole = f"{above}.{LAYERS[name]}.weight"
                found.setdefault(whole, weight_of(block, "qkv" if name in THIRDS else name).clone())
                part(found[whole], name).copy_(self.merged_layer(i, name, weight_of(block, name).double()))
        return found

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        """The weight (o, c), as precise as the frozen one that is given, with which a linear layer does what this one does."""
        merged: Tensor = self.layers[name].merged(i, weight)
        return merged


def places(adapter: PeftAdapter) -> tuple[tuple[int, ...], list[str]]:
    """The numbers of the blocks, and the names in LAYERS, that an adapter has tensors for."""
    parts = [name.split(".") for name in adapter.tensors if name.startswith("blocks.")]  # blocks, 0, attn, qkv, oft_R, weight
    return tuple(sorted({int(words[1]) for words in parts})), sorted({words[3] for words in parts})
