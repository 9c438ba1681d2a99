"""Released CAT-SAM checkpoints: written as they are released, evaluated as a cell is, and stored as a row of their own."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import golden_files as golden
import numpy as np
import pandas as pd
import pytest
import torch
from test_renderings import CAT, put
from test_spec import LORA, SPEC

import bench
from bench import ROOT
from bench.evaluate import main
from bench.export import main as export
from bench.grid.files import file_sha256
from bench.grid.registry import METHODS
from bench.grid.spec import released_choice
from bench.grid.store import ResultStore, read_record, spec_from_json, spec_to_json
from bench.model.backbones import PRETRAINED
from bench.model.released import released_tensors
from bench.predict import main as predict
from bench.reporting.comparable import CellQuery
from bench.reporting.table import markdown
from bench.reporting.tables import tables
from bench.run import main as run
from bench.running.adapted import load_run
from datasets import synth

pytestmark = pytest.mark.xdist_group("released")  # one worker makes what its tests share

PROTOCOL = "smoke(epochs=12,evaluate_every=12,lr=3e-3,prompt_types=['box'],random_crop=False,selections=['best','last'])"


@pytest.mark.parametrize("kind", ["T", "A"])
def test_the_written_format_is_the_released_one(kind):
    official = golden.official_state_dict(kind)
    written = released_tensors(bench.load_cat_sam(official, sam=golden.CONFIG))
    assert set(written) == set(official)
    assert all(torch.equal(written[name], tensor) for name, tensor in official.items())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Generated kvasir files, a trained CAT-SAM-T cell on them, and that cell as a released checkpoint."""
    place = tmp_path_factory.mktemp("released")
    synth.write_layout(synth.LAYOUTS["kvasir"], place / "data" / "kvasir", 16, 3)
    words = f"--methods cat_sam_t --datasets kvasir --backbone tiny --data {place / 'data'} --pretrained {PRETRAINED} --out {place / 'own'}"
    assert run([*words.split(), "--protocol", PROTOCOL]) == 0
    (cell,) = (record.parent for record in place.rglob("record.json"))
    (place / "cell").symlink_to(cell)
    assert export([str(cell), "--format", "cat-sam", "--out", str(place / "cat.pth"), "--pretrained", str(PRETRAINED)]) == 0
    return place


def words(place, out, *more, checkpoint="cat.pth", datasets="kvasir", data="data"):
    words = f"--checkpoint {place / checkpoint} --datasets {datasets} --data {place / data} --out {out} --pretrained {PRETRAINED}"
    return [*words.split(), "--protocol", PROTOCOL, *more]


def test_the_command_gives_the_cells_scores_and_rows(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.evaluate", *words(place, tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (ResultStore(place).images(place / "cell")["intersection"] > 0).any()
    own, (rows,) = ResultStore(place).images(place / "cell"), tmp_path.glob("evaluated/cat_*/kvasir.csv")
    pd.testing.assert_frame_equal(pd.read_csv(rows, dtype={"name": str}), own[own["selection"] == "best"].drop(columns="selection"))
    scores = read_record(place / "cell").scores["best"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| kvasir")]
    shown = [text.strip() for text in line.split("|")[3:6]]
    assert shown == [f"{scores[f'miou_{rule}']:.1f}" for rule in ("all", "empty_as_empty", "with_objects")]
    assert "CAT-SAM-T on tiny" in done.stdout
    assert not list(tmp_path.rglob("record.json"))


def test_masks_are_predicted_from_a_released_file_as_from_its_cell(place, tmp_path):
    assert list(torch.load(place / "cat.pth", weights_only=True)) == ["model"]  # as the reference's own code unpacks it
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    asked = ["--image", str(tmp_path / "a.png"), "--box", "5", "5", "50", "30", "--no-overlay", "--pretrained", str(PRETRAINED), "--out"]
    assert predict(["--run", str(place / "cell"), *asked, str(tmp_path / "cell.png")]) == 0
    assert predict(["--checkpoint", str(place / "cat.pth"), *asked, str(tmp_path / "released.png")]) == 0
    assert (tmp_path / "cell.png").read_bytes() == (tmp_path / "released.png").read_bytes()


def test_a_stored_one_is_a_row_of_its_own(place, tmp_path, capsys):
    assert main(words(place, tmp_path, "--store", "--shots", "1")) == 0
    (cell,) = (record.parent for record in tmp_path.rglob("record.json"))
    record, own = read_record(cell), read_record(place / "cell")
    sha256 = file_sha256(place / "cat.pth")
    assert record.scores == own.scores and record.spec.released_sha256 == sha256 and record.spec.key != own.spec.key
    assert record.provenance["source"] == "released checkpoint"
    assert record.provenance["released"] == {"name": "cat.pth", "sha256": sha256}
    assert record.cost["steps"] == record.cost["train_images"] == 0
    image = torch.rand(3, 40, 60) * 255
    masks = [load_run(folder, pretrained=PRETRAINED).predict(image, box=[5, 5, 50, 30]) for folder in (cell, place / "cell")]
    assert (masks[0] == masks[1]).all()
    capsys.readouterr()
    assert main(words(place, tmp_path, "--store", "--shots", "1")) == 0
    assert "was stored before" in capsys.readouterr().err
    store = ResultStore(tmp_path)
    store.save(own, ResultStore(place).images(place / "cell"), pd.DataFrame(), None)
    for like in ("plain", "paper", "all"):
        assert "| CAT-SAM-T (released) " in "".join(map(markdown, tables(store, CellQuery(), like)))
    paper = next(row for row in tables(store, CellQuery(), "paper")[0].rows if row.heading == "CAT-SAM-T (released)")
    assert 83.4 in [cell.value for cell in paper.cells]  # the published number stands beside the paper's own weights


def test_two_released_files_are_never_averaged_with_each_other_or_with_trained_cells(tmp_path):
    store = ResultStore(tmp_path)
    put(store, 50.0, method=CAT)
    for sha256, level in (("a" * 64, 60.0), ("b" * 64, 70.0)):
        put(store, level, method=replace(CAT, shown="released"), released_sha256=sha256)
    put(store, 80.0, method=replace(CAT, shown="released"), released_sha256="c" * 64, dataset="sbu")
    (table,) = tables(store, CellQuery(titled=False))
    ours, released = ({column.name: cell for column, cell in zip(table.columns, row.cells, strict=True)} for row in table.rows)
    assert ours["whu"].value == pytest.approx(50, abs=3) and ours["sbu"].reason == "not run"
    assert released["whu"].value > 55 and released["whu"].n == 1 and released["sbu"].value > 75
    assert any("other settings under the same names (1)" in note for note in table.notes)
    assert bench.results(tmp_path)["method_id"].nunique() == 2


def test_the_key_is_of_the_file_and_older_records_still_read():
    released = replace(SPEC, method=released_choice(METHODS.get("cat_sam_a")), released_sha256="ab" * 32)
    assert released.method.label == "cat_sam_a(released)" and released.folder.parts[1] == "cat_sam_a,released"
    assert len({released.key, replace(released, released_sha256="cd" * 32).key, replace(released, released_sha256="").key}) == 3
    assert "released_sha256" not in replace(SPEC, method=LORA).canonical()
    older = json.loads(json.dumps(spec_to_json(SPEC)))
    del older["released_sha256"]
    assert spec_from_json(older) == SPEC


@pytest.fixture(scope="module")
def wrong(place):
    """Files that are no released checkpoint, or not one of the SAM in `pretrained`."""
    tensors = torch.load(place / "cat.pth", weights_only=True)["model"]
    (place / "text.pth").write_text("<html>not found</html>")
    (place / "half.pth").write_bytes((place / "cat.pth").read_bytes()[:1_000_000])
    torch.save({n: t for n, t in tensors.items() if "hq_token" not in n}, place / "hq_sam.pth")
    torch.save({n: t for n, t in tensors.items() if "pos_embed" not in n}, place / "headless.pth")
    neck = "image_encoder.sam_img_encoder.neck.0.weight"
    torch.save({**tensors, neck: tensors[neck] + 1}, place / "other_sam.pth")
    torch.save({**tensors, neck: tensors[neck] * torch.nan}, place / "nan.pth")
    return place


@pytest.mark.parametrize(
    ("changes", "more", "says"),
    [
        ({"checkpoint": "none.pth"}, (), "There is no file"),
        ({"checkpoint": "text.pth"}, (), "text.pth is damaged or no checkpoint"),
        ({"checkpoint": "half.pth"}, (), "truncated or damaged"),
        ({"checkpoint": "hq_sam.pth"}, (), "no CAT-SAM checkpoint"),
        ({"checkpoint": "headless.pth"}, (), "headless.pth is no cat_sam_t of this backbone"),
        ({"checkpoint": "nan.pth"}, (), "NaN"),
        ({}, ("--backbone", "vit_b"), "looks like tiny"),
        ({"datasets": "whoo"}, (), "Unknown data set 'whoo'"),
        ({"data": "nowhere"}, (), "nowhere"),
        ({}, ("--store",), "--shots"),
        ({}, ("--shots", "1,2"), "one number"),
        ({"checkpoint": "other_sam.pth"}, ("--store", "--shots", "1"), "the SAM inside it is not"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(wrong, tmp_path, capsys, changes, more, says):
    assert main(words(wrong, tmp_path, *more, **changes)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.csv"))
