"""What the next step needs, made by a thread while the one before it is computed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], steps: range, alike: bool, finish: Callable[[T], T]) -> Iterator[T]:
    """`finish(make(step))` for each step. make: is called in a thread, one step ahead, and its errors are raised when its step comes; once
    where all steps are `alike`. finish: is called by the caller's own thread."""
    if not steps:
        return
    if alike:
        yield from repeat(finish(make(steps[0])), len(steps))
        return
    with ThreadPoolExecutor(1, "next-step") as thread:
        waiting = thread.submit(make, steps[0])
        try:
            for step in steps:
                made = waiting.result()
                if step + 1 in steps:
                    waiting = thread.submit(make, step + 1)
                yield finish(made)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
