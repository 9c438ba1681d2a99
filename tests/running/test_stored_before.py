"""A results folder as an earlier version left it, before the packages and the statistics: it is read, shown and gone on with.

`stored_before/` has a dozen stored cells of several kinds (zero-shot, two selections, two shots, two draws, two seeds), a failed one and
one that was interrupted, and the tables that were made of them then.
"""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.grid.published import heading, published_for
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.tables import tables
from bench.run import main

BEFORE = Path(__file__).parent / "stored_before"
INTERRUPTED = ["--methods", "vpt_shallow", "--seeds", "2", "--protocol", "smoke(selections=['last'],epochs=200)"]
PLACE = ["--datasets", "synth_polyps", "--backbone", "tiny", "--device", "cpu"]


@pytest.fixture
def out(tmp_path):
    shutil.copytree(BEFORE, tmp_path / "results")
    return tmp_path / "results"


def test_every_record_is_read(out):
    scan = ResultStore(out).scan()
    assert not scan.damaged and len(scan.table) == 13 and set(scan.table["key"]) == {p.parent.name[-12:] for p in out.rglob("record.json")}


def test_the_same_request_means_the_same_cells(out, capsys):
    listed = ["--methods", "vpt_shallow,lora(rank=1),layernorm", *PLACE, "--out", str(out), "--dry-run"]  # their process is asked once
    assert main([*listed, "--seeds", "0,1", "--protocol", "smoke(selections=['last'])"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("stored ") for line in lines) == 6 and any("6 cells, 0 to run" in line for line in lines)
    assert main([*listed, "--seeds", "3", "--protocol", "smoke(selections=['last'],lr=1e18)"]) == 2
    assert main([*listed, *INTERRUPTED[2:]]) == 0
    assert capsys.readouterr().out.startswith("unfinished ")


def test_the_tables_have_the_same_numbers(out):
    """Of a method that was trained: mean, standard deviation and number of runs. Zero-shot SAM is one number now, the same one."""
    then = {}
    for path in (BEFORE / "tables").glob("*.csv"):
        for row in csv.DictReader(path.open()):
            if row["reason"] == "" and row["value"]:
                key = (row["shots"], row["protocol"], row["selection"], row["row"], row["column"])
                then[key] = (float(row["value"]), float(row["spread"] or 0), row["n"])
    found = 0
    for table in tables(ResultStore(out), CellQuery()):
        context = dict(table.context)
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                name, place = heading(dict(row.about)["method"], published_for("1")), dict(column.about).get("dataset", column.name)
                key = (context["shots"], context["protocol"], context["selection"], name, place)
                if key in then and cell.value is not None:
                    found += 1
                    value, std, n = then[key]
                    assert cell.value == pytest.approx(value, abs=1e-9), key
                    if row.heading != "SAM":
                        assert (cell.std or 0) == pytest.approx(std, abs=1e-9) and str(cell.n or "") == n, key
    assert found >= 20


@pytest.mark.slow
def test_the_interrupted_cell_goes_on_where_it_was(out, capsys):
    """Its resume file, of step 3, is set to step 190 here: of the 197 steps that are left, ten are enough."""
    path = next(out.rglob("resume.pt"))
    content, cell = torch.load(path, weights_only=True), path.parent
    course, first = content["course"], content["course"]["history"]
    course["history"] = first + [{**first[-1], "step": step, "epoch": step} for step in range(4, 191)]
    torch.save({**content, "course": {**course, "step": 190}}, path)
    assert main([*INTERRUPTED, *PLACE, "--out", str(out)]) == 0
    assert "starts from the beginning" not in capsys.readouterr().err
    assert (cell / "record.json").exists() and not (cell / "resume.pt").exists()
    curve = pd.read_csv(cell / "history.csv")  # the steps before and after
    assert [*curve["step"]] == [*range(1, 201)] and [*curve["loss"][:3]] == [row["loss"] for row in first]
    assert curve["loss"][3:190].nunique() == 1 and curve["loss"][190:].nunique() == 10
