"""What Python does in a SLURM job: its cells one after the other, each from where it stopped; told to end, it saves, and says by its exit
code that the job is to be queued again. `job.sh` around it asks SLURM, which a container may not reach."""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cluster.submission import Submission, early_starts, read_submission
from bench.errors import ProcessGroupError, RequestError
from bench.grid.heartbeat import holder
from bench.grid.job_environment import job_facts, task_id
from bench.grid.plan import RunContext
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore, attempts, clears, read_attempt, read_state, starts_without_progress
from bench.training.launch import is_distributed, is_main_process, launch_processes

if TYPE_CHECKING:  # the launcher imports this module, and must not wait for torch
    from bench.running.workers import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
QUEUE_AGAIN = 75  # "temporary failure", as sysexits.h has it


def run_pack(submission: str, array: int, index: int) -> str:
    """Runs the pack `index` of an array; how many of its cells it computed, in words. It starts in a job that SLURM started.

    Ends the process with 75 where the job is to be put back into the queue, with 1 where the node lacks what the cells need.
    """
    facts = job_facts()
    sent = read_submission(Path(submission))
    store = ResultStore(sent.context.out)
    cells = [sent.cells[key] for key in sent.arrays[array].packs[index]]
    todo = [spec for spec in cells if may_run(store, spec, sent.context) and not (is_main_process() and _is_given_up(store, spec, sent))]
    if not todo and not is_distributed():
        _mark(sent).unlink(missing_ok=True)
        return f"None of {len(cells)} cells is to be run."
    if sent.context.devices > 1 and not is_distributed():
        sys.exit(launch_processes(["-m", "bench.cluster.job", submission, str(array), str(index)], sent.context.devices, SIGNALS))
    from bench.running.workers import StopSignal

    with StopSignal(SIGNALS, patient=True) as stop:
        try:
            _run(todo, sent, stop)
        except RequestError as error:  # of this node, not of the cell: running again is the retry
            for spec in todo:
                with contextlib.suppress(OSError):
                    store.stop(spec, f"{facts.get('node')}: {error}")
            sys.exit(f"error: {error}")
        if stop.asked and is_main_process():
            sys.exit(QUEUE_AGAIN)
    return f"{len(todo)} of {len(cells)} cells were run."


def main(arguments: Sequence[str]) -> int:
    """What each process of a cell that several devices run together is started with; 1 where another one of them failed."""
    try:
        print(run_pack(arguments[0], int(arguments[1]), int(arguments[2])))
    except ProcessGroupError as error:
        print(f"error: {error}" if str(error) else "", file=sys.stderr)
        return 1
    return 0


def may_run(store: ResultStore, spec: RunSpec, context: RunContext) -> bool:
    """Whether a job shall run the cell: not what another one stored, and not what failed, unless the launch asked for those, and it
    ended before this array."""
    phase = store.status(spec).phase
    if phase in ("pending", "unfinished"):
        return True
    if context.overwrite == "always" or (context.overwrite, phase) in (("failed", "failed"), ("changed", "stored")):
        state = read_state(store.folder(spec))
        return state.get("phase") not in ("stored", "failed") or not _is_own(state.get("slurm") or {})
    return False


def begin_in_job(sent: Submission, store: ResultStore, spec: RunSpec, context: RunContext) -> str:
    """Makes the cell ready and notes this start of it; why it is not run, or ""."""
    if not may_run(store, spec, context):
        return "another job was faster"
    folder = store.folder(spec)
    if not context.steal and (other := holder(folder)):
        return f"is computed by {other}"
    if _forgets(store, spec, context):
        store.reset(spec)
    with contextlib.suppress(OSError):  # a full disk is found by the cell itself
        store.begin_attempt(spec)
        _mark(sent).unlink(missing_ok=True)
    return ""


def _run(specs: Sequence[RunSpec], sent: Submission, stop: "StopSignal") -> None:
    """Loads the backbone once and runs the cells; stops between two of them when that is asked for."""
    from bench.grid.plan import open_datasets, title
    from bench.grid.progress import Progress
    from bench.model.checkpoints import load_sam
    from bench.running.workers import CellRunner, device_of, run_in_workers
    from bench.training.process_group import join_process_group, leave_process_group

    context, begin = sent.context, partial(begin_in_job, sent)
    if sent.at_once > 1 and len(specs) > 1:
        workers = min(sent.at_once, len(specs))
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or 1) // workers)
        kept, spilled = context.kept_bytes // workers, context.spilled_bytes // workers
        shared = replace(context, device=device_of(context.device), kept_bytes=kept, spilled_bytes=spilled)
        stop.asked |= run_in_workers(specs, shared, workers, begin, SIGNALS, threads)
        return
    process_group, device = join_process_group(device_of(context.device))
    specs = process_group.broadcast(specs)
    sam = load_sam(context.backbone, context.checkpoint, device)
    runner = CellRunner(context, sam, open_datasets(specs, context.data), stop, process_group, begin)
    with open(os.devnull, "w") as silence, Progress(silence if process_group.rank else None) as progress:
        for number, spec in enumerate(specs, 1):
            if process_group.broadcast(stop.asked):
                return
            progress.cell(number, len(specs), title(spec))
            progress.done(runner.run(spec, progress.update))
            if stop.asked and process_group.rank == 0:  # the others are in the middle of the cell, and end when this process does
                return
    leave_process_group(process_group)


def _is_given_up(store: ResultStore, spec: RunSpec, sent: Submission) -> bool:
    """Whether SLURM jobs started the cell as often as is allowed and got it no further; then it has failed, which is noted."""
    before = 0 if _forgets(store, spec, sent.context) else starts_without_progress(store.folder(spec))
    before += sum(path != _mark(sent) for path in early_starts(sent.logs, [task_id(job_facts())]))
    if before < sent.attempts:
        return False
    with contextlib.suppress(OSError):
        store.give_up(spec, given_up(before))
    return True


def _forgets(store: ResultStore, spec: RunSpec, context: RunContext) -> bool:
    """Whether the job begins with what the launch is to overwrite, and not with what an earlier start of this array left."""
    if not clears(store.status(spec), context.overwrite):
        return False
    return not any(_is_own(read_attempt(path)) for path in attempts(store.folder(spec)))


def _mark(sent: Submission) -> Path:
    """The file that `job.sh` made at this start; it goes when a cell begins."""
    facts = job_facts()
    return sent.logs / f"{task_id(facts)}.{facts['restart']}.early"


def given_up(starts: int) -> str:
    """Why a cell failed that no job got any further."""
    return f"Given up after {starts} starts by SLURM jobs without progress; `--overwrite failed` tries again, from where it was."


def _is_own(said: Mapping[str, Any]) -> bool:
    """Whether facts of a job are those of this one's array."""
    own = job_facts()
    return bool(said) and said.get("array", said.get("job")) == own.get("array", own.get("job"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
