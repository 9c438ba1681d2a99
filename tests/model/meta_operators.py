"""Operators on "meta", where an elementwise one takes Python a millisecond to say what shape it would give: asked once for all blocks."""

from typing import Any

import torch

_known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """What the operator gives; from shapes alone where it was called with the same before, and makes one new tensor on "meta"."""
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    key = func, _described(args), _described(tuple(kwargs.items()))
    if known := _known.get(key):
        shape, stride, kind = known
        return torch.empty_strided(shape, stride, dtype=kind, device="meta")
    out = func(*args, **kwargs)
    if isinstance(out, torch.Tensor) and out.device.type == "meta":
        _known[key] = out.shape, out.stride(), out.dtype
    return out


def _described(given: Any) -> Any:
    if isinstance(given, torch.Tensor):
        return given.shape, given.stride(), given.dtype, given.device.type
    return tuple(map(_described, given)) if isinstance(given, list | tuple) else (type(given), given)
