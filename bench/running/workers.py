"""Runs cells on this machine, in this process or in several worker processes that take the next cell when they are free."""

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, groupby
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from bench.data.manifest import data_facts
from bench.errors import DataError, DivergedError, ProcessGroupError, RequestError, untouched_by_interrupts
from bench.grid.heartbeat import holder
from bench.grid.plan import RunContext, open_datasets, title
from bench.grid.plugins import place_in, reason
from bench.grid.progress import Progress
from bench.grid.provenance import provenance
from bench.grid.registry import METHODS
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore, clears
from bench.model.checkpoints import load_sam
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.running.adapted import load_run
from bench.running.cell import Cell, Stopped
from bench.running.loggers import Recorder, loggers_of
from bench.training.conditions import Condition, prompt_file, read_boxes
from bench.training.embedding_files import EmbeddingFiles
from bench.training.prepared import Prepared
from bench.training.process_group import SINGLE_PROCESS, ProcessGroup, is_lost
from bench.types import Dataset, Memory, ProgressCallback

HEARTBEAT_SECONDS = 10.0
TELL_SECONDS = 0.5  # between two words of a worker

T = TypeVar("T")
Begin = Callable[[ResultStore, RunSpec, RunContext], str]
STOPS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; a second one interrupts at once.

    signals: other ones than these two; patient: a second signal, as SLURM sends them in a row, interrupts nothing.
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOPS, patient: bool = False) -> None:
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


def begin_in_process(store: ResultStore, spec: RunSpec, context: RunContext) -> str:
    """Makes a cell ready to be run by a process of this machine; why it is left to another process, or ""."""
    if not context.steal and (other := holder(store.folder(spec))):
        return f"is computed by {other}; --steal computes it here too"
    if clears(store.status(spec), context.overwrite):
        store.reset(spec)
    return ""


class CellRunner:
    """The loaded backbone and the open data sets of a process, on which cells run one after the other.

    begin: makes a cell ready, or says why it is not run.
    """

    def __init__(
        self,
        context: RunContext,
        sam: Sam,
        datasets: Mapping[str, Dataset],
        stop: StopSignal,
        process_group: ProcessGroup = SINGLE_PROCESS,
        begin: Begin = begin_in_process,
    ) -> None:
        self.process_group, self.begin = process_group, begin
        self.context, self.sam, self.datasets, self.stop = context, sam, datasets, stop
        self.store, self.loggers = ResultStore(context.out), loggers_of(context.log)
        self.prepared: Prepared | None = None
        self._adapted: tuple[str, PromptableSegmenter] | None = None  # the last parent's key and model
        self.facts = provenance(str(sam.device), context.checkpoint, context.out / "cache")
        self._data: dict[str, dict[str, Any]] = {}

    def run(self, spec: RunSpec, on_progress: ProgressCallback) -> str:
        """Runs and stores one cell; returns what became of it, in a few words. A failure is noted in the cell's folder."""
        try:
            if why := self.process_group.broadcast(self._begun(spec)):  # the others look for a resume file only now
                return why
            return self._run_or_retry(spec, on_progress)
        except (Stopped, KeyboardInterrupt):  # the second is a second Ctrl-C: the resume file is the last one that was written
            self.stop.asked = True
            if self.process_group.rank == 0:
                with contextlib.suppress(OSError):
                    self.store.stop(spec, "stopped by a signal; it goes on where it was")
            return "stopped"
        except OSError as error:  # the disk, not the cell: left unfinished, so that running again is the retry
            if self.process_group.rank:
                return self._failed(spec, error)
            with contextlib.suppress(OSError):
                self.store.stop(spec, f"not stored: {error.strerror or error}")
            return f"NOT STORED: {error.strerror or error} ({self.store.folder(spec)})"
        except Exception as error:
            return self._failed(spec, error)

    def _begun(self, spec: RunSpec) -> str:
        """Why the cell is not run, by the process that writes; also where it could not be stored."""
        if self.process_group.rank:
            return ""
        try:
            self.store.check_writable([spec])
            return self.begin(self.store, spec, self.context)
        except (OSError, RequestError) as error:
            return f"NOT RUN: {error}"

    def _failed(self, spec: RunSpec, error: Exception) -> str:
        """Notes why a cell failed. In a process group it ends all, ProcessGroupError, but for a loss that is the same in all processes."""
        identical = self.process_group.size == 1 or isinstance(error, DivergedError)
        if not identical and is_lost(error):
            raise ProcessGroupError from None
        reason = failure(error, spec.method.name)
        if not identical or self.process_group.rank == 0:
            with contextlib.suppress(OSError):
                self.store.fail(spec, reason, "".join(traceback.format_exception(error)))
        if not identical:
            raise ProcessGroupError(
                f"Process {self.process_group.rank + 1} of {self.process_group.size}: {reason} The others stop too."
            ) from None
        return f"FAILED: {reason}"

    def _run_or_retry(self, spec: RunSpec, on_progress: ProgressCallback) -> str:
        """Runs the cell, and where the device's memory was too small once more with smaller steps of the same mathematics."""
        less = Memory(max(1, (self.context.memory.micro_batch or spec.settings.batch) // 2), checkpointing=True)
        try:
            return self._recorded(spec, on_progress, self.context.memory)
        except Exception as error:
            if not is_out_of_memory(error) or less == self.context.memory or self.process_group.size > 1:
                raise
        free_memory()  # here, where the error's frames no longer hold the tensors
        on_progress(0.0, f"out of memory: again with micro-batches of {less.micro_batch} and activation checkpointing")
        return self._recorded(spec, on_progress, less)

    def _recorded(self, spec: RunSpec, on_progress: ProgressCallback, memory: Memory) -> str:
        with Recorder(None if self.process_group.rank else self.store, spec, () if spec.reevaluation else self.loggers) as recorder:
            return self._run(spec, on_progress, memory, recorder)

    def _run(self, spec: RunSpec, on_progress: ProgressCallback, memory: Memory, recorder: Recorder) -> str:
        writes = self.process_group.rank == 0
        on_progress = ProgressWriter(spec, self.store, on_progress, self.stop) if writes else lambda share, doing: None
        replaces = self.store.stamp(spec)
        on_progress(0.0, "starting")
        dataset, context = self.datasets[spec.dataset], self.context
        if self.prepared is None or self.prepared.dataset is not dataset:  # one data set's at a time, which bounds the memory
            self.prepared = Prepared(dataset, context.kept_bytes, context.spilled_bytes, self._embeddings())
        data = self.process_group.broadcast(self._facts_of(dataset))
        adapted, condition = self._reevaluated(spec) if spec.reevaluation else (None, None)
        how = context.save_every, memory, self.prepared, self.process_group, adapted, condition, context.compile
        cell = Cell(spec, self.sam, dataset, self.store.folder(spec), on_progress, *how, data.get("fingerprint"), recorder)
        result = cell.run({**self.facts, "data": data})
        recorder.scores = {f"{rule}.{name}": value for rule, of in result.record.scores.items() for name, value in of.items()}
        if writes:
            tuned = None if spec.reevaluation else result.tuned  # they lie with the parent
            self.store.save(result.record, result.images, result.history, tuned, replaces)
        first = spec.settings.selections[0]
        return f"mIoU {result.record.scores[first]['miou_all']:.1f} ({first})"

    def _embeddings(self) -> EmbeddingFiles | None:
        """The files of frozen embeddings, where they are to stay."""
        weights = f"{self.context.backbone}_{self.facts['checkpoint']['sha256'][:16]}"
        return EmbeddingFiles(Path(self.context.embeddings), weights, self.sam.device) if self.context.embeddings else None

    def _reevaluated(self, spec: RunSpec) -> tuple[PromptableSegmenter, Condition]:
        """The model of a re-evaluation's parent, read once for all that follow each other, and how test images are shown to it."""
        again, folder = spec.reevaluation, spec.parent_folder
        assert again and folder and self.prepared
        if self._adapted is None or self._adapted[0] != again.parent:
            self._adapted = again.parent, load_run(self.store.runs / folder, self.sam)
        self.prepared.reuse(self._adapted[1])
        kept = prompt_file(self.store.root, again.prompt)
        return self._adapted[1], Condition(again.prompt, again.corruption, 4 * self.sam.config.grid, read_boxes(kept) if kept else None)

    def _facts_of(self, dataset: Dataset) -> dict[str, Any]:
        """What the record says of the data set's files, looked at once; only the process that writes it needs to."""
        if self.process_group.rank == 0 and dataset.name not in self._data:
            self._data[dataset.name] = data_facts(dataset, self.context.out / "cache")
        return self._data.get(dataset.name, {})


def device_of(name: str) -> str:
    """ "cpu" or "cuda"; "auto" takes the GPU where there is one. RequestError where "cuda" is asked for and absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("Device cuda was asked for, but torch finds no GPU here: cpu and auto are allowed.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def failure(error: Exception, method: str) -> str:
    """One sentence for the failure of a method's cell; what nobody foresaw is printed in full to stderr as well, once a process."""
    if isinstance(error, DivergedError | DataError | RequestError):
        return str(error)
    if is_out_of_memory(error):
        return "Out of memory, also with smaller steps and activation checkpointing: take a smaller backbone, or a device with more memory."
    said = reason(error, place_in(error, METHODS.get(method)))
    _print_once("".join(traceback.format_exception(error)))
    return said


@cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr, end="")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory was too small, the GPU's or this machine's."""
    import torch

    words = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def free_memory() -> None:
    """Gives what a failed cell held back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class ProgressWriter:
    """Passes a cell's progress on, writes its heartbeat and stops it when that is asked for."""

    def __init__(self, spec: RunSpec, store: ResultStore, on_progress: ProgressCallback, stop: StopSignal) -> None:
        self.spec, self.store, self.on_progress, self.stop = spec, store, on_progress, stop
        self._beat = -HEARTBEAT_SECONDS
        self._first: tuple[float, float] | None = None  # when work was first reported, and its share: a resumed cell starts late

    def __call__(self, share: float, doing: str) -> None:
        self.on_progress(share, doing)
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


def run_in_process(
    specs: Sequence[RunSpec], context: RunContext, sam: Sam, datasets: Mapping[str, Dataset], process_group: ProcessGroup = SINGLE_PROCESS
) -> bool:
    """Runs the cells in this process; whether it was asked to stop."""
    with open(os.devnull, "w") as silence, Progress(silence if process_group.rank else None) as progress, StopSignal() as stop:
        runner = CellRunner(context, sam, datasets, stop, process_group)
        for index, spec in enumerate(specs, 1):
            progress.cell(index, len(specs), title(spec))
            progress.done(runner.run(spec, progress.update))
            if stop.asked:
                return True
    return False


def run_in_workers(
    specs: Sequence[RunSpec],
    context: RunContext,
    workers: int,
    begin: Begin = begin_in_process,
    signals: Sequence[signal.Signals] = STOPS,
    threads: int = 1,
) -> bool:
    """Runs the cells in worker processes of so many threads each; whether it was asked to stop.

    A worker that dies leaves its cell unfinished, and its message; the others go on. begin: as of CellRunner, and a function that can be
    pickled; signals: what asks to stop.
    """
    spawn = multiprocessing.get_context("spawn")
    taken, events = spawn.Array("q", 2), spawn.Queue()
    processes = [
        spawn.Process(target=_work, args=(context, list(specs), taken, events, i, begin, threads), daemon=True) for i in range(workers)
    ]
    with Progress() as progress, StopSignal(signals, patient=signals is not STOPS) as stop:
        with untouched_by_interrupts():
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


def _tasks(specs: Sequence[RunSpec]) -> list[list[tuple[int, RunSpec]]]:
    """What workers take at once: a cell with its index, or the re-evaluations in a row that share a model and images."""

    def images(spec: RunSpec) -> tuple[str, ...]:
        again = spec.reevaluation
        return (again.parent, spec.dataset, again.corruption, spec.settings.precision) if again else (spec.key,)

    return [list(task) for _, task in groupby(enumerate(specs), key=lambda item: images(item[1]))]


def _taken(tasks: Sequence[T], taken: Any, worker: int) -> Iterator[T]:
    """The tasks that a worker takes when it is free: every other worker from the end, so that few prepare the same images. taken: how many
    are taken from either end, shared by all workers."""
    from_end = worker % 2
    while True:
        with taken:
            if sum(taken) == len(tasks):
                return
            task = tasks[-1 - taken[1] if from_end else taken[0]]
            taken[from_end] += 1
        yield task


def _show(progress: Progress, specs: Sequence[RunSpec], kind: str, index: int, share: float, text: str) -> None:
    if kind == "starts":
        progress.cell(index + 1, len(specs), title(specs[index]))
    elif kind == "ends":
        progress.done(text, index + 1)
    elif kind == "is at":
        progress.update(share, text, index + 1)
    else:
        progress.note(text)


def _work(context: RunContext, specs: Sequence[RunSpec], taken: Any, events: "Queue[Any]", worker: int, begin: Begin, threads: int) -> None:
    """The life of a worker: cells until none is left, see `_taken`; (kind, cell's index, share, text) to `events`."""
    import torch

    torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    device = f"cuda:{worker % gpus}" if context.device == "cuda" and gpus else context.device
    parent = multiprocessing.parent_process()
    with StopSignal() as stop:
        told_at = 0.0

        def tell(index: int, share: float, doing: str) -> None:
            nonlocal told_at
            stop.asked |= parent is not None and not parent.is_alive()  # it was killed: nobody would hear of what follows
            if time.monotonic() - told_at > TELL_SECONDS:
                told_at = time.monotonic()
                events.put(("is at", index, share, doing))

        runner = CellRunner(
            context, load_sam(context.backbone, context.checkpoint, device), open_datasets(specs, context.data), stop, begin=begin
        )
        gc.freeze()  # what was imported stays: looking through it for garbage again and again took 2 % of a small cell
        for index, spec in chain.from_iterable(_taken(_tasks(specs), taken, worker)):
            if stop.asked:
                return
            events.put(("starts", index, 0.0, ""))
            events.put(("ends", index, 1.0, runner.run(spec, partial(tell, index))))
