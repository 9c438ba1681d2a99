"""What follows training while it runs: history.csv grows, loggers of packages and of a plugin hear every row once, failures keep traces."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import ROOT
from bench.grid.plugins import VARIABLE
from bench.logs import main as logs
from bench.run import main

PLUGIN = """
import json, os, signal, time
from bench.grid.registry import METHODS
from bench.running.loggers import Logger, register_logger
from methods.bitfit import BitFit

@register_logger("lines")
class Lines(Logger):
    def __init__(self, spec, out, first_step):
        self.path = out / f"{spec.key}.jsonl"
        self.write({"first": first_step, "pid": os.getpid()})
    def write(self, content):
        with self.path.open("a") as file:
            file.write(json.dumps(content) + "\\n")
    def log(self, row):
        self.write(row)
    def close(self, scores):
        self.write(scores)

@register_logger("kills")
class Kills(Logger):  # a training that begins anew, when it has a resume file and some rows on the disk
    def __init__(self, spec, out, first_step):
        self.out, self.first = out, first_step
    def log(self, row):
        if self.first == 1:
            time.sleep(0.1)
            curves = [path.read_text().splitlines() for path in self.out.rglob("history.csv")]
            if list(self.out.rglob("resume.pt")) and curves and len(curves[0]) > 6:
                os.kill(os.getpid(), signal.SIGKILL)

@register_logger("broken")
class Broken(Logger):
    def __init__(self, spec, out, first_step):
        pass
    def log(self, row):
        raise ValueError("my own mistake")

@register_logger("lacking")
class Lacking(Broken):
    needs = ("no_such_package",)

@METHODS.register("failing")
class Failing(BitFit):
    def tuner(self, sam):
        if "MENDED" not in os.environ:
            raise KeyError("in my own code")
        return super().tuner(sam)
"""


@pytest.fixture
def words(tmp_path, monkeypatch, plugins_leave, polyps):
    """A command line of cells that take seconds, and a plugin in use."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine.py"))
    place = ["--datasets", "kvasir", "--data", str(polyps), "--backbone", "tiny", "--device", "cpu", "--out", str(tmp_path / "results")]
    return [*place, "--protocol", "smoke(epochs=2)"]


def told(path: Path) -> tuple[list[dict], dict, dict]:
    """What the plugin's logger wrote: rows, what came before them and after."""
    first, *rows, last = map(json.loads, path.read_text().splitlines())
    return rows, first, last


def test_a_plugins_logger_hears_every_row_and_the_scores_also_of_workers(tmp_path, words, capfd):
    """In processes of their own; one logger that fails ends nothing."""
    assert main([*words, "--methods", "sam,bitfit,lora", "--workers", "2", "--log", "lines,broken"]) == 0
    said = capfd.readouterr().err
    assert said.count("The logger Broken stopped: ValueError: my own mistake.") == 2 and "Traceback" not in said
    for folder in (path.parent for path in (tmp_path / "results" / "runs").rglob("record.json")):
        rows, first, last = told(tmp_path / "results" / f"{folder.name[-12:]}.jsonl")
        record, stored = json.loads((folder / "record.json").read_text()), (folder / "history.csv").read_text().strip()
        assert last["last.miou_all"] == record["scores"]["last"]["miou_all"] and first["pid"] != os.getpid()
        assert len(rows) == (len(pd.read_csv(folder / "history.csv")) if stored else 0)
        if stored:
            assert first["first"] == 1 and [row["step"] for row in rows] == list(range(1, len(rows) + 1))
            assert {name for row in rows for name in row} == set(stored.splitlines()[0].split(","))


def test_a_logger_that_is_not_there_is_one_sentence_before_anything_runs(tmp_path, words, capsys):
    assert main([*words, "--methods", "lora", "--log", "lacking"]) == 2
    assert (
        "--log lacking needs the package no_such_package, which is not installed: pip install no_such_package." in capsys.readouterr().err
    )
    assert main([*words, "--methods", "lora", "--log", "tensorbord"]) == 2
    assert "Unknown logger 'tensorbord'. Did you mean tensorboard?" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_history_grows_outlives_a_kill_and_doubles_nothing(tmp_path, words, monkeypatch):
    words = [*words[:-1], "smoke(epochs=16,selections=['last'])", "--methods", "lora", "--save-every", "1", "--log", "lines,kills"]
    killed = subprocess.run([sys.executable, "-m", "bench.run", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    (path,) = (tmp_path / "results").rglob("history.csv")
    assert not list((tmp_path / "results").rglob("record.json")) and list((tmp_path / "results").rglob("resume.pt"))
    curve = pd.read_csv(path)
    assert len(curve) > 5 and [*curve["step"]] == list(range(1, len(curve) + 1))
    assert main(words) == 0
    history = pd.read_csv(path)
    assert [*history["step"]] == list(range(1, len(history) + 1)) and len(history) == history["steps"][0]
    pd.testing.assert_frame_equal(history[: len(curve)], curve)
    (lines,) = (tmp_path / "results").glob("*.jsonl")
    content = list(map(json.loads, lines.read_text().splitlines()))
    again = next(i for i, line in enumerate(content) if "first" in line and i)
    assert content[again + 1]["step"] == content[again]["first"] > 1 and {line["step"] for line in content if "step" in line} == {
        *history["step"]
    }


def test_what_failed_keeps_its_traceback_and_logs_show_it(tmp_path, words, capsys, monkeypatch):
    assert main([*words, "--methods", "failing"]) == 1
    (path,) = (tmp_path / "results").rglob("traceback.txt")
    key = path.parent.name[-12:]
    capsys.readouterr()
    assert logs([key, "--out", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert "failing" in said and "Traceback (most recent call last)" in said and "mine.py" in said
    assert re.search(r"KeyError: 'in my own code'\s*$", said)
    monkeypatch.setenv("MENDED", "1")
    assert main([*words, "--methods", "failing", "--overwrite", "failed"]) == 0
    assert not path.exists() and (path.parent / "record.json").exists()


@pytest.mark.slow
def test_tensorboard_and_wandb_offline_have_the_curve(tmp_path, words, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*words, "--methods", "bitfit", "--log", "tensorboard,wandb"]) == 0
    (path,) = (tmp_path / "results").rglob("history.csv")
    history = pd.read_csv(path)
    (folder,) = {file.parent for file in (tmp_path / "results" / "logs" / "tensorboard").rglob("events.*")}
    board = events.EventAccumulator(str(folder))
    board.Reload()
    assert [event.step for event in board.Scalars("training/loss")] == [*history["step"]]
    assert [event.value for event in board.Scalars("training/loss")] == pytest.approx([*history["loss"]])
    assert len(board.Scalars("test/last.miou_all")) == 1
    (run,) = (tmp_path / "results" / "logs" / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    assert path.parent.name[-12:] in log.name and log.stat().st_size > 1000
