"""The first minutes on a card, tried on a CPU: bounded steps, each written at once."""

import json

import pytest
import torch

from bench.grid.provenance import device_name
from bench.grid.store import ResultStore
from bench.perf import main
from bench.profiling.gpu import STEPS
from bench.profiling.turns import in_subprocess, unwritten
from bench.running.estimate import known_costs


def written(folder):
    return json.loads(next(folder.glob("*-first.json")).read_text())["steps"]


def test_without_a_gpu_it_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "torch finds no GPU here" in err and "--device cpu --backbone tiny" in err and err.count("\n") == 1
    assert main(["gpu", "--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 2 and not list(tmp_path.iterdir())


def test_steps_for_which_no_time_is_left_say_so(tmp_path):
    words = ["gpu", "--device", "cpu", "--backbone", "tiny", "--minutes", "0.01", "--out", str(tmp_path), "--results", str(tmp_path)]
    assert main(words) == 1
    assert [of["failed"] for of in written(tmp_path).values()] == ["not begun: the minutes are over"] * len(STEPS)


@pytest.mark.parametrize("option", ["--out", "--results"])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(option, tmp_path, capsys):
    (tmp_path / "file").touch()
    folders = {"--out": str(tmp_path), "--results": str(tmp_path), option: str(tmp_path / "file")}
    words = [word for pair in folders.items() for word in pair]
    assert main(["gpu", "--device", "cpu", "--backbone", "tiny", "--minutes", "0.01", *words]) == 2
    out, err = capsys.readouterr()
    assert f"Cannot write to the output folder {tmp_path / 'file'}: " in err and not out


def test_nothing_that_was_written_before_is_overwritten(tmp_path):
    (tmp_path / "a.json").touch()
    (tmp_path / "a-2.md").touch()
    assert unwritten(tmp_path / "a") == tmp_path / "a-3" and unwritten(tmp_path / "b") == tmp_path / "b"


def test_a_step_that_hangs_is_ended_with_what_it_started():
    found = in_subprocess("timeit", "-n1", "-r1", "import os; os.system('sleep 60')", seconds=1.0)
    assert found == {"failed": "it took longer than 1 s"}
    assert "Unknown backbone 'nothing'." in in_subprocess("bench.profiling.gpu", "ceilings", "nothing", "cpu")["failed"]


def test_costs_that_are_kept_already_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.profiling.gpu.STEPS", {"cost": STEPS["cost"]})
    for rate in (2.0, 3.0):
        found = {"ok": True, "said": "", "costs": {"sam": {"images_per_second": rate, "peak_memory_mb": 500.0}}}
        monkeypatch.setattr("bench.profiling.gpu.in_subprocess", lambda *words, found=found, **how: found)
        assert main(["gpu", "--device", "cpu", "--backbone", "tiny", "--out", str(tmp_path), "--results", str(tmp_path)]) == 0
    (kept,) = ResultStore(tmp_path).costs().values()
    assert kept["images_per_second"] == 2.0 and "sam: dry runs go on by what was measured before" in capsys.readouterr().out


def test_costs_that_were_measured_before_the_time_was_over_are_told(monkeypatch, capsys):
    costs = iter([{"images_per_second": 2.0}, {"images_per_second": 3.0}])
    monkeypatch.setattr("bench.profiling.gpu.measured", lambda *asked: next(costs))
    with pytest.raises(StopIteration):
        STEPS["cost"][1]("tiny", "cpu")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["costs"] == {"sam": {"images_per_second": 2.0}, "lora": {"images_per_second": 3.0}} and len(told["rows"]) == 2


@pytest.mark.slow
def test_steps_are_written_and_dry_runs_know_the_costs(tmp_path, monkeypatch, capsys):
    taken = ("ceilings", "cost")
    monkeypatch.setattr("bench.profiling.gpu.STEPS", {name: STEPS[name] for name in taken})
    words = ["gpu", "--device", "cpu", "--backbone", "tiny", "--minutes", "9", "--out", str(tmp_path), "--results", str(tmp_path)]
    assert main(words) == 0
    steps, said = written(tmp_path), capsys.readouterr().out
    assert set(steps) == set(taken) and all(of["ok"] for of in steps.values())
    assert "a one-shot cell of WHU takes about" in said and "under protocol paper" in said and "TFLOP/s" in said
    mine = [cost for cost in known_costs(tmp_path) if cost.machine == device_name("cpu")]
    assert {cost.label for cost in mine} >= {"sam", "lora(decoder=sam)"} and (tmp_path / "costs").is_dir()
    assert "what the card can do" in next(tmp_path.glob("*-first.md")).read_text()


@pytest.mark.slow
def test_what_is_compared_with_a_cpu_has_gradients_of_every_tensor():
    from bench.profiling.gpu import _apart, _numbers

    wanted = _numbers("cat_sam_a", "cpu", "fp32")
    assert len(wanted) > 5 and all(float(gradient.abs().max()) > 0 for gradient in wanted[1:])
    half = _numbers("cat_sam_a", "cpu", "bf16", trains=False)
    assert len(half) == 1 and 1e-5 < _apart(half[0], wanted[0]) < 0.1 and _apart(torch.zeros(2), torch.ones(2)) == 1
