"""Objects and boxes: the reference's results on golden masks, and what holds for every mask."""

import json
import tracemalloc
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bench import ROOT
from bench.data.objects import (
    label_map,
    labelled_objects,
    mask_objects,
    object_areas,
    sample_objects,
    stacked_objects,
    tight_boxes,
)
from bench.types import ObjectRule, Sample
from datasets.folder import FolderDataset
from datasets.kvasir import Kvasir
from datasets.sbu import Sbu
from datasets.whu import Whu

GOLDEN = ROOT / "tests" / "golden"
READERS: dict[str, type[FolderDataset]] = {"whu": Whu, "kvasir": Kvasir, "sbu": Sbu}
MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24), elements=st.integers(0, 1))
RULES = st.builds(ObjectRule, st.sampled_from([4, 8]), st.integers(0, 12), st.sampled_from([0.0, 0.1, 0.5]))


def object_masks(mask, rule):
    """(n, H, W)."""
    return mask_objects(mask, rule).masks()


def golden_keys() -> list[str]:
    return [key for key in json.loads((GOLDEN / "objects.json").read_text()) if key != "metric"]


@pytest.fixture(scope="module")
def golden() -> Iterator[tuple[dict[str, dict], dict[str, np.ndarray]]]:
    with np.load(GOLDEN / "objects.npz") as arrays_:
        yield json.loads((GOLDEN / "objects.json").read_text()), dict(arrays_)


@pytest.mark.parametrize("key", golden_keys())
def test_objects_equal_the_references(key, golden):
    expected, grey = golden[0][key], golden[1][key]
    reader = READERS[key.rstrip("0123456789")]
    mask = (grey > reader.threshold).astype(np.uint8)
    objects = object_masks(mask, reader.rule)
    assert int(mask.sum()) == expected["foreground"]
    assert sorted(tight_boxes(objects).tolist()) == expected["boxes"]
    assert sorted(object_areas(objects).tolist()) == expected["areas"]


def test_all_three_data_sets_are_in_the_golden_masks():
    assert {key.rstrip("0123456789") for key in golden_keys()} == set(READERS)


def test_an_object_is_larger_than_the_limit():
    mask = np.zeros((8, 40), np.uint8)
    mask[1, 1:21], mask[4, 1:22] = 1, 1  # 20 and 21 pixels
    assert object_areas(object_masks(mask, ObjectRule(4, min_area=20))).tolist() == [21]


def test_the_relative_rule_takes_the_larger_limit():
    rule = ObjectRule(8, min_area=20, relative_area=0.001)
    assert rule.limit(np.array([30_000, 25])) == 30
    assert rule.limit(np.array([3_000, 25])) == 20
    assert rule.limit(np.array([], np.int64)) == 20


def test_connectivity_decides_about_diagonal_neighbours():
    mask = np.kron(np.eye(2, dtype=np.uint8), np.ones((5, 5), np.uint8))
    assert len(object_masks(mask, ObjectRule(4, min_area=0))) == 2
    assert len(object_masks(mask, ObjectRule(8, min_area=0))) == 1


def test_a_mask_without_objects_gives_none_of_its_own_size():
    objects = object_masks(np.zeros((5, 7), np.uint8), ObjectRule())
    assert objects.shape == (0, 5, 7) and objects.dtype == bool
    assert tight_boxes(objects).shape == (0, 4) and object_areas(objects).shape == (0,)


def test_boxes_include_their_last_pixel():
    objects = np.zeros((1, 6, 9), bool)
    objects[0, 2:4, 3:8] = True
    assert tight_boxes(objects).tolist() == [[3, 2, 7, 3]]


def test_a_read_only_mask_is_enough():
    mask = np.ones((4, 4), np.uint8)
    mask.setflags(write=False)
    assert len(object_masks(mask, ObjectRule(min_area=1))) == 1


@settings(max_examples=60, deadline=None)
@given(MASKS, RULES)
def test_objects_are_disjoint_parts_of_the_mask(mask, rule):
    objects = object_masks(mask, rule)
    assert objects.shape[1:] == mask.shape and objects.dtype == bool
    assert (objects.sum(axis=0) <= mask).all()
    assert (object_areas(objects) > rule.min_area).all()


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([4, 8]))
def test_without_a_limit_the_objects_are_the_mask(mask, connectivity):
    assert (object_masks(mask, ObjectRule(connectivity, min_area=0)).any(axis=0) == (mask > 0)).all()


@settings(max_examples=60, deadline=None)
@given(MASKS, RULES)
def test_boxes_are_tight(mask, rule):
    objects = object_masks(mask, rule)
    for one, (x0, y0, x1, y1) in zip(objects, tight_boxes(objects), strict=True):
        ys, xs = np.nonzero(one)
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (x0, y0, x1, y1)


@settings(max_examples=60, deadline=None)
@given(MASKS, RULES)
def test_objects_come_in_reading_order(mask, rule):
    firsts = [int(one.argmax()) for one in object_masks(mask, rule)]
    assert firsts == sorted(set(firsts))


@settings(max_examples=60, deadline=None)
@given(MASKS, RULES)
def test_turning_the_mask_turns_the_same_objects(mask, rule):
    turned = object_masks(np.ascontiguousarray(mask[::-1, ::-1]), rule)
    back = {one[::-1, ::-1].tobytes() for one in turned}
    assert back == {one.tobytes() for one in object_masks(mask, rule)}


def from_maps(mask, rule):
    """Masks, areas and boxes as they are read off a map of each component."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=rule.connectivity)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
    masks = labels[None] == (1 + np.flatnonzero(areas > rule.limit(areas)))[:, None, None]
    masks = masks[np.argsort(masks.reshape(len(masks), mask.size).argmax(axis=1))]
    return masks, object_areas(masks), tight_boxes(masks)


def is_like(objects, masks, areas, boxes):
    """Whether objects are these, bit for bit, by every way to ask for them."""
    crops = all((objects.crop(i) == masks[i][objects.window(i)]).all() for i in range(len(masks)))
    numbers = np.where(masks.any(0), 1 + masks.argmax(0), 0) if len(masks) else np.zeros(masks.shape[1:])
    alike = [(objects.masks(), masks), (objects.areas, areas), (objects.boxes, boxes)] + [(objects.label_map(), numbers)] * (
        not objects.overlap
    )
    return crops and all(mine.shape == theirs.shape and (mine == theirs).all() for mine, theirs in alike)


@settings(max_examples=100, deadline=None)
@given(MASKS, RULES, st.randoms())
def test_objects_are_those_of_a_map_of_each(mask, rule, random):
    found, expected = mask_objects(mask, rule), from_maps(mask, rule)
    assert is_like(found, *expected) and is_like(stacked_objects(expected[0]), *expected)
    some = np.array(random.sample(range(len(found)), random.randint(0, len(found))), np.int64)
    assert is_like(found[some], *(part[some] for part in expected))


@settings(max_examples=100, deadline=None)
@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16), elements=st.sampled_from([0, 3, 4, 2**40])), RULES)
def test_a_label_map_states_what_a_map_of_each_would(values, rule):
    for are_ids in (True, False):
        parts = ObjectRule(rule.connectivity, rule.min_area)
        each = [((values == v)[None] if are_ids else from_maps((values == v).astype(np.uint8), parts)[0]) for v in np.unique(values) if v]
        masks = np.concatenate([np.zeros((0, *values.shape), bool), *each])
        labels = label_map(values, are_ids, rule)
        assert is_like(labelled_objects(labels), masks, object_areas(masks), tight_boxes(masks))
        areas = object_areas(masks)
        image, mask = np.zeros((*values.shape, 3), np.uint8), (values > 0).astype(np.uint8)
        kept = masks[areas > rule.limit(areas)]
        for sample in (Sample("x", image, mask, labels=labels), Sample("x", image, mask, masks)):
            assert is_like(sample_objects(sample, rule), kept, object_areas(kept), tight_boxes(kept))


def test_memory_does_not_grow_with_the_number_of_objects():
    peaks = []
    for across in (2, 32):  # 4 and 1024 objects
        mask = np.kron(np.indices((2 * across, 2 * across)).prod(0) % 2, np.ones((512 // across,) * 2)).astype(np.uint8)
        tracemalloc.start()
        assert len(mask_objects(mask, ObjectRule()).boxes) == across**2
        peaks.append(tracemalloc.get_traced_memory()[1] / mask.size)
        tracemalloc.stop()
    assert max(peaks) < 12 and peaks[1] < 1.3 * peaks[0]  # bytes a pixel; a map of each would have 1024
