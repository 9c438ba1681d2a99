"""Files written whole or not at all, and the hashes of large ones."""

import codecs
import contextlib
import json
import os
import unicodedata
import uuid
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from bench.errors import CheckpointError, RequestError

HASHES = "sha256.json"


def write_together(folder: Path, files: Mapping[str, bytes], durable: bool = True) -> None:
    """Writes files of a folder, which is made where it is absent, by temporary name and rename, in the order given, none before all are on
    the disk.

    `durable` waits for the disk, so that a power cut leaves no empty file under a final name. OSError leaves nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staged: dict[str, Path] = {}
    try:
        for name, content in files.items():
            staged[name] = staged_file(folder / name, content, durable)
        for name, temporary in staged.items():
            os.replace(temporary, folder / name)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(folder)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 where a byte-order mark says so; UnicodeDecodeError for others, OSError."""
    content = path.read_bytes()
    is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def composed(name: str) -> str:
    """A name in one form of Unicode: a Mac may write é as e and an accent, which is the same name."""
    return unicodedata.normalize("NFC", name)


def make_room(path: Path) -> None:
    """Makes the folder of a file or folder that is to be new; RequestError where it is there already: it may be the user's."""
    if path.exists():
        raise RequestError(f"{path} is there already: remove it, or name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_writable(root: Path, below: str = "") -> None:
    """RequestError, naming the output folder, unless a file can be written into its folder `below`, which is made."""
    try:
        (root / below).mkdir(parents=True, exist_ok=True)
        staged_file(root / below / "probe", b"x").unlink()
    except OSError as error:
        raise RequestError(f"Cannot write to the output folder {root}: {error.strerror}.") from None


def is_below(path: str | Path) -> bool:
    """Whether a path that is put behind a folder's stays in it, by its own words."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def staged_file(path: Path, content: bytes, durable: bool = False) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some shared disks have no such call
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Path, cache_dir: Path | None = None) -> str:
    """The sha256 of a file's content, in hex.

    With a `cache_dir` it is remembered there by (path, size, time of change), because a checkpoint has up to 2.5 GB. A cache
    that cannot be read or written is passed over. CheckpointError where the file itself cannot be read.
    """
    cache = None if cache_dir is None else cache_dir / HASHES
    try:
        facts = path.stat()
        state = [facts.st_size, facts.st_mtime_ns]
        known = remembered(cache)
        name = str(path.resolve())
        entry = known.get(name)
        if isinstance(entry, list) and entry[:-1] == state:
            return str(entry[-1])
        with open(path, "rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error.strerror}.") from None
    remember(cache, {**known, name: [*state, digest]})
    return digest


def remembered(path: Path | None) -> dict[str, Any]:
    """What `remember` wrote; nothing where the file cannot be read."""
    if path is None:
        return {}
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(path: Path | None, known: Mapping[str, Any]) -> None:
    """Writes what can be found out again at any time; a file that cannot be written is passed over."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        write_together(path.parent, {path.name: json.dumps(known, indent=1, sort_keys=True).encode()}, durable=False)
