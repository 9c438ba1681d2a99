"""Numbers between the host and the device, on a GPU without anyone waiting for them: from pinned memory, and copied in the background."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory that a GPU copies from by itself; as it is where no GPU is meant, or where it is already on one."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device."""
    return pinned(tensor, device).to(device, non_blocking=True)


def indices(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers (n,) on the device."""
    held, key = _held.get(), (*numbers, device)
    found = None if held is None else held.get(key)
    if found is None:
        found = uploaded(torch.tensor(numbers, dtype=torch.long), device)
    if held is not None:
        held[key] = found
    return found


_held: ContextVar[dict[Hashable, Tensor] | None] = ContextVar("held", default=None)


@contextmanager
def held_indices() -> Iterator[dict[Hashable, Tensor]]:
    """Within it, `indices` gives the same numbers as the same tensor: a recorded graph must not copy from the host's memory of then, and
    whoever replays it keeps the tensors."""
    held: dict[Hashable, Tensor] = {}
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)


class Download:
    """Numbers on their way from the device to the host. What was queued on the device after them is not waited for."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().to("cpu", non_blocking=True)  # which pins the memory that a GPU writes to
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived:
            self._arrived.record(torch.cuda.current_stream(numbers.device))

    def array(self) -> "np.ndarray":
        """The numbers, when they have arrived."""
        if self._arrived:
            self._arrived.synchronize()
        return self._numbers.numpy()

    def read(self) -> Any:
        """The numbers as nested lists, when they have arrived."""
        return self.array().tolist()
