"""What is known of a grid's cells: their files first, then SLURM's queue. It never asks for accounting."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.cluster.queue import Task, ended, job_state
from bench.cluster.submission import Submission, held_packs, submissions
from bench.errors import RequestError
from bench.grid.heartbeat import SILENT_SECONDS, disk_now, silence
from bench.grid.job_environment import task_id
from bench.grid.progress import duration
from bench.grid.store import REEVALUATIONS, GridCell, ResultStore, attempts, grid_cell, read_record, read_state

PHASES = ("stored", "running", "pending", "lost", "unfinished", "failed")
EXPLAINED = 20  # lost cells of which SLURM is asked what became of their jobs


@dataclass(frozen=True)
class LiveStatus:
    """A cell as it stands: its phase, what there is to say of it in a line, and the share that is done, 0 to 1.

    seconds_left: of a running cell, by its own pace; None where it does not know yet.
    """

    cell: GridCell
    phase: str
    detail: str
    share: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Filter:
    """Which cells are meant: any of these data sets, methods (by name or label), shots, draws and seeds; empty means all."""

    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()

    def keeps(self, cell: GridCell) -> bool:
        """Whether the cell is meant."""
        names = {cell.method, cell.method.partition("(")[0]}
        wanted = [(self.datasets, {cell.dataset}), (self.methods, names), (self.shots, {str(cell.shots)})]
        wanted += [(self.draws, {str(cell.draw)}), (self.seeds, {str(cell.seed)})]
        return all(not asked or has & set(asked) for asked, has in wanted)


def cell_title(cell: GridCell) -> str:
    """A cell in a few words, with its key."""
    draw = f" draw {cell.draw}" if cell.draw else ""
    return f"{cell.key}  {cell.dataset} {cell.method} {cell.shots}-shot{draw} seed {cell.seed} {cell.condition}".rstrip()


def cells_of(out: Path, submission: Submission, keys: Iterable[str]) -> dict[str, GridCell]:
    """Key -> cell, of some cells of a submission; read from the last run's grid where that has them, which is faster."""
    grid = {cell.key: cell for cell in ResultStore(out).grid()}
    return {key: grid[key] if key in grid else grid_cell(submission.cells[key]) for key in keys}


def find_cell(out: Path, text: str) -> GridCell:
    """The one cell of a key, the start of one, its folder, or words of its title; RequestError where none or several fit.

    The last run's cells come first, then all that were ever sent to SLURM from this folder.
    """
    found = _fitting(text, ResultStore(out).grid())
    if not found:
        every = {key: (sent, key) for sent in submissions(out) for key in sent.cells}
        found = _fitting(text, [grid_cell(sent.cells[key]) for sent, key in every.values()])
    if len(found) == 1:
        return found[0]
    some = "; ".join(cell_title(cell) for cell in found[:3])
    raise RequestError(
        f"{text!r} fits {len(found)} cells of {out}{f' ({some} …)' if some else ''}: the key of one, as bench.status shows it, is needed."
    )


def _fitting(text: str, cells: Sequence[GridCell]) -> list[GridCell]:
    name = Path(text).name
    found = [cell for cell in cells if cell.key.startswith(text) or Path(cell.folder).name == name]
    return found or [cell for cell in cells if text in cell_title(cell)]


def live_statuses(out: Path, tasks: Sequence[Task] | None) -> list[LiveStatus]:
    """Every cell of the last grid and the last re-evaluations, and those of other launches that jobs hold, as they stand. tasks: None
    where SLURM is absent."""
    store = ResultStore(out)
    cells = {cell.key: cell for cell in (*store.grid(), *store.grid(REEVALUATIONS))}
    live: dict[str, Task] = {}
    anew: set[str] = set()
    for task, submission, keys in held_packs(out, sorted(tasks or (), key=lambda task: task.state == "RUNNING")):
        live |= dict.fromkeys(keys, task)
        cells |= {key: grid_cell(submission.cells[key]) for key in keys if key not in cells}
        anew |= set(keys) if submission.context.overwrite in ("always", "changed") else set()
    jobs: dict[str, list[str]] = {}
    for submission in submissions(out):
        for key, names in submission.jobs().items():
            jobs.setdefault(key, []).extend(names)
    now = disk_now(out) if cells else 0.0
    states = {key: read_state(store.runs / cell.folder) for key, cell in cells.items()}
    said = {_job(state) for state in states.values() if state.get("phase") == "running" and _job(state)}
    gone = ended(said - {task.job for task in tasks}) if tasks is not None else set()
    statuses = [_live_status(store, cell, live.get(key), key in jobs, key in anew, now, states[key], gone) for key, cell in cells.items()]
    lost = [one for one in statuses if one.phase == "lost"][:EXPLAINED]
    why = {one.cell.key: _what_became(jobs.get(one.cell.key, [])) for one in lost if tasks is not None}
    return [replace(one, detail=why.get(one.cell.key) or one.detail) for one in statuses]


def _live_status(
    store: ResultStore,
    cell: GridCell,
    task: Task | None,
    sent: bool,
    anew: bool,
    now: float,
    state: Mapping[str, Any],
    gone: Collection[str],
) -> LiveStatus:
    """anew: the job that holds the cell computes it though it has a result; gone: jobs that are over, whatever their heartbeats say."""
    folder = store.runs / cell.folder
    status = store.status_of(folder)
    if status.phase == "failed" or (status.phase == "stored" and not (anew and task and not _ended_in(state, task))):
        return LiveStatus(cell, status.phase, status.reason.partition("\n")[0], 1.0)
    progress, age = state.get("progress") or {}, silence(folder, state, now)
    share = float(progress.get("share", 0.0))
    starts = len(attempts(folder))
    if (
        age is not None
        and _job(state) not in gone
        and (age < SILENT_SECONDS or (task and task.state == "RUNNING" and task.job == _job(state)))
    ):
        again = f", start {starts}" if starts > 1 else ""
        left = progress.get("seconds_left")
        rest = f", about {duration(left)} left" if left else ""
        return LiveStatus(cell, "running", f"{share:4.0%}{rest}, {_doing(state)}{again}, heartbeat {age:.0f} s ago", share, left)
    if task:
        return LiveStatus(cell, "pending", _waits(task), share)
    if state.get("phase") == "stopped":
        return LiveStatus(cell, "unfinished", status.reason, share)
    if sent or state:
        return LiveStatus(cell, "lost", "no heartbeat and no job; the same bench.run sends it again", share)
    return LiveStatus(cell, "pending", "not sent yet", 0.0)


def _waits(task: Task) -> str:
    if task.state == "PENDING":
        return f"SLURM: {task.reason}"
    return f"its job is {task.state.lower()}" + (f" on {task.node}" if task.node else "") + "; starting, or other cells come first"


def _doing(state: Mapping[str, Any]) -> str:
    facts = state.get("slurm") or {}
    where = f"{facts.get('node', state.get('host'))}" + (f", job {_job(state)}" if facts else "")
    gpus = f", GPU {facts['gpus']}" if facts.get("gpus") else ""
    return f"{(state.get('progress') or {}).get('doing', '')} on {where}{gpus}"


def _job(state: Mapping[str, Any]) -> str:
    return task_id(state["slurm"]) if state.get("slurm") else ""


def _ended_in(state: Mapping[str, Any], task: Task) -> bool:
    """Whether what ended the cell last was a job of the task's array."""
    array = str((state.get("slurm") or {}).get("array", _job(state)))
    return state.get("phase") in ("stored", "failed") and array == task.job.partition("_")[0]


def _what_became(jobs: Sequence[str]) -> str:
    """What the controller remembers of the last job; "" where it forgot it, or never knew it."""
    state = job_state(jobs[-1]) if jobs else {}
    if not state:
        return ""
    if state["JobState"] == "OUT_OF_MEMORY":
        had = re.search(r"mem=([^,]+)", state.get("TRES", ""))
        return (
            f"job {jobs[-1]} ended on {state.get('NodeList')}: out of memory, of which it had {had[1] if had else 'no limit of its own'}; "
            "give the profile more mem_gb, or a mem_gb_max to be tried, and run the same bench.run"
        )
    said = [state["JobState"], state.get("Reason", "None"), f"exit code {state.get('ExitCode', '0:0')}"]
    where = "" if state.get("NodeList", "(null)") == "(null)" else f" on {state['NodeList']}"
    why = ", ".join(word for word in said if word not in ("None", "exit code 0:0"))
    return f"job {jobs[-1]} ended{where}: {why}; the same bench.run sends it again"


def seconds_left(out: Path, statuses: Sequence[LiveStatus]) -> float | None:
    """How long the rest will take, with as many cells at a time as now; None where nothing is known.

    A running cell goes on at its own pace; one that waits takes what stored and running cells of its method and shots take, or all.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for one in statuses:
        if (whole := _whole_seconds(out, one)) is not None:
            took.setdefault((one.cell.method, str(one.cell.shots)), []).append(whole)
    everything = [spent for of_method in took.values() for spent in of_method]
    rest = [one for one in statuses if one.phase in ("running", "pending")]
    at_once = sum(one.phase == "running" for one in rest)
    if not everything or not at_once:
        return None
    means = [fmean(took.get((one.cell.method, str(one.cell.shots)), everything)) for one in rest]
    each = [(1 - one.share) * mean if one.seconds_left is None else one.seconds_left for one, mean in zip(rest, means, strict=True)]
    return max(sum(each) / at_once, *(one.seconds_left or 0.0 for one in rest))


def _whole_seconds(out: Path, one: LiveStatus) -> float | None:
    """What a stored cell took, or a running one will have taken by its own pace; None for others."""
    if one.phase == "stored":
        cost = read_record(ResultStore(out).runs / one.cell.folder).cost
        return float(cost.get("training_seconds", 0.0) + cost.get("evaluation_seconds", 0.0))
    return one.seconds_left / (1 - one.share) if one.seconds_left and one.share < 1 else None
