"""Files in the official archives' layout, and what tests of `datasets.prepare` do with them; the fixtures are conftest's."""

import hashlib
import zipfile
from pathlib import Path

from datasets import synth
from datasets.folder import GENERATED_MARK
from datasets.synth import LAYOUTS
from datasets.whu import TILES

NAMES = ("whu", "kvasir", "sbu")
ZIPS = {"whu": [TILES], "kvasir": ["TrainDataset", "TestDataset"], "sbu": ["SBU-shadow"]}
TRAIN, TEST = 18, 2


def write_archives(top: Path) -> None:
    """The three archives' folders as unpacked by hand, below `folders/NAME`, and their zips beside it."""
    for name in NAMES:
        synth.write_layout(LAYOUTS[name], top / "folders" / name, TRAIN, TEST)
        for packed in ZIPS[name]:
            zipped(top / "folders" / name, top / f"{packed}.zip", packed)


def zipped(folder: Path, target: Path, only: str, prefix: str = "") -> Path:
    """A zip of the files below `folder/only`, and of the mark, with a Mac's junk."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in (folder / only).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            file.write(path, prefix + name)
            file.writestr(f"__MACOSX/{prefix}{Path(name).parent.as_posix()}/._{path.name}", b"junk")
        file.write(folder / GENERATED_MARK, prefix + GENERATED_MARK)
    return target


def zips(archives: Path, name: str) -> list[str]:
    return [str(archives / f"{packed}.zip") for packed in ZIPS[name]]


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder with its time of change and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def sentence(printed: str) -> str:
    """The one line of an error."""
    assert printed.startswith("error: ") and printed.count("\n") == 1 and printed.endswith(".\n"), printed
    return printed
