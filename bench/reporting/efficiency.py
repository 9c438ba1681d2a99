"""What methods cost: parameters, bytes and device hours from the records; seconds and memory as measured apart from the cells."""

import math

import pandas as pd

from bench.grid.published import Published, ordered
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
RECORDED = ("trainable_parameters", "total_parameters", "tuned_bytes", "training_seconds", "evaluation_seconds")
MEASURED = {"s/step": "step_seconds", "peak memory MB": "peak_memory_mb", "test images/s": "images_per_second"}
HOW = (
    "s/step, peak memory and test images/s are measured apart from the cells, each method warm in a process of its own (on a CPU: seconds "
    "of one thread, memory of the process), with one image of 900×1000 pixels: 1 box to train with, 10 to test."
)


def efficiency_table(comparable: ComparableCells, published: Published) -> Table:
    """Methods as rows; what they cost, as the mean over all their cells."""
    frame = comparable.frame[["label"]].assign(**_costs(comparable.frame)) if len(comparable.frame) else comparable.frame
    columns = tuple(Column("", name, digits) for name, digits in COSTS.items())
    rows = []
    for label in ordered(comparable.labels_of(comparable.datasets), published):
        mine = frame[frame["label"] == label] if len(frame) else frame
        rows.append(Row(comparable.naming.method(label), tuple(_cost_cell(mine, name) for name in COSTS), (("method", label),)))
    notes = (*comparable.warnings, *_measured_notes(comparable), *_hardware_notes(comparable), *comparable.notes)
    return Table(comparable.name("efficiency"), "What the methods cost", comparable.context, "method", columns, tuple(rows), notes)


def _costs(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of COSTS from the records' costs; NaN where a record lacks one."""
    none = pd.Series(math.nan, index=frame.index)
    cost = {name: frame.get(f"cost.{name}", none).astype(float) for name in RECORDED}
    return {
        "trainable": cost["trainable_parameters"],
        "share %": 100 * cost["trainable_parameters"] / cost["total_parameters"],
        "adapter MB": cost["tuned_bytes"] / 1e6,
        "device hours, all cells": (cost["training_seconds"] + cost["evaluation_seconds"]) / 3600,
        **{name: frame.get(f"measured.{field}", none) for name, field in MEASURED.items()},
    }


def _cost_cell(cells: pd.DataFrame, name: str) -> Cell:
    if not len(cells):
        return Cell(reason="not run")
    values = cells[name].dropna()
    if not len(values):
        return Cell(reason="-")
    if name.startswith("device hours"):
        return Cell(float(values.sum()))
    if name in MEASURED and values.nunique() == 1:
        return Cell(float(values.iloc[0]))
    partly = (f"known of {len(values)} of {len(cells)} cells",) if len(values) < len(cells) else ()
    return Cell(float(values.mean()), n=len(values), of=len(cells), notes=partly)


def _measured_notes(comparable: ComparableCells) -> tuple[str, ...]:
    """How costs were measured, and how to measure those that are missing."""
    frame = comparable.frame
    known = frame.get("measured.images_per_second", pd.Series(math.nan, index=frame.index)).notna()
    lacking = sorted(set(frame.loc[~known, "label"])) if len(frame) else []
    command = f'python -m bench.perf cost --backbone {comparable.identity[0]} --methods "{",".join(lacking)}"'
    return (*((HOW,) if known.any() else ()), *((f"Not measured on the cells' machine yet: `{command}`.",) if lacking else ()))


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
