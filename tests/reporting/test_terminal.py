"""Tables on a terminal: at its width, nothing lost; what may be left out."""

import csv
import io
import re
from pathlib import Path

import pytest
from pty_runs import on_terminal
from rich.console import Console
from test_renderings import WIDE, fill

from bench.grid.store import ResultStore
from bench.reporting.table import reduced, runs_once
from bench.reporting.terminal import draw


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_of_any_width_is_drawn_whole(width: int) -> None:
    said = io.StringIO()
    draw(runs_once(WIDE), Console(file=said, width=width, force_terminal=True, color_system=None))
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = [cell for row in WIDE.rows for cell in row.cells]
    for text in ("86.0 ± 1.1", "[84.0, 88.0]", "inside"):  # in one piece, wherever it stands
        assert said.getvalue().count(text) == sum(cell.value == 86.04 for cell in cells)
    assert said.getvalue().count("-0.1") == 2 * said.getvalue().count("inside")
    assert "(n=" not in said.getvalue() and "n 3 where there is a ±" in " ".join(said.getvalue().split())  # what all share is said once


def test_titles_on_a_terminal_names_on_demand_markdown_elsewhere(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    fill(store, 6.0)
    code, said = on_terminal(["-m", "bench.tables", "--no-intervals", "--no-n", "--out", str(store.root)], 80)
    plain = re.sub(r"[^\r\n]*Making tables[^\r\n]*", "", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said))  # what turns meanwhile is gone
    assert code == 0 and max(map(len, plain.splitlines())) <= 80
    assert "\x1b[1m86.0 ± " in said and "WHU Building" in said and "decoder sam" in " ".join(plain.split())
    assert "[" not in plain and "(n=" not in plain and "In brackets" not in plain and "|" not in plain
    (path,) = (store.root / "tables").glob("*.csv")
    assert {row["n"] for row in csv.DictReader(path.open()) if row["low"] and row["method"] != "sam"} == {"3"}
    (path,) = (store.root / "tables").glob("*.md")
    assert "| LoRA " in path.read_text() and "(n=" not in path.read_text()
    code, said = on_terminal(["-m", "bench.tables", "--names", "--out", str(store.root)], 120)
    assert code == 0 and "lora(decoder=sam)" in said and "whu" in said and "WHU" not in said


def test_what_is_left_out_is_only_that() -> None:
    cell = reduced(WIDE, intervals=False).rows[0].cells[0]
    assert (cell.low, cell.high, cell.n, cell.value) == (None, None, 3, 86.04)
    assert reduced(WIDE) == WIDE
