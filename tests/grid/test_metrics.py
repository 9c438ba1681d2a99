"""The metric against the reference, torchmetrics and cases counted by hand."""

import math

import numpy as np
import pytest
import torch
from golden_files import FOLDER
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from bench.grid.metrics import ImageRow, count, mean_image_iou, pooled_dice, pooled_iou, scores, under_rule


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
    assert [mean_image_iou([row]) / 100 for row in rows] == pytest.approx(expected["per_image"], abs=1e-8)


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
    found = scores(HAND)
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
    assert math.isnan(pooled_iou([])) and math.isnan(mean_image_iou([])) and math.isnan(scores([HAND[1]])["miou_with_objects"])


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3, st.integers(0, 2)), min_size=1, max_size=8))
def test_rules_bound_each_other(numbers):
    rows = [ImageRow("", objects, both, both + p + t, both + t, both + p) for both, p, t, objects in numbers]
    found = scores(rows)
    assert all(math.isnan(value) or 0 <= value <= 100 for value in found.values())
    assert len(under_rule(rows, "with_objects")) == sum(row.objects > 0 for row in rows)
    if not any(row.intersection for row in rows if not row.objects):
        assert not found["miou_empty_as_empty"] < found["miou_all"]  # forgiving false positives only helps
