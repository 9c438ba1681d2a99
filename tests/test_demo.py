"""The demo and a study from end to end, on one method and a few steps, with the checkpoint that the repository ships."""

import cv2
import pandas as pd
import pytest

from bench.demo import SUITE, run_demo
from bench.errors import RequestError
from bench.grid.plan import Request, specs_of
from bench.grid.store import ResultStore
from bench.study import main, read_study

SMALL = Request("sam,vpt_shallow", "kvasir", "1", "0", "0", "tiny", "demo(lr=3e-3, epochs=2)")  # of four test images instead of 64


def test_the_demo_ends_with_table_pictures_and_what_next(tmp_path, capfd, monkeypatch, polyps):
    (tmp_path / "data").symlink_to(polyps)
    monkeypatch.chdir(tmp_path)
    assert run_demo(SMALL, tmp_path, workers=1) == 0
    printed = capfd.readouterr().out
    for part in ("VPT-shallow", "Kvasir-SEG", "predictions_kvasir.png", "What next"):
        assert part in printed
    picture = tmp_path / "figures" / "predictions_kvasir.png"
    image = cv2.imread(str(picture))
    assert image.shape[1] > image.shape[0] > 300 and image.std() > 30
    stamps = {path: path.stat().st_mtime_ns for path in [picture, *tmp_path.rglob("record.json")]}
    assert run_demo(SMALL, tmp_path, workers=1) == 0
    assert len(stamps) == 3 and stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_the_demos_suite_names_what_exists():
    request = Request().with_suite(SUITE)
    assert request.backbone == "tiny" and request.datasets.count("synth_") == 3 and request.seeds == "0,1,2"
    specs = specs_of(request, "0" * 64)
    assert len(specs) == 3 * (1 + 7 * 3)
    assert {(spec.settings.evaluation_split, spec.settings.trials) for spec in specs if spec.method.trains} == {("test", 8)}


STUDY = """
methods = "vpt_shallow"
datasets = "synth_polyps"
backbone = "tiny"
seeds = [0]
protocol = "demo"
[[variant]]
epochs = 1
[[variant]]
epochs = 2
"""


def test_a_study_compares_variants_on_validation_images(tmp_path):
    (tmp_path / "length.toml").write_text(STUDY)
    assert main([str(tmp_path / "length.toml"), "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "length.csv")
    assert list(table["variant"]) == ["epochs 1"] * 2 + ["epochs 2"] * 2 and list(table["data set"]) == ["synth_polyps", "mean"] * 2
    assert "vpt_shallow(decoder=sam)" in (tmp_path / "length.md").read_text()
    store = ResultStore(tmp_path / "length")
    for path in store.records()["path"]:  # no test image was looked at
        assert set(store.images(path)["name"]) <= {f"{i:04}" for i in range(64, 96)}


def test_the_demos_study_is_about_the_demos_protocol():
    study = read_study(SUITE.parent.parent / "studies" / "demo_lr.toml")
    assert study.request["protocol"] == "demo" and len(study.variants) >= 3


@pytest.mark.parametrize(
    ("old", "new", "says"), [("epochs = 1", "epoch = 1", "epochs"), ("methods", "method", "methods"), ("[[variant]]", "", "variant")]
)
def test_a_wrong_study_gets_one_sentence(tmp_path, old, new, says):
    path = tmp_path / "wrong.toml"
    path.write_text(STUDY.replace(old, new).replace("epochs = 2", "") if not new else STUDY.replace(old, new))
    with pytest.raises(RequestError, match=says):
        read_study(path)
