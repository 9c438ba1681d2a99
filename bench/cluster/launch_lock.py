"""One launcher at a time for a folder of results: a file that only one process can create, without locks of the disk."""

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path

from bench.errors import RequestError
from bench.grid.files import staged_file
from bench.grid.heartbeat import is_alive

SILENT_SECONDS = 300.0  # after which a holder on another machine counts as dead
WAIT_SECONDS = 900.0


class LaunchLock:
    """A context manager: inside it no other launcher plans or submits for this folder. A holder that died is put aside."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "submitting"
        self.mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "mark": uuid.uuid4().hex})

    def __enter__(self) -> "LaunchLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until, told = time.monotonic() + WAIT_SECONDS, False
        while not self._taken():
            holder = _read(self.path)
            if holder and self._is_dead(holder):
                self._put_aside(holder)
                continue
            if not told and holder:
                told = True
                print(f"Another launcher is submitting for {self.path.parent.parent}; this one waits for it.", flush=True)
            if time.monotonic() > until:
                raise RequestError(f"Another launcher holds {self.path} for {WAIT_SECONDS / 60:.0f} minutes; remove it if none runs.")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        if _read(self.path) == self.mine:
            self.path.unlink(missing_ok=True)

    def still_held(self) -> None:
        """Tells launchers on other machines that this one lives."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def _taken(self) -> bool:
        """Whether the file could be made; it appears with its content, by a link."""
        staged = staged_file(self.path, self.mine.encode())
        try:
            os.link(staged, self.path)
        except FileExistsError:
            return False
        finally:
            staged.unlink()
        return True

    def _is_dead(self, holder: str) -> bool:
        content = json.loads(holder)
        if content["host"] == socket.gethostname():
            return not is_alive(content["pid"])
        with contextlib.suppress(OSError):
            return time.time() - self.path.stat().st_mtime > SILENT_SECONDS
        return False

    def _put_aside(self, holder: str) -> None:
        """Removes a dead holder's file; one that took its place in that moment gets it back."""
        aside = self.path.with_name(f".submitting.{uuid.uuid4().hex}.tmp")
        with contextlib.suppress(OSError):
            os.rename(self.path, aside)
            if aside.read_text() != holder:
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
