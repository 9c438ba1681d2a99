"""AdaptFormer (Chen et al., NeurIPS 2022): a bottleneck beside the MLP of every block."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.grid.space import LogUniform, Space
from bench.model.dropout import Dropout
from bench.model.method import LATER, Count, EncoderMethod, Share
from bench.model.placement import PlacedInHalves, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward, shortcut
from bench.model.sam_modules import Block
from bench.model.targets import HALVES


class Adapter(nn.Module):
    """Up(dropout(ReLU(Down(x)))), zero at the start because Up is."""

    def __init__(self, width: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.dropout = Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dropout(self.down(x).relu()))


class AdaptFormerTuner(PlacedTuner):
    """y = x + MLP(norm2(x)) + scale·adapter(x). The adapter reads x as it is before norm2, where the block has the width that it gives;
    one beside the attention reads what that is added to."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], targets: tuple[str, ...], bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__(sam, blocks)
        self.scale = scale
        self.beside_attention, self.adapters = (
            nn.ModuleList(Adapter(size.width, bottleneck, dropout) for size in self.sizes if half in targets) for half in HALVES
        )

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        y, _ = attend(block, x)
        if self.beside_attention:
            y = y + self.scale * self.beside_attention[i](shortcut(block, x))
        out = feed_forward(block, y)
        return out + self.scale * self.adapters[i](y) if self.adapters else out, None


@METHODS.register("adaptformer")
@dataclass(frozen=True)
class AdaptFormer(PlacedInHalves, EncoderMethod):
    """Equation 5 of the paper with its defaults; no layer norm in the adapter.

    targets: the halves of a block with an adapter beside them, mlp as in the paper, attention, or attention+mlp.
    """

    bottleneck: Count = 64
    scale: float = 0.1
    dropout: Share = 0.1
    space: ClassVar[Space] = {"scale": LogUniform(0.01, 1.0)}
    targets: str = field(default="mlp", metadata=LATER)
    title: ClassVar[str] = "AdaptFormer"
    source: ClassVar[str] = "Chen et al., AdaptFormer, NeurIPS 2022"
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "an adapter beside every MLP"
    pyramid: ClassVar[str] = "at the width and grid that the block gives"
    rates: ClassVar[str] = "SGD 0.1 × batch/256, decay 0"
    oracle: ClassVar[str] = "its formula, 1e-5"

    def tuner(self, sam: Sam) -> Tuner:
        return AdaptFormerTuner(sam, self.placed(sam), self.targeted, self.bottleneck, self.scale, self.dropout)
