"""What prompts' masks cover, class by class and object by object, against the same by brute force; and stored cells scored from it."""

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from bench.data.objects import class_map_of, class_objects, labelled_objects, sample_objects, stacked_objects
from bench.errors import DataError
from bench.grid.metrics import METRICS, ImageRow, Images, confusion
from bench.grid.rows import read_image_rows
from bench.model.upsampling import interpolated, union
from bench.training.by_object import Covered, ObjectTruth
from bench.types import ObjectRule, Sample
from datasets import prepare

RULE = ObjectRule(connectivity=8, min_area=0)


def told(rng, overlapping, size=(40, 56), count=5):
    """A sample of some rectangles of three classes, as a stack of masks or as a map of labels."""
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    classes = rng.choice([1, 2, 7], count)
    class_map, image = class_map_of(masks, classes), np.zeros((*size, 3), np.uint8)
    if overlapping:
        return Sample("a", image, masks.any(0).astype(np.uint8), objects=masks, class_map=class_map, classes=classes)
    labels, classes = class_objects(class_map, RULE)
    return Sample("a", image, (class_map > 0).astype(np.uint8), labels=labels, class_map=class_map, classes=classes)


@pytest.mark.parametrize("overlapping", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_masks_of_objects_equal_brute_force(seed, overlapping):
    rng = np.random.default_rng(seed)
    sample = told(rng, overlapping)
    objects = sample_objects(sample, RULE)
    low = torch.from_numpy(rng.normal(-0.3, 1, (len(objects), 9, 9)).astype(np.float32)) - (seed == 5) * 100  # the last: all empty
    low[len(objects) // 2] = low[0]  # two of the same logits
    covered = Covered(ObjectTruth.of(sample, objects), sample.mask.shape, torch.device("cpu"))
    for run in low.split(2):  # as decoding cuts them
        covered.add(run)
    assert torch.equal(covered.union, union(low, sample.mask.shape))
    arriving, full = covered.download(), interpolated(low[:, None], sample.mask.shape)[:, 0].numpy()

    scores = np.zeros((8, *sample.mask.shape), np.float32)  # of class ids; background wins where none is above 0
    for logits, number in zip(full, objects.classes, strict=True):
        scores[number] = np.maximum(scores[number], logits)
    wanted = multiclass_confusion_matrix(torch.from_numpy(scores.argmax(0)), torch.from_numpy(sample.class_map.astype(np.int64)), 8)
    found = np.zeros((8, 8), int)
    for truth, predicted, pixels in confusion(arriving.confusion()):
        found[truth, predicted] = pixels
    assert np.array_equal(found, wanted.numpy()) and found.sum() == sample.mask.size

    masks, estimates = objects.masks(), rng.random(len(objects)).astype(np.float32)
    for i, text in enumerate(arriving.instances(estimates).split()):
        category, truth, predicted, score, *shared = text.split(":")
        both = {j: int((masks[j - 1] & (full[i] > 0)).sum()) for j in range(1, 1 + len(masks))}
        assert (int(category), int(truth), int(predicted)) == (objects.classes[i], masks[i].sum(), (full[i] > 0).sum())
        assert np.float32(score) == estimates[i] and {int(j): int(n) for j, n in (x.split("=") for x in shared)} == {
            j: n for j, n in both.items() if n
        }


def test_objects_of_classes():
    class_map = np.zeros((6, 9), np.uint8)
    class_map[0:2, 0:3], class_map[0:2, 3:6], class_map[4:6, 7:9] = 3, 1, 3  # the first two touch and stay apart
    labels, classes = class_objects(class_map, RULE)
    assert classes.tolist() == [1, 3, 3] and labels[0, 4] == 1 and labels[0, 0] == 2 and labels[5, 8] == 3
    assert class_objects(class_map, ObjectRule(min_area=4))[1].tolist() == [1, 3]  # an object must be larger
    small_wins = class_map_of(np.stack([np.ones((2, 2), bool), np.eye(2, dtype=bool), ~np.eye(2, dtype=bool)]), [4, 5, 6])
    assert small_wins.tolist() == [[5, 6], [6, 5]]
    objects = stacked_objects(np.stack([class_map == 3, class_map == 1, class_map > 0]))
    assert [sorted(set(layer.ravel().tolist())) for layer in objects.layers()] == [[0, 1, 2], [0, 3]]
    assert np.array_equal(labelled_objects(labels).layers()[0], labels)


def described(folder, name, values, extra=""):
    """A data set of eight images, each with a can of class 1, a bottle of class 3, or both, or none."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        mask = np.zeros((48, 64), np.uint8)
        mask[4:20, 4:30] = values[i % 4][0]
        mask[18:40, 24:60][mask[18:40, 24:60] == 0] = values[i % 4][1]
        cv2.imwrite(str(folder / f"images/a{i}.png"), rng.integers(0, 255, (48, 64, 3), np.uint8))
        cv2.imwrite(str(folder / f"masks/a{i}.png"), mask)
    keys = f'images = "images"\nmasks = "masks"\nmask_values = "classes"\ntest_share = 0.5\nmetric = "class_miou"\n{extra}'
    (folder / f"{name}.toml").write_text(f"{keys}\n[classes]\ncan = 1\nbottle = 3\n")


def bench(*arguments):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_a_cell_of_classes_keeps_what_they_need(tmp_path):
    described(tmp_path, "beach", [(1, 3), (1, 0), (0, 3), (0, 0)], "val_images = 0")
    asked = ["--datasets", "beach", "--backbone", "tiny", "--data", tmp_path, "--out", tmp_path / "results"]
    made = bench("bench.run", "--methods", "sam,decoder", "--protocol", "smoke(selections=['last'])", *asked)
    assert made.returncode == 0, made.stderr + made.stdout
    for folder in (path.parent for path in tmp_path.rglob("record.json")):
        rows = read_image_rows(folder)["last"]
        assert len(rows.name) == 4 and 0 <= METRICS["class_miou"].value(rows) <= 100 and 0 <= METRICS["ap"].value(rows) <= 100
        for i, text in enumerate(rows.confusion):
            matrix = np.zeros((4, 4), int)
            for truth, predicted, pixels in confusion(text):
                matrix[truth, predicted] = pixels
            foreground = rows.objects[i] > 0  # without objects the one mask that there is has no class
            predicted, both = rows.predicted[i] * foreground, rows.intersection[i] * foreground
            assert matrix.sum() == rows.pixels[i] and matrix[1:].sum() == rows.truth[i] and matrix[:, 1:].sum() == predicted
            assert matrix[1:, 1:].sum() == both and len(rows.instances[i].split()) == rows.objects[i]


def test_a_class_that_is_not_named_is_refused(tmp_path, capsys):
    described(tmp_path, "shore", [(1, 3), (1, 9), (0, 3), (0, 0)])
    from bench.grid.plan import open_dataset

    dataset = open_dataset("shore", tmp_path)
    with pytest.raises(DataError, match=r"masks/a[15].png has the class id 9, which .*shore.toml does not name: 1 \(can\), 3 \(bottle\)"):
        [dataset.load(split, name) for split in ("train", "test") for name in sorted(dataset.names(split))]
    assert prepare.main(["verify", "shore", "--data", str(tmp_path)]) == 1
    assert "masks/a5.png has the class id 9, which" in capsys.readouterr().out


def test_empty_as_empty_predicts_no_class():
    row = ImageRow("a", 0, 1, 9, 4, 6, 20, 1, 8, None, 3, "0:0:11 0:2:5 2:0:3 2:2:1", "")
    assert (
        METRICS["class_miou"].value(Images.of([row])) == 100 * 1 / 9
        and METRICS["class_miou"].value(Images.of([row]), "empty_as_empty") == 0
    )
    assert (
        METRICS["ber"].value(Images.of([row]), "empty_as_empty") == 50
        and METRICS["boundary_iou"].value(Images.of([row]), "empty_as_empty") == 0
    )
    assert np.isnan(METRICS["boundary_iou"].value(Images.of([replace(row, boundary_truth=None)]), "empty_as_empty"))
