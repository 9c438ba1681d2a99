"""Several processes that run a cell together: gradients, counts and ends, in real processes that talk by gloo."""

import json
import time

import pandas as pd
import pytest
import torch

from bench import ROOT
from bench.run import main
from bench.training.launch import launch_processes

GRADIENTS = """
import sys
sys.path[:0] = [{root!r}, *{tests!r}]
import torch
from test_levers import TRAINED, examples, started
from bench.training.process_group import join_process_group
from bench.training.train import backward
from bench.types import Memory

group, _ = join_process_group("cpu")
first, stop = group.share(3)
found = {{}}
for method in TRAINED:
    model = started(method)
    own = backward(model, examples()[:3][first:stop], 7, Memory(1), "fp32", (first, 3))
    loss = group.summed(list(model.tuned().values()), own)
    found[method] = loss, {{name: p.grad for name, p in model.tuned().items()}}
    empty = group.share(1)
    backward(model, examples()[:1][empty[0]:empty[1]], 7, Memory(), "fp32", (empty[0], 1))  # a process without an image
    group.summed(list(model.tuned().values()), own)
if group.rank == 0:
    torch.save(found, {out!r})
"""


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    from test_levers import TRAINED, examples, started

    from bench.training.train import backward

    script = tmp_path / "gradients.py"
    script.write_text(
        GRADIENTS.format(root=str(ROOT), tests=[str(ROOT / "tests"), str(ROOT / "tests" / "model")], out=str(tmp_path / "found.pt"))
    )
    assert launch_processes([str(script)], 2) == 0
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    for method in TRAINED:
        model = started(method)
        loss = backward(model, examples()[:3], 7)
        assert torch.allclose(found[method][0], loss, rtol=1e-5)
        for name, parameter in model.tuned().items():
            theirs = found[method][1][name]
            assert (theirs is None) == (parameter.grad is None), name
            if theirs is not None:
                scale = max(1.0, parameter.grad.abs().max().item())
                assert (theirs - parameter.grad).abs().max() <= 1e-5 * scale, f"{method} {name}"


def stored(out):
    folder = next((out / "runs").rglob("record.json")).parent
    return json.loads((folder / "record.json").read_text()), pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "images.csv")


@pytest.mark.slow
def test_a_cell_on_two_devices_is_the_cell_of_one(tmp_path, polyps, capfd):
    words = ["--methods", "adaptformer", "--datasets", "kvasir", "--data", str(polyps), "--backbone", "tiny"]
    words += ["--protocol", "smoke(epochs=2)", "--shots", "3", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "1")]) == 0
    capfd.readouterr()
    assert main([*words, "--out", str(tmp_path / "2"), "--devices", "2"]) == 0  # in two processes of its own
    (one, curve, images), (two, shared_curve, shared_images) = stored(tmp_path / "1"), stored(tmp_path / "2")
    assert one["spec"] == two["spec"] and (one["cost"]["devices"], two["cost"]["devices"]) == (1, 2)
    assert shared_curve["loss"].tolist() == pytest.approx(curve["loss"].tolist(), rel=1e-3)
    assert shared_images[["name", "objects", "truth"]].equals(images[["name", "objects", "truth"]])
    assert (shared_images["intersection"] - images["intersection"]).abs().sum() <= 0.01 * images["truth"].sum()
    assert capfd.readouterr().out.count("1 cell: ") == 1 and len(list((tmp_path / "2").rglob("record.json"))) == 1


def test_a_process_that_is_killed_ends_all_with_one_sentence(tmp_path, capfd):
    script = tmp_path / "dies.py"
    script.write_text("import os, time\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\ntime.sleep(60)\n")
    began = time.monotonic()
    assert launch_processes([str(script)], 2) == 1
    assert time.monotonic() - began < 30
    assert capfd.readouterr().err == "error: Process 2 of 2 was ended by signal 9; the others stop too.\n"


@pytest.mark.parametrize("options", [["--devices", "0"], ["--devices", "2", "--workers", "2"], ["--micro-batch", "-1"]])
def test_impossible_options_are_refused_in_a_sentence(options, capsys):
    assert main(["--methods", "sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --") and said.count("\n") == 1
