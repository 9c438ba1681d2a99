"""FacT (Jie & Deng, AAAI 2023): the changes of all weights of all blocks are one tensor, of which a few small factors are trained."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.dropout import Dropout
from bench.model.linear_layers import LAYERS, THIRDS, LinearTuner, Prepared, lowered
from bench.model.method import Count, EncoderMethod, Share
from bench.model.placement import PlacedInLayers
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT


class FacTTuner(LinearTuner):
    """W + s·V Σ U for each square slice of a block's weights: q, k, v and proj are one each, lin1 and lin2 as many as cover them.

    u and v, both (r, C), are shared by all blocks of a width C. layers: Σ transposed, for every tuned block; in the tensor train (r, n·r)
    of n slices that write, and of lin2, whose slices read, (n·r, r). Tucker's form has (r, n) there, and shares c (r, r, r) as well.
    """

    def __init__(self, sam: Sam, method: "FacT") -> None:
        super().__init__(sam, method.placed(sam))
        blocks, r, lin1 = len(self.sizes), method.rank, sam.image_encoder.blocks[0].mlp.lin1
        self.scale, self.dropout, self.thirds = method.scale, Dropout(method.dropout), [name in method.targeted for name in THIRDS]
        high = -(-lin1.out_features // lin1.in_features)
        slices = {"qkv": sum(self.thirds), "proj": 1, "lin1": high, "lin2": high}
        slices = {name: n for name, n in slices.items() if n and name in ("qkv", *method.targeted)}
        read = {size.before if name == "qkv" else size.width for size in self.sizes for name in slices}
        self.u = nn.ParameterDict({str(width): nn.Linear(width, r, bias=False).weight for width in sorted(read)})
        self.v = nn.ParameterDict({str(size.width): torch.zeros(r, size.width) for size in self.sizes})
        self.c = nn.ParameterDict({width: nn.init.xavier_uniform_(torch.empty(r, r, r)) for width in self.v if method.form == "tk"})
        widths = [(size.before, size.width) for size in self.sizes]
        starts = [i for i in range(blocks) if not i or widths[i] != widths[i - 1]]
        self.alike = [(*widths[first], first, end) for first, end in zip(starts, [*starts[1:], blocks], strict=True)]  # blocks in a row
        self.layers = nn.ParameterDict()
        for name, n in slices.items():
            shape = (r, n) if self.c else (n * r, r) if name == "lin2" else (r, n * r)
            bound = (6 / (r + blocks * sum(slices.values()))) ** 0.5 if self.c else shape[0] ** -0.5
            self.layers[name] = torch.empty(blocks, *shape).uniform_(-bound, bound)

    def prepared(self, vit: ImageEncoderViT | None = None) -> dict[str, list[Any]]:
        """Of each block U and Σ of a layer as one matrix, (in, r of each slice that writes), and V, of whose views alone are many gradients
        summed by one kernel."""
        found: dict[str, list[Any]] = {name: [] for name in self.layers}
        for before, width, first, end in self.alike:
            for name, own in found.items():
                u, v = self.u[str(before if name == "qkv" else width)], self.v[str(width)].expand(end - first, -1, -1)
                own += zip(self.lowering(name, self.layers[name][first:end], u, width).unbind(), v.unbind(), strict=True)
        return found

    def lowering(self, name: str, sigma: Tensor, u: Tensor, width: int) -> Tensor:
        """U and Σ of a layer of N blocks of one width, (N, in, …). Tucker's numbers are read across an MLP's slices, as by the authors."""
        if self.c:
            made = self.c[str(width)] @ sigma[:, None]  # (N, r, r, n)
            sigma = made.flatten(2).mT if name == "lin2" else (made if name == "lin1" else made.mT).flatten(2)
        lowering = (u.T @ sigma.unflatten(1, (-1, len(u)))).flatten(1, 2)  # what slices read, one below the other
        if name != "qkv" or all(self.thirds):
            return lowering
        own, none = iter(lowering.split(len(u), 2)), torch.zeros_like(lowering[..., : len(u)])
        return torch.cat([next(own) if third else none for third in self.thirds], 2)

    def step(self, i: int, block: Block, x: Tensor, carry: Prepared) -> tuple[Tensor, Prepared]:
        tuned = {name: partial(self.tuned, block.get_submodule(LAYERS[name]), len(x), *own[i]) for name, own in carry.items()}
        x, _ = attend(block, x, qkv=tuned.get("qkv"), proj=tuned.get("proj"))
        return feed_forward(block, x, tuned.get("lin1"), tuned.get("lin2")), carry

    def tuned(self, layer: nn.Linear, images: int, down: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        """A layer with what it adds; tokens (…, in) are so many images', one after the other."""
        down = down if len(down) == tokens.shape[-1] else down[: tokens.shape[-1]]  # of what lacks of the last slice nothing is read
        frozen, low = lowered(layer, tokens, down)
        low = self.dropout.of_tokens(low, images).reshape(-1, len(v))  # of each slice
        if frozen.shape[-1] % v.shape[1]:
            return torch.add(frozen, (low @ v).view(*frozen.shape[:-1], -1)[..., : frozen.shape[-1]], alpha=self.scale)
        return torch.addmm(frozen.view(-1, v.shape[1]), low, v, alpha=self.scale).view(frozen.shape)  # one pass over a wide map

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        down, v = (factor.to(weight.dtype) for factor in self.prepared()[name][i])
        return weight + self.scale * (down[: weight.shape[1]].unflatten(1, (-1, len(v))) @ v).flatten(1)[:, : len(weight)].T


@METHODS.register("fact")
@dataclass(frozen=True)
class FacT(PlacedInLayers, EncoderMethod):
    """FacT-TT or, by `form` "tk", FacT-TK, on the paper's layers, with the authors' initialisation and dropout (between Σ and V).

    rank and scale are defaults of their code; for each data set they took one scale of 0.01, 0.1, 1, 10 and 100, and a rank of at most 16
    (TT) or 32 (TK). Weights alone change, so that windows and relative positions are SAM's. Blocks and layers that are not tuned have no
    part of the tensor. Of the last slice of SAM 3's MLP, 4.6 times as wide as its blocks, a part is used.
    """

    form: Literal["tt", "tk"] = "tt"
    rank: Count = 8
    scale: float = 1.0
    dropout: Share = 0.1
    targets: str = "qkv+proj+mlp"
    space: ClassVar[Space] = {"rank": OneOf((4, 8, 16)), "scale": OneOf((0.01, 0.1, 1.0, 10.0, 100.0))}
    title: ClassVar[str] = "FacT"
    source: ClassVar[str] = "Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023 (arXiv 2212.03145)"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank factors that the weights of all blocks' attention and MLP share"
    pyramid: ClassVar[str] = "blocks of one width share U, V and C; q, k and v read by the U of the width that the block gets"
    rates: ClassVar[str] = "1e-3, AdamW, weight decay 1e-4"
    oracle: ClassVar[str] = "the authors' code, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        return FacTTuner(sam, self)
