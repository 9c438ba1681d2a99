"""What a tuner has for each block of a backbone, whose blocks may differ in width and grid."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.model.sizes import BlockSize


def by_block(shapes: Sequence[Sequence[int]], start: Callable[[Tensor], object]) -> nn.Parameter | nn.ParameterList:
    """A trained tensor for each block, which `[i]` gives: rows of one where all have one shape, else a list. start: fills a tensor."""

    def made(*shape: int) -> nn.Parameter:
        tensor = torch.empty(*shape)
        start(tensor)
        return nn.Parameter(tensor)

    alike = len({tuple(shape) for shape in shapes}) == 1
    return made(len(shapes), *shapes[0]) if alike else nn.ParameterList(made(*shape) for shape in shapes)


def by_width(sizes: Sequence[BlockSize], make: Callable[[int], nn.Module]) -> nn.Module:
    """A layer that blocks of these sizes share, or, where what they get differs in width, all blocks of one width: see `of_width`."""
    widths = list(dict.fromkeys(size.before for size in sizes))
    return make(widths[0]) if len(widths) == 1 else nn.ModuleDict({str(width): make(width) for width in widths})


def of_width(layer: nn.Module, width: int) -> nn.Module:
    """The layer that blocks of a width share."""
    return layer[str(width)] if isinstance(layer, nn.ModuleDict) else layer


def regridded(x: Tensor, side: int) -> Tensor:
    """Places (B, h, h, C) on a grid of another side: repeated where it is finer, averaged where it is coarser."""
    here = x.shape[1]
    if side == here:
        return x
    if side < here:
        return x.unflatten(2, (side, -1)).unflatten(1, (side, -1)).mean((2, 4))
    times = side // here
    return x[:, :, None, :, None].expand(-1, -1, times, -1, times, -1).reshape(len(x), side, side, x.shape[-1])
