"""A map cut into windows and put together again as SAM does it, by one copy each way, where SAM's own functions make up to three."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.model.implementation import implementation
from bench.model.sam_modules import window_partition, window_unpartition

Size = tuple[int, int]


def apart(x: Tensor, side: int) -> tuple[Tensor, Size]:
    """(B, h, w, C) as windows (B·windows, side, side, C), with zeros where they are not whole, and the size of whole windows."""
    if _as_sam_does():
        windows, whole = window_partition(x, side)
        return windows, whole
    size = x.shape[1], x.shape[2]
    of_map, of_windows = _places(size, side, x.device)
    windows = _Taken.apply(x.flatten(1, 2), of_windows, of_map)
    return windows.view(-1, side, side, x.shape[-1]), (-(-size[0] // side) * side, -(-size[1] // side) * side)


def together(windows: Tensor, side: int, whole: Size, size: Size) -> Tensor:
    """The opposite, without what made windows whole: (B, h, w, C)."""
    if _as_sam_does():
        joined: Tensor = window_unpartition(windows, side, whole, size)
        return joined
    of_map, of_windows = _places(size, side, windows.device)
    rows = windows.reshape(-1, whole[0] * whole[1], windows.shape[-1])
    taken: Tensor = _Taken.apply(rows, of_map, of_windows)
    return taken.unflatten(1, size)


def _as_sam_does() -> bool:
    return implementation() == "reference" or torch.compiler.is_compiling()  # a compiler joins small steps itself


@lru_cache(maxsize=32)
def _places(size: Size, side: int, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Which of the windows' places the map's are, and which of the map's those are, with 0 (n, 1) for the ones that are none of them."""
    with torch.inference_mode(False), torch.no_grad():  # so that training may use what an evaluation computed
        numbers = torch.arange(1, size[0] * size[1] + 1, device="cpu").view(1, *size, 1)
        source = window_partition(numbers, side)[0].flatten()  # 0 for padding
        real, of_windows = source > 0, (source - 1).clamp_min(0)
        of_map = source.argsort(stable=True)[int((~real).sum()) :]
        kept = () if real.all() else (real[:, None].float().to(device),)
        return (of_map.to(device),), (of_windows.to(device), *kept)


class _Taken(torch.autograd.Function):
    """Rows (B, n, C) in another order, (B, m, C), of which some are 0; `back` is the order of the gradient. Gathers only, whose sums a GPU
    need not order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: tuple[Tensor, ...], back: tuple[Tensor, ...]) -> Tensor:
        ctx.back = back
        return _taken(x, *there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _taken(grad, *ctx.back), None, None


def _taken(x: Tensor, at: Tensor, kept: Tensor | None = None) -> Tensor:
    taken = x.index_select(1, at)
    return taken if kept is None else taken.mul_(kept)
