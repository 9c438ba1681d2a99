"""What a SLURM job runs: its cells one after the other, each from where it stopped; told to end, it saves and queues itself again."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cluster.queue import slurm
from bench.cluster.submission import Submission, read_submission
from bench.errors import ProcessGroupError, RequestError
from bench.grid.job_environment import job_facts, task_id
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore, attempts
from bench.training.launch import is_distributed, is_main_process, launch_processes

if TYPE_CHECKING:  # the launcher imports this module, and must not wait for torch
    from bench.running.workers import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def run_pack(submission: str, array: int, index: int) -> str:
    """Runs the pack `index` of an array; how many of its cells it computed, in words. It starts in a job that SLURM started.

    Ends the process with 0 where the job was put back into the queue, with 1 where the node lacks what the cells need.
    """
    sent = read_submission(Path(submission))
    store = ResultStore(sent.context.out)
    cells = [sent.cells[key] for key in sent.arrays[array].packs[index]]
    todo = [spec for spec in cells if may_run(store, spec) and not (is_main_process() and _is_given_up(store, spec, sent.attempts))]
    if not todo and not is_distributed():
        return f"None of {len(cells)} cells is to be run."
    if sent.context.devices > 1 and not is_distributed():
        sys.exit(launch_processes(["-m", "bench.cluster.job", submission, str(array), str(index)], sent.context.devices, SIGNALS))
    from bench.running.workers import StopSignal

    with StopSignal(SIGNALS, patient=True) as stop:
        try:
            _run(todo, sent, store, stop)
        except RequestError as error:  # of this node, not of the cell: running again is the retry
            for spec in todo:
                with contextlib.suppress(OSError):
                    store.stop(spec, f"{job_facts().get('node')}: {error}")
            sys.exit(f"error: {error}")
        if stop.asked and is_main_process():
            queue_again()
    return f"{len(todo)} of {len(cells)} cells were run."


def main(arguments: Sequence[str]) -> int:
    """What each process of a cell that several devices run together is started with; 1 where another one of them failed."""
    try:
        print(run_pack(arguments[0], int(arguments[1]), int(arguments[2])))
    except ProcessGroupError as error:
        print(f"error: {error}" if str(error) else "", file=sys.stderr)
        return 1
    return 0


def may_run(store: ResultStore, spec: RunSpec) -> bool:
    """Whether a job shall run the cell: not what another one stored, and not what failed."""
    return store.status(spec).phase in ("pending", "unfinished")


def _run(specs: Sequence[RunSpec], sent: Submission, store: ResultStore, stop: "StopSignal") -> None:
    """Loads the backbone once and runs the cells; stops between two of them when that is asked for."""
    from bench.grid.plan import open_datasets, title
    from bench.grid.progress import Progress
    from bench.model.checkpoints import load_sam
    from bench.running.workers import CellRunner, device_of
    from bench.training.process_group import join_process_group, leave_process_group

    context = sent.context
    process_group, device = join_process_group(device_of(context.device))
    specs = process_group.broadcast(specs)
    sam = load_sam(context.backbone, context.checkpoint, device)
    runner = CellRunner(context, sam, open_datasets(specs, context.data), stop, process_group)
    with open(os.devnull, "w") as silence, Progress(silence if process_group.rank else None) as progress:
        for number, spec in enumerate(specs, 1):
            if process_group.broadcast(stop.asked):
                return
            if not process_group.broadcast(process_group.rank == 0 and _begins(store, spec)):
                continue
            progress.cell(number, len(specs), title(spec))
            progress.done(runner.run(spec, progress.update))
            if stop.asked and process_group.rank == 0:  # the others are in the middle of the cell, and end when this process does
                return
    leave_process_group(process_group)


def _is_given_up(store: ResultStore, spec: RunSpec, most: int) -> bool:
    """Whether SLURM jobs started the cell as often as is allowed; then it has failed, which is noted."""
    before = len(attempts(store.folder(spec)))
    if before >= most:
        with contextlib.suppress(OSError):
            store.fail(spec, f"Given up after {before} starts by SLURM jobs without a result; `--overwrite failed` tries again.")
    return before >= most


def _begins(store: ResultStore, spec: RunSpec) -> bool:
    """Whether the cell is still to be run; notes this start of it."""
    if not may_run(store, spec):
        return False
    with contextlib.suppress(OSError):  # a full disk is found by the cell itself
        store.begin_attempt(spec)
    return True


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
