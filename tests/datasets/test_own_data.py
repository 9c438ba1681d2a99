"""Data sets that a TOML file describes: what it may say, what it means, and that it works as any other data set does."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import toy_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import ROOT, run
from bench.data.manifest import manifest_of
from bench.data.objects import sample_objects
from bench.errors import DataError, RequestError
from bench.grid.plan import Request, RunContext, open_dataset, open_datasets, specs_of
from bench.grid.store import ResultStore
from bench.model.inputs import read_picture
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.table_statistics import table_statistics
from bench.running.cell import Cell, Stopped
from bench.running.workers import CellRunner, StopSignal
from bench.types import ObjectRule, TrainingPrompts, hash_order
from datasets import prepare
from datasets.definition import Definition, read_definition
from datasets.own import CONFIGS, own_class
from datasets.preparation.findings import of_masks
from datasets.preparation.inspection import Inspection

PLAIN = 'images = "pics"\nmasks = "truth"\ntest_share = 0.25\n'


@pytest.fixture
def data(tmp_path):
    """Twelve pictures of two squares each, `pics/a0.jpg` … with `truth/a0.png` …"""
    rng = np.random.default_rng(0)
    for folder in ("pics", "truth"):
        (tmp_path / folder).mkdir()
    for i in range(12):
        mask = np.zeros((40, 48), np.uint8)
        mask[4:16, 4 : 12 + i] = mask[24:34, 20:30] = 255
        cv2.imwrite(str(tmp_path / f"pics/a{i}.jpg"), rng.integers(0, 90, (40, 48, 3), np.uint8) + mask[..., None] // 2)
        cv2.imwrite(str(tmp_path / f"truth/a{i}.png"), mask)
    return tmp_path


def described(data: Path, name: str, text: str = PLAIN) -> Path:
    """The file `data/NAME.toml`; every test has names of its own, because a registry is a process's."""
    path = data / f"{name}.toml"
    path.write_text(text)
    return path


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# --- what it means


def test_a_share_of_the_images_is_the_test_split_by_a_hash_of_their_names(data):
    described(data, "shared")
    dataset = open_dataset("shared", data)
    names = [f"a{i}" for i in range(12)]
    assert set(dataset.names("test")) == set(hash_order(names, "shared", "test")[:3])
    assert sorted(dataset.names("train") + dataset.names("test")) == sorted(names)
    assert set(dataset.names("val")) <= set(dataset.names("train")) and len(dataset.names("val")) == 2
    for name in (*dataset.names("train"), *dataset.names("test")):
        split = "test" if name in dataset.names("test") else "train"
        stored = cv2.imread(str(data / f"truth/{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert (dataset.load(split, name).mask == (stored > 0)).all()
    assert dataset.title == "shared" and dataset.rule == ObjectRule(8, 10, 0.0)


def test_splits_by_lists_and_a_few_shot_list(data):
    (data / "train.txt").write_text("# mine\na0\na1.jpg  # with its ending\na2\na5\n\n")
    (data / "test.txt").write_text("a3\na4\n")
    (data / "two.txt").write_text("a2\na1\n")
    text = """
        title = "My squares"
        images = "pics"
        masks = "truth"
        threshold = 127
        connectivity = 4
        min_area = 5
        relative_area = 0.2
        [splits.train]
        list = "train.txt"
        [splits.test]
        list = "test.txt"
        [few_shot]
        1 = ["a5"]
        2 = "two.txt"
        [training_prompts]
        max_objects = 3
        noise_threshold = 0
    """
    described(data, "listed", text)
    dataset = open_dataset("listed", data)
    assert dataset.names("train") == ("a0", "a1", "a2", "a5") and dataset.names("test") == ("a3", "a4")
    assert dataset.support(1) == ("a5",) and dataset.support(2) == ("a2", "a1") and dataset.names("val") == ()
    assert (dataset.title, dataset.rule) == ("My squares", ObjectRule(4, 5, 0.2))
    assert dataset.training_prompts == TrainingPrompts(max_objects=3, noise_threshold=0.0)


def test_splits_by_folders_with_a_val_split_and_masks_of_other_names(data):
    for split, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        for kind in ("pics", "truth"):
            (data / split / kind).mkdir(parents=True)
        for i in numbers:
            shutil.copy(data / f"pics/a{i}.jpg", data / split / "pics" / f"{i % 8}.JPG")
            shutil.copy(data / f"truth/a{i}.png", data / split / "truth" / f"{i % 8}_mask.png")
    text = 'mask_suffix = "_mask"\n' + "".join(
        f'[splits.{split}]\nimages = "{split}/pics"\nmasks = "{data}/{split}/truth"\n' for split in ("train", "val", "test")
    )
    described(data, "folders", text)
    dataset = open_dataset("folders", data)
    assert [len(dataset.names(split)) for split in ("train", "val", "test")] == [8, 2, 2]
    for split, original in (("train", "a0"), ("val", "a8"), ("test", "a10")):  # all three are named "0" or "2" here
        name = {"test": "2"}.get(split, "0")
        assert (dataset.load(split, name).mask == (cv2.imread(str(data / f"truth/{original}.png"), 0) > 0)).all()
    assert set(dataset.support("full", hold_out_val=True)) == set(dataset.names("train")) - set(dataset.names("val"))
    assert len(dataset.files()) == 24


def test_images_and_masks_may_lie_in_one_folder(data):
    (data / "all").mkdir()
    for i in range(12):
        cv2.imwrite(str(data / f"all/a{i}.png"), cv2.imread(str(data / f"pics/a{i}.jpg")))
        shutil.copy(data / f"truth/a{i}.png", data / f"all/a{i}_mask.png")
    described(data, "together", 'images = "all"\nmasks = "all"\nmask_suffix = "_mask"\ntest_share = 0.25\n')
    dataset = open_dataset("together", data)
    assert len(dataset.names("train")) == 9 and dataset.load("train", dataset.names("train")[0]).mask.any()
    assert not type(dataset).survey(data).notes


def test_a_definition_may_lie_in_the_checkout_as_well_as_beside_the_data(data, tmp_path):
    """In a copy of the project with `configs/datasets/mine.toml` the name is known, without any other edit."""
    for folder in ("bench", "methods", "datasets", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "copy/configs/datasets/mine.toml").write_text(PLAIN)
    code = "import bench; print(bench.datasets())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "copy", capture_output=True, text=True, timeout=60)
    assert "'mine'" in done.stdout and "_folders" not in done.stdout, done.stderr
    command = [sys.executable, "-m", "datasets.prepare", "verify", "mine", "--data", str(data)]
    done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "9 |" in done.stdout, done.stderr
    (data / "mine.toml").write_text(PLAIN)
    done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "is described twice" in done.stderr


def test_the_examples_can_be_read_and_say_what_the_defaults_are():
    folders, coco = (read_definition(CONFIGS / f"_{name}.toml") for name in ("folders", "coco"))
    assert not folders.is_coco and coco.is_coco
    lines = (CONFIGS / "_folders.toml").read_text().splitlines()
    told = {line[2:].partition(" =")[0]: line for line in lines if line.startswith("# ") and " = " in line[:30]}
    for key in ("threshold", "connectivity", "min_area", "relative_area", "val_images", "mask_suffix", "revision"):
        shown = told[key].partition("=")[2].partition("#")[0].strip()
        assert json.loads(shown) == getattr(Definition(), key), key


def write_ids(data: Path, dtype: type, palette: bool = False) -> np.ndarray:
    """Masks of two squares that touch and a third one apart, of the values 1, 2 and 1, or as a palette's indices of one colour."""
    ids = np.zeros((40, 48), dtype)
    ids[4:16, 4:12], ids[4:16, 12:24], ids[24:34, 20:30] = 1, 2, 1
    for path in (data / "truth").iterdir():
        path.unlink()
        if palette:
            image = Image.fromarray(ids.astype(np.uint8), "P")
            image.putpalette([0, 0, 0, 90, 90, 90, 90, 90, 90])
            image.save(path)
        else:
            cv2.imwrite(str(path.with_suffix(".tif")), ids)
    return ids


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_values_of_a_mask_are_foreground_ids_or_classes(dtype, palette, data, capsys):
    ids = write_ids(data, dtype, palette)
    for what, areas in (("foreground", [240, 100]), ("ids", [196, 144]), ("classes", [96, 100, 144])):
        name = f"values_{what}_{np.dtype(dtype).name}_{palette}"
        described(data, name, f'mask_values = "{what}"\n{PLAIN}')
        dataset = open_dataset(name, data)
        sample = dataset.load("train", dataset.names("train")[0])
        assert (sample.mask == (ids > 0)).all()
        assert [int(found.sum()) for found in sample_objects(sample, dataset.rule).masks()] == areas
        assert prepare.main(["verify", name, "--data", str(data), "--out", str(data / "out")]) == 0
        printed = capsys.readouterr().out
        assert ("if the values are ids or classes, `mask_values" in printed) == (what == "foreground" and not palette)
        assert f"| {sum(map(len, (areas,))) * len(dataset.names('train'))} |" in " ".join(printed.split())
    described(data, "values_other", f'mask_values = "id"\n{PLAIN}')
    with pytest.raises(RequestError, match=r"Unknown value of mask_values in .* 'id'. Did you mean ids"):
        open_dataset("values_other", data)


def test_names_and_lists_may_come_from_any_editor(data):
    accent, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (data / "pics/a1.jpg").rename(data / f"pics/{decomposed}.jpg")
    (data / "truth/a1.png").rename(data / f"truth/{accent}.png")
    (data / "train.txt").write_bytes(f"{accent}.jpg\r\n./a2\r\n".encode("utf-8-sig"))
    (data / "test.txt").write_bytes("a3\r\na4.jpg\r\n".encode("utf-16"))
    (data / "shots.txt").write_text(accent)
    text = 'images = "pics"\nmasks = "truth"\n[splits.train]\nlist = "train.txt"\n[splits.test]\nlist = "test.txt"\n'
    text += '[few_shot]\n1 = "shots.txt"\n'
    described(data, "edited").write_bytes(text.encode("utf-8-sig"))
    dataset = open_dataset("edited", data)
    assert dataset.names("train") == ("a2", decomposed) and dataset.names("test") == ("a3", "a4")
    assert dataset.support(1) == (decomposed,) and dataset.load("train", decomposed).mask.any()
    (data / "train.txt").write_bytes(f"{accent}\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"the list .*train\.txt cannot be read: it is no text in UTF-8\."):
        open_dataset("edited", data)


def test_a_file_name_that_is_not_utf_8_is_named_by_all(data, capsys):
    os.rename(data / "pics/a1.jpg", os.fsencode(data) + b"/pics/a\xff.jpg")
    described(data, "bytes")
    with pytest.raises(DataError) as error:
        open_dataset("bytes", data)
    assert r"pics/a\udcff.jpg' is not UTF-8: rename it" in sentence(error)
    assert prepare.main(["verify", "bytes", "--data", str(data), "--out", str(data / "out")]) == 1
    assert "is not UTF-8: rename it" in capsys.readouterr().out


def test_images_are_upright_for_run_check_and_prediction(data, capsys):
    mask = cv2.imread(str(data / "truth/a0.png"), 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (data / "pics").iterdir():
        Image.open(path).save(path, exif=exif)
        cv2.imwrite(str(data / f"truth/{path.stem}.png"), np.rot90(mask, -1))
    described(data, "turned")
    dataset = open_dataset("turned", data)
    name = dataset.names("train")[0]
    assert np.array_equal(dataset.load("train", name).image, read_picture(data / f"pics/{name}.jpg").permute(1, 2, 0).numpy())
    assert prepare.main(["verify", "turned", "--data", str(data), "--out", str(data / "out")]) == 0
    assert f"train: 9 images are turned upright by an orientation tag, such as {name}; their masks" in capsys.readouterr().out
    cv2.imwrite(str(data / f"truth/{name}.png"), mask)  # drawn on the image as it is stored
    with pytest.raises(DataError) as error:
        open_dataset("turned", data).load("train", name)
    assert f"pics/{name}.jpg is turned upright by its orientation tag, 6, and its mask" in sentence(error)


# --- the key


def test_whatever_can_change_a_number_changes_the_revision_and_nothing_else_does(data):
    (data / "list.txt").write_text("a1\n")
    path = described(data, "keyed", PLAIN + '[few_shot]\n1 = "list.txt"\n')

    def revision() -> int:
        return own_class(path).revision_of(data)

    first = revision()
    assert first < 2**53  # JSON's numbers
    seen = {first}
    for line in ("threshold = 1", "min_area = 11", "connectivity = 4", "relative_area = 0.1", 'mask_suffix = "x"', "revision = 2"):
        path.write_text(f'{line}\n{PLAIN}[few_shot]\n1 = "list.txt"\n')
        seen.add(revision())
    path.write_text(f'{PLAIN}[few_shot]\n1 = "list.txt"\n[training_prompts]\nnoise_scale = 2\n')
    seen.add(revision())
    path.write_text(f'{PLAIN}[few_shot]\n1 = ["a1"]\n')
    seen.add(revision())
    assert len(seen) == 9
    path.write_text(f'title = "Another title"\nconnectivity = 8\nthreshold = 0\n{PLAIN}[few_shot]\n1 = "list.txt"\n')
    assert revision() == first
    (data / "list.txt").write_text("# the same\na1.jpg\n")
    assert revision() == first
    (data / "list.txt").write_text("a2\n")
    assert revision() != first


def test_a_cell_whose_definition_changed_since_is_not_run(data):
    path = described(data, "moving")
    spec = specs_of(Request("sam", "moving", protocol="smoke"), "0" * 64, data)[0]
    assert spec.dataset_revision == own_class(path).revision_of(data)
    assert list(open_datasets([spec], data)) == ["moving"]
    path.write_text(PLAIN + "threshold = 9\n")
    with pytest.raises(RequestError) as error:
        open_datasets([spec], data)
    assert f"the cell is of revision {spec.dataset_revision}, but what lies in {data} is now of" in sentence(error)
    assert specs_of(Request("sam", "moving", protocol="smoke"), "0" * 64, data)[0].key != spec.key


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imges = 1", "Unknown key in {path} 'imges'. Did you mean images"),
        ("[splits.trian]", "Unknown value of a key in {path} [splits] 'trian'. Did you mean train?"),
        ('[splits.train]\nmask = "x"', "Unknown key in {path} [splits.train] 'mask'. Did you mean masks"),
        ("[training_prompts]\nmax_object = 1", "Did you mean max_objects?"),
        ('threshold = "high"', "threshold = 'high' has the wrong type: int is needed"),
        ("threshold = -1", "threshold = -1 is too small: at least 0 is needed"),
        ("connectivity = 6", "Unknown value of connectivity in {path} '6'. Known: 4, 8."),
        ("min_area = -1", "min_area = -1 is too small: at least 0 is needed"),
        ("extensions = []", "extensions = [] is empty: at least one is needed"),
        ('extensions = [".gif"]', "extensions = '.gif' cannot be read: .png"),
        ("[few_shot]\nmany = ['a']", "[few_shot]: a key = 'many' has the wrong type: int is needed"),
        ("splits = 3", "splits = 3 has the wrong type: a table is needed"),
        ('[splits.train]\nlist = "x"', "`test_share` and [splits.train] are not allowed together"),
        ('categories = ["dog"]', "`categories` belong to `annotations`"),
        ('annotations = "a.json"', "needs either `masks`, a folder, or `annotations`"),
        ("images = [", "Cannot read {path}: "),
    ],
)
def test_a_file_that_is_not_as_it_must_be_is_one_sentence_for_who_asks_for_it(text, said, data):
    path = described(data, "wrong", f"{text}\n{PLAIN}" if not text.startswith("[") else f"{PLAIN}{text}\n")
    if text == "images = [":
        path.write_text(text)
    with pytest.raises(RequestError) as error:
        specs_of(Request("sam", "wrong", protocol="smoke"), "0" * 64, data)
    assert said.format(path=path) in sentence(error)
    assert specs_of(Request("sam", "synth_polyps", protocol="smoke"), "0" * 64, data)  # nobody else is bothered


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('images = "pics"\nmasks = "truth"', "there is no test split: [splits.train] and [splits.test], or `test_share = 0.2`"),
        ('masks = "truth"\ntest_share = 0.2', "the train split has no folder: `images` is needed"),
        ('images = "pics"\ntest_share = 0.2', "needs either `masks`"),
        ('images = "pics"\nmasks = "truth"\n[splits.test]\n', "the splits train and test are the same images"),
    ],
)
def test_what_belongs_together_is_asked_for(text, said, data):
    with pytest.raises(RequestError) as error:
        read_definition(described(data, "partial", text))
    assert said in sentence(error)


def fault(data: Path, name: str, text: str) -> str:
    described(data, name, text)
    with pytest.raises(DataError) as error:
        open_dataset(name, data)
    return sentence(error)


def test_what_the_folders_lack_is_one_sentence(data):
    assert f"the folder {data / 'nowhere'} does not exist" in fault(data, "gone", PLAIN.replace("pics", "nowhere"))
    assert "holds no file that ends in .bmp" in fault(data, "none", f'extensions = [".bmp"]\n{PLAIN}')
    (data / "truth/a3.png").unlink()
    assert f"the image {data / 'pics/a3.jpg'} has no mask a3 in {data / 'truth'}." in fault(data, "bare", PLAIN)
    (data / "truth/a4.png").unlink()
    assert "(1 more: `python -m datasets.prepare verify bare2` names them)." in fault(data, "bare2", PLAIN)


def test_what_the_lists_get_wrong_is_one_sentence(data):
    both = 'images = "pics"\nmasks = "truth"\n[splits.train]\nlist = "train.txt"\n[splits.test]\nlist = "test.txt"\n'
    (data / "train.txt").write_text("a0\na1\n")
    assert f"the list {data / 'test.txt'} cannot be read: No such file" in fault(data, "list0", both)
    (data / "test.txt").write_text("a1\na2\n")
    assert "the image a1 is in the train and in the test split" in fault(data, "list1", both)
    (data / "test.txt").write_text("a2\nb9\n")
    assert f"the image b9 of {data / 'test.txt'} is not in pics" in fault(data, "list2", both)
    (data / "test.txt").write_text("a2\n")
    assert "the image a2 of the 1-shot list is not in the train split" in fault(data, "list3", f'{both}[few_shot]\n1 = ["a2"]\n')
    assert "the 2-shot list has 1 different images" in fault(data, "list4", f'{both}[few_shot]\n2 = ["a1"]\n')
    shutil.copy(data / "pics/a0.jpg", data / "pics/a0.jpeg")
    assert "have the same name; `extensions`" in fault(data, "list5", both)


def test_a_name_that_is_taken_or_that_no_folder_can_have_is_refused(data):
    path = described(data, "kvasir")
    with pytest.raises(RequestError, match="data set name 'kvasir' is taken by"):
        open_dataset("whu", data)
    path.unlink()
    path = described(data, "my data")
    with pytest.raises(RequestError, match="cannot be a data set's name"):
        open_dataset("whu", data)
    path.unlink()


def test_a_threshold_above_every_value_is_found_by_the_check(data, capsys):
    for path in (data / "truth").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), 0) // 255)
    described(data, "dark", f"threshold = 127\n{PLAIN}")
    assert prepare.main(["verify", "dark", "--data", str(data), "--out", str(data / "out")]) == 1
    assert "has any foreground; their brightest value is 1, and > 127 is foreground" in capsys.readouterr().out
    described(data, "broken", "images = 3")
    assert prepare.main(["verify", "broken", "--data", str(data)]) == 2
    assert "images = 3 has the wrong type" in capsys.readouterr().err


def test_masks_without_objects_and_without_anything_else_are_found_by_the_check(data, capsys):
    described(data, "covered", f"min_area = 2000\n{PLAIN}")

    def printed(code: int) -> str:
        assert prepare.main(["verify", "covered", "--data", str(data), "--out", str(data / "out")]) == code
        return capsys.readouterr().out

    for split in ("train", "test"):
        assert f"No image of the {split} split has an object: every part of the foreground is too small to be one." in printed(1)
    described(data, "covered", f"min_area = 0\n{PLAIN}")
    name = open_dataset("covered", data).names("train")[0]
    cv2.imwrite(str(data / f"truth/{name}.png"), np.full((40, 48), 9, np.uint8))
    assert f"train: 1 of 9 masks are 100 % foreground, such as {name}." in printed(0)
    for path in (data / "truth").iterdir():
        cv2.imwrite(str(path), np.full((40, 48), 9, np.uint8))
    assert "train: 9 of 9 masks are 100 % foreground, so that there is nothing to tell apart." in printed(1)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 300), st.integers(1, 10**6), min_size=3), st.integers(0, 300))
def test_no_share_is_above_100_percent(values, threshold):
    looks = [Inspection("train", "a", pixels=(1, 1), objects=1, foreground=1, values=values)]
    text = " ".join(finding.text for finding in of_masks("train", looks, threshold))
    assert all(float(share) <= 100 for share in re.findall(r"([0-9.]+) %", text)) and "are not binary" in text


# --- a run


def context(data: Path, out: Path) -> RunContext:
    (out / "weights").write_bytes(b"toy")
    return RunContext("vit_l", out / "weights", data, out, "cpu", "never", 60.0)


def test_a_cell_of_ones_own_data_is_stored_with_its_fingerprint(data, tmp_path):
    described(data, "ours", f'title = "Our squares"\n{PLAIN}')
    sha = "0" * 64
    spec = replace(specs_of(Request("lora", "ours", protocol="smoke"), sha, data)[0], shots=2)
    opened = open_datasets([spec], data)
    bench = CellRunner(context(data, tmp_path), toy_backbone(), opened, StopSignal())
    assert bench.run(spec, lambda share, doing: None).startswith("mIoU")
    record = bench.store.read(spec)
    manifest = manifest_of(opened["ours"], None)
    assert record.provenance["data"] == {
        "title": "Our squares",
        "fingerprint": manifest.fingerprint,
        "files": 24,
        "bytes": manifest.bytes,
    }
    assert bench.store.records()["provenance.data.fingerprint"][0] == manifest.fingerprint
    assert [path.name.startswith("ours_") for path in (tmp_path / "cache/manifests").iterdir()] == [True]


def test_a_score_that_is_not_defined_is_no_result(data, tmp_path):
    for path in (data / "truth").iterdir():
        cv2.imwrite(str(path), np.zeros((40, 48), np.uint8))
    described(data, "nothing")
    spec = specs_of(Request("sam", "nothing", protocol="smoke"), "0" * 64, data)[0]
    bench = CellRunner(context(data, tmp_path), toy_backbone(), open_datasets([spec], data), StopSignal())
    said = bench.run(spec, lambda share, doing: None)
    assert said == "FAILED: None of the 3 images of the test split has any foreground, so that no score is defined."
    assert bench.store.status(spec).phase == "failed"


def test_cells_of_other_data_files_are_said_and_never_compared(data, tmp_path, capsys):
    """Every mask loses an object between two runs into one results folder."""
    described(data, "changing")
    out = str(tmp_path / "out")
    words = [
        "--datasets",
        "changing",
        "--data",
        str(data),
        "--backbone",
        "tiny",
        "--protocol",
        "smoke(selections=['last'],epochs=1)",
        "--out",
        out,
    ]

    def ran(*more: str, code: int = 0) -> str:
        assert run.main([*words, *more]) == code
        return capsys.readouterr().out

    def compared() -> tuple[int, tuple[str, ...], str]:
        (found,) = comparable_cells(ResultStore(Path(out)), CellQuery())
        cell = found.cell("sam", "changing")
        return len(table_statistics(found, found.datasets, False).comparisons("pairs")), cell.notes, " ".join(found.notes)

    assert "data files" not in ran("--methods", "sam,bitfit")
    assert compared() == (1, (), "")
    for path in (data / "truth").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), 0) * (np.arange(40)[:, None] < 20))
    said = "Stored from other data files than those in the data folder now: 1 of these cells (changing sam zero-shot)"
    assert said in ran("--methods", "sam", "--dry-run")
    assert said in ran("--methods", "sam,lora")
    comparisons, notes, of_board = compared()
    assert comparisons == 1  # sam and bitfit, of the same files
    assert len(notes) == 1 and "of other data files (" in notes[0] and "than the newest cell of changing" in notes[0]
    assert "compared with none of the newer ones (2)" in of_board
    assert "--overwrite changed" not in ran("--methods", "sam,lora", "--overwrite", "changed")
    assert compared()[:2] == (1, ()) and "newer ones (1)" in compared()[2]  # bitfit stays as it is
    assert "data files" not in ran("--methods", "sam,lora")
    for path in (data / "truth").iterdir():
        cv2.imwrite(str(path), np.zeros((40, 48), np.uint8))
    failed = ran("--methods", "sam", "--overwrite", "always", code=1)
    assert "1 stored" in failed and "failed, its earlier result stays: changing sam" in failed


def test_a_resume_file_of_other_data_files_is_not_gone_on_with(data, tmp_path, capsys):
    described(data, "resumed")
    spec = specs_of(Request("bitfit", "resumed", protocol="smoke"), "0" * 64, data)[0]
    opened = open_datasets([spec], data)["resumed"]

    def steps(fingerprint: str) -> int:
        told: list[float] = []

        def watch(share: float, doing: str) -> None:
            told.append(share)
            if doing.startswith("epoch 2"):
                raise Stopped

        cell = Cell(spec, toy_backbone(), opened, tmp_path, watch, fingerprint=fingerprint)
        with contextlib.suppress(Stopped):
            cell.run({})
        return cell.state.step

    steps("one")
    first = torch.load(tmp_path / "resume.pt", weights_only=True)["course"]["step"]
    assert first and Cell(spec, toy_backbone(), opened, tmp_path, lambda *_: None, fingerprint="one").state.step == first
    assert Cell(spec, toy_backbone(), opened, tmp_path, lambda *_: None, fingerprint="two").state.step == 0
    assert "the data set's files were others" in capsys.readouterr().err


def test_the_command_lists_the_cells_and_jobs_of_ones_own_data(data, tmp_path):
    described(data, "sent")
    words = ["--methods", "sam,lora", "--datasets", "sent", "--data", str(data), "--backbone", "tiny", "--protocol", "smoke"]
    words += ["--out", str(tmp_path / "out"), "--launcher", "slurm", "--profile", "a100", "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "bench.run", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "2 cells, 2 to run." in done.stdout and "sent lora" in done.stdout, done.stderr
    assert not (tmp_path / "out/cache/manifests").exists()  # a dry run hashes nothing


def test_how_far_aspect_ratios_may_differ_is_the_users_choice(data):
    cv2.imwrite(str(data / "truth/a0.png"), np.full((40, 64), 255, np.uint8))  # a third wider than its image
    described(data, "strict"), described(data, "lenient", f"aspect_tolerance = 0.5\n{PLAIN}")
    with pytest.raises(DataError, match=r"within 25%, or within aspect_tolerance of a data set of your own"):
        strict = open_dataset("strict", data)
        strict.load(next(split for split in ("train", "test") if "a0" in strict.names(split)), "a0")
    lenient = open_dataset("lenient", data)
    split = next(split for split in ("train", "test") if "a0" in lenient.names(split))
    assert lenient.load(split, "a0").image.shape == (40, 64, 3)


def test_too_few_images_to_hold_one_out_says_how_many_are_needed(data):
    described(data, "few")
    train = open_dataset("few", data).names("train")
    described(data, "few", f"{PLAIN}[few_shot]\n{len(train) - 3} = {list(train[3:])}\n")
    specs = specs_of(Request("lora", "few", backbone="tiny", protocol="smoke(selections=['val'])"), "", data)
    with pytest.raises(RequestError, match=r"at least 4 of these are needed, and 3 of its \d+ training images are") as error:
        open_datasets(specs, data)
    sentence(error)
