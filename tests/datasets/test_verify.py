"""`datasets.prepare verify` on archives that are whole and damaged, and the manifest that gives them their fingerprint."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from archive_files import NAMES, TEST, TRAIN, replace, tree
from conftest import Rectangles

import bench.data.manifest
from bench.data.manifest import data_facts, manifest_of, to_hash
from bench.data.objects import mask_objects
from bench.grid.registry import DATASETS
from datasets.folder import GENERATED_MARK
from datasets.kvasir import Kvasir
from datasets.preparation.verify import verify
from datasets.synth import LAYOUTS, SynthPolyps

# --- checking


def official(data: Path, name: str) -> Path:
    """Makes a generated archive look like a real one."""
    (data / name / GENERATED_MARK).unlink()
    return data / name


def test_every_fault_of_an_archive_is_named(archive_data, said):
    root = official(archive_data, "kvasir")
    train = root / "TrainDataset"
    images = sorted(path.name for path in (train / "image").iterdir() if path.stem not in Kvasir.official[16] and not path.stem.isdecimal())
    (train / "masks" / images[0]).unlink()
    replace(train / "image" / images[1], (train / "image" / images[1]).read_bytes()[:-30])
    replace(train / "masks" / f"{Kvasir.official[16][2]}.png", b"<html>")
    tall = cv2.imencode(".png", np.zeros((400, 100), np.uint8))[1].tobytes()
    other = sorted((root / "TestDataset/Kvasir/masks").iterdir())[0]
    replace(other, tall)
    official_image = Kvasir.official[16][4]
    for folder in ("image", "masks"):
        (train / folder / f"{official_image}.png").unlink()
    before = tree(archive_data)
    code, printed = said("verify", "kvasir", "--data", archive_data)
    problems = printed.partition("problems:\n")[2].splitlines()
    assert code == 1 and "not fit for a run" in printed and tree(archive_data) == before
    expected = (
        f"{images[0]} has no mask",
        f"{images[1]} is cut short",
        f"{Kvasir.official[16][2]}.png is not an image",
        f"{other} has (400, 100) pixels",
        f"{official_image}.png of the official 16-shot list is not in",
        "The train split has 16 images; the official archive has 900",
        "The test split has 2 images; the official archive has 100",
        "The train folder has 4 images that are not part of the data set; the official archive has 550",
    )
    for words in expected:
        assert [line for line in problems if words in line], words
    code, printed = said("verify", "kvasir", "--data", archive_data, "--show", 3)
    assert code == 1 and f"… and {len(expected) - 3} more; --show 0 prints all." in printed and printed.count("\n- Data set kvasir") == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_of_every_kind_is_named(name, archive_data, said):
    files = DATASETS.get(name).open(archive_data).files()
    broken = {path.suffix + kind: path for kind in ("image", "mask") for label, path in files.items() if label.endswith(kind)}
    for path in broken.values():
        replace(path, path.read_bytes()[:-40])
    code, printed = said("verify", name, "--data", archive_data)
    assert code == 1 and all(f"The file {path} is cut short" in printed for path in list(broken.values())[-1:])


def test_the_official_numbers_are_what_is_asked_for(archives, tmp_path, said):
    """1,450 training and 100 test images in PraNet's folders pass; one less does not."""
    source = archives / "folders/kvasir/TrainDataset"
    image, mask = source / "image" / f"{Kvasir.official[1][0]}.png", source / "masks" / f"{Kvasir.official[1][0]}.png"
    small = {path: tmp_path / path.parent.name for path in (image, mask)}
    for path, target in small.items():
        cv2.imwrite(f"{target}.png", cv2.resize(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (16, 16), interpolation=cv2.INTER_NEAREST))
    official_stems = list(dict.fromkeys(Kvasir.official[16]))
    stems = [*official_stems, *(f"cju{i:05}" for i in range(900 - len(official_stems))), *map(str, range(550))]
    for folder, names in (("TrainDataset", stems), ("TestDataset/Kvasir", [f"cjt{i}" for i in range(100)])):
        for kind in ("image" if folder == "TrainDataset" else "images", "masks"):
            place = tmp_path / "data/kvasir" / folder / kind
            place.mkdir(parents=True)
            for name in names:
                (place / f"{name}.png").hardlink_to(tmp_path / ("masks.png" if kind == "masks" else "image.png"))
    code, printed = said("verify", "kvasir", "--data", tmp_path / "data")
    assert code == 0, printed
    assert "550 images of the train folder are not part of the data set" in printed and "100 images have the same content" in printed
    for kind in ("images", "masks"):
        (tmp_path / f"data/kvasir/TestDataset/Kvasir/{kind}/cjt7.png").unlink()
    code, printed = said("verify", "kvasir", "--data", tmp_path / "data")
    assert code == 1 and "The test split has 99 images; the official archive has 100." in printed


def test_tiles_of_another_size_are_named(archive_data):
    official(archive_data, "whu")
    texts = [finding.text for finding in verify(DATASETS.get("whu"), archive_data, archive_data / "cache").findings if finding.is_problem]
    assert sum("has 192×192 pixels; the official ones have 512×512" in text for text in texts) == TRAIN + TEST


def test_masks_that_are_not_binary_and_what_the_threshold_drops(archive_data, said):
    code, printed = said("verify", "kvasir", "--data", archive_data)
    grey = [
        cv2.imread(str(p), 0)
        for n in Kvasir.open(archive_data).names("train")
        for p in [archive_data / f"kvasir/TrainDataset/masks/{n}.png"]
    ]
    dropped = sum(int(((values > 127) & (values <= 254)).sum()) for values in grey)
    assert code == 0 and dropped and f"with the values 0–7, 248–255; > 254 leaves out {dropped:,} pixels that > 127 would keep" in printed


def test_masks_without_any_foreground_are_a_problem_and_single_ones_are_counted(archive_data, said):
    masks = sorted((archive_data / "kvasir/TestDataset/Kvasir/masks").iterdir())
    replace(masks[0], cv2.imencode(".png", np.zeros(LAYOUTS["kvasir"].pixels, np.uint8))[1].tobytes())
    code, printed = said("verify", "kvasir", "--data", archive_data)
    assert code == 0 and "and 1 image without a prompt" in printed
    for mask in masks:
        replace(mask, cv2.imencode(".png", np.full(LAYOUTS["kvasir"].pixels, 1, np.uint8))[1].tobytes())
    code, printed = said("verify", "kvasir", "--data", archive_data)
    assert code == 1 and "No mask of the test split has any foreground; their brightest value is 1, and > 254 is foreground." in printed


def test_an_image_of_another_size_is_noted_as_the_reader_treats_it(archive_data, said):
    path = sorted((archive_data / "sbu/SBU-shadow/SBU-Test/ShadowImages").iterdir())[0]
    replace(path, cv2.imencode(".jpg", np.zeros((80, 104, 3), np.uint8))[1].tobytes())
    code, printed = said("verify", "sbu", "--data", archive_data)
    assert code == 0 and f"test: 1 image is transposed or resized to its mask's size, such as {path.stem}." in printed


def test_what_a_run_would_see_is_what_the_reader_gives(archive_data):
    found = verify(Kvasir, archive_data, archive_data / "cache")
    dataset = Kvasir.open(archive_data)
    for split in ("train", "test"):
        seen = {look.name: look for look in found.seen[split]}
        assert sorted(seen) == list(dataset.names(split))
        for name in dataset.names(split):
            mask = dataset.load(split, name).mask
            assert (seen[name].foreground, seen[name].pixels) == (int(mask.sum()), mask.shape)
            assert seen[name].objects == len(mask_objects(mask, Kvasir.rule))


def test_absent_data_is_a_problem_with_the_way_to_get_it(tmp_path, said):
    code, printed = said("verify", "sbu", "--data", tmp_path)
    assert code == 1 and "does not exist; get the archive SBU-shadow from https://www3.cs.stonybrook.edu" in printed


def test_a_data_set_without_files_is_checked_too(tmp_path):
    found = verify(Rectangles, tmp_path, tmp_path)
    assert not found.findings and {split: len(seen) for split, seen in found.seen.items()} == {"train": 4, "val": 2, "test": 5}
    assert [look.objects for look in found.seen["test"]] == [1, 1, 1, 1, 0] and found.manifest.fingerprint is None


# --- the manifest


def test_a_fingerprint_follows_from_contents_and_not_from_places_or_dates(archive_data, tmp_path):
    here = manifest_of(Kvasir.open(archive_data), None)
    assert len(here.fingerprint) == bench.data.manifest.DIGITS and here.bytes == sum(
        p.stat().st_size for p in Kvasir.open(archive_data).files().values()
    )
    moved = tmp_path / "elsewhere"
    shutil.copytree(archive_data / "kvasir", moved / "kvasir")
    assert manifest_of(Kvasir.open(moved), None).fingerprint == here.fingerprint
    mask = next(iter((moved / "kvasir/TestDataset/Kvasir/masks").iterdir()))
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert manifest_of(Kvasir.open(moved), None).fingerprint != here.fingerprint


def test_files_are_hashed_once_and_again_when_their_date_changes(archive_data, tmp_path, said):
    cache = tmp_path / "results" / "cache"
    dataset = Kvasir.open(archive_data)
    hashed: list[int] = []
    first = manifest_of(dataset, cache, on_bytes=hashed.append)
    assert sum(hashed) == first.bytes and to_hash(dataset, cache) == 0
    path = dataset.files()[f"train/{dataset.names('train')[0]}/image"]
    content, date = path.read_bytes(), path.stat().st_mtime_ns
    hashed.clear()
    replace(path, content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(date, date))
    assert manifest_of(dataset, cache, on_bytes=hashed.append) == first and not hashed  # nothing was read
    code, printed = said("verify", "kvasir", "--data", archive_data)
    assert code == 1 and f"The content of {path} changed, though its size and date did not" in printed
    replace(path, content)
    assert manifest_of(dataset, cache, on_bytes=hashed.append).fingerprint == first.fingerprint and hashed == [len(content)]
    next((cache / bench.data.manifest.FOLDER).iterdir()).write_text("{]")
    assert manifest_of(dataset, cache).fingerprint == first.fingerprint


def test_drawn_images_have_no_fingerprint_and_cost_nothing(tmp_path):
    facts = data_facts(SynthPolyps(), tmp_path)
    assert facts == {"title": "Polyps (generated)", "fingerprint": None, "files": 0, "bytes": 0} and not list(tmp_path.iterdir())
