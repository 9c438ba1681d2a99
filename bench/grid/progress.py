"""What a command shows while it works, on stderr: bars on a terminal, plain lines in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

if TYPE_CHECKING:  # rich takes a tenth of a second to load, and a log needs nothing of it
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

T = TypeVar("T")
SILENT = 2.0  # seconds until a log says what is being done


@dataclass
class _Running:
    """A cell that is being run: when it began, when a log last spoke of it, and where it stood then."""

    label: str
    bar: "TaskID | None"
    printed: float
    began: float = field(default_factory=time.monotonic)
    first: float | None = None


class Progress:
    """A context manager that follows the cells of a run, one after the other or several side by side.

    On a terminal it draws a bar for all of them, and for each that runs its label and a bar; in a log it prints a cell's line at most every
    `every_seconds`, the first one soon. what: what is followed, where it is not cells.
    """

    def __init__(self, stream: TextIO | None = None, every_seconds: float = 15.0, what: str = "cells") -> None:
        self.what = what
        self.stream = sys.stderr if stream is None else stream
        self.every_seconds = every_seconds
        self.bars: RichProgress | None = None
        if self.stream.isatty():
            from bench.grid.bars import bars

            self.bars = bars(self.stream)
        self._running: dict[int, _Running] = {}
        self._latest = self._total = self._ended = 0
        self._started = time.monotonic()
        if self.bars is not None:
            self._all = self.bars.add_task(what, total=None, label="", left="")

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()

    def cell(self, index: int, total: int, label: str) -> None:
        """Starts the cell `index` (from 1) of `total`; "whu lora(decoder=sam) seed 0" is a label."""
        self._latest, self._total = index, total
        label = f"[{index:{len(str(total))}}/{total}] {label}"
        bar = self.bars.add_task("starting", total=1.0, label=label, left="") if self.bars is not None else None
        soon = max(0.0, self.every_seconds - SILENT)
        self._running[index] = _Running(label, bar, time.monotonic() - soon)
        if self.bars is not None:
            self.bars.update(self._all, total=total)

    def update(self, fraction: float, text: str, index: int = 0) -> None:
        """Says how much of the cell is done, 0 to 1, and what there is to know of it ("epoch 40/2000, loss 0.412"). index: of which one,
        where several run."""
        now, cell = time.monotonic(), self._running[index or self._latest]
        if cell.first is None:  # a resumed cell does not start at 0
            cell.began, cell.first = now, fraction
        gained = fraction - cell.first
        left = f"{duration((1 - fraction) * (now - cell.began) / gained)} left" if gained > 0 else ""
        if self.bars is not None and cell.bar is not None:
            self.bars.update(cell.bar, completed=fraction, description=text, left=left)
        elif now - cell.printed >= self.every_seconds:
            cell.printed = now
            self.note(", ".join(filter(None, [f"{cell.label}: {text}", left])))

    def note(self, text: str) -> None:
        """Prints a line, above the bars where there are any."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def done(self, text: str, index: int = 0) -> None:
        """Ends the cell with a line of its result or its error, and says how long the others will take."""
        cell = self._running.pop(index or self._latest)
        self._ended += 1
        more = max(0, self._total - self._ended)
        rest = f"about {duration(more * (time.monotonic() - self._started) / self._ended)}" if more else ""
        if self.bars is not None and cell.bar is not None:
            self.bars.remove_task(cell.bar)
            said = f"{self._ended} of {self._total} {self.what}"
            self.bars.update(self._all, advance=1, description=said, left=f"{rest} left" if rest else "")
            self.note(f"{cell.label}: {text}")
        else:
            self.note("; ".join(filter(None, [f"{cell.label}: {text}", f"{rest} for the other {more}" if rest else ""])))


@contextmanager
def working(text: str, stream: TextIO | None = None, every_seconds: float = 15.0) -> Iterator[Callable[[str], None]]:
    """Says what is being done until it is left: a line on a terminal that goes again; in a log, after SILENT seconds and every so many
    seconds, with how long it takes so far. It gives a function that says what is done next."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        from bench.grid.bars import spinning

        with spinning(text, stream) as say:
            yield say
        return
    said, began, ended = [text], time.monotonic(), threading.Event()

    def speak() -> None:
        wait = SILENT
        while not ended.wait(wait):
            wait = every_seconds
            print(f"{said[-1]} … {duration(time.monotonic() - began)}", file=stream, flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield said.append
    finally:
        ended.set()
        thread.join()


def told(items: Iterable[T], what: str, name: Callable[[T], str]) -> Iterator[T]:
    """The items, and on stderr which one is being worked on: "Drawing 3: bars_tiny" says "Drawing" of `what`."""
    with working(what) as say:
        for number, item in enumerate(items, 1):
            say(f"{what} {number}: {name(item)}")
            yield item


def duration(seconds: float) -> str:
    """A span of time as people say it: "1.2 s", "3 min 20 s", "5 h 04 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
