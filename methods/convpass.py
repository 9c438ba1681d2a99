"""Convpass (Jie & Deng, 2022): a bottleneck with a 3×3 convolution beside the attention and beside the MLP of every block."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.by_block import regridded
from bench.model.dropout import Dropout
from bench.model.method import EncoderMethod
from bench.model.placement import PlacedInHalves, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block


class Bypass(nn.Module):
    """Up(dropout(act(conv(act(Down(x)))))) with `quick_gelu`, for x (B, g, g, before); of another grid where the block gives one."""

    def __init__(self, before: int, width: int, method: "Convpass") -> None:
        super().__init__()
        self.down, self.up = nn.Linear(before, method.hidden), nn.Linear(method.hidden, width)
        self.conv = nn.Conv2d(method.hidden, method.hidden, 3, padding=1)
        self.dropout = Dropout(method.dropout)
        for name, parameter in self.named_parameters():
            (nn.init.xavier_uniform_ if name in ("down.weight", "conv.weight") else nn.init.zeros_)(parameter)
        if not method.xavier:
            nn.init.dirac_(self.conv.weight)  # what comes in goes out

    def forward(self, x: Tensor, side: int) -> Tensor:
        z = self.conv(quick_gelu(self.down(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.up(regridded(self.dropout(quick_gelu(z)), side))  # as many means as it would be after Up, of fewer channels


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702x)."""
    return x * (1.702 * x).sigmoid()


class ConvpassTuner(PlacedTuner):
    """x + attention(norm1(x)) + s·bypass(norm1(x)), then the same of the MLP and norm2. bypasses: of each half, one a tuned block."""

    bypasses: Any

    def __init__(self, sam: Sam, method: "Convpass") -> None:
        super().__init__(sam, method.placed(sam))
        self.scale = method.scale
        widths = {"attention": [(size.before, size.width) for size in self.sizes], "mlp": [(size.width, size.width) for size in self.sizes]}
        self.bypasses = nn.ModuleDict({half: nn.ModuleList(Bypass(*w, method) for w in widths[half]) for half in method.targeted})

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        attended = self.beside("attention", i, block.norm1, x, attend(block, x)[0])
        return self.beside("mlp", i, block.norm2, attended, feed_forward(block, attended)), None

    def beside(self, half: str, i: int, norm: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What a half of the block made of x, with its bypass."""
        if half not in self.bypasses:
            return out
        return torch.add(out, self.bypasses[half][i](norm(x), out.shape[1]), alpha=self.scale)


@METHODS.register("convpass")
@dataclass(frozen=True)
class Convpass(PlacedInHalves, EncoderMethod):
    """Both bypasses of a block or, by `targets` "attention", the first alone (Convpass-attn), with the authors' initialisation.

    xavier: the convolution starts as Xavier's uniform numbers, else as the identity. This, and one scale of 0.01, 0.1, 1, 10 and 100, the
    authors took for each data set. Their training's stochastic depth is left out. The convolution sees the whole grid, also of a block
    whose attention is in windows, as in the authors' Swin; they convolve a class token by itself, and SAM has none. Where a block of SAM 2
    widens and pools its tokens, Up widens and the bypass is averaged to the new grid.
    """

    hidden: int = 8
    scale: float = 1.0
    xavier: bool = False
    dropout: float = 0.1
    targets: str = "attention+mlp"
    space: ClassVar[Space] = {"scale": OneOf((0.01, 0.1, 1.0, 10.0, 100.0)), "xavier": OneOf((False, True))}
    title: ClassVar[str] = "Convpass"
    source: ClassVar[str] = "Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022 (arXiv 2207.07039)"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "a bottleneck with a 3×3 convolution beside attention and MLP"
    pyramid: ClassVar[str] = "reads what the attention reads; Up widens, and the map is averaged to the grid that the block gives"
    rates: ClassVar[str] = "1e-3, AdamW, weight decay 1e-4"
    oracle: ClassVar[str] = "the authors' code, 1e-5"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(hidden=1, dropout=0)
        self.at_most(dropout=1)

    def tuner(self, sam: Sam) -> Tuner:
        return ConvpassTuner(sam, self)
