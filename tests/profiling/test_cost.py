"""What a method costs: measured apart from the cells, kept once, and shown only where it was measured."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_renderings import LORA, SAM, put

from bench.grid.plan import choose_methods
from bench.grid.provenance import device_name
from bench.grid.store import ResultStore
from bench.perf import main
from bench.profiling.turns import last_words
from bench.reporting.comparable import CellQuery
from bench.reporting.tables import tables

NAMES = ("s/step", "peak memory MB", "test images/s")


def shown(store: ResultStore, heading: str) -> list[float | None]:
    (table,) = tables(store, CellQuery(), "efficiency")
    names = [column.name for column in table.columns]
    (row,) = [row for row in table.rows if row.heading == heading]
    return [row.cells[names.index(name)].value for name in NAMES]


def test_costs_of_cells_are_not_what_a_worker_had_or_what_a_cache_saved(tmp_path: Path) -> None:
    """The records say 512 MB, and seconds that depend on which cell came first: neither is shown."""
    store = ResultStore(tmp_path)
    for method in (SAM, LORA):
        put(store, 60.0, method=method)
    assert shown(store, "LoRA") == [None] * 3
    (table,) = tables(store, CellQuery(), "efficiency")
    assert any('`python -m bench.perf cost --backbone vit_l --methods "lora(decoder=sam),sam"`' in note for note in table.notes)
    store.keep_cost(LORA, "vit_l", "a machine", {"step_seconds": 0.25, "images_per_second": 4.0, "peak_memory_mb": 700.0})
    store.keep_cost(SAM, "vit_l", "another machine", {"images_per_second": 9.0, "peak_memory_mb": 600.0})
    store.keep_cost(replace(LORA, revision=2), "vit_l", "a machine", {"images_per_second": 9.0, "peak_memory_mb": 600.0})
    (tmp_path / "costs" / "damaged.json").write_text("{")
    assert shown(store, "LoRA") == [0.25, 700.0, 4.0]
    assert shown(store, "SAM") == [None] * 3


@pytest.mark.slow
def test_measured_once_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "--backbone", "tiny", "--device", "cpu", "--out", str(tmp_path), "--methods", "sam,lora"]
    assert main(words) == 0
    costs = ResultStore(tmp_path).costs()
    assert {(backbone, machine) for backbone, _, machine in costs} == {("tiny", device_name("cpu"))}
    sam, lora = sorted(costs.values(), key=len)
    assert set(lora) == {*sam, "step_seconds"} and all(math.isfinite(value) and value > 0 for value in (*sam.values(), *lora.values()))
    assert sam["images_per_second"] > lora["images_per_second"] / 2 and lora["peak_memory_mb"] % 10 == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    capsys.readouterr()
    assert main(words) == 0 and "measured before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    choice = choose_methods("lora")[0]
    store = ResultStore(tmp_path)
    assert store.cost_file(choice, "tiny", "x") != store.cost_file(choice, "tiny", "y") != store.cost_file(choice, "vit_b", "y")
    put(store, 60.0, backbone="tiny", method=choice)
    assert shown(store, "LoRA") == [None] * 3  # its cell ran on "a machine"
    assert main([*words[:-1], "lorra"]) == 2


def test_a_process_that_was_killed_says_so():
    said = []
    for code in ("import os; os.kill(os.getpid(), 9)", "import sys; sys.exit('no room')"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        said.append(last_words(done.returncode, done.stderr))
    assert said == ["it ended with -9 (killed, as where memory runs out) and said nothing", "no room"]


def test_a_damaged_cost_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bench.profiling.cost.subprocess.run", lambda call, **how: subprocess.CompletedProcess(call, 1, "", "no time"))
    (path := ResultStore(tmp_path).cost_file(SAM, "tiny", str(device_name("cpu")))).parent.mkdir()
    path.write_text("{")
    assert main(["cost", "--backbone", "tiny", "--device", "cpu", "--out", str(tmp_path), "--methods", "sam"]) == 1
    out, err = capsys.readouterr()
    assert "sam: failed: no time" in err and not out
