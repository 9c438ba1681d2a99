"""Which implementation computes: "fast", or "reference", the reference path that the fast one is tested and timed against."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from bench.errors import need_known

PATHS = ("fast", "reference")
_implementation: ContextVar[str] = ContextVar("path", default="fast")


@contextmanager
def use(path: str) -> Iterator[None]:
    """Within it, models compute along this path; both compute the same function. RequestError for a name not in PATHS.

    The choice is the thread's: what runs later or elsewhere (a checkpointed part that is recomputed in backward) must take the
    choice along, `path = implementation()` outside and `with use(path):` inside.
    """
    need_known("path", PATHS, path)
    token = _implementation.set(path)
    try:
        yield
    finally:
        _implementation.reset(token)


def implementation() -> str:
    """The path in force; what `ImageEncoder.compile_walk` compiles is the fast one."""
    return "fast" if torch.compiler.is_dynamo_compiling() else _implementation.get()
