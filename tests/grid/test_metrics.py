"""The metric against the reference, torchmetrics and cases counted by hand."""

import contextlib
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_files import FOLDER
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode
from scipy.ndimage import distance_transform_cdt
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from bench.data.boundary import boundary
from bench.grid.metrics import METRICS, ImageRow, Images, count, mean_image_iou, pooled_dice, pooled_iou, scores, under_rule


def maps(seed, images=6):
    rng = np.random.default_rng(seed)
    sizes = [(rng.integers(5, 40), rng.integers(5, 40)) for _ in range(images)]
    return [(rng.random(size) < rng.random(), rng.random(size) < rng.random()) for size in sizes]


def rows_of(pairs):
    return [count(str(i), 1, predicted, truth) for i, (predicted, truth) in enumerate(pairs)]


def test_the_references_numbers():
    import json

    files, expected = np.load(FOLDER / "objects.npz"), json.loads((FOLDER / "objects.json").read_text())["metric"]
    rows = rows_of([(files[f"pred{i}"], files[f"gt{i}"]) for i in range(6)])
    assert pooled_iou(rows) / 100 == pytest.approx(expected["pooled_foreground_iou"], abs=1e-9)
    assert [mean_image_iou(Images.of([row])) / 100 for row in rows] == pytest.approx(expected["per_image"], abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_pooled_scores_equal_torchmetrics(seed):
    pairs = maps(seed)
    flat = [torch.from_numpy(np.concatenate([pair[k].ravel() for pair in pairs])).int() for k in (0, 1)]
    rows = rows_of(pairs)
    assert pooled_iou(rows) == pytest.approx(100 * BinaryJaccardIndex()(*flat).item(), abs=1e-4)
    assert pooled_dice(rows) == pytest.approx(100 * BinaryF1Score()(*flat).item(), abs=1e-4)


# One image with an object (3 of 4 pixels found, 1 too many), an empty one with 5 false pixels,
# and one with a speck of 2 pixels below the minimum area, predicted as 3 pixels of which 1 is right.
HAND = [ImageRow("a", 1, 3, 5, 4, 4), ImageRow("b", 0, 0, 5, 0, 5), ImageRow("c", 0, 1, 4, 2, 3)]


def test_hand_counted_rules():
    found = scores(Images.of(HAND))
    assert found["miou_all"] == pytest.approx(100 * 4 / 14)
    assert found["miou_empty_as_empty"] == pytest.approx(100 * 3 / 7)  # "c" misses its 2 pixels
    assert found["miou_with_objects"] == pytest.approx(100 * 3 / 5)
    assert found["dice_all"] == pytest.approx(100 * 8 / (6 + 12))
    assert found["dice_empty_as_empty"] == pytest.approx(100 * 6 / (6 + 4))
    assert found["dice_with_objects"] == pytest.approx(100 * 6 / 8)
    assert found["mean_image_iou_all"] == pytest.approx((60 + 0 + 25) / 3)
    assert found["mean_image_iou_empty_as_empty"] == pytest.approx((60 + 100 + 0) / 3)
    assert found["mean_image_iou_with_objects"] == pytest.approx(60)


def test_nothing_to_count_is_nan_and_never_a_number():
    assert (
        math.isnan(pooled_iou([]))
        and math.isnan(mean_image_iou(Images.of([])))
        and math.isnan(scores(Images.of([HAND[1]]))["miou_with_objects"])
    )


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3, st.integers(0, 2)), min_size=1, max_size=8))
def test_rules_bound_each_other(numbers):
    rows = [ImageRow("", objects, both, both + p + t, both + t, both + p) for both, p, t, objects in numbers]
    found = scores(Images.of(rows))
    assert all(math.isnan(value) or 0 <= value <= 100 for value in found.values())
    assert len(under_rule(Images.of(rows), "with_objects").name) == sum(row.objects > 0 for row in rows)
    if not any(row.intersection for row in rows if not row.objects):
        assert not found["miou_empty_as_empty"] < found["miou_all"]  # forgiving false positives only helps


DEGENERATE = {"both empty": (0, 0), "both full": (1, 1), "no prediction": (0, None), "all predicted": (1, None), "no truth": (None, 0)}


def integer_row(name, predicted, truth):
    edges = boundary(predicted), boundary(truth)
    both, either = int((edges[0] & edges[1]).sum()), int((edges[0] | edges[1]).sum())
    more = {"boundary_intersection": both, "boundary_union": either, "boundary_truth": int(edges[1].sum())}
    return replace(count(name, 1, predicted, truth), pixels=truth.size, **more)


def a_pair(rng, predicted, truth):
    size = rng.integers(5, 40), rng.integers(5, 40)
    return [rng.random(size) < rng.random() if value is None else np.full(size, value, bool) for value in (predicted, truth)]


@pytest.mark.parametrize("kind", [None, *DEGENERATE])
@pytest.mark.parametrize("seed", range(4))
def test_pixel_metrics_equal_independent_oracles(seed, kind):
    """Each from the maps themselves: torchmetrics in float64, and Boundary IoU as its authors define it."""
    rng = np.random.default_rng(seed)
    pairs = [a_pair(rng, *(DEGENERATE.get(kind) or (None, None))) for _ in range(5)]
    rows = [integer_row(str(i), *pair) for i, pair in enumerate(pairs)]
    flat = [torch.from_numpy(np.concatenate([pair[k].ravel() for pair in pairs])).long() for k in (0, 1)]
    assert METRICS["two_class_miou"].value(Images.of(rows)) == pytest.approx(two_class(*flat), abs=1e-6)
    each = [two_class(*(torch.from_numpy(x.ravel()).long() for x in pair)) for pair in pairs]
    assert METRICS["mean_image_two_class_miou"].value(Images.of(rows)) == pytest.approx(np.mean(each), abs=1e-6)
    assert METRICS["ber"].value(Images.of(rows)) == pytest.approx(100 - balanced_accuracy(*flat), abs=1e-6)
    dice = [100 * 2 * (p & t).sum() / (p.sum() + t.sum()) if p.any() or t.any() else 0.0 for p, t in pairs]
    assert METRICS["mean_image_dice"].value(Images.of(rows)) == pytest.approx(np.mean(dice), abs=1e-6)
    edges = [(published_boundary(p), published_boundary(t)) for p, t in pairs]
    of_images = [100 * (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0 for a, b in edges]
    assert METRICS["mean_image_boundary_iou"].value(Images.of(rows)) == pytest.approx(np.mean(of_images), abs=1e-6)
    whole = sum((a | b).sum() for a, b in edges)
    pooled = 100 * sum((a & b).sum() for a, b in edges) / whole if whole else math.nan
    assert METRICS["boundary_iou"].value(Images.of(rows)) == pytest.approx(pooled, abs=1e-6, nan_ok=True)


def two_class(predicted, truth):
    """The mean IoU of the classes that occur, in percent."""
    matrix = multiclass_confusion_matrix(predicted, truth, 2).double()
    either = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return float((100 * matrix.diag() / either)[either > 0].mean())


def balanced_accuracy(predicted, truth):
    matrix = multiclass_confusion_matrix(predicted, truth, 2).double()
    there = matrix.sum(1) > 0
    return float((100 * matrix.diag() / matrix.sum(1))[there].mean())


def published_boundary(mask):
    """Distance to the background, by rows and columns, of at most round(0.02 × diagonal) pixels; outside the image is background."""
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    padded = np.pad(mask, 1)
    return mask & (distance_transform_cdt(padded, "chessboard")[1:-1, 1:-1] <= width)


@pytest.mark.parametrize("seed", range(4))
def test_class_miou_equals_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(0, 5, (9, 12)) * (rng.random((9, 12)) < seed / 3), rng.integers(0, 5 - seed, (9, 12))) for _ in range(3)]
    rows = [ImageRow(str(i), 1, 0, 0, 0, 0, confusion=sparse(*pair)) for i, pair in enumerate(pairs)]
    flat = [torch.from_numpy(np.concatenate([pair[k].ravel() for pair in pairs])) for k in (0, 1)]
    every = multiclass_jaccard_index(*flat, num_classes=6, average=None).double()[1:]
    occurs = [any((x == number).any() for x in flat) for number in range(1, 6)]
    assert METRICS["class_miou"].value(Images.of(rows)) == pytest.approx(100 * every[occurs].mean().item(), abs=1e-5)


def sparse(predicted, truth):
    pairs, counts = np.unique(np.stack([truth.ravel(), predicted.ravel()]), axis=1, return_counts=True)
    return " ".join(f"{t}:{p}:{n}" for (t, p), n in zip(pairs.T, counts, strict=True))


@pytest.mark.parametrize("kind", ["random", "touching", "empty predictions", "perfect", "more than 100"])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_pycocotools_on_masks(seed, kind):
    rng = np.random.default_rng(seed)
    images = [objects_and_predictions(rng, kind) for _ in range(4)]
    rows = [ImageRow(str(i), len(of[0]), 0, 0, 0, 0, instances=instances_of(*of)) for i, of in enumerate(images)]
    ap, ap50 = coco_ap(images)
    assert METRICS["ap"].value(Images.of(rows)) == pytest.approx(ap, abs=1e-6)
    assert METRICS["ap50"].value(Images.of(rows)) == pytest.approx(ap50, abs=1e-6)
    assert math.isnan(METRICS["ap"].value(Images.of([ImageRow("a", 0, 0, 0, 0, 0, instances="")])))


def objects_and_predictions(rng, kind):
    count = 0 if rng.random() < 0.2 else 130 if kind == "more than 100" else int(rng.integers(1, 8))
    truth, predicted = np.zeros((2, count, 40, 48), bool)
    for mask, other in zip(truth, predicted, strict=True):
        y, x, h, w = rng.integers(0, 30), rng.integers(0, 36), rng.integers(2, 10), rng.integers(2, 12)
        mask[y : y + h, x : x + w] = True
        dy, dx = (0, 0) if kind == "perfect" else rng.integers(0, 5, 2)
        other[y + dy : y + h, x + dx : x + w + dx] = kind != "empty predictions"
    scores = rng.choice([0.25, 0.5, 0.75, 0.875], count) if kind == "touching" else rng.random(count)  # and ties
    return truth, predicted, scores, rng.integers(1, 3, count)


def instances_of(truth, predicted, estimates, classes):
    def one(i):
        shared = {j: (truth[j - 1] & predicted[i]).sum() for j in range(1, 1 + len(truth))}
        counts = [classes[i], truth[i].sum(), predicted[i].sum(), float(estimates[i]), *(f"{j}={n}" for j, n in shared.items() if n)]
        return ":".join(map(str, counts))

    return " ".join(one(i) for i in range(len(truth)))


def coco_ap(images):
    """AP and AP50 in percent, by COCO's evaluation of run-length masks."""
    truth, found = COCO(), []
    annotations = []
    for image, (masks, predicted, estimates, classes) in enumerate(images, 1):
        for mask, other, score, number in zip(masks, predicted, estimates, classes, strict=True):
            common = {"image_id": image, "category_id": int(number)}
            rle = encode(np.asfortranarray(mask, np.uint8))
            annotations.append({**common, "id": len(annotations) + 1, "segmentation": rle, "area": int(mask.sum()), "iscrowd": 0})
            found.append({**common, "segmentation": encode(np.asfortranarray(other, np.uint8)), "score": float(score)})
    truth.dataset = {"images": [{"id": i, "height": 40, "width": 48} for i in range(1, len(images) + 1)], "annotations": annotations}
    truth.dataset["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0], 100 * evaluation.stats[1]
