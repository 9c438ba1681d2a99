"""Stored cells asked once more: real cells of the tiny size, trained once for all tests."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import bench
from bench.data.objects import sample_objects
from bench.errors import RequestError
from bench.grid.plan import open_dataset
from bench.grid.store import ResultStore
from bench.model.backbones import CONFIGS
from bench.reevaluate import main
from bench.reporting.comparable import CellQuery
from bench.reporting.figures import pictures
from bench.reporting.reevaluation_figures import _tick
from bench.reporting.report import report
from bench.reporting.table import markdown
from bench.reporting.tables import tables
from bench.run import main as run
from datasets.synth import LAYOUTS, write_layout

pytestmark = pytest.mark.xdist_group("reevaluation")  # one worker makes what its tests share

PROTOCOL = "smoke(selections=['last'],epochs=1)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """LoRA on one of two data sets of four test images each."""
    here = tmp_path_factory.mktemp("reeval")
    for name in ("kvasir", "sbu"):
        write_layout(LAYOUTS[name], here / "data" / name, 20, 4)
    (here / "pretrained").mkdir()
    sam = bench.load_sam(CONFIGS["tiny"], seed=0)
    save_file({k: v.contiguous() for k, v in sam.state_dict().items()}, here / "pretrained" / "tiny.safetensors")
    train(here, "lora", "kvasir", "0")
    return here


def train(here, methods, datasets, seeds):
    grid = ["--methods", methods, "--datasets", datasets, "--seeds", seeds, "--backbone", "tiny", "--protocol", PROTOCOL]
    assert run([*grid, *where(here)]) == 0


def where(here):
    return ["--data", str(here / "data"), "--pretrained", str(here / "pretrained"), "--out", str(here / "results"), "--device", "cpu"]


@pytest.fixture
def place(trained, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def more_trained(trained, tmp_path_factory):
    """SAM and LoRA on both data sets, LoRA with two seeds on the first one."""
    here = tmp_path_factory.mktemp("several") / "place"
    shutil.copytree(trained, here)
    train(here, "sam,lora", "kvasir,sbu", "0")
    train(here, "sam,lora", "kvasir", "1")
    return here


@pytest.fixture
def several(more_trained, tmp_path):
    """A copy of them that a test may change."""
    shutil.copytree(more_trained, tmp_path / "several")
    return tmp_path / "several"


def parent(place, method="lora", dataset="kvasir", seed=0):
    (found,) = (place / "results/runs" / dataset).glob(f"{method}*/*_seed{seed}_????????????")
    return found


def ask(place, *words):
    return main([*map(str, words), *where(place)])


def stored(place):
    """(test data set, data set that was tuned on, prompt, corruption) -> the folder of a re-evaluation of LoRA."""
    table = bench.results(place / "results")
    table = table[(table["parent"] != "") & (table["method"] == "lora") & (table["seed"] == 0)]
    names = ("dataset", "tuned_on", "evaluation_prompt", "corruption", "path")
    return {tuple(key): ResultStore(place / "results").images(path) for *key, path in zip(*(table[n] for n in names), strict=True)}


def test_nothing_asked_is_the_stored_score_to_the_last_bit(place):
    folder = parent(place)
    assert ask(place, folder, "--prompt", "box,box(jitter=0)") == 0
    ((_, again),) = stored(place).items()
    (path,) = folder.parent.glob(f"*_of_{folder.name[-12:]}_*")
    own, other = (json.loads((of / "record.json").read_text()) for of in (folder, path))
    assert own["scores"] == other["scores"] and (folder / "images.csv").read_bytes() == (path / "images.csv").read_bytes()
    assert other["spec"]["reevaluation"] == {"parent": own["key"], "tuned_on": "kvasir", "prompt": "box", "corruption": ""}
    assert not (path / "tuned.safetensors").exists() and other["cost"]["steps"] == 0
    assert {"pixels", "boundary_intersection", "boundary_union", "predicted_iou"} <= set(again.columns)
    assert again["pixels"].dtype == np.int64
    with pytest.raises(RequestError, match=f"evaluates those of the cell {own['key']}"):
        bench.load_run(path)


def test_launching_again_is_the_retry(place, capsys):
    words = [parent(place), "--prompt", "box,point", "--corruption", "none,jpeg"]
    assert ask(place, *words, "--dry-run") == 0 and "4 cells, 4 to run" in capsys.readouterr().out and not stored(place)
    assert ask(place, *words) == 0
    before = {path: path.stat().st_mtime_ns for path in place.rglob("record.json")}
    assert ask(place, *words[:2], "none,box,point,box", *words[3:]) == 0
    after = {path: path.stat().st_mtime_ns for path in place.rglob("record.json")}
    assert before.items() <= after.items() and len(after) == len(before) + 2
    key = next(path for path in after if path not in before).parent.name[-12:]
    assert ask(place, key) == 2 and "has no weights" in capsys.readouterr().err


def test_without_a_prompt_the_model_is_asked_for_one_mask(place):
    assert ask(place, parent(place), "--prompt", "none") == 0
    rows = next(iter(stored(place).values())).set_index("name")
    model = bench.load_run(parent(place), bench.load_sam("tiny", place / "pretrained/tiny.safetensors"))
    dataset = open_dataset("kvasir", place / "data")
    for name in dataset.names("test"):
        sample = dataset.load("test", name)
        mask = model.predict(sample.image)
        assert rows.loc[name, "predicted"] == mask.sum() and rows.loc[name, "intersection"] == (mask & (sample.mask > 0)).sum()
        assert rows.loc[name, "objects"] == len(sample_objects(sample, dataset.rule)) > 0


def test_boxes_of_a_file_are_kept_with_the_results(place, capsys):
    dataset = open_dataset("kvasir", place / "data")
    lines = []
    for name in dataset.names("test")[:-1]:
        boxes = sample_objects(dataset.load("test", name), dataset.rule).boxes
        lines += [f"{name},{','.join(map(str, box))}" for box in boxes.tolist()]
    path = place / "boxes.csv"
    path.write_text("\n".join(["image,x0,y0,x1,y1", *lines]))
    assert ask(place, parent(place), "--prompt", f"box,boxes_from={path}") == 0
    ((*_, prompt, _), found), (_, tight) = sorted(stored(place).items(), key=lambda item: item[0][2] == "box")
    assert prompt.startswith("boxes_from=boxes.csv@")
    pd.testing.assert_frame_equal(found.iloc[:-1], tight.iloc[:-1])
    assert found.iloc[-1]["predicted"] == 0 and found.iloc[-1]["objects"] > 0 and np.isnan(found.iloc[-1]["predicted_iou"])
    (kept,) = (place / "results/prompts").iterdir()
    assert kept.read_bytes() == path.read_bytes()
    path.write_text("\n".join(["image,x0,y0,x1,y1", *lines, "elsewhere,1,1,2,2"]))
    assert ask(place, parent(place), "--prompt", f"boxes_from={path}") == 2
    assert "'elsewhere' is no test image of kvasir" in capsys.readouterr().err and len(stored(place)) == 2
    name, (height, width) = dataset.names("test")[0], dataset.load("test", dataset.names("test")[0]).mask.shape
    path.write_text(f"image,x0,y0,x1,y1\n{name},1,1,{width},{height}\n{name},1,1,{width + 1},9")
    assert ask(place, parent(place), "--prompt", f"boxes_from={path}") == 2
    said = f"row 3: the box [1, 1, {width + 1}, 9] is not inside the image {name} of kvasir, {width}×{height} pixels."
    assert said in capsys.readouterr().err and len(stored(place)) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--corruption", "jpeg(9)"], "level = 9 is too large: at most 5"),
        (["--corruption", "jpg"], "Unknown corruption 'jpg'. Did you mean jpeg"),
        (["--prompt", "boxs"], "Unknown prompt 'boxs'"),
        (["--datasets", "kvasr"], "Unknown data set 'kvasr'. Did you mean kvasir"),
        (["--methods", "cat_sam_a"], "Unknown method among these cells 'cat_sam_a'"),
        (["--methods", "lora,cat_sam_a"], "Unknown method among these cells 'cat_sam_a'"),
        (["--methods", "@prompt"], "Unknown method among these cells '@prompt'"),
        (["--methods", "@nobody"], "Unknown family of methods '@nobody'"),
        (["--backbone-precision", "fp16"], "Unknown precision 'fp16'"),
        (["--datasets", "whu"], "whu"),
        (["--workers", "0"], "--workers 0 is too small"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_starts_nothing(trained, words, says, capsys):
    assert ask(trained, parent(trained), *words) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("error: ") and said.count("\n") == 1
    assert not stored(trained) and not (trained / "results/reevaluations.json").exists()


def test_a_cell_that_cannot_be_asked_is_one_sentence(place, capsys):
    def refused(cell, says):
        assert ask(place, cell) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1

    folder = parent(place)
    refused(place / "nowhere", "is no stored cell")
    refused(place / "data", "No cell is stored below")
    refused("0123456789ab", "is the key of 0 stored cells")
    shutil.copytree(folder, place / "moved" / folder.name)
    refused(place / "moved" / folder.name, "--out names the results folder that a cell belongs to")
    save_file({"a": torch.zeros(1)}, place / "pretrained" / "tiny.safetensors")
    refused(folder, "the same one is needed")
    (folder / "tuned.safetensors").unlink()
    refused(folder, "cannot be read: they are gone")
    refused(place / "results/runs", "cannot be read: they are gone")


@pytest.mark.slow
def test_no_other_table_has_them_and_theirs_say_what_changed(several):
    place = several
    store = ResultStore(place / "results")
    others = ("plain", "comparisons", "efficiency", "shots", "selections", "rules")
    before = [markdown(table) for kind in others for table in tables(store, CellQuery(), kind)]
    with pytest.raises(RequestError, match="Nothing to show: --like robustness needs cells"):
        tables(store, CellQuery(), "robustness")
    words = ["--datasets", "kvasir,sbu", "--prompt", "box,box(jitter=0.3)", "--corruption", "none,blur(5)"]
    assert ask(place, place / "results/runs", *words) == 0
    assert [markdown(table) for kind in others for table in tables(store, CellQuery(), kind)] == before
    found = stored(place)
    miou = {key: 100 * rows["intersection"].sum() / rows["union"].sum() for key, rows in found.items()}

    (robust,) = tables(store, CellQuery(), "robustness")
    rows = {row.heading: dict(zip([(c.group, c.name) for c in robust.columns], row.cells, strict=True)) for row in robust.rows}
    assert list(rows) == ["Kvasir-SEG: SAM", "Kvasir-SEG: LoRA", "SBU Shadow: SAM", "SBU Shadow: LoRA"]
    assert [c.group for c in robust.columns if c.name == "mIoU"] == ["clean", "box(jitter=0.3)", "blur(5)", "box(jitter=0.3) blur(5)"]
    lora = rows["SBU Shadow: LoRA"]
    assert lora["clean", "mIoU"].value == pytest.approx(miou["sbu", "sbu", "box", ""])
    for name, key in (("box(jitter=0.3)", ("box(jitter=0.3)", "")), ("blur(5)", ("box", "blur(5)"))):
        value = miou["sbu", "sbu", *key]
        assert lora[name, "mIoU"].value == pytest.approx(value) and lora[name, "mIoU"].low < value < lora[name, "mIoU"].high
        assert lora[name, "Δ"].value == pytest.approx(value - lora["clean", "mIoU"].value)
        assert lora[name, "Δ"].low <= lora[name, "Δ"].value <= lora[name, "Δ"].high
    assert rows["Kvasir-SEG: LoRA"]["blur(5)", "mIoU"].n == 2 and rows["Kvasir-SEG: SAM"]["blur(5)", "mIoU"].n == 1

    (kept,) = tables(store, CellQuery(), "retention")
    rows = {row.heading: [cell.value for cell in row.cells] for row in kept.rows}
    assert list(rows) == ["SAM, zero-shot", "LoRA, tuned on Kvasir-SEG", "LoRA, tuned on SBU Shadow"]
    away, home = rows["LoRA, tuned on SBU Shadow"][0], rows["LoRA, tuned on SBU Shadow"][2]
    assert away == pytest.approx(miou["kvasir", "sbu", "box", ""]) and home == pytest.approx(miou["sbu", "sbu", "box", ""])
    assert rows["LoRA, tuned on SBU Shadow"][1] == pytest.approx(away - rows["SAM, zero-shot"][0])

    assert ask(place, parent(place), "--prompt", "point") == 0  # one of two seeds
    (robust,), (errors,) = (tables(store, CellQuery(metric=metric), "robustness") for metric in (None, "ber"))
    assert any("LoRA point" in note and "of this one run alone" in note for note in robust.notes)
    for table, worse in ((robust, "below"), (errors, "above")):
        assert any(note.endswith(f"what is {worse} 0 is lost.") for note in table.notes)


def test_conditions_stand_in_narrow_lines_below_an_axis():
    names = ("clean", "box(jitter=0.25)", "points(3)", "jpeg(4)", "box(jitter=0.1) jpeg(4)", "boxes_from=mine.csv@e1 blur(2)", "bf16")
    assert [_tick(name) for name in names] == [
        "clean", "±25%", "points(3)", "4", "±10%\njpeg(4)", "boxes_from=\nmine.csv\nblur(2)", "bf16",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_report_has_their_tables_and_figures(several):
    place = several
    words = ["--datasets", "kvasir,sbu", "--prompt", "box,box(jitter=0.3)"]
    assert ask(place, place / "results/runs", *words, "--workers", "2") == 0
    store = ResultStore(place / "results")
    names = [picture.name for picture in pictures(store, CellQuery())]
    assert sum(name.startswith("robustness") for name in names) == 2 and sum(name.startswith("retention") for name in names) == 1
    page = report(store)
    assert all(text in page for text in ("Robustness: foreground mIoU", "Retention: foreground mIoU", "Gain on the own data set"))
    before = bench.results(place / "results").set_index("key")["last.miou_all"]
    assert ask(place, parent(place), *words, "--overwrite", "always", "--keep-gb", "0") == 0
    pd.testing.assert_series_equal(before, bench.results(place / "results").set_index("key")["last.miou_all"])  # whatever is kept
