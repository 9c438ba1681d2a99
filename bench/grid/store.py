"""Results on disk: a folder a cell, complete or absent, read back as one table.

There is no database and no lock, because cells are written by many machines on a shared disk: a file appears by rename, and
`record.json` last, so a result exists if and only if it is complete.
"""

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from bench.errors import RequestError
from bench.grid.columns import Columns
from bench.grid.files import check_writable, is_below, write_together
from bench.grid.job_environment import job_facts, task_id
from bench.grid.protocol import CellShots, Settings
from bench.grid.rows import IMAGES, Compared
from bench.grid.spec import RELEASED, MethodChoice, Reevaluation, RunSpec
from bench.grid.toml_reader import kinds, part
from bench.types import SEED, Range

if TYPE_CHECKING:  # pandas takes longer to load than most commands take
    import pandas as pd

T = TypeVar("T")
RECORD, STATE, RESUME, TUNED, HISTORY = "record.json", "state.json", "resume.pt", "tuned.safetensors", "history.csv"
TRACEBACK = "traceback.txt"  # of the failure that the state tells in a sentence
COPY = "it is a copy of"  # begins the reason why a second copy of a cell is left out
GRID, REEVALUATIONS = "grid.json", "reevaluations.json"  # what was asked for last: of `bench.run`, of `bench.reevaluate`
ATTEMPT = re.compile(r"attempt_[0-9]+_[0-9]+\.json")  # a start of the cell by a SLURM job: its number and restart count
KEYED_NAME = re.compile(r".+_([0-9a-f]{12})")
NAMES_AS_TEXT: dict[str, Callable[[str], str]] = dict.fromkeys(("name", "image", "stem"), str)  # an image called 007 stays "007"

Amount = Annotated[float, Range(0)] | None
FACTS: Mapping[str, Any] = {  # of a record, by the names of a row's columns: what tables count, sort and group by, where it is there
    **dict.fromkeys((f"cost.{name}" for name in ("trainable_parameters", "total_parameters", "tuned_bytes", "steps", "looks")), Amount),
    **dict.fromkeys((f"cost.{name}" for name in ("training_seconds", "evaluation_seconds", "peak_memory_mb", "test_images")), Amount),
    "cost": dict,
    "provenance": dict,
    **dict.fromkeys((f"provenance.{name}" for name in ("time", "command", "python", "device_name", "git.commit")), str | None),
    **dict.fromkeys(("provenance.packages.torch", "provenance.data.fingerprint"), str | None),
}
COST_FIELDS = ("step_seconds", "images_per_second", "peak_memory_mb")  # of a method on a backbone and machine, measured apart from cells

Phase = Literal["stored", "failed", "unfinished", "pending"]


class DamagedRecord(Exception):
    """A record that cannot be read or does not belong where it lies; the message is the reason."""


STATES: Mapping[str, Any] = {**dict.fromkeys(("phase", "error", "time", "host"), str | None), "progress": dict | None, "slurm": dict | None}
JOB: Mapping[str, Any] = {"job": str, "task": str, "array": str, "restart": str}
PROGRESS: Mapping[str, Any] = {"share": Annotated[float, Range(0, 1)], "seconds_left": Amount, "doing": str}
TIME = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\dZ")


@dataclass(frozen=True)
class CellStatus:
    """What a cell's files say of it; `reason` is empty for a stored cell."""

    phase: Phase
    reason: str = ""


def clears(status: CellStatus, overwrite: str) -> bool:
    """Whether what a cell that is to be run left is removed first; of `changed` a stored one is to be run for its data alone."""
    return overwrite == "always" or status.phase == "failed" or (overwrite == "changed" and status.phase == "stored")


@dataclass(frozen=True)
class Record:
    """One cell's result.

    scores: selection rule -> score name -> percent (NaN where a score is not defined); cost: counts, seconds and megabytes;
    provenance: nested, JSON values only.
    """

    spec: RunSpec
    scores: Mapping[str, Mapping[str, float]]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def fingerprint(self) -> str | None:
        """That of the data set's files; None where images were drawn, "" where it is not known."""
        data = self.provenance.get("data")
        return data.get("fingerprint", "") if isinstance(data, Mapping) else ""


@dataclass(frozen=True)
class Damaged:
    """A record that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Scan:
    """All records below a store: one row a cell, and those left out."""

    table: "pd.DataFrame"
    damaged: tuple[Damaged, ...]


@dataclass(frozen=True)
class GridCell:
    """A cell that the last run was asked for; the columns of `row`, but `method` is the label and `folder` relative to `runs`."""

    dataset: str
    method: str
    shots: CellShots
    draw: Annotated[int, SEED]
    seed: Annotated[int, SEED]
    backbone: str
    protocol: str
    checkpoint_sha256: str
    key: str
    method_id: str
    recipe: str
    folder: str
    trains: bool = True
    condition: str = ""  # of a re-evaluation

    @property
    def named(self) -> tuple[object, ...]:
        """What a user calls it, which leaves the weights open."""
        return self.dataset, self.method, self.shots, self.draw, self.seed, self.backbone, self.protocol


class ResultStore:
    """The cells below `root/runs`, and the grid of the last run in `root/grid.json`; others: are read with it, and never written."""

    def __init__(self, root: Path, *others: Path) -> None:
        self.root, self.roots = Path(root), tuple(dict.fromkeys([Path(root), *map(Path, others)]))
        self.runs = self.root / "runs"
        self.compared = Compared(self.root / "cache" / "compared.json")

    def check_writable(self, specs: Iterable[RunSpec] = ()) -> None:
        """RequestError, naming the folder, unless a file can be written below it, and into each of the cells' own folders."""
        check_writable(self.root, self.runs.name)
        closed = [folder for spec in specs if (folder := self._closed(spec))]
        if closed:
            more = f" ({len(closed) - 1} more like it)" if len(closed) > 1 else ""
            raise RequestError(
                f"Cannot write to {closed[0]}, which user {closed[0].stat().st_uid} owns{more}: results that several "
                "people write need --group-writable from the beginning, or another --out."
            )

    def _closed(self, spec: RunSpec) -> Path | None:
        """The cell's folder, or the nearest one above it that there is, where this user cannot write into it."""
        folder = self.folder(spec)
        while not folder.exists():
            folder = folder.parent
        return None if os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids) else folder

    def folder(self, spec: RunSpec) -> Path:
        """Where the cell lies, whether or not it exists."""
        return self.runs / spec.folder

    def status(self, spec: RunSpec) -> CellStatus:
        """What the files say of the cell. A damaged record counts as failed, so that it can be run again."""
        return self.status_of(self.folder(spec))

    def status_of(self, folder: Path) -> CellStatus:
        """The same for a cell's folder."""
        if (folder / RECORD).exists():
            try:
                read_record(folder, self.compared)
            except DamagedRecord as damage:
                return CellStatus("failed", f"its record is damaged: {damage}")
            return CellStatus("stored")
        state = read_state(folder)
        if not state and not any((folder / name).exists() for name in (STATE, RESUME)):
            return CellStatus("pending", "not started")
        return _running(state)

    def heartbeat(self, spec: RunSpec, phase: str, progress: Mapping[str, Any] | None = None) -> None:
        """Says that this process works on the cell, and how far it is. OSError where the disk does not take it."""
        self._write_state(spec, phase, progress or {}, error=None)

    def fail(self, spec: RunSpec, error: str, trace: str = "") -> None:
        """Says that the cell failed, and why, in one sentence; trace: where, for `bench.logs`. OSError where the disk does not take it."""
        self._write_state(spec, "failed", {}, error)
        if trace:
            write_together(self.folder(spec), {TRACEBACK: trace.encode(errors="backslashreplace")}, durable=False)

    def grow_history(self, spec: RunSpec, history: "Sequence[Mapping[str, Any]]") -> None:
        """Writes a running cell's training curve so far; that of a result stays until there is another one. OSError as above."""
        folder = self.folder(spec)
        if not (folder / RECORD).exists():
            import pandas as pd

            write_together(folder, {HISTORY: _csv(pd.DataFrame(history))}, durable=False)

    def stop(self, spec: RunSpec | Path, why: str) -> None:
        """Says that nobody works on the cell (or that of a folder) any more, though it is not finished, and why. OSError as above."""
        self._write_state(spec, "stopped", {}, why)

    def give_up(self, spec: RunSpec, why: str) -> None:
        """Says that the cell failed because it was started too often, which says nothing against its resume file. OSError as above."""
        self._write_state(spec, "failed", {"given_up": True}, why)

    def begin_attempt(self, spec: RunSpec) -> None:
        """Notes that the SLURM job of this process starts the cell.

        Every start has a file of its own, so that two jobs, or two lives of one job, cannot overwrite each other's.
        """
        folder, facts = self.folder(spec), job_facts()
        content = {**facts, "time": _now(), "resume": resume_stamp(folder)}
        write_together(folder, {f"attempt_{facts['job']}_{facts['restart']}.json": _json(content)}, durable=False)

    def save(self, record: Record, images: "pd.DataFrame", history: "pd.DataFrame", tuned: bytes | None, replaces: bytes = b"") -> Path:
        """Stores the cell's result and returns its folder.

        Everything is on the disk under temporary names before the first file appears, and the record appears last. A disk
        that is full raises OSError and leaves no file of this result. Where another copy of the cell was faster, its result
        stays and this one is dropped. replaces: the `stamp` of a result that lay there when this one was begun, and goes now.
        """
        folder = self.folder(record.spec)
        if self.status_of(folder).phase == "stored" and self.stamp(record.spec) != replaces:
            self._tidy(record.spec)
            return folder
        files = {IMAGES: _csv(images), HISTORY: _csv(history), TUNED: tuned, RECORD: record_bytes(record)}
        write_together(folder, {name: content for name, content in files.items() if content is not None})
        self._tidy(record.spec)
        return folder

    def stamp(self, spec: RunSpec) -> bytes:
        """What tells the result that is there from another one of the same cell; empty where there is none."""
        with contextlib.suppress(OSError):
            return (self.folder(spec) / RECORD).read_bytes()
        return b""

    def read(self, cell: RunSpec | Path) -> Record:
        """A cell's record, by spec or by folder (which may have been moved); DamagedRecord where it is not as it must be."""
        return read_record(self._folder_of(cell), self.compared)

    def images(self, cell: RunSpec | Path) -> "pd.DataFrame":
        """A cell's rows by test image; OSError where it has none."""
        return _read_csv(self._folder_of(cell) / IMAGES)

    def history(self, cell: RunSpec | Path) -> "pd.DataFrame":
        """A cell's training curve; OSError where it has none."""
        return _read_csv(self._folder_of(cell) / HISTORY)

    def records(self) -> "pd.DataFrame":
        """One row a stored cell (see `row`); `scan` says also which records were left out."""
        return self.scan().table

    def scan(self) -> Scan:
        """All records, in the order of their folders. A damaged record, or a second copy of a cell, is reported and left out."""
        paths: dict[str, str] = {}
        columns = Columns()
        damaged = []
        for folder in sorted(self._folders(), key=lambda folder: (not KEYED_NAME.fullmatch(folder.name), str(folder))):
            try:
                found = row(read_record(folder, self.compared), folder)
            except DamagedRecord as damage:
                damaged.append(Damaged(folder / RECORD, str(damage)))
                continue
            if found["key"] in paths:
                damaged.append(Damaged(folder / RECORD, f"{COPY} {paths[found['key']]}"))
                continue
            paths[found["key"]] = found["path"]
            columns.append(found)
        self.compared.remember()
        return Scan(columns.table("path"), tuple(sorted(damaged, key=lambda item: str(item.path))))

    def reset(self, spec: RunSpec) -> None:
        """Forgets how the cell ended before it is computed anew: its state, starts and traceback, and, unless it was only given up,
        its resume file and curve. A result stays until there is another one."""
        folder = self.folder(spec)
        given_up = (read_state(folder).get("progress") or {}).get("given_up")
        stored = (folder / RECORD).exists()
        gone = [folder / TRACEBACK, *([] if given_up else [folder / RESUME]), *([] if given_up or stored else [folder / HISTORY])]
        for path in (folder / STATE, *attempts(folder), *gone):
            path.unlink(missing_ok=True)

    def write_grid(self, specs: Iterable[RunSpec], name: str = GRID) -> None:
        """Notes the cells that a run was asked for, so that tables and status can say what is missing."""
        cells = [asdict(grid_cell(spec)) for spec in specs]
        write_together(self.root, {name: _json(cells)})

    @contextlib.contextmanager
    def asked_for(self, specs: Iterable[RunSpec]) -> Iterator[None]:
        """Notes the cells that are asked for, as `write_grid`; where what is done within fails, those of before are there again."""
        path = self.root / GRID
        before = path.read_bytes() if path.exists() else None
        self.write_grid(specs)
        try:
            yield
        except BaseException:
            path.unlink() if before is None else write_together(self.root, {GRID: before})
            raise

    def grid(self, name: str = GRID) -> tuple[GridCell, ...]:
        """The cells that the last run was asked for; none where there was no run. RequestError where the file is damaged."""
        own = _grid(self.root / name)
        others = {cell.key: cell for root in self.roots[1:] for cell in _grid(root / name)}
        asked = {cell.key for cell in own}
        return (*own, *(cell for key, cell in others.items() if key not in asked))

    def found(self, folder: str) -> Path:
        """Where a cell of the grid lies or would lie, by its folder's name below `runs`."""
        return next((place for root in self.roots if (place := root / "runs" / folder).exists()), self.runs / folder)

    def cost_file(self, method: MethodChoice, backbone: str, machine: str) -> Path:
        """Where the costs of a method are kept that were measured on a machine, apart from all cells."""
        return self.root / "costs" / f"{backbone}_{method.name}_{_short((backbone, method_id(method), machine))}.json"

    def keep_cost(self, method: MethodChoice, backbone: str, machine: str, found: Mapping[str, Any]) -> None:
        """Keeps COST_FIELDS as they were measured, and what else is said of the measurement."""
        path = self.cost_file(method, backbone, machine)
        which = {"backbone": backbone, "label": method.label, "method_id": method_id(method), "machine": machine, "time": _now()}
        write_together(path.parent, {path.name: _json({**which, **found})})

    def costs(self) -> dict[tuple[str, str, str], Mapping[str, float]]:
        """(backbone, method_id, machine) -> COST_FIELDS, of all that was measured."""
        found: dict[tuple[str, str, str], Mapping[str, float]] = {}
        for path in (path for root in reversed(self.roots) for path in sorted((root / "costs").glob("*.json"))):
            if cost := read_cost(path):
                of, numbers = cost
                found[of["backbone"], of["method_id"], of["machine"]] = {name: numbers[name] for name in COST_FIELDS if name in numbers}
        return found

    def _folder_of(self, cell: RunSpec | Path) -> Path:
        return self.folder(cell) if isinstance(cell, RunSpec) else Path(cell)

    def _folders(self) -> Iterator[Path]:
        for method in (folder for root in self.roots for folder in sorted((root / "runs").glob("*/*/"))):
            with os.scandir(method) as entries:
                yield from (Path(entry.path) for entry in entries if os.path.exists(f"{entry.path}/{RECORD}"))

    def _tidy(self, spec: RunSpec) -> None:
        with contextlib.suppress(OSError):  # the result is complete: this is for people only
            for name in (RESUME, TRACEBACK):
                (self.folder(spec) / name).unlink(missing_ok=True)
            self._write_state(spec, "stored", {}, error=None)

    def _write_state(self, spec: RunSpec | Path, phase: str, progress: Mapping[str, Any], error: str | None) -> None:
        folder = self._folder_of(spec)
        state = {"phase": phase, "progress": dict(progress), "error": error, "pid": os.getpid(), "host": socket.gethostname()}
        state |= {"time": _now(), **({"slurm": facts} if (facts := job_facts()) else {})}
        write_together(folder, {STATE: _json(state)}, durable=False)


class Snapshot(ResultStore):
    """A store as it is when it is first read: for what makes many tables and figures of the same records."""

    def scan(self) -> Scan:
        """All records, each of which is read once."""
        return self._scanned

    def grid(self, name: str = GRID) -> tuple[GridCell, ...]:
        """The cells that the last run was asked for, read once."""
        return self.once(("grid", name), lambda: super(Snapshot, self).grid(name))

    def once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What is made of the store, made when it is asked for first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[object, ...], Any]:
        return {}

    @cached_property
    def _scanned(self) -> Scan:
        return super().scan()


def attempts(folder: Path) -> list[Path]:
    """The files that the starts of a cell by SLURM jobs left in its folder, oldest job first."""
    found = [path for path in folder.glob("attempt_*.json") if ATTEMPT.fullmatch(path.name)]
    return sorted(found, key=lambda path: tuple(map(int, path.stem.split("_")[1:])))


def read_attempt(path: Path) -> dict[str, Any]:
    """What a start of a cell by a SLURM job left; empty where it cannot be read."""
    try:
        facts = _parsed(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and all(isinstance(facts.get(name, ""), str) for name in JOB) and "job" in facts else {}


def resume_stamp(folder: Path) -> int:
    """What changes when a cell makes progress that outlives it; 0 before that."""
    with contextlib.suppress(OSError):
        return (folder / RESUME).stat().st_mtime_ns
    return 0


def starts_without_progress(folder: Path) -> int:
    """How many of the latest starts by SLURM jobs found the cell as it is now."""
    now, count = resume_stamp(folder), 0
    for path in sorted(attempts(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if read_attempt(path).get("resume", now) != now:
            break
        count += 1
    return count


def read_record(folder: Path, compared: Compared | None = None) -> Record:
    """The record of a cell's folder. compared: remembers which records agree with their rows by image.

    DamagedRecord where it is absent, cut short or of another version, where a field cannot have its value, where its content has
    another key than it says, or than the folder's name says, or another score than its rows by image.
    """
    path = folder / RECORD
    try:
        content = _parsed(path.read_bytes())
        record = _record(content)
        said = content["key"]
    except OSError as error:
        raise DamagedRecord(f"it cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RequestError, RecursionError) as error:
        raise DamagedRecord(f"its content is not that of a record ({type(error).__name__}: {error})") from None
    named = KEYED_NAME.fullmatch(folder.name)
    for where, key in (("it says", said), ("its folder is named", named[1] if named else said)):
        if key != record.spec.key:
            raise DamagedRecord(f"the key of its content is {record.spec.key}, but {where} {key}")
    if differs := (compared or Compared()).disagreement(folder, path, record.scores):
        raise DamagedRecord(differs)
    return record


def _parsed(content: bytes) -> Any:
    """JSON that can be written again: without NaN, and of texts that are UTF-8."""
    parsed = json.loads(content, parse_constant=_no_number)
    if b"\\u" in content:
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def record_bytes(record: Record) -> bytes:
    """A record as JSON: sorted keys, floats in full, NaN as null; the same record gives the same bytes."""
    content = {"key": record.spec.key, "spec": spec_to_json(record.spec), "scores": record.scores}
    return _json({**content, "cost": record.cost, "provenance": record.provenance})


def _record(content: Mapping[str, Any]) -> Record:
    scores = {rule: {name: _number(name, value) for name, value in group.items()} for rule, group in content["scores"].items()}
    if not scores:
        raise ValueError("no scores")
    record = Record(spec_from_json(content["spec"]), scores, content["cost"], content["provenance"])
    part("it", {name: _fact(content, name) for name in FACTS}, FACTS)
    if not record.spec.settings.selections:
        raise ValueError("no selections")
    return record


def _fact(content: Any, name: str) -> Any:
    """What a record says by a dotted name; None where it says nothing."""
    for key in name.split("."):
        if content is not None and not isinstance(content, dict):
            raise ValueError(f"{key} of {name} is in no table")
        content = None if content is None else content.get(key)
    return content


def _number(name: str, value: Any) -> float:
    if value is not None and type(value) not in (int, float):
        raise TypeError(f"{name} = {value!r} is not a number")
    if value is not None and not 0 <= value <= 100:
        raise ValueError(f"{name} = {value} is no percentage")
    return math.nan if value is None else float(value)


def spec_to_json(spec: RunSpec) -> dict[str, Any]:
    """The whole spec as JSON values, the order of a method's parameters included; `spec_from_json` reads it back."""
    again = {"reevaluation": fields_of(spec.reevaluation)} if spec.reevaluation else {}
    own = {name: value for name, value in fields_of(spec).items() if name != "reevaluation"}
    return {**own, "method": fields_of(spec.method), "settings": fields_of(spec.settings), **again}


def spec_from_json(content: Mapping[str, Any]) -> RunSpec:
    """The spec that `spec_to_json` wrote; TypeError or ValueError where a field is missing, unknown or cannot have its value."""
    parts = {"method": _method(json.dumps(content["method"])), "settings": _settings(json.dumps(content["settings"]))}
    again = _whole(Reevaluation(**content["reevaluation"])) if content.get("reevaluation") else None
    return _whole(RunSpec(**{**content, **parts, "reevaluation": again}))


@lru_cache(maxsize=1024)  # thousands of cells have few of them
def _method(text: str) -> MethodChoice:
    return _whole(method_from_json(json.loads(text)))


@lru_cache(maxsize=1024)
def _settings(text: str) -> Settings:
    return _whole(Settings(**{name: _tuples(value) for name, value in json.loads(text).items()}))


def _whole(item: T) -> T:
    """A part of a spec, each of whose fields can have its value."""
    known = kinds(type(item))  # type: ignore[arg-type]
    part("it", {name: value for name, value in vars(item).items() if name in known}, known)
    return item


def method_from_json(content: Mapping[str, Any]) -> MethodChoice:
    """The choice of the values that `fields_of` gave, lists for tuples."""
    return MethodChoice(**{name: _tuples(value) for name, value in content.items()})


def fields_of(item: RunSpec | MethodChoice | Settings | Reevaluation) -> dict[str, Any]:
    """A dataclass's own fields, by name."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _json(content: Any) -> bytes:
    text = json.dumps(_without_nan(content), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(table: "pd.DataFrame") -> bytes:
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], converters=NAMES_AS_TEXT)
    except pd.errors.EmptyDataError:  # a method that trains nothing has no curve
        return pd.DataFrame()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_state(folder: Path) -> dict[str, Any]:
    """What was last said of a cell that runs or ran; empty where nothing was, or it cannot be read."""
    try:
        state = _parsed((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    try:
        for table, known in ((state, STATES), (state.get("progress") or {}, PROGRESS), (state.get("slurm") or {"job": ""}, JOB)):
            part("it", {name: table[name] for name in known if name in table}, known)
        task_id(state.get("slurm") or {"job": ""})
    except (RequestError, AttributeError, TypeError, KeyError):
        return {}
    return state if state.get("time") is None or TIME.fullmatch(state["time"]) else {}


def _running(state: Mapping[str, Any]) -> CellStatus:
    if state.get("phase") == "failed":
        return CellStatus("failed", str(state.get("error") or "no reason was given"))
    if state.get("phase") == "stored":
        return CellStatus("unfinished", "its record was removed")
    if "phase" not in state:
        return CellStatus("unfinished", "it left no readable state")
    if state["phase"] == "stopped":
        return CellStatus("unfinished", str(state.get("error") or "stopped"))
    return CellStatus("unfinished", f"{state['phase']}, last heard of from {state.get('host')} at {state.get('time')}")


def _grid(path: Path) -> tuple[GridCell, ...]:
    try:
        return tuple(_grid_cell(cell) for cell in _parsed(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, RecursionError, RequestError) as error:
        raise RequestError(f"Cannot read {path}: {error}; remove it, or run again.") from None


def _grid_cell(content: Mapping[str, Any]) -> GridCell:
    cell = GridCell(**content)
    part("it", content, kinds(GridCell))
    if not is_below(cell.folder):
        raise ValueError(f"folder = {cell.folder!r} is not below runs")
    return cell


def grid_cell(spec: RunSpec) -> GridCell:
    """A cell as the grid's file has it."""
    who = (spec.dataset, spec.method.label, spec.shots, spec.draw, spec.seed)
    which = (spec.backbone, spec.protocol, spec.checkpoint_sha256, spec.key)
    same = _identities(spec)
    ids, folder = (same["method_id"], same["recipe"]), spec.folder.as_posix()
    return GridCell(*who, *which, *ids, folder, not spec.method.is_zero_shot, spec.condition_in_words)


def row(record: Record, folder: Path) -> dict[str, Any]:
    """A record as one flat row.

    Columns: what the cell is (`label` is the method with its shown parameters, `parameter.*` are all of them), `selection` (the one whose
    weights are kept), `lr` (in words: by group of parameters, where those differ), `key`, `method_id` and `recipe` (equal for cells that
    differ in no more than the data set, or the draw and seed), `<selection>.<score>`, `cost.*`, `provenance.*` and `path`.
    """
    spec, settings, method = record.spec, record.spec.settings, record.spec.method
    parameters = dict(method.parameters)
    names = {"dataset": spec.dataset, "method": method.name, "label": method.label, "decoder": parameters.get("decoder")}
    run = {"shots": spec.shots, "draw": spec.draw, "seed": spec.seed, "backbone": spec.backbone, "protocol": spec.protocol}
    again = spec.reevaluation or Reevaluation("", spec.dataset, settings.evaluation_prompt)
    fixed = {"checkpoint_sha256": spec.checkpoint_sha256, "evaluation_prompt": again.prompt}
    fixed |= {"parent": again.parent, "tuned_on": again.tuned_on, "corruption": again.corruption, "precision": settings.precision}
    fixed |= {"released_sha256": spec.released_sha256, "lr": settings.rates_in_words}
    kept = {
        "selection": settings.selections[0],
        "dataset_revision": spec.dataset_revision,
        "draw_revision": spec.draw_revision,
        "generated": spec.generated,
        "method_revision": method.revision,
        "trains": trains(record.cost),
        "augmentation_stream": settings.augmentation_stream,
        "stream_revision": settings.stream_revision,
        "eval_mode_after_first_look": settings.eval_mode_after_first_look,
        "trials": settings.trials,
        "tuned_as": settings.tuned_as or method.label,
    }
    scores = {f"{rule}.{name}": value for rule, group in record.scores.items() for name, value in group.items()}
    nested = {**flat("parameter", parameters), **flat("cost", record.cost), **flat("provenance", record.provenance)}
    return {**names, **run, **fixed, **kept, **_identities(spec), "key": spec.key, **scores, **nested, "path": str(folder)}


def own_weights(table: "pd.DataFrame") -> "pd.DataFrame":
    """Of `Scan.table` the cells that are no re-evaluations of others."""
    return table[table["parent"] == ""] if len(table) else table


def read_cost(path: Path) -> tuple[dict[str, str], dict[str, float]] | None:
    """What a measured cost is of, by name, and its numbers, by COST_FIELDS and `tuned_bytes`; None where the file cannot be read, lacks
    one of an image, or has a number that nobody can have measured."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        cost = json.loads(path.read_bytes())
        of = {name: str(cost[name]) for name in ("backbone", "method_id", "label", "machine", "time")}
        numbers = {name: float(cost[name]) for name in (*COST_FIELDS, "tuned_bytes") if name in cost}
        if all(0 <= value < math.inf for value in numbers.values()) and numbers["images_per_second"] * numbers["peak_memory_mb"] > 0:
            return of, numbers
    return None


def trains(cost: Mapping[str, Any]) -> bool:
    """Whether a record's costs are of something that was trained; what was not has one number for all shots, draws and seeds."""
    return cost.get("trainable_parameters") != 0


def method_id(method: MethodChoice) -> str:
    """Equal for choices that are the same method."""
    return _short((method.name, method.parameters, method.revision))


def _identities(spec: RunSpec) -> dict[str, str]:
    """A released checkpoint is a method apart, which every data set may have another file of."""
    method: tuple[Any, ...] = (spec.method.name, spec.method.parameters, spec.method.revision)
    recipe: tuple[Any, ...] = (method, spec.settings, spec.dataset, spec.dataset_revision, spec.generated, spec.checkpoint_sha256)
    if spec.settings.lr_by_group:
        recipe = (*recipe, spec.settings.lr_by_group)
    if spec.settings.weight_decay_by_group:
        recipe = (*recipe, "weight_decay", spec.settings.weight_decay_by_group)
    if spec.released_sha256:
        method, recipe = (*method, RELEASED), (*recipe, spec.released_sha256)
    if spec.settings.stream_revision > 1:
        recipe = (*recipe, spec.settings.stream_revision)
    if spec.settings.trials or spec.settings.val_images:
        recipe = (*recipe, spec.settings.trials, spec.settings.tuned_as, spec.settings.val_images)
    if spec.reevaluation:
        recipe = (*recipe, spec.condition)
    return {"method_id": _short(method), "recipe": _short(recipe)}


def _short(identity: object) -> str:
    return sha256(repr(identity).encode()).hexdigest()[:12]


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by dotted names, all of which begin with the prefix."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        found |= flat(name, value) if isinstance(value, dict) else {name: value}
    return found
