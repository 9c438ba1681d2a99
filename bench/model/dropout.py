"""Dropout and noise that do not depend on how a batch of images is cut into parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_part: ContextVar[tuple[int, int] | None] = ContextVar("part", default=None)
_compiled_part: tuple[int, int] | None = None  # a compiler reads no context variable, but compiles again where a plain one changes


def show_part_to_compiler(images: int, padded: int) -> None:
    """What runs compiled next, on so many images padded to so many, sees the part of the batch in force; a whole batch is one with its
    padding, so that it is not compiled for its number of images too."""
    global _compiled_part
    part = _part.get()
    _compiled_part = (0, padded) if part == (0, images) else part


def _seen() -> tuple[int, int] | None:
    return _compiled_part if torch.compiler.is_dynamo_compiling() else _part.get()


@contextmanager
def part_of_batch(first: int, images: int) -> Iterator[None]:
    """Within it, models see a part of a batch of so many images, from image `first` (counted from 0) on.

    Each part must start from the random state that the whole batch would start from.
    """
    token = _part.set((first, images))
    try:
        yield
    finally:
        _part.reset(token)


class Dropout(nn.Dropout):
    """nn.Dropout for (B, …), a row an image: a part of a batch gets its rows of the mask that the whole batch would get. Rows after those
    are padding, of which nothing is kept."""

    def forward(self, x: Tensor) -> Tensor:
        part = _seen()
        if part is None or not self.training or not self.p or part == (0, len(x)):
            return super().forward(x)
        first, images = part
        return x * _rows(F.dropout(x.new_ones(images, *x.shape[1:]), self.p), first, len(x))

    def of_tokens(self, tokens: Tensor, images: int) -> Tensor:
        """The same of tokens (…, C) of so many images, one after the other."""
        return self(tokens.reshape(images, -1, tokens.shape[-1])).view(tokens.shape)


def noise(images: int, *shape: int, like: Tensor) -> Tensor:
    """Standard normal numbers (images, *shape), a row an image: a part of a batch gets its rows of what the whole batch would get."""
    first, whole = _seen() or (0, images)
    return _rows(torch.randn(whole, *shape, dtype=like.dtype, device=like.device), first, images)


def _rows(drawn: Tensor, first: int, images: int) -> Tensor:
    """So many rows from one on, zeros after the last one that there is."""
    rows = drawn[first : first + images]
    return rows if len(rows) == images else torch.cat([rows, rows.new_zeros(images - len(rows), *rows.shape[1:])])
