"""The report: one page of a store, that needs no server and no network.

Its summary warns first; then there are the tables, sections of single questions, every cell, figures, sheets, failures, provenance and how
to make it again.
"""

import base64
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
from PIL.Image import open as open_picture

from bench.grid.published import published_for
from bench.grid.spec import RELEASED
from bench.grid.store import ResultStore, Snapshot
from bench.reporting.comparable import CellQuery, ComparableCells, Run, comparable_cells
from bench.reporting.comparisons import comparisons_table
from bench.reporting.figures import pictures
from bench.reporting.formats import render
from bench.reporting.style import rendered
from bench.reporting.table import Table
from bench.reporting.table_statistics import PAIRS
from bench.reporting.tables import tables

LIMIT_BYTES = 5_000_000  # of the page
SPARE_BYTES = 200_000  # of it, for the names of the pictures that are left out
MOST_PAIRS = 45  # of methods, that the page compares: more take longer than the page itself
FILTERS = ("dataset", "shots", "method", "seed")
TITLES = {"dataset": "data set"}
VIEWS = ("plain", "paper", "pivot")  # kinds of tables of the same numbers, of which one is looked at
STUDIES = {  # sections of their own, where they have something: kinds of their tables and figures, with which the names of these begin
    "Tuning": ("tuning",),
    "Draws": ("draws", "variance"),
    "Aggregates": ("aggregates", "profile", "iqm", "improvement", "ranks"),
    "Robustness": ("robustness",),
    "Retention": ("retention",),
}
ORIGINS = {
    "commit": "provenance.git.commit",
    "uncommitted changes": "provenance.git.dirty",
    "device": "provenance.device_name",
    "torch": "provenance.packages.torch",
    "Python": "provenance.python",
    "checkpoint": "checkpoint_sha256",
}


@dataclass(frozen=True)
class Image:
    """A picture as a part of the page: the name of its file, its alternative text, and "svg+xml" or "jpeg"."""

    name: str
    caption: str
    kind: str
    content: bytes

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"

    @property
    def width(self) -> int:
        """The CSS pixels that a figure is wide; 0 for a picture that is as wide as the page."""
        points = re.search(rb'width="([0-9.]+)pt"', self.content[:2000])
        return round(float(points[1]) * 96 / 72) if points else 0


@dataclass(frozen=True)
class Inlined:
    """The pictures of a section, and the names of those that the page has no room for."""

    pictures: tuple[Image, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A section of one question: its tables and figures."""

    title: str
    tables: tuple[Table, ...] = ()
    figures: Inlined = Inlined()


Item = TypeVar("Item", Image, Table)


def report(store: ResultStore, metric: str | None = None) -> str:
    """The page of a store; RequestError where it has no cell at all."""
    store = Snapshot(*store.roots)
    query = CellQuery(metric=metric)
    found = comparable_cells(store, query)
    table = store.scan().table
    cells = [row for comparable in found for row in _cells(comparable)]
    made, drawn = tables(store, query, "all", telling=True), list(_figures(store, query))
    studied = {kind for kinds in STUDIES.values() for kind in kinds}
    empty = [Study(title, tuple(of_kinds(made, kinds))) for title, kinds in STUDIES.items()]
    studies = [study for study in empty if study.tables or list(of_kinds(drawn, STUDIES[study.title]))]
    page = partial(
        render,
        "report.html",
        stored=len(table),
        phases=_phases(found),
        warnings=list(dict.fromkeys(note for of in found for note in (*of.warnings, *of.notes))),
        quantity=found[0].quantity,
        highest=[(of.context, [f"{of.naming.dataset(name)}: {_best(of, name)}" for name in of.datasets]) for of in found],
        filters={name: _options(str(row[name]) for row in cells) for name in FILTERS},
        titles=TITLES,
        views=list(of_kinds(made, VIEWS)),
        tables=[table for table in made if _kind(table) not in (*VIEWS, *studied)],
        pairs=_pairs(found),
        region=True,
        cells=cells,
        gaps=[row for comparable in found for row in _gaps(comparable)],
        origins=_origins(table),
        commands=[command for of in found for command in _commands(of)],
        cannot=list(_cannot(found, table)),
        recorded=sorted(map(str, table["provenance.command"].dropna().unique())) if "provenance.command" in table else [],
        out=store.root.name,
    )
    sheets = list(_sheets(store))

    def illustrated(room: int) -> str:
        figures, room = inlined((picture for picture in drawn if _kind(picture) not in studied), room)
        shown = []
        for study in studies:
            of_study, room = inlined(of_kinds(drawn, STUDIES[study.title]), room)
            shown.append(replace(study, figures=of_study))
        return page(figures=figures, sheets=inlined(sheets, room)[0], studies=shown)

    whole = illustrated(LIMIT_BYTES)
    if len(whole.encode()) <= LIMIT_BYTES:
        return whole
    return illustrated(LIMIT_BYTES - SPARE_BYTES - len(page(figures=Inlined(), sheets=Inlined(), studies=studies).encode()))


def _kind(item: Image | Table) -> str:
    return item.name.partition("_")[0]


def of_kinds(items: Iterable[Item], kinds: Sequence[str]) -> Iterator[Item]:
    """The tables or pictures of these kinds."""
    return (item for item in items if _kind(item) in kinds)


def _phases(found: Sequence[ComparableCells]) -> list[str]:
    """How many cells that were asked for last are in which phase."""
    gaps = [phase for comparable in found for of in comparable.gaps.values() for _, phase, _ in of]
    return [f"{gaps.count(phase)} {phase}" for phase in ("failed", "unfinished", "pending") if phase in gaps]


def _best(comparable: ComparableCells, dataset: str) -> str:
    values = {label: value for label in comparable.labels_of([dataset]) if (value := comparable.cell(label, dataset).value) is not None}
    best = max(values, key=lambda label: comparable.sign * values[label], default="")
    return f"{comparable.naming.method(best)} {values[best]:.1f}" if values else "none yet"


def _pairs(found: Sequence[ComparableCells]) -> list[Table]:
    """All methods compared in pairs, if these are not too many."""
    most = max(len(of.labels_of(of.datasets)) for of in found)
    if most < 3 or most * (most - 1) // 2 > MOST_PAIRS:
        return []
    made = [comparisons_table(of, published_for(of.identity[2]), PAIRS) for of in found]
    return [table for table in made if table.rows]  # there are none without rows by image


def _commands(comparable: ComparableCells) -> Iterator[str]:
    """The commands that run the stored cells of a group, as many methods and data sets in each as were run alike."""
    backbone, protocol, shots, _ = comparable.identity
    own = [cell for cell in comparable.scores if RELEASED not in cell[0]]
    alike: dict[tuple[Run, ...], dict[str, list[str]]] = {}
    for label, dataset in sorted(own):
        alike.setdefault(tuple(sorted(comparable.scores[label, dataset])), {}).setdefault(label, []).append(dataset)
    for runs, methods in alike.items():
        for datasets in dict.fromkeys(map(tuple, methods.values())):
            labels = [label for label, of in methods.items() if tuple(of) == datasets]
            by_draw: dict[int, list[int]] = {}
            for draw, seed in runs:
                by_draw.setdefault(draw, []).append(seed)
            for seeds in dict.fromkeys(map(tuple, by_draw.values())):
                draws = [draw for draw, of in by_draw.items() if tuple(of) == seeds]
                asked = {"methods": labels, "datasets": datasets, "backbone": [backbone], "protocol": [protocol], "shots": [shots]}
                asked |= {"draws": draws, "seeds": seeds}  # type: ignore[dict-item]
                yield " ".join(["python -m bench.run", *(f"--{name} {shlex.quote(','.join(map(str, of)))}" for name, of in asked.items())])


def _cannot(found: Sequence[ComparableCells], table: pd.DataFrame) -> Iterator[str]:
    """What the commands alone do not bring back."""
    code = table.get("provenance.git.commit", pd.Series(dtype=object)).dropna().astype(str)
    if not len(code):
        yield "Which code the cells were run by is not known."
    elif code.nunique() > 1:
        yield f"The cells were run by {code.nunique()} commits (see Provenance): check out each for its own cells."
    else:
        yield f"Check out commit {code.iloc[0]} first."
    if table.get("provenance.git.dirty", pd.Series(dtype=object)).eq(True).any():
        yield "Some cells were run by code with uncommitted changes, which is kept nowhere: they cannot be made again exactly."
    if len(table):
        yield "On another device, or with another torch, numbers differ in their last digits, and training can carry that further."
    if any(RELEASED in label for of in found for label, _ in of.scores):
        yield "Rows of released checkpoints come from `python -m bench.evaluate --store` and the authors' files."


def _options(values: Iterable[str]) -> list[str]:
    """The different values, numbers by size and before words."""
    return sorted(set(values), key=lambda text: (not text.isdigit(), text.zfill(9)))


def _cells(comparable: ComparableCells) -> Iterator[dict[str, str | float]]:
    """A row for every cell that is stored or was asked for."""
    backbone, protocol, shots, _ = comparable.identity
    shared = {"backbone": backbone, "protocol": protocol, "selection": comparable.selection}

    def row(label: str, dataset: str, run: tuple[int, int], value: float | str, state: str) -> dict[str, str | float]:
        draw, seed = map(str, run)
        return {
            "dataset": dataset,
            "shots": shots,
            "method": label,
            "seed": seed,
            "draw": draw,
            **shared,
            f"{comparable.quantity} %": value,
            "state": state,
        }

    for (label, dataset), scores in sorted(comparable.scores.items()):
        for run, value in sorted(scores.items()):
            yield row(label, dataset, run, "" if pd.isna(value) else value, "stored")
    for (label, dataset), gaps in sorted(comparable.gaps.items()):
        for run, phase, _ in gaps:
            yield row(label, dataset, run, "", phase)


def _gaps(comparable: ComparableCells) -> Iterator[dict[str, str]]:
    """A row for every cell that was asked for and is not stored."""
    for (label, dataset), gaps in sorted(comparable.gaps.items()):
        for (draw, seed), phase, reason in gaps:
            where = {"dataset": dataset, "method": label, "shots": comparable.identity[2], "draw": str(draw), "seed": str(seed)}
            yield {**where, "state": phase, "reason": reason}


def _origins(table: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each code, machine and checkpoint, with its number of cells."""
    if table.empty:
        return []
    origins = pd.DataFrame({name: table.get(column) for name, column in ORIGINS.items()})
    counted = origins.fillna("not known").astype(str).value_counts(sort=False).sort_index()
    return [{**dict(zip(ORIGINS, key, strict=True)), "cells": str(count)} for key, count in counted.items()]  # type: ignore[call-overload]


def _figures(store: ResultStore, query: CellQuery) -> Iterator[Image]:
    for picture in pictures(store, query):
        yield Image(picture.name, picture.caption, "svg+xml", rendered(picture.draw(), "svg"))


def _sheets(store: ResultStore) -> Iterator[Image]:
    for path in sorted((store.root / "figures").glob("predictions_*.png")):
        yield Image(path.name, f"Predictions: {path.stem.removeprefix('predictions_')}", "jpeg", _jpeg(path))


def _jpeg(path: Path) -> bytes:
    """A picture as a fifth of its bytes."""
    content = io.BytesIO()
    with open_picture(path) as picture:
        picture.convert("RGB").save(content, "jpeg", quality=85)
    return content.getvalue()


def inlined(images: Iterable[Image], room: int) -> tuple[Inlined, int]:
    """The pictures that there is room for, in bytes of the page, and the room that is left; the others are named."""
    shown: list[Image] = []
    left_out: list[str] = []
    for image in images:
        size = len(image.uri) + 3 * len(image.caption.encode()) + 500
        if size > room:
            left_out.append(image.name)
        else:
            shown.append(image)
            room -= size
    return Inlined(tuple(shown), tuple(left_out)), room
