"""Where a number comes from: the code, the machine, the packages and the weights behind a cell. It never imports torch itself."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.grid.files import file_sha256
from bench.grid.job_environment import job_facts
from bench.grid.plugins import SNAPSHOT
from bench.grid.toml_reader import LONGEST

PACKAGES = ("torch", "numpy", "opencv-python-headless", "segment-anything", "pandas", "safetensors", "scipy", "submitit")


def provenance(device: str, checkpoint: Path | None = None, cache_dir: Path | None = None) -> dict[str, Any]:
    """What a record says of its origin, as JSON values; what cannot be found out is None.

    device: torch's name of it ("cpu", "cuda:0"); checkpoint: the backbone's file, None for random weights; cache_dir: see
    `file_sha256`. CheckpointError where the checkpoint cannot be read.
    """
    return {
        "git": dict(zip(("commit", "dirty"), git_state(ROOT), strict=True)),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "threads": thread_count(),
        "device": device,
        "device_name": device_name(device),
        "checkpoint": None if checkpoint is None else {"name": checkpoint.name, "sha256": file_sha256(checkpoint, cache_dir)},
        "slurm": job_facts() or None,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).encode(errors="replace").decode()[:LONGEST],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache  # the code that runs is the code that was there when it started
def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout, and whether anything in it differs from it; None where `root` is not one, or git is absent.
    A snapshot says it of the checkout that it was made from."""
    if (root / SNAPSHOT).is_file():
        said = json.loads((root / SNAPSHOT).read_text())
        return said["commit"], said["dirty"]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    status = _git(root, "status", "--porcelain")
    return _git(root, "rev-parse", "--verify", "-q", "HEAD"), None if status is None else bool(status)


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_version(name: str) -> str | None:
    """An installed package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def thread_count() -> int:
    """The threads that torch computes with, or, where it is not loaded, the processors at hand."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str) -> str | None:
    """The name of the accelerator, or of the processor."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(device))
    return cpu_model() if device == "cpu" else None


@cache
def cpu_model() -> str | None:
    """The processor's name; None where the system does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or None
