"""Who computes a cell now, by the file that a running cell writes every ten seconds; the disk's clock tells its age, not a node's."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.grid.files import staged_file
from bench.grid.job_environment import job_facts, task_id
from bench.grid.store import STATE, read_state

SILENT_SECONDS = 60.0  # six heartbeats: after that nobody computes the cell any more


def disk_now(folder: Path) -> float:
    """The time as the clock says that dates the files below `folder`; this machine's where no file can be made there."""
    with contextlib.suppress(OSError):
        probe = staged_file(folder / "clock", b"")
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    return time.time()


def silence(folder: Path, state: Mapping[str, Any], now: float) -> float | None:
    """Seconds since a cell's last heartbeat; None where nobody says to run it, or its process on this machine is gone."""
    if state.get("phase") != "running" or (state.get("host") == socket.gethostname() and not is_alive(state.get("pid", 0))):
        return None
    with contextlib.suppress(OSError):
        return max(0.0, now - (folder / STATE).stat().st_mtime)
    return None


def holder(folder: Path, now: float | None = None) -> str:
    """Who else computes the cell of a folder, in words; "" for nobody, for this process, and for an earlier life of this job."""
    state = read_state(folder)
    age = silence(folder, state, disk_now(folder) if now is None else now) if state.get("phase") == "running" else None
    if age is None or age >= SILENT_SECONDS:
        return ""
    said, own = state.get("slurm") or {}, job_facts()
    if (state.get("pid"), state.get("host")) == (os.getpid(), socket.gethostname()) or (own and said.get("job") == own["job"]):
        return ""
    return (f"job {task_id(said)}" if said else f"process {state.get('pid')}") + f" on {state.get('host')}, heartbeat {age:.0f} s ago"


def is_alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
