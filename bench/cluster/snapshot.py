"""A copy of the code as it is submitted: jobs run from it, so that edits made while they wait change nothing."""

import json
import shutil
import subprocess
import uuid
from hashlib import sha256
from pathlib import Path

from bench.errors import RequestError
from bench.grid.plugins import COPIES, SNAPSHOT, plugin_files
from bench.grid.provenance import ROOT, git_state

FOLDERS = ("bench", "methods", "datasets", "configs", "results/paper")


def take_snapshot(below: Path, root: Path = ROOT) -> Path:
    """The folder of a snapshot below `below`, made unless the same code lies there; its name is a hash of every file.

    Of a checkout it holds what git tracks or would track, else all files but caches; and the commit, in a file that
    `provenance` reads; and the plugins in use, which jobs take from there. RequestError where it cannot be written.
    """
    sources = {file: root / file for file in code_files(root)}
    sources |= {Path(COPIES, str(number), path.name): path for number, path in enumerate(plugin_files())}
    digest = sha256()
    for file, source in sources.items():
        digest.update(f"{file}\0".encode() + source.read_bytes() + b"\0")
    commit, dirty = git_state(root)
    origin = json.dumps({"commit": commit, "dirty": dirty}, sort_keys=True)
    digest.update(origin.encode())
    folder = below / digest.hexdigest()[:16]
    if folder.is_dir():
        return folder
    staged = below / f".{uuid.uuid4().hex}.tmp"
    try:
        for file, source in sources.items():
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staged / file)
        (staged / SNAPSHOT).write_text(origin)
        staged.rename(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        if not folder.is_dir():  # else another launcher was faster
            raise RequestError(f"Cannot write the snapshot of the code to {below}: {error.strerror}.") from None
    return folder


def code_files(root: Path) -> list[Path]:
    """The files of the code below `root`, relative to it, sorted."""
    found = _tracked(root)
    if found is None:
        found = [path.relative_to(root) for folder in FOLDERS for path in (root / folder).rglob("*") if "__pycache__" not in path.parts]
    return sorted(file for file in found if (root / file).is_file())


def _tracked(root: Path) -> list[Path] | None:
    """What git tracks, or would if it were added; None where `root` is no checkout."""
    if git_state(root)[0] is None or (root / SNAPSHOT).exists():
        return None
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True)
    return [Path(name) for name in done.stdout.split("\0") if name] if done.returncode == 0 else None
