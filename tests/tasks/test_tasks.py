"""What newcomers want to do, as they would type it: each script of this folder runs, in a folder of its own, and says what it promises."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import pandas as pd
import pytest

from bench import ROOT
from datasets.synth import LAYOUTS, write_layout

HERE = Path(__file__).parent
METHOD = re.search(r"```python\n(.*?)```", (ROOT / "methods" / "README.md").read_text(), re.DOTALL)[1]
LESIONS = re.search(r"<<'TOML'\n(.*?)TOML", (HERE / "own_images.sh").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Twenty images with masks, and two without."""
    here = tmp_path_factory.mktemp("images")
    write_layout(LAYOUTS["kvasir"], here / "kvasir", 22, 1)
    for kind, folder in (("image", "images"), ("masks", "masks")):
        (here / "lesions" / folder).mkdir(parents=True)
        for number, path in enumerate(sorted((here / "kvasir/TrainDataset" / kind).iterdir())[:20]):
            path.rename(here / "lesions" / folder / f"scan_{number:02}.png")
    (here / "new").mkdir()
    for name, path in zip("ab", sorted((here / "kvasir/TrainDataset/image").iterdir()), strict=False):
        path.rename(here / "new" / f"{name}.png")
    return here


@pytest.fixture
def typed(images, tmp_path):
    """Types a script, from a folder with images, a description of them and a method; what is printed. It must end well. breaks: whether
    somebody's code does, whose traceback is shown."""
    shutil.copytree(images / "lesions", tmp_path / "data" / "lesions")
    shutil.copytree(images / "new", tmp_path / "new")
    (tmp_path / "data" / "lesions.toml").write_text(LESIONS)
    (tmp_path / "scaled.py").write_text(METHOD)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(name, breaks=False):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", HERE / name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0 and ("Traceback" in done.stderr) <= breaks, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def stored(folder):
    return sorted(path.parent.parent.name for path in (folder / "runs").rglob("record.json"))


def rows(folder, name):
    """The methods that a table has."""
    (table,) = (folder / "tables").glob(f"{name}.csv")
    return set(pd.read_csv(table)["row"])


@pytest.mark.slow
def test_own_images_to_a_tuned_table(typed, tmp_path):
    (tmp_path / "data" / "lesions.toml").unlink()
    said = typed("own_images.sh")
    tuned = tomllib.loads((tmp_path / "results/tuned/lesions.toml").read_text())
    assert tuned["held_out"] == {"lesions": 4} and "held-out training images (4 of lesions)" in said
    assert {choice["method"]: len(choice["best_so_far"]) for choice in tuned["choice"]} == {
        "lora(decoder=sam)": 3,
        "vpt_deep(decoder=sam)": 3,
    }
    assert len(rows(tmp_path / "results", "tuning*")) == 2 and "Kendall's tau" in said


@pytest.mark.slow
def test_a_plugin_is_compared_with_lora(typed):
    said = typed("plugin.sh")
    assert re.search(r"\d+ of \d+ checks pass, \d not promised", said) and "compared with" in said
    assert re.search(r"^\| scaled.*\(n=2\)", said, re.MULTILINE | re.IGNORECASE)


@pytest.mark.slow
def test_only_the_failed_cells_run_again(typed, tmp_path):
    said = typed("failed_again.sh", breaks=True)
    assert "3 cells: 1 failed, 2 stored" in said and "ended with 1" in said and "out of bounds" in said
    assert "[1/3]" in said and "[1/1] lesions scaled" in said and "3 cells: 3 stored" in said  # of the second command, that cell alone
    assert stored(tmp_path / "results") == ["lora,decoder=sam", "sam", "scaled,decoder=sam"]


@pytest.mark.slow
def test_cells_of_two_people_stand_in_one_table_and_folder(typed, tmp_path):
    said = typed("colleague.sh")
    assert len(rows(tmp_path / "mine", "plain*")) == 3
    assert "3 cells copied into both; 1 was there twice with the same result." in said
    assert stored(tmp_path / "both") == ["lora,decoder=sam", "sam", "vpt_deep,decoder=sam"]


@pytest.mark.slow
def test_a_sweep_is_a_table_a_heat_map_and_a_choice(typed, tmp_path):
    said = typed("sweep.sh")
    assert "### Foreground mIoU (%) by rank and lr" in said
    assert re.search(r"Best on held-out training images \(mIoU there\): LoRA.* on .*: rank [48], lr 0\.01 \(\d+\.\d\)", said)
    (picture,) = (tmp_path / "results/figures").glob("*.png")
    assert cv2.imread(str(picture)).std() > 10


@pytest.mark.slow
def test_three_draws_of_three_seeds(typed, tmp_path):
    said = typed("draws.sh")
    assert stored(tmp_path / "results").count("lora,decoder=sam") == 9
    assert "3 draws × 3 seeds" in said and "of the 2 other draws" in said


@pytest.mark.slow
def test_an_adapted_model_is_used_on_a_folder(typed, tmp_path):
    typed("adapted_model.sh")
    masks = sorted(path.relative_to(tmp_path / "predicted/masks").as_posix() for path in (tmp_path / "predicted/masks").rglob("*.png"))
    assert len(masks) == 2, masks
    assert cv2.imread(str(tmp_path / "predicted/masks" / masks[0]), cv2.IMREAD_UNCHANGED).shape == (176, 208)


NOTEBOOK = """
import json, ast, sys
names = {}
for cell in json.load(open("cells_in_python.ipynb"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]).replace("epochs=8", "epochs=1"), cell["id"], "exec"), names)
assert list(names["cells"]["dataset"].unique()) == ["kvasir"] and len(names["cells"]) == 5, names["cells"]
"""


@pytest.mark.slow
def test_the_notebook_runs_in_a_clean_checkout(tmp_path):
    """Its cells in their order, in a copy of the project, where it lies; nothing but the results' folder is written."""
    for folder in ("bench", "methods", "datasets", "configs", "pretrained", "results/example", "results/paper"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    here = tmp_path / "results" / "example"
    before = sorted(path.name for path in here.iterdir())
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], cwd=here, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in here.iterdir()) == before
