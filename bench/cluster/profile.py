"""Profiles: what a cell asks of a SLURM cluster, read from `slurm/*.toml`.

A profile's keys are the fields of `Profile`; rows `[[override]]` with any of `backbones`, `shots`, `methods` and `datasets` change
some of them for the cells that they name, later rows last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from bench import ROOT
from bench.errors import RequestError, unknown
from bench.grid.checks import Range, fits, range_of
from bench.grid.protocol import read_toml
from bench.grid.spec import RunSpec

PROFILES = ROOT / "slurm"
SELECTORS = ("backbones", "shots", "methods", "datasets")
WHOLE_GRID = ("parallel", "attempts", "max_jobs", "device", "setup")
OWN_FLAGS = ("array", "output", "error", "job-name", "signal", "open-mode", "dependency", "requeue", "no-requeue", "test-only")


@dataclass(frozen=True)
class Profile:
    """What each cell asks for; "" and 0 leave a thing to the cluster's own default."""

    name: str
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: Annotated[int, Range(0, 1024)] = 1
    gpu_type: str = ""  # as in --gres=gpu:TYPE:1
    cpus: Annotated[int, Range(1, 65_536)] = 4
    mem_gb: Annotated[float, Range(0.0, 1e6)] = 0.0
    time_min: Annotated[int, Range(2, 1_000_000)] = 240  # of a job, whatever number of cells it runs
    signal_s: Annotated[int, Range(5, 86_400)] = (
        120  # SLURM warns so long before the time limit; a job then saves its cell and is queued again
    )
    cells_per_job: Annotated[int, Range(1, 1_000_000)] = 1
    evaluations_per_job: Annotated[int, Range(1, 1_000_000)] = 8  # cells of methods that train nothing
    parallel: Annotated[int, Range(0, 1_000_000)] = 0  # at most so many jobs at a time, all arrays of a launch together
    max_jobs: Annotated[int, Range(0, 1_000_000)] = 0  # at most so many of the user's jobs in the queue
    attempts: Annotated[int, Range(1, 1_000_000)] = 10  # starts of a cell before it is given up
    device: str = ""  # "" means cuda where GPUs are asked for
    setup: tuple[str, ...] = ()  # shell lines before Python starts
    flags: Mapping[str, Any] = field(default_factory=dict)  # further flags of sbatch, by their long names
    overrides: tuple[Mapping[str, Any], ...] = ()

    def of_cell(self, spec: RunSpec) -> "Profile":
        """The profile with the rows that name this cell laid over it."""
        cell = {"backbones": spec.backbone, "shots": spec.shots, "methods": spec.method.name, "datasets": spec.dataset}
        changes: dict[str, Any] = {}
        for row in self.overrides:
            if all(cell[name] in row[name] for name in SELECTORS if name in row):
                changes |= {key: value for key, value in row.items() if key not in SELECTORS}
        return replace(self, overrides=(), **changes)

    def sbatch_flags(self) -> dict[str, Any]:
        """The request as long flags of sbatch; equal requests give equal flags."""
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        wanted = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": f"gpu:{kind}{self.gpus}" if self.gpus else "",
            "cpus-per-task": self.cpus,
            "mem": f"{round(self.mem_gb * 1024)}M" if self.mem_gb else "",
            "time": self.time_min,
            "nodes": 1,
            "ntasks": 1,
        }
        return {**{name: value for name, value in wanted.items() if value != ""}, **self.flags}

    def device_of(self, asked: str) -> str:
        """The device of the command line, or the profile's; never chosen by what a node happens to have."""
        if asked != "auto":
            return asked
        return self.device or ("cuda" if self.gpus else "cpu")

    def check_devices(self, devices: int, device: str) -> None:
        """RequestError where a cell is to run on more GPUs than one of its requests has."""
        gpus = min([self.gpus, *(row["gpus"] for row in self.overrides if "gpus" in row)])
        if device == "cuda" and devices > gpus:
            raise RequestError(f"--devices {devices}: the profile {self.name} asks for {gpus} GPUs a job; at least as many are needed.")


def load_profile(name_or_path: str, folder: Path = PROFILES) -> Profile:
    """The profile `slurm/<name>.toml`, or of any path that ends in .toml; RequestError for unknown names, keys and values."""
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if not name_or_path:
        raise RequestError(f"The SLURM launcher needs --profile: {', '.join(known)}, or the path of a .toml file.")
    if not name_or_path.endswith(".toml") and name_or_path not in known:
        raise unknown("profile", name_or_path, known)
    path = Path(name_or_path) if name_or_path.endswith(".toml") else folder / f"{name_or_path}.toml"
    content = read_toml(path)
    rows = content.pop("override", [])
    keys = [f.name for f in fields(Profile) if f.name not in ("name", "overrides")]
    values = _checked(str(path), content, keys)
    own = [key for key in keys if key not in WHOLE_GRID]
    return Profile(path.stem, **values, overrides=tuple(_row(f"{path} [[override]]", row, own) for row in rows))


def _row(where: str, row: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    changes = {key: value for key, value in row.items() if key not in SELECTORS}
    checked = _checked(where, changes, keys, (*SELECTORS, *keys))
    selectors = {name: row[name] if isinstance(row[name], list) else [row[name]] for name in SELECTORS if name in row}
    if not selectors:
        raise RequestError(f"{where}: at least one of {', '.join(SELECTORS)} is needed.")
    return {**selectors, **checked}


def _checked(where: str, given: Mapping[str, Any], keys: list[str], shown: tuple[str, ...] = ()) -> dict[str, Any]:
    plain = Profile("")
    values = {}
    for key, value in given.items():
        if key not in keys:
            raise unknown(f"key in {where}", key, shown or keys)
        values[key] = _typed(f"{where}: {key}", value, getattr(plain, key))
        allowed = range_of(Profile, key)
        if allowed and (fault := allowed.fault(values[key])):
            raise RequestError(f"{where}: {key} = {value} {fault}.")
    for name in values.get("flags", {}):
        if name in OWN_FLAGS:
            raise RequestError(f"{where}: the flag {name!r} is set by the launcher itself and cannot be given.")
    if values.get("device", "") not in ("", "cpu", "cuda"):
        raise RequestError(f"{where}: device = {values['device']!r}: cpu and cuda are allowed.")
    return values


def _typed(where: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(line, str) for line in value):
        return tuple(value)
    if isinstance(default, float) and (type(value) is float or fits(value, float)):
        return float(value)
    if type(value) is type(default):
        return value
    kinds: dict[type, str] = {tuple: "a list of strings", dict: "a table"}
    kind = kinds.get(type(default), type(default).__name__)
    raise RequestError(f"{where} = {value!r} has the wrong type: {kind} is needed.")
