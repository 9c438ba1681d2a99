"""What follows a cell's training while it runs: its growing history.csv, and loggers such as TensorBoard or those of a plugin file."""

import contextlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from bench.errors import RequestError, need_known
from bench.grid.plan import title
from bench.grid.plugins import load_plugins, reason
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore

L = TypeVar("L", bound="type[Logger]")
HISTORY_SECONDS = 2.0  # at least, between two writes of history.csv
FOLDER = "logs"  # below the results


class Logger(ABC):
    """Follows one cell. A plugin file registers a subclass by `@register_logger("mine")`, for `--log mine`.

    needs: packages without which it cannot be made. A logger that raises is told of on stderr and heard no more; the cell goes on.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, spec: RunSpec, out: Path, first_step: int) -> None:
        """Before the first row of a cell below the results folder `out`; a resumed cell's first step is not 1, and may be told again."""

    @abstractmethod
    def log(self, row: Mapping[str, float]) -> None:
        """A row of history.csv, once it is whole: step, epoch, lr, losses, and `best_miou` or `val_miou` where that was evaluated."""

    def close(self, scores: Mapping[str, float]) -> None:  # noqa: B027
        """The cell has ended; scores: "best.miou_all" and others in percent, none where it was stopped or failed."""


_classes: dict[str, type[Logger]] = {}


def register_logger(name: str) -> Callable[[L], L]:
    """Enters the decorated class under a name for `--log`; RequestError if the name is taken."""

    def enter(cls: L) -> L:
        if name in _classes and _classes[name].__qualname__ != cls.__qualname__:
            raise RequestError(f"The logger name {name!r} is taken: {cls.__qualname__} needs another.")
        _classes[name] = cls
        return cls

    return enter


def loggers_of(text: str) -> list[type[Logger]]:
    """The classes that "tensorboard,mine" names; RequestError for an unknown one, and for one whose package is not installed."""
    load_plugins()
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        need_known("logger", _classes, name)
        if missing := [package for package in _classes[name].needs if find_spec(package) is None]:
            raise RequestError(f"--log {name} needs the package {missing[0]}, which is not installed: pip install {missing[0]}.")
    return [_classes[name] for name in names]


@register_logger("tensorboard")
class TensorBoard(Logger):
    """Event files in `logs/tensorboard/` below the results, a folder a cell."""

    needs = ("tensorboard",)

    def __init__(self, spec: RunSpec, out: Path, first_step: int) -> None:
        board: Any = import_module("torch.utils.tensorboard")
        self.writer = board.SummaryWriter(str(out / FOLDER / "tensorboard" / spec.folder), purge_step=first_step)
        self.step = first_step

    def log(self, row: Mapping[str, float]) -> None:
        """A scalar for each of the row's values."""
        self.step = int(row["step"])
        for name, value in _values(row).items():
            self.writer.add_scalar(f"training/{name}", value, self.step)

    def close(self, scores: Mapping[str, float]) -> None:
        """The scores stand at the last step."""
        for name, value in scores.items():
            self.writer.add_scalar(f"test/{name}", value, self.step)
        self.writer.close()


@register_logger("wandb")
class WeightsAndBiases(Logger):
    """A run of the project sam-peft-bench for each cell, by its key; offline where nobody is logged in, or WANDB_MODE says so."""

    needs = ("wandb",)

    def __init__(self, spec: RunSpec, out: Path, first_step: int) -> None:
        wandb: Any = import_module("wandb")
        folder = out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.run = wandb.init(
            project="sam-peft-bench",
            id=spec.key,
            name=title(spec),
            group=spec.dataset,
            config=spec.canonical(),
            dir=str(folder),
            resume="allow",
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, row: Mapping[str, float]) -> None:
        """At the row's step, which never goes back."""
        self.run.log(_values(row), step=int(row["step"]))

    def close(self, scores: Mapping[str, float]) -> None:
        """The scores are the run's summary."""
        self.run.summary.update(dict(scores))
        self.run.finish(exit_code=0 if scores else 1)


class Recorder:
    """Keeps a running cell's history.csv up to date and tells its loggers; a context manager.

    A row is told once the next one is there, or training has ended: an evaluation adds to it. store: None in a process that does not write
    the cell. scores: of the result, if there is one.
    """

    def __init__(self, store: ResultStore | None, spec: RunSpec, classes: Sequence[type[Logger]] = ()) -> None:
        self.store, self.spec, self.classes = store, spec, classes
        self.scores: Mapping[str, float] = {}
        self._loggers: list[Logger] | None = None
        self._told: int | None = None
        self._wait, self._written = 0.0, (0.0, 0)  # when history.csv was written, and with how many rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._loggers is None:  # nothing was trained
            self._loggers = self._made(1) if self.scores else []
        for logger in list(self._loggers):
            self._heard(logger, lambda logger=logger: logger.close(self.scores))  # type: ignore[misc]

    def __call__(self, history: Sequence[Mapping[str, float]], whole: bool = False) -> None:
        """The rows so far; whole: nothing is added to the last one any more."""
        if self._told is None:  # a resumed cell begins with the row that it stopped in
            self._told = max(0, len(history) - 1)
        if self.store is None or not history:
            return
        self._write(self.store, history, whole)
        if self._loggers is None:
            self._loggers = self._made(int(history[self._told]["step"]))
        stop = len(history) if whole else len(history) - 1
        for row in history[self._told : stop]:
            for logger in list(self._loggers):
                self._heard(logger, lambda logger=logger, row=row: logger.log(row))  # type: ignore[misc]
        self._told = max(self._told, stop)

    def _write(self, store: ResultStore, history: Sequence[Mapping[str, float]], whole: bool) -> None:
        """Writes history.csv, and no more often than takes a small part of the time."""
        began, (at, rows) = time.monotonic(), self._written
        if not whole and (len(history) == rows or began - at < self._wait):
            return
        with contextlib.suppress(OSError):  # a full disk stops the cell when its result is written
            store.grow_history(self.spec, history)
        now = time.monotonic()
        self._written, self._wait = (now, len(history)), max(HISTORY_SECONDS, 50 * (now - began))

    def _made(self, first_step: int) -> list[Logger]:
        made: list[Logger] = []
        if self.store is None:
            return made
        for cls in self.classes:
            try:
                made.append(cls(self.spec, self.store.root, first_step))
            except Exception as error:
                _say(cls, error)
        return made

    def _heard(self, logger: Logger, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:
            _say(type(logger), error)
            if self._loggers and logger in self._loggers:
                self._loggers.remove(logger)


def _say(cls: type[Logger], error: Exception) -> None:
    print(f"The logger {cls.__name__} stopped: {reason(error)}", file=sys.stderr)


def _values(row: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in ("step", "steps", "ends_epoch")}
