"""What a command shows on a terminal while it works: bars, or a line that spins."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text


@contextmanager
def spinning(text: str, stream: TextIO) -> Iterator[Callable[[str], None]]:
    """A line that goes again when it is left. It gives a function that says what is done next."""
    spinner = Spinner("line", _line(text))
    with Live(spinner, console=Console(file=stream), transient=True, redirect_stdout=sys.stdout.isatty()):
        yield lambda next_one: spinner.update(text=_line(next_one))


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


class _Bars(RichProgress):
    """A bar a task over the whole width, its label above it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """A terminal's lines."""
        for task in self.tasks:
            if task.fields["label"]:
                yield _line(task.fields["label"])
            yield self.make_tasks_table([task])


def bars(stream: TextIO) -> RichProgress:
    """What is being done is cut where a terminal is narrow, and the time left never is."""
    console = Console(file=stream)
    doing = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    left = TextColumn("{task.fields[left]}", markup=False, justify="right", table_column=Column(no_wrap=True))
    columns = (BarColumn(10 if console.width < 100 else 24), TaskProgressColumn(), doing, left)
    return _Bars(*columns, console=console, transient=True, expand=True, redirect_stdout=sys.stdout.isatty())
