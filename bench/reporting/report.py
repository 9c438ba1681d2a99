"""The report: one page of a store, that needs no server and no network.

Its summary warns first; then there are the tables, sections of single questions, every cell, figures, sheets, failures, provenance and the
commands that make it again.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import pandas as pd

from bench.grid.store import ResultStore, Snapshot
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells
from bench.reporting.figures import pictures
from bench.reporting.formats import render
from bench.reporting.style import rendered
from bench.reporting.table import Table
from bench.reporting.tables import tables

LIMIT_BYTES = 10_000_000  # of the page
SPARE_BYTES = 200_000  # of it, for the names of the pictures that are left out
FILTERS = ("dataset", "shots", "method", "seed")
TITLES = {"dataset": "data set"}
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
    """A picture as a part of the page: the name of its file, its alternative text, and "svg+xml" or "png"."""

    name: str
    caption: str
    kind: str
    content: bytes

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


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
    made, drawn = tables(store, query, "all"), list(_figures(store, query))
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
        highest=[(of.context, [f"{dataset}: {_best(of, dataset)}" for dataset in of.datasets]) for of in found],
        filters={name: _options(str(row[name]) for row in cells) for name in FILTERS},
        titles=TITLES,
        tables=[table for table in made if _kind(table) not in studied],
        region=True,
        cells=cells,
        gaps=[row for comparable in found for row in _gaps(comparable)],
        origins=_origins(table),
        commands=sorted(map(str, table["provenance.command"].dropna().unique())) if "provenance.command" in table else [],
        out=store.root.name,
    )
    room = LIMIT_BYTES - SPARE_BYTES - len(page(figures=Inlined(), sheets=Inlined(), studies=studies).encode())
    figures, room = inlined((picture for picture in drawn if _kind(picture) not in studied), room)
    for at, study in enumerate(studies):
        shown, room = inlined(of_kinds(drawn, STUDIES[study.title]), room)
        studies[at] = replace(study, figures=shown)
    sheets, _ = inlined(_sheets(store), room)
    return page(figures=figures, sheets=sheets, studies=studies)


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
    return f"{best} {values[best]:.1f}" if best else "none yet"


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
        with picture.draw() as figure:
            yield Image(picture.name, picture.caption, "svg+xml", rendered(figure, "svg"))


def _sheets(store: ResultStore) -> Iterator[Image]:
    for path in sorted((store.root / "figures").glob("predictions_*.png")):
        yield Image(path.name, f"Predictions: {path.stem.removeprefix('predictions_')}", "png", path.read_bytes())


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
