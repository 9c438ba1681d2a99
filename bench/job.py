"""What a SLURM job runs: its cells one after the other, each from where it stopped; told to end, it saves and queues itself again."""

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import RequestError
from bench.slurm_facts import job_facts, task_id
from bench.slurm_queue import slurm
from bench.spec import RunSpec
from bench.store import ResultStore
from bench.submission import Submission, read_submission

if TYPE_CHECKING:  # the launcher imports this module, and must not wait for torch
    from bench.workers import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def run_pack(submission: str, array: int, index: int) -> str:
    """Runs the pack `index` of an array; how many of its cells it computed, in words. It starts in a job that SLURM started.

    Ends the process with 0 where the job was put back into the queue, with 1 where the node lacks what the cells need.
    """
    sent = read_submission(Path(submission))
    store = ResultStore(sent.place.out)
    cells = [sent.cells[key] for key in sent.arrays[array].packs[index]]
    todo = [spec for spec in cells if may_run(store, spec)]
    if not todo:
        return f"All {len(cells)} cells were done before."
    from bench.workers import StopSignal

    with StopSignal(SIGNALS, patient=True) as stop:
        try:
            _run(todo, sent, store, stop)
        except RequestError as error:  # of this node, not of the cell: running again is the retry
            for spec in todo:
                with contextlib.suppress(OSError):
                    store.stop(spec, f"{job_facts().get('node')}: {error}")
            sys.exit(f"error: {error}")
        if stop.asked:
            queue_again()
    return f"{len(todo)} of {len(cells)} cells were run."


def may_run(store: ResultStore, spec: RunSpec) -> bool:
    """Whether a job shall run the cell: not what another one stored, and not what failed."""
    return store.status(spec).phase in ("pending", "unfinished")


def _run(specs: Sequence[RunSpec], sent: Submission, store: ResultStore, stop: "StopSignal") -> None:
    """Loads the backbone once and runs the cells; stops between two of them when that is asked for."""
    from bench.checkpoints import load_sam
    from bench.plan import open_datasets, title
    from bench.progress import Progress
    from bench.workers import Bench, device_of

    place = sent.place
    sam = load_sam(place.backbone, place.checkpoint, device_of(place.device))
    bench = Bench(place, sam, open_datasets(specs, place.data), stop)
    with Progress() as progress:
        for number, spec in enumerate(specs, 1):
            if stop.asked:
                return
            if not may_run(store, spec):
                continue
            if (before := _attempts(store, spec)) >= sent.attempts:
                store.fail(spec, f"Given up after {before} starts by SLURM jobs without a result; `--overwrite failed` tries again.")
                continue
            progress.cell(number, len(specs), title(spec))
            progress.done(bench.run(spec, progress.update))


def _attempts(store: ResultStore, spec: RunSpec) -> int:
    """Notes this start of the cell; how many there were before. A full disk is found by the cell itself."""
    try:
        return store.begin_attempt(spec)
    except OSError:
        return 0


def queue_again() -> None:
    """Puts this job back into SLURM's queue and ends the process, unless the job was cancelled: then it only returns."""
    job = task_id(job_facts())  # the plain number of an array's last task is the whole array's
    try:
        state = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
        if state != "RUNNING":
            print(f"Job {job} is {state or 'gone'}: it is not queued again.", flush=True)
            return
        slurm("scontrol", "requeue", job)
    except RequestError as error:
        print(f"The job could not be queued again ({error}); the same bench.run sends the rest.", file=sys.stderr, flush=True)
        return
    print(f"Job {job} is queued again and goes on from here.", flush=True)
    sys.exit(0)
