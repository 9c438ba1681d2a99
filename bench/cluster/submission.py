"""Submissions: what one launch sent to SLURM, in a file of the results' folder that its jobs read, and people look into later."""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from bench.cluster.queue import CLUSTER, Task, tasks
from bench.errors import RequestError
from bench.grid.files import write_together
from bench.grid.plan import RunContext
from bench.grid.spec import RunSpec
from bench.grid.store import spec_from_json, spec_to_json
from bench.types import Memory

FOLDER = "slurm"  # below the results' folder: submissions, snapshots, logs, and the mark of the launcher whose turn it is


@dataclass(frozen=True)
class Array:
    """Jobs of one resource request: the packs of cells (by key) that they run, and the number SLURM gave the array ("" before)."""

    flags: Mapping[str, Any]
    packs: tuple[tuple[str, ...], ...]
    signal_s: int
    job: str = ""


class Cells(Mapping[str, RunSpec]):
    """Key -> spec as a submission's file has them, each read when it is asked for; the settings that cells share are there once."""

    def __init__(self, content: Mapping[str, Any], settings: Sequence[Any]) -> None:
        self.content, self.settings = content, settings

    def __getitem__(self, key: str) -> RunSpec:
        spec = self.content[key]
        return spec_from_json({**spec, "settings": self.settings[spec["settings"]]} if isinstance(spec["settings"], int) else spec)

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)


@dataclass(frozen=True)
class Submission:
    """One launch. cells: key -> spec; snapshot: the folder of the code; attempts: starts of a cell without progress before it is given
    up; at_once: cells of a job that run side by side; cluster: the one of several that it was sent to, "" for the only one."""

    id: str
    context: RunContext
    snapshot: Path
    attempts: int
    cells: Mapping[str, RunSpec]
    arrays: tuple[Array, ...]
    path: Path = field(compare=False)
    at_once: int = 1
    cluster: str = ""

    def write(self) -> None:
        """Writes the file, whole or not at all. OSError where the disk does not take it."""
        settings: list[Any] = []
        cells = {key: spec_to_json(spec) for key, spec in self.cells.items()}
        for cell in cells.values():
            if cell["settings"] not in settings:
                settings.append(cell["settings"])
            cell["settings"] = settings.index(cell["settings"])
        content = {
            "id": self.id,
            "place": asdict(self.context),
            "snapshot": str(self.snapshot),
            "attempts": self.attempts,
            "settings": settings,
            "cells": cells,
            "arrays": [asdict(array) for array in self.arrays],
            "at_once": self.at_once,
            "cluster": self.cluster,
        }
        write_together(self.path.parent, {self.path.name: json.dumps(content, default=str).encode()})

    @property
    def logs(self) -> Path:
        """The folder of its jobs' logs."""
        return self.path.parent.parent / "logs" / self.id

    def name(self, array: int | str) -> str:
        """The name in SLURM's queue of an array, or of the "check" or "collect" job, which `queue.NAME` knows again."""
        return f"spb_{self.id}_{array}"

    def jobs(self) -> dict[str, list[str]]:
        """Key -> the jobs that were to run the cell, as squeue names them; none of an array that was not sent."""
        found: dict[str, list[str]] = {}
        for array in self.arrays:
            for index, pack in enumerate(array.packs if array.job else ()):
                for key in pack:
                    found.setdefault(key, []).append(f"{array.job}_{index}" if len(array.packs) > 1 else array.job)
        return found


def new_id() -> str:
    """A name that sorts by time and that two launchers cannot share."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def submission_path(out: Path, submission: str) -> Path:
    """Where the file of a submission lies, whether or not it exists."""
    return out / FOLDER / "submissions" / f"{submission}.json"


def submission_files(out: Path) -> list[Path]:
    """The files of a results' folder's submissions, oldest first."""
    return sorted((out / FOLDER / "submissions").glob("*.json"))


def read_submission(path: Path) -> Submission:
    """The submission of a file; RequestError where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        arrays = tuple(Array(**{**array, "packs": tuple(map(tuple, array["packs"]))}) for array in content["arrays"])
        cells = Cells(content["cells"], content.get("settings", ()))
        for key in list(cells)[:1]:  # those of another version are not like these
            cells[key]
        context, more = _context(content["place"]), (content.get("at_once", 1), content.get("cluster", ""))
        return Submission(content["id"], context, Path(content["snapshot"]), content["attempts"], cells, arrays, path, *more)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"Cannot read the submission {path}: {error}.") from None


def _context(content: Mapping[str, Any]) -> RunContext:
    """The context that JSON holds: whatever field it has, paths and the memory as such."""
    made: dict[Any, Callable[[Any], Any]] = {Path: Path, Memory: lambda memory: Memory(**memory)}
    kinds = get_type_hints(RunContext)
    return RunContext(**{name: made.get(kinds[name], lambda value: value)(value) for name, value in content.items()})


def submissions(out: Path) -> list[Submission]:
    """All submissions of a results' folder, oldest first; one that cannot be read, of another version say, is named and left out."""
    found = []
    for path in submission_files(out):
        try:
            found.append(read_submission(path))
        except RequestError as error:
            print(error, file=sys.stderr)
    return found


def use_cluster(out: Path) -> None:
    """Asks the cluster that the last launch of a results' folder was sent to, unless the user's environment names one."""
    sent = submission_files(out)
    if sent and CLUSTER not in os.environ and (name := read_submission(sent[-1]).cluster):
        os.environ[CLUSTER] = name


def free_of_jobs(specs: Sequence[RunSpec], out: Path) -> list[RunSpec]:
    """The cells without those that jobs of SLURM hold, which is said; where SLURM cannot be asked, heartbeats alone tell."""
    if not submission_files(out):
        return list(specs)
    try:
        use_cluster(out)
        live = live_cells(out, tasks())
    except RequestError as error:
        print(f"(SLURM was not asked which cells it holds: {error})", file=sys.stderr)
        return list(specs)
    free = [spec for spec in specs if spec.key not in live]
    if len(free) < len(specs):
        print(f"{len(specs) - len(free)} cells are left to jobs of SLURM, which hold them; --steal computes them here too.")
    return free


def live_cells(out: Path, tasks: Iterable[Task]) -> dict[str, Task]:
    """Key -> job, of the cells of this folder that a job in the queue runs or will run; a running job before a waiting one."""
    found: dict[str, Task] = {}
    for task, _, keys in held_packs(out, sorted(tasks, key=lambda task: task.state == "RUNNING")):
        found |= dict.fromkeys(keys, task)
    return found


def held_packs(out: Path, tasks: Iterable[Task]) -> Iterator[tuple[Task, Submission, tuple[str, ...]]]:
    """Each of this folder's jobs in the queue, what sent it, and the keys of the cells that it holds: none, of a check or collector."""
    known: dict[str, Submission | None] = {}
    for task in tasks:
        path = submission_path(out, task.submission)
        if task.submission not in known:
            known[task.submission] = read_submission(path) if path.is_file() else None
        if submission := known[task.submission]:
            is_check = not 0 <= task.array < len(submission.arrays)  # or a collector
            yield task, submission, () if is_check else submission.arrays[task.array].packs[task.index]


def early_starts(logs: Path, jobs: Iterable[str]) -> list[Path]:
    """The marks of those starts of jobs that ended before their first cell began; `job.sh` makes them."""
    return [path for job in jobs for path in logs.glob(f"{job}.*.early")]
