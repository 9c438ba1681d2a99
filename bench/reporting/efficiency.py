"""What methods cost: parameters, bytes, seconds and memory, from the records' costs."""

import math

import pandas as pd

from bench.grid.published import Published, heading, ordered
from bench.reporting.comparable import ComparableCells
from bench.reporting.table import Cell, Column, Row, Table

COSTS = {  # column -> digits
    "trainable": 0,
    "share %": 3,
    "adapter MB": 3,
    "s/step": 4,
    "peak memory MB": 0,
    "test images/s": 2,
    "device hours, all cells": 3,
}
COST_FIELDS = (
    "trainable_parameters",
    "total_parameters",
    "tuned_bytes",
    "training_seconds",
    "evaluation_seconds",
    "steps",
    "looks",
    "test_images",
    "peak_memory_mb",
)


def efficiency_table(comparable: ComparableCells, published: Published, paper_shots: bool = True) -> Table:
    """Methods as rows; what they cost, as the mean over all their cells of the board."""
    frame = comparable.frame.assign(**_costs(comparable.frame)) if len(comparable.frame) else comparable.frame
    columns = tuple(Column("", name, digits) for name, digits in COSTS.items())
    rows = []
    for label in ordered(comparable.labels_of(comparable.datasets), published):
        mine = frame[frame["label"] == label] if len(frame) else frame
        rows.append(Row(heading(label, published), tuple(_cost_cell(mine, name) for name in COSTS), (("method", label),)))
    notes = (*comparable.warnings, *_hardware_notes(comparable), *comparable.notes)
    return Table(comparable.name("efficiency"), "What the methods cost", comparable.context, "method", columns, tuple(rows), notes)


def _costs(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of COSTS from the records' costs; NaN where a record lacks one."""
    none = pd.Series(math.nan, index=frame.index)
    cost = {name: frame.get(f"cost.{name}", none).astype(float) for name in COST_FIELDS}
    looked_at_val = frame.get("val.miou_all", none).notna()  # its images are not counted in the record
    evaluated = (cost["test_images"] * cost["looks"].clip(lower=1)).where(~looked_at_val)
    values = (
        cost["trainable_parameters"],
        100 * cost["trainable_parameters"] / cost["total_parameters"],
        cost["tuned_bytes"] / 1e6,
        cost["training_seconds"] / cost["steps"].where(cost["steps"] > 0),
        cost["peak_memory_mb"],
        evaluated / cost["evaluation_seconds"].where(cost["evaluation_seconds"] > 0),
        (cost["training_seconds"] + cost["evaluation_seconds"]) / 3600,
    )
    return dict(zip(COSTS, values, strict=True))


def _cost_cell(cells: pd.DataFrame, name: str) -> Cell:
    if not len(cells):
        return Cell(reason="not run")
    values = cells[name].dropna()
    if not len(values):
        return Cell(reason="-")
    if name.startswith("device hours"):
        return Cell(float(values.sum()))
    partly = (f"known of {len(values)} of {len(cells)} cells",) if len(values) < len(cells) else ()
    return Cell(float(values.mean()), n=len(values), of=len(cells), notes=partly)


def _hardware_notes(comparable: ComparableCells) -> tuple[str, ...]:
    names = sorted({str(name) for name in comparable.frame.get("provenance.device_name", pd.Series(dtype=object)).dropna()})
    if len(names) > 1:
        return ("The cells ran on different hardware: their seconds do not compare.",)
    return (f"Hardware: {names[0]}.",) if names else ()


def sizes(frame: pd.DataFrame) -> dict[str, set[tuple[int, int]]]:
    """The (trainable, total) parameters of each row's cells."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    columns = ("label", "cost.trainable_parameters", "cost.total_parameters")
    for label, trainable, total in zip(*(frame.get(name, [math.nan] * len(frame)) for name in columns), strict=True):
        if not (pd.isna(trainable) or pd.isna(total)):
            sizes.setdefault(label, set()).add((int(trainable), int(total)))
    return sizes


def size_cells(sizes: set[tuple[int, int]]) -> tuple[Cell, Cell]:
    if not sizes:
        return Cell(), Cell()
    trainable, total = max(sizes)
    notes = ("the largest of its cells, which differ",) if len(sizes) > 1 else ()
    return Cell(trainable, notes=notes), Cell(100 * trainable / max(total, 1), notes=notes)
