"""Submissions: what one launch sent to SLURM, in a file of the results' folder that its jobs read, and people look into later."""

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from bench.cluster.queue import Task
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


@dataclass(frozen=True)
class Submission:
    """One launch. cells: key -> spec; snapshot: the folder of the code; attempts: starts of a cell before it is given up."""

    id: str
    context: RunContext
    snapshot: Path
    attempts: int
    cells: Mapping[str, RunSpec]
    arrays: tuple[Array, ...]
    path: Path = field(compare=False)

    def write(self) -> None:
        """Writes the file, whole or not at all. OSError where the disk does not take it."""
        content = {
            "id": self.id,
            "place": asdict(self.context),
            "snapshot": str(self.snapshot),
            "attempts": self.attempts,
            "cells": {key: spec_to_json(spec) for key, spec in self.cells.items()},
            "arrays": [asdict(array) for array in self.arrays],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_together(self.path.parent, {self.path.name: json.dumps(content, indent=1, default=str).encode()})

    @property
    def logs(self) -> Path:
        """The folder of its jobs' logs."""
        return self.path.parent.parent / "logs" / self.id

    def name(self, array: int) -> str:
        """The array's name in SLURM's queue, which `slurm_queue` knows again."""
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


def read_submission(path: Path) -> Submission:
    """The submission of a file; RequestError where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        arrays = tuple(Array(**{**array, "packs": tuple(map(tuple, array["packs"]))}) for array in content["arrays"])
        cells = {key: spec_from_json(spec) for key, spec in content["cells"].items()}
        return Submission(content["id"], _context(content["place"]), Path(content["snapshot"]), content["attempts"], cells, arrays, path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"Cannot read the submission {path}: {error}.") from None


def _context(content: Mapping[str, Any]) -> RunContext:
    """The place that JSON holds: whatever field it has, paths and the memory as such."""
    made: dict[Any, Callable[[Any], Any]] = {Path: Path, Memory: lambda memory: Memory(**memory)}
    kinds = get_type_hints(RunContext)
    return RunContext(**{name: made.get(kinds[name], lambda value: value)(value) for name, value in content.items()})


def submissions(out: Path) -> list[Submission]:
    """All submissions of a results' folder, oldest first; one that cannot be read, of another version say, is named and left out."""
    found = []
    for path in sorted((out / FOLDER / "submissions").glob("*.json")):
        try:
            found.append(read_submission(path))
        except RequestError as error:
            print(error, file=sys.stderr)
    return found


def live_cells(out: Path, tasks: Iterable[Task]) -> dict[str, Task]:
    """Key -> job, of the cells of this folder that a job in the queue runs or will run; a running job before a waiting one."""
    found: dict[str, Task] = {}
    known: dict[str, Submission | None] = {}
    for task in sorted(tasks, key=lambda task: task.state == "RUNNING"):
        path = submission_path(out, task.submission)
        if task.submission not in known:
            known[task.submission] = read_submission(path) if path.is_file() else None
        if submission := known[task.submission]:
            found |= dict.fromkeys(_pack(submission.arrays, task), task)
    return found


def _pack(arrays: Sequence[Array], task: Task) -> tuple[str, ...]:
    return arrays[task.array].packs[task.index] if task.array < len(arrays) else ()
