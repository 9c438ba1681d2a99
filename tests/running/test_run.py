"""The command line as a user has it: real processes, real files, everything that can be asked wrongly, killed or broken."""

import json
import math
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import toy_backbone
from safetensors.torch import load_file, save_file

import bench
from bench import ROOT
from bench.errors import CheckpointError, RequestError
from bench.grid.files import file_sha256
from bench.grid.plan import Request, specs_of
from bench.grid.store import ResultStore
from bench.model.backbones import CONFIGS
from bench.run import main
from bench.running.workers import _taken
from bench.tables import main as tables
from datasets.synth import LAYOUTS, write_layout


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Generated archives of the three data sets, and a random tiny checkpoint."""
    place = tmp_path_factory.mktemp("place")
    for layout in ("whu", "kvasir", "sbu"):
        write_layout(LAYOUTS[layout], place / "data" / layout, 20, 4)
    (place / "pretrained").mkdir()
    sam = bench.load_sam(CONFIGS["tiny"], seed=0)
    save_file({k: v.contiguous() for k, v in sam.state_dict().items()}, place / "pretrained" / "tiny.safetensors")
    return place


def words(place, out, **changes):
    options = {
        "methods": "lora", "datasets": "kvasir", "backbone": "tiny", "protocol": "smoke", "data": place / "data",
        "pretrained": place / "pretrained", "out": out,
    }  # fmt: skip
    return [word for key, value in {**options, **changes}.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def run(place, out, *more, **changes):
    """`python -m bench.run` in a process of its own."""
    command = [sys.executable, "-m", "bench.run", *words(place, out, **changes), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def records(out):
    return {path.parent.name: json.loads(path.read_text())["scores"] for path in sorted(Path(out).rglob("record.json"))}


@pytest.mark.slow
def test_the_whole_job_on_real_files(place, tmp_path, capsys):
    what = {"methods": "sam,cat_sam_a", "datasets": "whu,kvasir,sbu", "shots": "1", "protocol": "smoke(epochs=2)"}
    done = run(place, tmp_path, **what)
    assert done.returncode == 0, done.stderr
    cells = sorted(tmp_path.rglob("record.json"))
    assert len(cells) == 3 * 2
    record = json.loads(cells[0].read_text())
    assert set(record["scores"]) == {"last", "best", "val"} and record["cost"]["test_images"] == 4
    provenance = record["provenance"]
    assert {"git", "packages", "device", "checkpoint", "host"} <= set(provenance) and len(provenance["checkpoint"]["sha256"]) == 64
    images = pd.read_csv(cells[0].parent / "images.csv")
    assert len(images) == 3 * 4 and {"selection", "name", "objects", "intersection", "union", "iou", "dice"} <= set(images)
    assert tables(["--like", "paper", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "CAT-SAM-A" in table and "88.2" in table
    before = {path: path.stat().st_mtime_ns for path in cells}
    assert main(words(place, tmp_path, **what)) == 0
    assert {path: path.stat().st_mtime_ns for path in cells} == before


def test_an_adapted_model_comes_back_from_its_cell(place, tmp_path):
    assert main(words(place, tmp_path, methods="cat_sam_t,lora(rank=2,decoder=hq)")) == 0
    sam = bench.load_sam("tiny", place / "pretrained" / "tiny.safetensors")
    folders = [path.parent for path in tmp_path.rglob("record.json")]
    assert any("lora,decoder=hq,rank=2" in str(folder) for folder in folders)
    for folder in folders:
        model = bench.load_run(folder, sam)
        stored = load_file(folder / "tuned.safetensors")
        assert all(torch.equal(p, stored[n]) for n, p in model.tuned().items())
        assert model.predict(torch.zeros(3, 50, 60), box=[5, 5, 20, 20]).shape == (50, 60)
    with pytest.raises(CheckpointError, match="the same one is needed"):
        bench.load_run(folders[0], toy_backbone())
    with pytest.raises(RequestError, match="no stored cell"):
        bench.load_run(tmp_path)


WRONG = {
    "an unknown method": ({"methods": "lorra"}, "Did you mean lora"),
    "an unknown data set": ({"datasets": "kvasr"}, "Did you mean kvasir"),
    "an unknown protocol": ({"protocol": "papr"}, "Did you mean paper"),
    "an unknown parameter": ({"methods": "lora(rnk=3)"}, "Did you mean rank"),
    "an unknown setting": ({"protocol": "smoke(epoch=3)"}, "Did you mean epochs"),
    "an unknown backbone": ({"backbone": "vit_s"}, "vit_b"),
    "shots that are no number": ({"shots": "few"}, "whole numbers from 1"),
    "no shots at all": ({"shots": "0"}, "whole numbers from 1"),
    "more shots than images": ({"shots": "900"}, "cannot give 900 shots"),
    "a negative seed": ({"seeds": "-1"}, "whole numbers from 0"),
    "a seed that is too large": ({"seeds": "4294967296"}, "whole numbers from 0 to 4294967295"),
    "a parameter given twice": ({"methods": "lora(rank=2,rank=4)"}, "gives rank twice"),
    "a setting given twice": ({"protocol": "smoke(lr=1,lr=2)"}, "gives lr twice"),
    "an infinite setting": ({"protocol": "smoke(lr=1e999)"}, "lr = inf is not allowed: numbers from"),
    "a setting that is no number": ({"protocol": "smoke(lr=1e999-1e999)"}, "lr = '1e309-1e309' has the wrong type"),
    "a setting that is too large": ({"protocol": "smoke(epochs=1000001)"}, "epochs = 1000001 is too large"),
    "a share above one": ({"protocol": "smoke(crop_area_min=1.5)"}, "crop_area_min = 1.5 is too large"),
    "an infinite parameter": ({"methods": "lora(alpha=1e999)"}, "alpha = inf is not allowed: numbers from"),
    "a parameter of nothing": ({"methods": "lora(rank=None)"}, "rank = None has the wrong type"),
    "a parameter that is too large": ({"methods": f"lora(rank={2**60})"}, "is not allowed: numbers from"),
    "a parameter that no folder can be named by": ({"methods": "lora(decoder='../x')"}, "Cannot read '../x'"),
    "a parameter that JSON has not": ({"methods": "lora(rank=1j)"}, "rank = 1j has the wrong type"),
    "brackets in brackets": ({"methods": "(" * 500}, "Cannot read"),
    "a folder that is not UTF-8": ({"data": "r\udcff"}, "'r\\udcff' is not UTF-8"),
    "endless seconds between resume files": ({"save_every": "inf"}, "--save-every inf is too large"),
    "memory that is no number": ({"keep_gb": "nan"}, "--keep-gb nan is no number"),
    "a million workers": ({"workers": "1000000"}, "--workers 1000000 is too large: at most 1024 is allowed"),
    "an absent data folder": ({"data": "nowhere"}, "nowhere/kvasir"),
    "an absent checkpoint": ({"backbone": "vit_l"}, "sam_vit_l_0b3195.pth"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_starts_nothing(place, tmp_path, capsys, what):
    changes, says = WRONG[what]
    assert main(words(place, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error
    assert not list((tmp_path / "out").rglob("state.json"))


def test_the_grid_stays_until_the_checkpoint_was_read(place, tmp_path, capsys):
    pretrained = shutil.copytree(place / "pretrained", tmp_path / "pretrained")
    tensors = load_file(pretrained / "tiny.safetensors")
    save_file({**tensors, "image_encoder.pos_embed": tensors["image_encoder.pos_embed"] * math.nan}, pretrained / "tiny.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grid.json").write_text("[]")
    assert main(words(place, tmp_path / "out", pretrained=pretrained)) == 2
    assert "image_encoder.pos_embed holds NaN" in capsys.readouterr().err
    assert (tmp_path / "out" / "grid.json").read_text() == "[]"


def test_broken_files_found_before_the_start(place, tmp_path, capsys):
    data, pretrained = tmp_path / "data", tmp_path / "pretrained"
    shutil.copytree(place / "data" / "kvasir", data / "kvasir")
    shutil.copytree(place / "pretrained", pretrained)
    masks = data / "kvasir" / "TrainDataset" / "masks"
    official = masks / "cju0roawvklrq0799vmjorwfv.png"
    official.unlink()
    assert main(words(place, tmp_path / "out", data=data)) == 2
    assert official.stem in capsys.readouterr().err
    checkpoint = pretrained / "tiny.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert main(words(place, tmp_path / "out", pretrained=pretrained)) == 2
    assert str(checkpoint) in capsys.readouterr().err
    suite = tmp_path / "suite.toml"
    suite.write_text('method = "lora"\n')
    assert main(["--config", str(suite)]) == 2
    assert "Did you mean methods" in capsys.readouterr().err
    suite.write_text("methods = \n")
    assert main(["--config", str(suite)]) == 2
    assert str(suite) in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(words(place, tmp_path / "file" / "out")) == 2
    assert "Cannot write to the output folder" in capsys.readouterr().err


SUITE = """
methods = ["sam", "lora(rank=8)"]
datasets = ["kvasir"]
shots = [1, "full"]
seeds = [0, 1]
protocol = "smoke"
backbone = "tiny"
"""


def test_a_suite_and_a_dry_run(place, tmp_path, capsys):
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    flags = ["--config", str(suite), "--data", str(place / "data"), "--pretrained", str(place / "pretrained"), "--out", str(tmp_path)]
    assert main([*flags, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert (
        listed.count("pending") == 5
        and "5 cells, 5 to run" in listed
        and "kvasir sam zero-shot" in listed
        and "lora(decoder=sam,rank=8)" in listed
    )
    assert main([*flags, "--dry-run", "--seeds", "5"]) == 0
    assert "3 cells, 3 to run" in capsys.readouterr().out


def test_a_cell_that_fails_stops_no_other_and_is_retried_when_asked(place, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    broken = next(iter(sorted((data / "kvasir" / "TestDataset" / "Kvasir" / "images").glob("*.png"))))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    out, what = tmp_path / "out", {"datasets": "kvasir,sbu", "methods": "sam", "data": data}
    assert main(words(place, out, **what)) == 1
    printed = "".join(capfd.readouterr())
    assert str(broken) in printed and "Traceback" not in printed
    assert [path.parts[-4] for path in out.rglob("record.json")] == ["sbu"]
    broken.write_bytes(whole)
    assert main(words(place, out, **what)) == 1  # `never` leaves the failed cell
    assert main(words(place, out, **what, overwrite="failed")) == 0
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    assert len(stamps) == 2
    assert main(words(place, out, **what, overwrite="always")) == 0
    assert all(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items())


LONG = {"methods": "adaptformer", "protocol": "smoke(epochs=12,evaluate_every=6)"}


@pytest.fixture(scope="module")
def uninterrupted(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert main(words(place, out, **LONG)) == 0
    return records(out)


@pytest.mark.xdist_group("uninterrupted")
@pytest.mark.parametrize(
    ("how", "after_step"),
    [
        (signal.SIGINT, 7),
        (signal.SIGKILL, 7),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 7, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_with_the_same_scores(place, tmp_path, uninterrupted, how, after_step):
    """Every step writes a resume file here, so the kill comes after a known one."""
    command = [sys.executable, "-m", "bench.run", *words(place, tmp_path, **LONG, save_every=0)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        found = list(tmp_path.rglob("resume.pt"))
        if found and torch.load(found[0], weights_only=True)["course"]["step"] >= after_step:
            process.send_signal(how)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and not records(tmp_path), output
    if how != signal.SIGKILL:
        assert process.returncode == 130 and "goes on from here" in output and "Traceback" not in output
    assert main(words(place, tmp_path, **LONG)) == 0
    assert records(tmp_path) == uninterrupted
    assert not list(tmp_path.rglob("resume.pt"))


@pytest.mark.xdist_group("uninterrupted")
def test_a_damaged_resume_file_costs_time_only(place, tmp_path, uninterrupted, capfd):
    request = Request(LONG["methods"], "kvasir", protocol=LONG["protocol"], backbone="tiny")
    spec = specs_of(request, file_sha256(place / "pretrained" / "tiny.safetensors"), place / "data")[0]
    folder = ResultStore(tmp_path).folder(spec)
    folder.mkdir(parents=True)
    (folder / "resume.pt").write_bytes(b"half a file")
    assert main(words(place, tmp_path, **LONG)) == 0
    assert "starts from the beginning" in capfd.readouterr().err
    assert records(tmp_path) == uninterrupted


@pytest.mark.slow
def test_workers_give_the_same_numbers(place, tmp_path):
    what = {"methods": "lora,vpt_deep,bitfit", "protocol": "smoke(epochs=2)"}
    for workers in ("1", "2"):  # the first in this process
        assert main(words(place, tmp_path / workers, **what, workers=workers)) == 0
    assert records(tmp_path / "1") == records(tmp_path / "2") and len(records(tmp_path / "1")) == 3


@pytest.mark.parametrize("order", ["01" * 6, "0" * 12, "110", "0123" * 3])
def test_workers_take_each_cell_once_from_either_end_so_that_few_prepare_the_same_images(order):
    data = ["whu"] * 4 + ["kvasir"] * 4 + ["sbu"] * 3
    taken = multiprocessing.get_context("spawn").Array("q", 2)
    workers = {i: _taken(list(enumerate(data)), taken, i) for i in sorted(set(map(int, order)))}
    found = {i: [] for i in workers}
    for i in [int(i) for i in order] + list(workers) * 11:
        found[i] += islice(workers[i], 1)
    assert sorted(task for own in found.values() for task in own) == list(enumerate(data))
    assert all(own == sorted(own, reverse=bool(i % 2)) for i, own in found.items())
    if order == "01" * 6:  # in turn: each but the middle data set is one worker's alone
        assert ({of for _, of in found[0]}, {of for _, of in found[1]}) == ({"whu", "kvasir"}, {"kvasir", "sbu"})


@pytest.mark.slow
def test_workers_that_are_stopped_end_the_run_however_many_cells_wait(place, tmp_path):
    """More than a pipe holds: what is left in it keeps nobody waiting."""
    command = [sys.executable, "-m", "bench.run", *words(place, tmp_path, seeds="0:200", workers="2")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout and next(line for line in process.stdout if line.startswith("["))
        process.terminate()
        try:
            assert process.wait(timeout=90) == 130
        finally:
            process.kill()
