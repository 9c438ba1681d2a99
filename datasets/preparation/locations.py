"""The folders of the official archives: which ones a data set needs, and where they lie in a download, however it was packed."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.errors import RequestError
from datasets.folder import GENERATED_MARK, FolderDataset

DEEPEST = 5  # folders below the given one


@dataclass(frozen=True)
class Part:
    """A folder of files that are read, below a Top, and how their names end."""

    folder: str
    suffix: str

    def holds(self, name: str) -> bool:
        """Whether a file of this name is read; a Mac's `._name` is none."""
        return name.lower().endswith(self.suffix) and not name.startswith(".")


@dataclass(frozen=True)
class Top:
    """A folder as the archive names it, which lies directly in `data/<data set>`, and the parts that it must have."""

    name: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return f"{self.name}/ with " + ", ".join(f"{part.folder}/*{part.suffix}" for part in self.parts)


def tops(cls: type[FolderDataset]) -> tuple[Top, ...]:
    """The folders that a data set's archives hold."""
    found: dict[str, list[Part]] = {}
    for folders in cls.folders.values():
        for folder, suffix in ((folders.images, folders.image_suffix), (folders.masks, folders.mask_suffix)):
            top, _, rest = folder.partition("/")
            found.setdefault(top, []).append(Part(rest, suffix))
    return tuple(Top(name, tuple(parts)) for name, parts in found.items())


def base_in(names: Iterable[str], top: Top) -> str | None:
    """The folder of a zip, "" or ending in a slash, below which all parts of a top have files: the one of its name, else any."""
    files = (name.rpartition("/") for name in names)
    full = {f"{folder}/" for folder, _, file in files if file and not file.startswith(".")}
    first = f"{top.parts[0].folder}/"
    bases = [folder.removesuffix(first) for folder in full if folder == first or folder.endswith(f"/{first}")]
    whole = [base for base in bases if all(f"{base}{part.folder}/" in full for part in top.parts)]
    return min(whole, key=lambda base: (PurePosixPath(base).name != top.name, base.count("/"), base), default=None)


def folder_in(given: Path, top: Top) -> Path | None:
    """The folder at or below `given` that has all parts of a top: the one of its name, else any."""
    start, others = len(given.resolve().parts), []
    for at, below, _ in os.walk(given.resolve()):
        here = Path(at)
        if all((here / part.folder).is_dir() for part in top.parts):
            if here.name == top.name:
                return here
            others.append(here)
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith(".")) if len(here.parts) - start < DEEPEST else []
    return others[0] if others else None


def in_place(root: Path, top: Top) -> bool:
    """Whether a top with all its parts lies in a data set's folder."""
    return all((root / top.name / part.folder).is_dir() for part in top.parts)


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
    """The tops that do not lie in a data set's folder."""
    return [top for top in wanted if not in_place(root, top)]
