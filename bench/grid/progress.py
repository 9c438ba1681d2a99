"""What a run shows while it works: bars on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars


class Progress:
    """A context manager that follows the cells of a run, one after the other.

    On a terminal it draws two bars (all cells, this cell); in a log it prints this cell's line at most every `every_seconds`.
    what: what is followed, where it is not cells.
    """

    def __init__(self, stream: TextIO | None = None, every_seconds: float = 15.0, what: str = "cells") -> None:
        self.what = what
        self.stream = sys.stderr if stream is None else stream
        self.every_seconds = every_seconds
        self.bars = _bars(self.stream) if self.stream.isatty() else None
        self._label = ""
        self._total = self._ended = 0
        self._started = time.monotonic()
        self._printed = self._began = time.monotonic()
        self._first: float | None = None
        if self.bars is not None:
            self._all, self._this = self.bars.add_task(what, total=None), self.bars.add_task("", total=1.0)

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()

    def cell(self, index: int, total: int, label: str) -> None:
        """Starts the cell `index` (from 1) of `total`; "whu lora(decoder=sam) seed 0" is a label."""
        self._label, self._total = f"[{index:{len(str(total))}}/{total}] {label}", total
        self._printed = self._began = time.monotonic()
        self._first = None
        if self.bars is not None:
            self.bars.update(self._all, total=total)
            self.bars.update(self._this, completed=0, description=self._label)

    def update(self, fraction: float, text: str) -> None:
        """Says how much of the cell is done, 0 to 1, and what there is to know of it ("epoch 40/2000, loss 0.412")."""
        now = time.monotonic()
        if self._first is None:  # a resumed cell does not start at 0
            self._began, self._first = now, fraction
        line = f"{self._label}: {text}{self._left(fraction, now)}"
        if self.bars is not None:
            self.bars.update(self._this, completed=fraction, description=line)
        elif now - self._printed >= self.every_seconds:
            self._printed = now
            self._print(line)

    def note(self, text: str) -> None:
        """Prints a line, above the bars where there are any."""
        self._print(text)

    def done(self, text: str) -> None:
        """Ends the cell with a line of its result or its error, and says how long the others will take."""
        self._ended += 1
        more = max(0, self._total - self._ended)
        rest = f"about {duration(more * (time.monotonic() - self._started) / self._ended)} for the other {more}" if more else ""
        if self.bars is not None:
            self.bars.update(self._all, advance=1, description=f"{self.what} {rest}")
            self.bars.update(self._this, completed=1.0, description=self._label)
            self._print(f"{self._label}: {text}")
        else:
            self._print("; ".join(filter(None, [f"{self._label}: {text}", rest])))

    def _left(self, fraction: float, now: float) -> str:
        gained = fraction - (self._first or 0.0)
        return f", {duration((1 - fraction) * (now - self._began) / gained)} left" if gained > 0 else ""

    def _print(self, line: str) -> None:
        if self.bars is not None:
            self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """A span of time as people say it: "1.2 s", "3 min 20 s", "5 h 04 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _bars(stream: TextIO) -> Bars:
    columns = (BarColumn(20), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    return Bars(*columns, console=Console(file=stream), transient=True)
