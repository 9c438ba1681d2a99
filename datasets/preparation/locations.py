"""The folders of the official archives: which ones a data set needs, and where they lie in a download, however it was packed."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from bench.errors import RequestError
from datasets.folder import GENERATED_MARK, ArchiveDataset

DEEPEST = 5  # folders below the given one


@dataclass(frozen=True)
class Part:
    """A folder of files that are read, below a Top or the Top itself (""), and how their names end."""

    folder: str
    suffix: str

    def __str__(self) -> str:
        return f"{self.folder}/*{self.suffix}".lstrip("/")

    def holds(self, name: str) -> bool:
        """Whether a file of this name is read; a Mac's `._name` is none."""
        return name.lower().endswith(self.suffix) and not name.startswith(".")

    def below(self, base: str) -> str:
        """Its folder below one that is "" or ends in a slash; both without a slash at the end."""
        return f"{base}{self.folder}".rstrip("/")


@dataclass(frozen=True)
class Top:
    """A folder as the archive names it, which lies directly in `data/<data set>`, and the parts that it must have."""

    name: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return f"{self.name}/ with {', '.join(map(str, self.parts))}"


def tops(cls: type[ArchiveDataset]) -> tuple[Top, ...]:
    """The folders that a data set's archives hold."""
    found: dict[str, list[Part]] = {}
    for folder, suffix in cls.needs():
        top, _, rest = folder.partition("/")
        found.setdefault(top, []).append(Part(rest, suffix))
    return tuple(Top(name, tuple(parts)) for name, parts in found.items())


def bases(names: Iterable[str], top: Top) -> dict[str, tuple[Part, ...]]:
    """The folders of a zip, each "" or ending in a slash, below which parts of a top have files, with the parts that are absent."""
    full = {
        (folder, part) for folder, _, file in (name.rpartition("/") for name in names) if file for part in top.parts if part.holds(file)
    }
    found = {_base(folder, part) for folder, part in full} - {None}
    return {base: tuple(part for part in top.parts if (part.below(base), part) not in full) for base in found if base is not None}


def _base(folder: str, part: Part) -> str | None:
    """The folder below which `folder` is a part's; None where it is not."""
    above, is_part = folder.removesuffix(part.folder), f"/{folder}".endswith(f"/{part.folder}")
    return (f"{above.rstrip('/')}/" if above else "") if is_part or not part.folder else None


def base_in(names: Iterable[str], top: Top) -> str | None:
    """The folder of a zip, "" or ending in a slash, below which all parts of a top have files: the one of its name, else any."""
    whole = [base for base, absent in bases(names, top).items() if not absent]
    return min(whole, key=lambda base: (PurePosixPath(base).name != top.name, base.count("/"), base), default=None)


def folder_in(given: Path, top: Top) -> Path | None:
    """The folder at or below `given` that has files of all parts of a top: the one of its name, else any."""
    start, others = len(given.resolve().parts), []
    for at, below, _ in os.walk(given.resolve()):
        here = Path(at)
        if all(_has(here / part.folder, part) for part in top.parts):
            if here.name == top.name:
                return here
            others.append(here)
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith(".")) if len(here.parts) - start < DEEPEST else []
    return others[0] if others else None


def _has(folder: Path, part: Part) -> bool:
    return folder.is_dir() and any(part.holds(name) for name in os.listdir(folder))


def partial(source: Path, wanted: Sequence[Top]) -> str:
    """What a zip or folder lacks of the top that it has the most of; "" where it has no part of any."""
    if source.is_dir():
        names = [(Path(at) / file).relative_to(source).as_posix() for at, _, files in os.walk(source) for file in files]
    else:
        names = ZipFile(source).namelist()
    found = [(len(absent), base, absent) for top in wanted for base, absent in bases(names, top).items()]
    _, base, absent = min(found, key=lambda one: one[:2], default=(0, "", ()))
    return f"{base or source.name} has no {', '.join(map(str, absent))}" if found else ""


def link(found: Path, root: Path, top: Top) -> str:
    """Puts an unpacked folder into place by a symbolic link, and says what was done. RequestError where another thing lies there."""
    place = root / top.name
    mark = found.parent / GENERATED_MARK
    if place.exists() and place.resolve() == found:
        return f"{place} is in place already."
    if place.exists() or place.is_symlink():
        raise RequestError(f"{place} exists and is not {found}; nothing was changed: move it away first.")
    root.mkdir(parents=True, exist_ok=True)
    place.symlink_to(found, target_is_directory=True)
    if mark.is_file() and not (root / GENERATED_MARK).exists():
        (root / GENERATED_MARK).symlink_to(mark)
    return f"{place} is a link to {found}."


def need_space(folder: Path, size: int) -> None:
    """RequestError unless `size` bytes fit onto the disk of a folder that may not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise RequestError(f"{folder} needs {in_units(size)} more, but its disk has {in_units(free)} left; nothing was unpacked.")


def in_units(size: int) -> str:
    """Bytes as people read them: "4.6 GB", "0.3 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def missing(root: Path, wanted: Sequence[Top]) -> list[Top]:
    """The tops that do not lie in a data set's folder with all their parts."""
    return [top for top in wanted if not all(_has(root / top.name / part.folder, part) for part in top.parts)]
