"""Cells of several result folders brought together in one: what agrees is copied, what does not is named and left where it is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import RequestError
from bench.grid.files import write_together
from bench.grid.plan import title
from bench.grid.rows import IMAGES
from bench.grid.store import HISTORY, RECORD, TUNED, Damaged, Record, ResultStore

FILES = (IMAGES, HISTORY, TUNED, RECORD)  # of a result; the record appears last
SAME = 1e-6  # percent: scores that differ by less are one result


@dataclass(frozen=True)
class Found:
    """A cell where it lies."""

    root: Path
    folder: Path
    record: Record


@dataclass(frozen=True)
class Merged:
    """What became of the cells: copied, there already or found twice (the same), and sentences about what was not copied or stands
    apart."""

    copied: int
    twice: int
    refused: tuple[str, ...]
    notes: tuple[str, ...]


def merge(sources: Sequence[Path], into: Path) -> Merged:
    """Copies the results of `sources` into the store `into`, which may hold some already.

    A record that is damaged, has another key than its content, or other scores than its rows by image, is refused; so is a cell that is
    found with different results or from different data files. RequestError where a source holds no cell or is `into` itself.
    """
    refused: list[str] = []
    cells: dict[str, list[Found]] = {}
    for root in dict.fromkeys([*([into] if into.exists() else []), *sources]):
        if root in sources and root.resolve() == into.resolve():
            raise RequestError(f"{root} cannot be merged into itself: --into another folder is needed.")
        found, damaged = _cells(ResultStore(root))
        if root in sources and not found and not damaged:
            raise RequestError(f"No cell is stored below {root / 'runs'}.")
        refused += [f"{item.path}: {item.reason}." for item in damaged]
        for cell in found:
            cells.setdefault(cell.record.spec.key, []).append(cell)
    target, copied, twice = ResultStore(into), 0, 0
    for of in cells.values():
        if reasons := [reason for other in of[1:] if (reason := _conflict(of[0], other))]:
            refused += reasons
        elif of[0].root == into:
            twice += len(of) - 1
        else:
            cell = of[0]
            files = {name: (cell.folder / name).read_bytes() for name in FILES if (cell.folder / name).exists()}
            write_together(target.folder(cell.record.spec), files)
            copied, twice = copied + 1, twice + len(of) - 1
    return Merged(copied, twice, tuple(refused), tuple(_other_files([of[0] for of in cells.values()])))


def _cells(store: ResultStore) -> tuple[list[Found], Sequence[Damaged]]:
    scan = store.scan()
    folders = [Path(path) for path in scan.table.get("path", ())]
    return [Found(store.root, folder, store.read(folder)) for folder in folders], scan.damaged


def _conflict(a: Found, b: Found) -> str:
    """Why two results of one cell are not the same; empty where they are."""
    what = f"{title(a.record.spec)} ({a.record.spec.key})"
    if a.record.fingerprint != b.record.fingerprint:
        return f"{what}: its data files differ between {a.root} and {b.root}."
    for selection, values in a.record.scores.items():
        for name, ours in values.items():
            theirs = b.record.scores.get(selection, {}).get(name, math.nan)
            if not (math.isnan(ours) and math.isnan(theirs)) and not abs(ours - theirs) <= SAME:
                return f"{what}: {selection} {name} is {ours:.4g} in {a.root} and {theirs:.4g} in {b.root}."
    return ""


def _other_files(cells: Sequence[Found]) -> Iterator[str]:
    """A sentence for each data set whose cells are of different files."""
    files: dict[str, dict[str, Path]] = {}
    for cell in cells:
        if fingerprint := cell.record.fingerprint:
            files.setdefault(cell.record.spec.dataset, {}).setdefault(fingerprint, cell.root)
    for dataset, roots in files.items():
        if len(roots) > 1:
            which = ", ".join(f"{fingerprint[:8]} in {root}" for fingerprint, root in roots.items())
            yield f"{dataset}: cells of different data files ({which}): tables compare those of the newest cell's files only."
