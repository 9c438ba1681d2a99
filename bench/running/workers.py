"""Runs cells on this machine, in this process or in several worker processes that take the next cell when they are free."""

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any

from bench.data.manifest import data_facts
from bench.errors import DataError, DivergedError, RequestError, TeamError
from bench.grid.plan import Place, open_datasets, title
from bench.grid.progress import Progress
from bench.grid.provenance import provenance
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore
from bench.model.checkpoints import load_sam
from bench.model.sam import Sam
from bench.running.cell import Cell, Stopped
from bench.training.prepared import Prepared
from bench.training.process_group import SOLO, Team, is_lost
from bench.types import Dataset, Memory

HEARTBEAT_SECONDS = 10.0
TELL_SECONDS = 0.5


Tell = Callable[[float, str], None]  # the share of the cell that is done, and what is being done


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; a second one interrupts at once.

    signals: other ones than these two; patient: a second signal, as SLURM sends them in a row, interrupts nothing.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM), patient: bool = False) -> None:
        self.asked = False
        self.signals, self.patient = signals, patient

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self.patient:
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
        self._data: dict[str, dict[str, Any]] = {}

    def run(self, spec: RunSpec, tell: Tell) -> str:
        """Runs and stores one cell; returns what became of it, in a few words. A failure is noted in the cell's folder."""
        if self.team.rank == 0 and (self.place.overwrite == "always" or self.store.status(spec).phase == "failed"):
            self.store.discard(spec)
        self.team.told(None)  # the others look for a resume file only now
        try:
            return self._run_or_retry(spec, tell)
        except (Stopped, KeyboardInterrupt):  # the second is a second Ctrl-C: the resume file is the last one that was written
            self.stop.asked = True
            if self.team.rank == 0:
                with contextlib.suppress(OSError):
                    self.store.stop(spec, "stopped by a signal; it goes on where it was")
            return "stopped"
        except OSError as error:  # the disk, not the cell: left unfinished, so that running again is the retry
            if self.team.rank:
                return self._failed(spec, error)
            with contextlib.suppress(OSError):
                self.store.stop(spec, f"not stored: {error.strerror or error}")
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

    def _run_or_retry(self, spec: RunSpec, tell: Tell) -> str:
        """Runs the cell, and where the device's memory was too small once more with smaller steps of the same mathematics."""
        less = less_memory(self.place.memory, spec.settings.batch)
        try:
            return self._run(spec, tell, self.place.memory)
        except Exception as error:
            if not is_out_of_memory(error) or less == self.place.memory or self.team.size > 1:
                raise
        free_memory()  # here, where the error's frames no longer hold the tensors
        tell(0.0, f"out of memory: again with micro-batches of {less.micro_batch} and activation checkpointing")
        return self._run(spec, tell, less)

    def _run(self, spec: RunSpec, tell: Tell, memory: Memory) -> str:
        watch = Watcher(spec, self.store, tell, self.stop) if self.team.rank == 0 else _unwatched
        watch(0.0, "starting")
        dataset, place = self.datasets[spec.dataset], self.place
        if self.prepared is None or self.prepared.dataset is not dataset:  # one data set's at a time, which bounds the memory
            self.prepared = Prepared(dataset, place.kept_bytes)
        cell = Cell(
            spec,
            self.sam,
            dataset,
            self.store.folder(spec),
            watch,
            place.save_every,
            memory,
            self.prepared,
            self.team,
            compile=place.compile,
        )
        result = cell.run({**self.facts, "data": self._facts_of(dataset)})
        if self.team.rank == 0:
            self.store.save(result.record, result.images, result.history, result.tuned)
        first = spec.settings.selections[0]
        return f"mIoU {result.record.scores[first]['miou_all']:.1f} ({first})"

    def _facts_of(self, dataset: Dataset) -> dict[str, Any]:
        """What the record says of the data set's files, looked at once; only the process that writes it needs to."""
        if self.team.rank == 0 and dataset.name not in self._data:
            self._data[dataset.name] = data_facts(dataset, self.place.out / "cache")
        return self._data.get(dataset.name, {})


def _unwatched(share: float, doing: str) -> None:
    return


def device_of(name: str) -> str:
    """ "cpu" or "cuda"; "auto" takes the GPU where there is one. RequestError where "cuda" is asked for and absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("Device cuda was asked for, but torch finds no GPU here: cpu and auto are allowed.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def failure(error: Exception) -> str:
    """One sentence for a cell's failure; what nobody foresaw is printed in full to stderr as well."""
    if isinstance(error, DivergedError | DataError | RequestError):
        return str(error)
    if is_out_of_memory(error):
        return "Out of memory, also with smaller steps and activation checkpointing: take a smaller backbone, or a device with more memory."
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory was too small, the GPU's or this machine's."""
    import torch

    words = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def less_memory(memory: Memory, batch: int) -> Memory:
    """Steps that need less: half the micro-batch (one image at least), and activation checkpointing."""
    return Memory(max(1, (memory.micro_batch or batch) // 2), checkpointing=True)


def free_memory() -> None:
    """Gives what a failed cell held back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Watcher:
    """Passes a cell's progress on, writes its heartbeat and stops it when that is asked for."""

    def __init__(self, spec: RunSpec, store: ResultStore, tell: Tell, stop: StopSignal) -> None:
        self.spec, self.store, self.tell, self.stop = spec, store, tell, stop
        self._beat = -HEARTBEAT_SECONDS
        self._first: tuple[float, float] | None = None  # when work was first reported, and its share: a resumed cell starts late

    def __call__(self, share: float, doing: str) -> None:
        self.tell(share, doing)
        now = time.monotonic()
        if share and self._first is None:
            self._first = now, share
        if now - self._beat > HEARTBEAT_SECONDS:
            self._beat = now
            with contextlib.suppress(OSError):
                progress = {"share": round(share, 4), "doing": doing, "seconds_left": self._seconds_left(share, now)}
                self.store.heartbeat(self.spec, "running", progress)
        if self.stop.asked:
            raise Stopped

    def _seconds_left(self, share: float, now: float) -> float | None:
        """By the pace since work was first reported; None before that."""
        if self._first is None or share <= self._first[1]:
            return None
        began, at = self._first
        return round((now - began) * (1.0 - share) / (share - at), 1)


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
