"""Profiles: what a cell asks of a SLURM cluster, read from `slurm/*.toml`.

A profile's keys are the fields of `Profile`; rows `[[override]]` with any of `backbones`, `shots`, `methods` and `datasets` change
some of them for the cells that they name, later rows last.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.cluster.queue import CLUSTER, HONOURED
from bench.errors import RequestError, unknown
from bench.grid.protocol import read_toml
from bench.grid.spec import RunSpec

PROFILES = ROOT / "slurm"
SELECTORS = ("backbones", "shots", "methods", "datasets")
WHOLE_GRID: tuple[str, ...] = ("parallel", "attempts", "max_jobs", "max_array_tasks", "device", "setup", "python", "cluster")
WHOLE_GRID += ("cells_per_gpu", "check_partition", "collect_partition")
NONE = "none"  # as the partition of the check or the collector: there is no such job
GPU_FLAGS = ("gres", "gpus", "gpus-per-node", "gpus-per-task")
OWN_FLAGS = ("array", "output", "error", "job-name", "signal", "open-mode", "dependency", "requeue", "no-requeue", "test-only")
LEAST = {"gpus": 0, "cpus": 1, "mem_gb": 0.0, "time_min": 2, "parallel": 0, "cells_per_job": 1, "evaluations_per_job": 1}
LEAST |= {"signal_s": 5, "attempts": 1, "max_jobs": 0, "max_array_tasks": 0, "cells_per_gpu": 1, "mem_gb_max": 0.0}


@dataclass(frozen=True)
class Profile:
    """What each cell asks for; "" and 0 leave a thing to the cluster's own default."""

    name: str
    cluster: str = ""  # as in sbatch --clusters, where a site has several
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: int = 1
    gpu_type: str = ""  # as in --gres=gpu:TYPE:1
    gpu_flag: str = "gres"  # how the site wants GPUs to be asked for: gres, gpus, gpus-per-node or gpus-per-task
    cpus: int = 4
    mem_gb: float = 0.0
    mem_gb_max: float = 0.0  # a job that a node ended for its memory is tried once more with so much; 0: it is not
    time_min: int = 240  # of a job, whatever number of cells it runs
    signal_s: int = 120  # SLURM warns so long before the time limit; a job then saves its cell and is queued again
    cells_per_job: int = 1
    evaluations_per_job: int = 8  # cells of methods that train nothing
    cells_per_gpu: int = 1  # cells of a job that run side by side on each of its GPUs, which they share
    parallel: int = 0  # at most so many jobs at a time, all arrays of a launch together
    max_jobs: int = 0  # at most so many of the user's jobs in the queue
    max_array_tasks: int = 0  # at most so many jobs in an array; 0: as many as the cluster's MaxArraySize allows
    attempts: int = 10  # starts of a cell that got it no further, before it is given up
    device: str = ""  # "" means cuda where GPUs are asked for
    setup: tuple[str, ...] = ()  # shell lines before Python starts; one that fails ends the job
    python: str = ""  # shell words that start Python in a job, such as "apptainer exec --nv image.sif python"; "": the launcher's own
    check_partition: str = ""  # of the job that checks what nodes see; "": the cells' own, "none": no check
    collect_partition: str = ""  # of the job that renders the tables; "": the cells' own, "none": no such job
    flags: Mapping[str, Any] = field(default_factory=dict)  # further flags of sbatch, by their long names
    overrides: tuple[Mapping[str, Any], ...] = ()

    def of_cell(self, spec: RunSpec) -> "Profile":
        """The profile with the rows that name this cell laid over it."""
        cell = {"backbones": spec.backbone, "shots": spec.shots, "methods": spec.method.name, "datasets": spec.dataset}
        changes: dict[str, Any] = {}
        for row in self.overrides:
            if all(cell[name] in row[name] for name in SELECTORS if name in row):
                changes |= {key: value for key, value in row.items() if key not in SELECTORS}
        own = replace(self, overrides=(), **changes)
        own.check_warning()
        return own

    def check_warning(self) -> None:
        """RequestError where jobs would be warned before they begin."""
        if self.signal_s >= 60 * self.time_min:
            raise RequestError(
                f"The profile {self.name} has signal_s = {self.signal_s}, but its jobs have time_min = {self.time_min}: less than "
                f"{60 * self.time_min} s are allowed."
            )

    def with_environment(self, environment: Mapping[str, str]) -> "Profile":
        """The profile, its open places filled by those variables of the user's that sbatch itself would heed."""
        found: dict[str, Any] = {
            key: environment[name] for key, name in HONOURED.items() if not getattr(self, key) and environment.get(name)
        }
        return replace(self, **found, cluster=self.cluster or environment.get(CLUSTER, ""))

    def sbatch_flags(self) -> dict[str, Any]:
        """The request as long flags of sbatch; equal requests give equal flags."""
        kind = "gpu:" * (self.gpu_flag == "gres") + (f"{self.gpu_type}:" if self.gpu_type else "")
        wanted = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            self.gpu_flag: f"{kind}{self.gpus}" if self.gpus else "",
            "cpus-per-task": self.cpus,
            "mem": f"{round(self.mem_gb * 1024)}M" if self.mem_gb else "",
            "time": self.time_min,
            "nodes": 1,
            "ntasks": 1,
        }
        flags = {**{name: value for name, value in wanted.items() if value != ""}, **self.flags}
        return {name: value for name, value in flags.items() if value is not False}

    def device_of(self, asked: str) -> str:
        """The device of the command line, or the profile's; never chosen by what a node happens to have."""
        if asked != "auto":
            return asked
        return self.device or ("cuda" if self.gpus else "cpu")

    def check_devices(self, devices: int, device: str) -> None:
        """RequestError where a cell is to run on more GPUs than one of its requests has, or on GPUs that it shares."""
        if devices > 1 and self.cells_per_gpu > 1:
            raise RequestError(f"--devices {devices}: only cells_per_gpu = 1 is allowed then, and {self.name} has {self.cells_per_gpu}.")
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
    profile = Profile(path.stem, **values, overrides=tuple(_row(f"{path} [[override]]", row, own) for row in rows))
    for row in ({}, *profile.overrides):
        replace(profile, **{key: value for key, value in row.items() if key not in SELECTORS}).check_warning()
    return profile.with_environment(os.environ)


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
        if key in LEAST and values[key] < LEAST[key]:
            raise RequestError(f"{where}: {key} = {value} is too small: at least {LEAST[key]} is needed.")
    for name in values.get("flags", {}):
        if name in OWN_FLAGS:
            raise RequestError(f"{where}: the flag {name!r} is set by the launcher itself and cannot be given.")
    if values.get("gpu_flag", "gres") not in GPU_FLAGS:
        raise RequestError(f"{where}: gpu_flag = {values['gpu_flag']!r}: {', '.join(GPU_FLAGS)} are allowed.")
    if values.get("device", "") not in ("", "cpu", "cuda"):
        raise RequestError(f"{where}: device = {values['device']!r}: cpu and cuda are allowed.")
    return values


def _typed(where: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(line, str) for line in value):
        return tuple(value)
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    if type(value) is type(default):
        return value
    kinds: dict[type, str] = {tuple: "a list of strings", dict: "a table"}
    kind = kinds.get(type(default), type(default).__name__)
    raise RequestError(f"{where} = {value!r} has the wrong type: {kind} is needed.")
