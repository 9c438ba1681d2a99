"""Runs cells on this machine, in this process or in several worker processes that take the next cell when they are free."""

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any

from bench.cell import Cell, Stopped
from bench.checkpoints import load_sam
from bench.errors import DataError, DivergedError, RequestError, TeamError
from bench.plan import open_datasets, title
from bench.prepared import KEPT_BYTES, Prepared
from bench.progress import Progress
from bench.provenance import provenance
from bench.sam import Sam
from bench.spec import RunSpec
from bench.store import ResultStore
from bench.team import SOLO, Team, is_lost
from bench.train import WHOLE, Memory
from bench.types import Dataset

HEARTBEAT_SECONDS = 10.0
TELL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """What a process needs to run cells: the backbone and where things lie. save_every: seconds between two resume files.
    memory: how a training step is cut to fit the device. kept_bytes: of prepared test images and embeddings that stay in memory."""

    backbone: str
    checkpoint: Path
    data: Path
    out: Path
    device: str
    overwrite: str
    save_every: float
    memory: Memory = WHOLE
    kept_bytes: int = KEPT_BYTES


Tell = Callable[[float, str], None]  # the share of the cell that is done, and what is being done


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Bench:
    """The loaded backbone and the open data sets of a process, on which cells run one after the other."""

    def __init__(self, place: Place, sam: Sam, datasets: Mapping[str, Dataset], stop: StopSignal, team: Team = SOLO) -> None:
        self.team = team
        self.place, self.sam, self.datasets, self.stop = place, sam, datasets, stop
        self.store = ResultStore(place.out)
        self.prepared: Prepared | None = None
        self.facts = provenance(str(sam.device), place.checkpoint, place.out / "cache")

    def run(self, spec: RunSpec, tell: Tell) -> str:
        """Runs and stores one cell; returns what became of it, in a few words. A failure is noted in the cell's folder."""
        if self.team.rank == 0 and (self.place.overwrite == "always" or self.store.status(spec).phase == "failed"):
            self.store.discard(spec)
        self.team.told(None)  # the others look for a resume file only now
        try:
            return self._run(spec, tell)
        except (Stopped, KeyboardInterrupt):  # the second is a second Ctrl-C: the resume file is the last one that was written
            self.stop.asked = True
            return "stopped"
        except OSError as error:  # the disk, not the cell: left unfinished, so that running again is the retry
            return f"NOT STORED: {error.strerror or error} ({self.store.folder(spec)})"
        except Exception as error:
            return self._failed(spec, error)

    def _failed(self, spec: RunSpec, error: Exception) -> str:
        """Notes why a cell failed. In a team it ends all, TeamError, but for a loss that all processes saw alike."""
        alike = self.team.size == 1 or isinstance(error, DivergedError)
        if not alike and is_lost(error):
            raise TeamError from None
        reason = failure(error)
        if not alike or self.team.rank == 0:
            with contextlib.suppress(OSError):
                self.store.fail(spec, reason)
        if not alike:
            raise TeamError(f"Process {self.team.rank + 1} of {self.team.size}: {reason} The others stop too.") from None
        return f"FAILED: {reason}"

    def _run(self, spec: RunSpec, tell: Tell) -> str:
        watch = Watcher(spec, self.store, tell, self.stop) if self.team.rank == 0 else _unwatched
        watch(0.0, "starting")
        dataset, place = self.datasets[spec.dataset], self.place
        if self.prepared is None or self.prepared.dataset is not dataset:  # one data set's at a time, which bounds the memory
            self.prepared = Prepared(dataset, place.kept_bytes)
        cell = Cell(spec, self.sam, dataset, self.store.folder(spec), watch, place.save_every, place.memory, self.prepared, self.team)
        result = cell.run(self.facts)
        if self.team.rank == 0:
            self.store.save(result.record, result.images, result.history, result.tuned)
        first = spec.settings.selections[0]
        return f"mIoU {result.record.scores[first]['miou_all']:.1f} ({first})"


def _unwatched(share: float, doing: str) -> None:
    return


def failure(error: Exception) -> str:
    """One sentence for a cell's failure; what nobody foresaw is printed in full to stderr as well."""
    if isinstance(error, DivergedError | DataError | RequestError):
        return str(error)
    if "out of memory" in str(error) or isinstance(error, MemoryError):
        return "Out of memory: take a smaller backbone, or a device with more memory."
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


class Watcher:
    """Passes a cell's progress on, writes its heartbeat and stops it when that is asked for."""

    def __init__(self, spec: RunSpec, store: ResultStore, tell: Tell, stop: StopSignal) -> None:
        self.spec, self.store, self.tell, self.stop = spec, store, tell, stop
        self._beat = -HEARTBEAT_SECONDS

    def __call__(self, share: float, doing: str) -> None:
        self.tell(share, doing)
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            with contextlib.suppress(OSError):
                self.store.heartbeat(self.spec, "running", {"share": round(share, 4), "doing": doing})
        if self.stop.asked:
            raise Stopped


def run_here(specs: Sequence[RunSpec], place: Place, sam: Sam, datasets: Mapping[str, Dataset], team: Team = SOLO) -> bool:
    """Runs the cells in this process; whether it was asked to stop."""
    with open(os.devnull, "w") as silence, Progress(silence if team.rank else None) as progress, StopSignal() as stop:
        bench = Bench(place, sam, datasets, stop, team)
        for index, spec in enumerate(specs, 1):
            progress.cell(index, len(specs), title(spec))
            progress.done(bench.run(spec, progress.update))
            if stop.asked:
                return True
    return False


def run_in_workers(specs: Sequence[RunSpec], place: Place, workers: int) -> bool:
    """Runs the cells in worker processes of one thread each; whether it was asked to stop.

    A worker that dies leaves its cell unfinished, and its message; the others go on.
    """
    context = multiprocessing.get_context("spawn")
    tasks, events = context.Queue(), context.Queue()
    for task in [*enumerate(specs), *[None] * workers]:
        tasks.put(task)
    processes = [context.Process(target=_work, args=(place, list(specs), tasks, events, i), daemon=True) for i in range(workers)]
    with Progress() as progress, StopSignal() as stop:
        for process in processes:
            process.start()
        asked = False
        while any(process.is_alive() for process in processes) or not events.empty():
            if stop.asked and not asked:
                asked = True
                for process in processes:
                    process.terminate()  # a request: the worker writes its resume file first
            with contextlib.suppress(queue.Empty):
                _show(progress, specs, *events.get(timeout=0.2))
        return asked


def _show(progress: Progress, specs: Sequence[RunSpec], kind: str, index: int, share: float, text: str) -> None:
    if kind == "starts":
        progress.cell(index + 1, len(specs), title(specs[index]))
    elif kind == "ends":
        progress.cell(index + 1, len(specs), title(specs[index]))
        progress.done(text)
    else:
        progress.note(text)


def _work(place: Place, specs: Sequence[RunSpec], tasks: "Queue[Any]", events: "Queue[Any]", worker: int) -> None:
    """The life of a worker: cells from `tasks` until none is left; (kind, cell's index, share, text) to `events`."""
    import torch

    torch.set_num_threads(1)
    gpus = torch.cuda.device_count()
    device = f"cuda:{worker % gpus}" if place.device == "cuda" and gpus else place.device
    parent = multiprocessing.parent_process()
    with StopSignal() as stop:

        def stop_without_parent(share: float, doing: str) -> None:
            stop.asked |= parent is not None and not parent.is_alive()  # it was killed: nobody would hear of what follows

        bench = Bench(place, load_sam(place.backbone, place.checkpoint, device), open_datasets(specs, place.data), stop)
        while not stop.asked and (task := tasks.get()) is not None:
            index, spec = task
            events.put(("starts", index, 0.0, ""))
            events.put(("ends", index, 1.0, bench.run(spec, stop_without_parent)))
