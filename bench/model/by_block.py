"""What a tuner has for each block of a backbone, whose blocks may differ in width and grid."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.model.sizes import BlockSize


def by_block(shapes: Sequence[Sequence[int]], start: Callable[[Tensor], object]) -> nn.Parameter | nn.ParameterList:
    """A trained tensor for each block, which `[i]` gives: rows of one where all have one shape, else a list. start: fills a tensor."""

    def made(*shape: int) -> nn.Parameter:
        tensor = torch.empty(*shape)
        start(tensor)
        return nn.Parameter(tensor)

    alike = len({tuple(shape) for shape in shapes}) == 1
    return made(len(shapes), *shapes[0]) if alike else nn.ParameterList(made(*shape) for shape in shapes)


def of_each(make: Callable[..., Iterable[Tensor]], *tensors: Iterable[Tensor]) -> list[Any]:
    """make(*of one block) of every block's, which `by_block` or a list has: a list of what it returns. make: computes from one block's
    tensors, (…) each, or from all blocks' at once, (N, …), which is done where all have one shape."""
    stacks = [each if isinstance(each, Tensor) else list(each) for each in tensors]
    if all(isinstance(each, Tensor) or len({x.shape for x in each}) == 1 for each in stacks):
        stacked = (each if isinstance(each, Tensor) else _GradientOfItsOwn.apply(torch.stack(each)) for each in stacks)
        return list(zip(*(made.unbind() for made in make(*stacked)), strict=True))
    return [make(*of_block) for of_block in zip(*stacks, strict=True)]


class _GradientOfItsOwn(torch.autograd.Function):
    """The same tensor, whose gradient nothing else has: where stacks are added, theirs are one memory, and what parameters keep of it, as
    views, would be added to several times by the next micro-batch."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor) -> Tensor:
        return stack.view_as(stack)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone(memory_format=torch.contiguous_format)


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
