"""RepAdapter (Luo et al., 2023): a linear bottleneck in front of the attention's and the MLP's first layer, into which it merges."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import of_each
from bench.model.dropout import Dropout
from bench.model.linear_layers import LAYERS, LinearTuner, Prepared
from bench.model.method import Count, EncoderMethod, Share
from bench.model.placement import PlacedInHalves
from bench.model.products import Projection, project
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT

FIRST = {"attention": "qkv", "mlp": "lin1"}  # layers of a half


class Adapter(nn.Module):
    """x + s·(Up(dropout(Down(x))) + shift), whose Up is in groups: each writes its part of the channels from its part of the bottleneck."""

    def __init__(self, width: int, method: "RepAdapter") -> None:
        super().__init__()
        groups, self.scale, self.dropout = method.up_groups, method.scale, Dropout(method.dropout)
        self.down = nn.Linear(width, method.hidden)
        self.up = nn.Parameter(torch.zeros(groups, width // groups, method.hidden // groups))
        self.shift = nn.Parameter(torch.zeros(width))
        self.own = nn.Buffer(method.scale * torch.eye(groups)[:, None, :, None], persistent=False)  # 0 for other groups' parts
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def scaled(self, up: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """s·Up (…, C, hidden), zero where a group reads another's part, and s·shift (…, C)."""
        return (self.own * up[..., None, :]).flatten(-2).flatten(-3, -2), self.scale * shift

    def before(self, layer: nn.Linear, images: int, up: Tensor, shift: Tensor) -> Projection:
        """The layer with the adapter in front, for tokens of so many images, one after the other; of `scaled`."""
        return lambda x: project(layer, x + F.linear(self.dropout.of_tokens(self.down(x), images), up, shift))

    def merged(self, layer: nn.Linear) -> dict[str, Tensor]:
        """The layer's weight and bias with which it is the whole."""
        weight, up, shift = (tensor.double() for tensor in (layer.weight, *self.scaled(self.up, self.shift)))
        bias = layer.bias + weight @ (up @ self.down.bias.double() + shift)
        return {"weight": (weight + weight @ up @ self.down.weight.double()).float(), "bias": bias.float()}


class RepAdapterTuner(LinearTuner):
    """adapters: by the layer that they stand before, one for each tuned block; between norm1 and q, k and v, and between norm2 and lin1."""

    def __init__(self, sam: Sam, method: "RepAdapter") -> None:
        super().__init__(sam, method.placed(sam))
        halves = self.in_halves(method.targeted, lambda width, _: Adapter(width, method))
        self.adapters: Any = nn.ModuleDict({FIRST[half]: own for half, own in halves.items()})
        self.layers = tuple(self.adapters)

    def prepared(self, vit: ImageEncoderViT) -> Prepared:
        return {name: of_each(own[0].scaled, [one.up for one in own], [one.shift for one in own]) for name, own in self.adapters.items()}

    def step(self, i: int, block: Block, x: Tensor, carry: Prepared) -> tuple[Tensor, Prepared]:
        own = {name: self.adapters[name][i] for name in self.layers}
        tuned = {name: own[name].before(block.get_submodule(LAYERS[name]), len(x), *carry[name][i]) for name in own}
        return feed_forward(block, attend(block, x, qkv=tuned.get("qkv"))[0], tuned.get("lin1")), carry

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        merged = {path: self.adapters[name][i].merged(vit.get_submodule(path)) for i, path, (name,) in self.whole(vit)}
        return {f"{path}.{kind}": tensor for path, own in merged.items() for kind, tensor in own.items()}


@METHODS.register("repadapter")
@dataclass(frozen=True)
class RepAdapter(PlacedInHalves, EncoderMethod):
    """Both adapters of a block (the authors' RepBlock) or, by `targets` "attention", the first alone (RepAttn), with their initialisation.

    up_groups: the groups of Up. scale: for each data set the authors took one of 0.1, 0.5, 1, 5 and 10. SAM pads windows with zeros between
    norm1 and the projection: the adapter comes after that, so that it reads the padding too and merges exactly.
    """

    hidden: Count = 8
    up_groups: Count = 2
    scale: float = 1.0
    dropout: Share = 0.1
    targets: str = "attention+mlp"
    space: ClassVar[Space] = {"scale": OneOf((0.1, 0.5, 1.0, 5.0, 10.0))}
    title: ClassVar[str] = "RepAdapter"
    source: ClassVar[str] = "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, 2023 (arXiv 2302.08106)"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "a linear bottleneck before attention and MLP"
    pyramid: ClassVar[str] = "at the width that the attention and the MLP read; what the block widens is read without it"
    rates: ClassVar[str] = "1e-3, AdamW, weight decay 1e-4"
    oracle: ClassVar[str] = "the authors' code, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        widths = [self.hidden, *(width for size in sam.config.blocks for width in (size.before, size.width))]
        if odd := [width for width in widths if width % self.up_groups]:
            needed = f"a divisor of hidden and the blocks' widths is needed, so of {odd[0]}"
            raise RequestError(f"repadapter(up_groups={self.up_groups}): {needed}.")
        return RepAdapterTuner(sam, self)
