"""Takes the files that a data set reads out of a zip: whole or not at all, never over somebody's file, never outside its folder.

A file is written beside its place and renamed, so one that is there is complete, and an interrupted run goes on where it stopped.
"""

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipFile, ZipInfo

from bench.errors import RequestError
from datasets.folder import GENERATED_MARK
from datasets.preparation.locations import Top, base_in, need_space

ENCRYPTED = 0x1  # of a member's flags
CHUNK = 1 << 20
PART = ".part"  # ends the name of a file that is being written
OnBytes = Callable[[int], None]  # told the bytes that were written just now


@dataclass(frozen=True)
class Member:
    """A file of a zip and where it goes."""

    info: ZipInfo
    target: Path


@dataclass(frozen=True)
class Plan:
    """What is taken out of one zip; there: how many of its files lie in place already; folders: that its files go to."""

    archive: Path
    members: tuple[Member, ...]
    there: int
    tops: tuple[Top, ...]
    folders: frozenset[Path]

    @property
    def bytes(self) -> int:
        """The size of what is to be written."""
        return sum(member.info.file_size for member in self.members)


def plan(archive: Path, root: Path, tops: Sequence[Top]) -> Plan:
    """What a zip holds of the tops and is not in `root` yet.

    RequestError where it is damaged, encrypted or not safe to unpack, and where another file lies in the place of one of its.
    """
    with _opened(archive) as file:
        infos = file.infolist()
    for info in infos:
        _check(archive, info)
    names = [info.filename for info in infos]
    bases = {top: base for top in tops if (base := base_in(names, top)) is not None}
    members = [member for top, base in bases.items() for member in _members(infos, root, top, base)]
    for member in members:
        if member.info.flag_bits & ENCRYPTED:
            raise RequestError(f"The archive {archive} is encrypted; unpack it yourself, and give the folder to --from.")
    absent = [member for member in members if not _exists(archive, member)]
    for member in absent:
        _check_way(root, member.target)
    folders = frozenset(member.target.parent for member in members)
    return Plan(archive, tuple(absent), len(members) - len(absent), tuple(bases), folders)


def unpack(plans: Sequence[Plan], root: Path, on_bytes: OnBytes) -> None:
    """Writes what the plans say, if the disk has room for all of it. RequestError in one sentence; what was written stays for a resume."""
    need_space(root, sum(plan.bytes for plan in plans))
    for folder in {folder for plan in plans for folder in plan.folders if not folder.is_symlink()}:
        _tidy(folder)
    for plan in plans:
        with _opened(plan.archive) as file:
            for member in plan.members:
                try:
                    _write(file, member, on_bytes)
                except OSError as error:
                    raise RequestError(f"Cannot write {member.target}: {error.strerror}; the same command goes on from there.") from None
                except NotImplementedError:
                    raise RequestError(
                        f"The archive {plan.archive} is compressed in a way that Python cannot read; unpack it yourself, and give the "
                        f"folder to --from."
                    ) from None
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise RequestError(
                        f"The archive {plan.archive} is damaged at {member.info.filename} ({error}); download it again, the same command "
                        f"then goes on from there."
                    ) from None


def _opened(archive: Path) -> ZipFile:
    try:
        return ZipFile(archive)
    except OSError as error:
        raise RequestError(f"Cannot read the archive {archive}: {error.strerror}.") from None
    except (zipfile.BadZipFile, NotImplementedError):
        raise RequestError(
            f"{archive} is not a whole zip: download it again if it is one, else unpack it yourself and give the folder to --from."
        ) from None


def _check(archive: Path, info: ZipInfo) -> None:
    """RequestError for an entry that would be unpacked outside its folder, or as a link."""
    path = PurePosixPath(info.orig_filename.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
    if outside or stat.S_ISLNK(info.external_attr >> 16):
        why = "which leads out of its folder" if outside else "a link"
        raise RequestError(f"The archive {archive} has the entry {info.orig_filename!r}, {why}; nothing was unpacked.")


def _members(infos: Sequence[ZipInfo], root: Path, top: Top, base: str) -> Iterator[Member]:
    """The files of a top's parts, and the mark of a generated archive beside it."""
    beside = base.rstrip("/").rpartition("/")[0]
    marks = {GENERATED_MARK, f"{beside}/{GENERATED_MARK}", f"{base}{GENERATED_MARK}"}
    for info in infos:
        folder, _, name = info.filename.rpartition("/")
        if info.filename in marks:
            yield Member(info, root / GENERATED_MARK)
        for part in top.parts:
            if folder == part.below(base) and part.holds(name):
                yield Member(info, root / top.name / part.folder / name)


def _exists(archive: Path, member: Member) -> bool:
    """Whether the file lies in its place; RequestError where another one does."""
    if not os.path.lexists(member.target):
        return False
    try:
        same = member.target.stat().st_size == member.info.file_size and _crc(member.target) == member.info.CRC
    except OSError:
        same = False
    if not same:
        raise RequestError(f"{member.target} exists and is not the file of {archive}; nothing was changed: move it away first.")
    return True


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            crc = zlib.crc32(block, crc)
    return crc


def _check_way(root: Path, target: Path) -> None:
    """RequestError where a folder on the way to a target is a link: what it leads to is somebody's own."""
    for folder in target.relative_to(root).parents:
        if folder.parts and (root / folder).is_symlink():
            raise RequestError(f"{root / folder} is a link, and {target} is missing in what it leads to; nothing was changed.")


def _tidy(folder: Path) -> None:
    """Removes what a run that was killed had begun to write; nothing else has such a name."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        if re.fullmatch(rf"\..+\.[0-9]+\{PART}", name):
            (folder / name).unlink(missing_ok=True)


def _write(file: ZipFile, member: Member, on_bytes: OnBytes) -> None:
    """Writes one file beside its place, under a name that no reader takes for an image, and renames it."""
    member.target.parent.mkdir(parents=True, exist_ok=True)
    part = member.target.with_name(f".{member.target.name}.{os.getpid()}{PART}")
    try:
        with file.open(member.info) as source, open(part, "wb") as out:
            shutil.copyfileobj(source, out, CHUNK)
        os.replace(part, member.target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    on_bytes(member.info.file_size)
