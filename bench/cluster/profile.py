"""Profiles: what a cell asks of a SLURM cluster, read from `slurm/*.toml`.

A profile's keys are the fields of `Profile`; rows `[[override]]` with any of `backbones`, `shots`, `methods` and `datasets` change
those of `CellRequest` for the cells that they name, later rows last.
"""

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from bench import ROOT
from bench.cluster.queue import CLUSTER, HONOURED
from bench.errors import RequestError, need_known
from bench.grid.protocol import SELECTORS as CELLS
from bench.grid.protocol import Words
from bench.grid.spec import RunSpec
from bench.grid.toml_reader import NO_KEY, Kinds, kinds, load
from bench.types import Range

PROFILES = ROOT / "slurm"
SELECTORS: Kinds = {"backbones": Words, **CELLS}
NONE = "none"  # as the partition of the check or the collector: there is no such job
OWN_FLAGS = ("array", "output", "error", "job-name", "signal", "open-mode", "dependency", "requeue", "no-requeue", "test-only")
Natural = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]


def _not_own(flag: str) -> str:
    return "is a flag that is set by the launcher itself" if flag in OWN_FLAGS else ""


def _names_cells(row: Mapping[str, Any]) -> str:
    return "" if SELECTORS.keys() & row else f"names no cells: at least one of {', '.join(SELECTORS)} is needed"


@dataclass(frozen=True)
class CellRequest:
    """What a cell asks for, which a row may change; "" and 0 leave a thing to the cluster's own default."""

    _: KW_ONLY
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: Natural = 1
    gpu_type: str = ""  # as in --gres=gpu:TYPE:1
    gpu_flag: Literal["gres", "gpus", "gpus-per-node", "gpus-per-task"] = "gres"  # how the site wants GPUs to be asked for
    cpus: Positive = 4
    mem_gb: Annotated[float, Range(0.0)] = 0.0
    mem_gb_max: Annotated[float, Range(0.0)] = 0.0  # a job that a node ended for its memory is tried once more with so much; 0: it is not
    time_min: Annotated[int, Range(2)] = 240  # of a job, whatever number of cells it runs
    signal_s: Annotated[int, Range(5)] = 120  # SLURM warns so long before the time limit; a job then saves its cell and is queued again
    cells_per_job: Positive = 1
    evaluations_per_job: Positive = 8  # cells of methods that train nothing
    # further flags of sbatch, by their long names
    flags: Mapping[Annotated[str, _not_own], str | bool | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile(CellRequest):
    """A profile's file: what each cell asks for, and what holds for the whole grid."""

    name: str = field(metadata=NO_KEY)
    _: KW_ONLY
    cluster: str = ""  # as in sbatch --clusters, where a site has several
    cells_per_gpu: Positive = 1  # cells of a job that run side by side on each of its GPUs, which they share
    parallel: Natural = 0  # at most so many jobs at a time, all arrays of a launch together
    max_jobs: Natural = 0  # at most so many of the user's jobs in the queue
    max_array_tasks: Natural = 0  # at most so many jobs in an array; 0: as many as the cluster's MaxArraySize allows
    attempts: Positive = 10  # starts of a cell that got it no further, before it is given up
    device: Literal["", "cpu", "cuda"] = ""  # "" means cuda where GPUs are asked for
    setup: tuple[str, ...] = ()  # shell lines before Python starts; one that fails ends the job
    python: str = ""  # shell words that start Python in a job, such as "apptainer exec --nv image.sif python"; "": the launcher's own
    check_partition: str = ""  # of the job that checks what nodes see; "": the cells' own, "none": no check
    collect_partition: str = ""  # of the job that renders the tables; "": the cells' own, "none": no such job
    overrides: tuple[Annotated[Mapping[str, Any], {**SELECTORS, **kinds(CellRequest)}, _names_cells], ...] = field(
        default=(), metadata={"key": "override"}
    )

    def of_cell(self, spec: RunSpec) -> "Profile":
        """The profile with the rows that name this cell laid over it."""
        cell = {"backbones": spec.backbone.partition("(")[0], "shots": spec.shots, "methods": spec.method.name, "datasets": spec.dataset}
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

    @property
    def at_once(self) -> int:
        """Cells of a job that run side by side."""
        return self.cells_per_gpu * max(1, self.gpus) if self.cells_per_gpu > 1 else 1

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


def load_profile(name_or_path: str) -> Profile:
    """The profile `slurm/<name>.toml`, or of any path that ends in .toml, its open places filled by those variables of the user's that
    sbatch itself would heed; RequestError for unknown names, keys and values."""
    known = sorted(path.stem for path in PROFILES.glob("*.toml"))
    if not name_or_path:
        raise RequestError(f"The SLURM launcher needs --profile: {', '.join(known)}, or the path of a .toml file.")
    path = Path(name_or_path)
    if not name_or_path.endswith(".toml"):
        need_known("profile", known, name_or_path)
        path = PROFILES / f"{name_or_path}.toml"
    profile = load(path, Profile, name=path.stem)
    for row in ({}, *profile.overrides):
        replace(profile, **{key: value for key, value in row.items() if key not in SELECTORS}).check_warning()
    found: dict[str, Any] = {key: os.environ[name] for key, name in HONOURED.items() if not getattr(profile, key) and os.environ.get(name)}
    return replace(profile, **found, cluster=profile.cluster or os.environ.get(CLUSTER, ""))
