"""The procedural scenes: their shapes, their determinism down to the byte, and what makes each domain what it is."""

import hashlib
import platform
from collections.abc import Callable

import numpy as np
import pytest

from datasets.scenes import buildings, home, polyps, rng_for, shadows
from datasets.scenes.regions import areas, fill_ratios, specks

SCENES = (home, buildings, polyps, shadows)
DOMAINS = (buildings, polyps, shadows)
IMAGES = 30


def digest(scene: Callable, size: int, *key: object) -> str:
    """The first 16 hexadecimal digits of the sha256 of one scene's image and labels."""
    image, labels = scene(rng_for(*key), size)
    return hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def masks() -> dict[str, list[np.ndarray]]:
    return {scene.__name__: [scene(rng_for("test", scene.__name__, i))[1] for i in range(IMAGES)] for scene in DOMAINS}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size", [96, 131, 192])
def test_shapes_and_types(scene: Callable, size: int) -> None:
    image, labels = scene(rng_for("shape", size), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert labels.shape == (size, size) and labels.dtype == np.uint8
    assert image.std() > 10


@pytest.mark.parametrize("scene", SCENES)
def test_same_key_same_bytes(scene: Callable) -> None:
    assert digest(scene, 96, "a", 1) == digest(scene, 96, "a", 1) != digest(scene, 96, "a", 2)


def test_rng_for_depends_on_every_part() -> None:
    draws = {float(rng_for(*key).random()) for key in [("a", 1), ("a", 2), ("b", 1), ("a",), (1, "a")]}
    assert len(draws) == 5
    assert rng_for("a", 1).random() == rng_for("a", "1").random()


def test_home_objects_are_big_and_numbered_without_gaps() -> None:
    for i in range(40):
        labels = home(rng_for("home", i))[1]
        count = np.bincount(labels.ravel())[1:]
        assert 1 <= len(count) <= 7 and count.min() >= 0.004 * labels.size


def test_masks_are_binary_and_hold_no_specks(masks: dict[str, list[np.ndarray]]) -> None:
    for of_domain in masks.values():
        assert all(mask.max() <= 1 for mask in of_domain)
        assert all(areas(mask).min(initial=mask.size) >= 0.001 * mask.size for mask in of_domain)


def test_only_building_tiles_may_be_empty(masks: dict[str, list[np.ndarray]]) -> None:
    assert all(mask.any() for name in ("polyps", "shadows") for mask in masks[name])
    empty = np.mean([not buildings(rng_for("empty", i), 64)[1].any() for i in range(120)])
    assert 0.06 <= empty <= 0.20  # 1 in 8 by design


def test_a_box_alone_solves_no_domain(masks: dict[str, list[np.ndarray]]) -> None:
    fill = {name: float(np.concatenate([fill_ratios(mask) for mask in of_domain]).mean()) for name, of_domain in masks.items()}
    assert 0.40 <= fill["polyps"] <= 0.65
    assert 0.50 <= fill["buildings"] <= 0.72
    assert 0.30 <= fill["shadows"] <= 0.60


def test_regions_of_a_small_mask() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[1:4, 1:4] = mask[6, 6] = mask[7, 7] = 1  # the two single pixels touch at a corner only
    mask[2, 2] = 0
    assert sorted(areas(mask)) == [1, 1, 8]
    assert sorted(fill_ratios(mask)) == pytest.approx([8 / 9, 1, 1])
    assert specks(mask, 2).sum() == 2
    assert areas(np.zeros((4, 4), np.uint8)).size == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenCV's vector code rounds differently on other processors")
@pytest.mark.parametrize(
    ("scene", "size", "number", "expected"),
    [  # keys at which no byte changes between the SSE and the AVX2 code of NumPy and OpenCV; at others one level in one pixel may
        (home, 128, 0, "6db2fb45213dd45f"),
        (home, 192, 0, "e90e742e0b035a8d"),
        (buildings, 128, 0, "f18f90f8bbc85e96 a577812b0b05e96b"),
        (buildings, 192, 0, "fff3acd4532d7b4a"),
        (polyps, 128, 0, "4779ae23a6f111f8"),
        (polyps, 192, 0, "a327a646115df5fe"),
        (shadows, 128, 0, "3df113b7136c5f29"),
        (shadows, 192, 0, "548c60183d47616b 27dbda9ebec231d0"),
    ],
)
def test_pinned_bytes(scene: Callable, size: int, number: int, expected: str) -> None:
    assert digest(scene, size, "pinned", number) in expected.split()
