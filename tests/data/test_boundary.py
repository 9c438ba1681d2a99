"""Boundary regions, against an oracle of another library; and damaged images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from bench.data.boundary import boundary
from bench.data.corruptions import CORRUPTIONS, corrupted


def oracle(mask):
    """As the authors of Boundary IoU describe it: what so many erosions take off a mask that has a frame of background."""
    height, width = mask.shape
    times = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = np.pad(mask, 1)
    return mask & ~binary_erosion(framed, np.ones((3, 3)), iterations=times, border_value=1)[1:-1, 1:-1]


@given(st.integers(1, 260), st.integers(1, 260), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_boundary_is_the_oracles(height, width, seed, share):
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 40 + 1, width // 40 + 1)) < share
    mask = np.kron(coarse, np.ones((40, 40), bool))[:height, :width]
    assert np.array_equal(boundary(mask), oracle(mask))


def test_a_boundary_of_all_and_nothing():
    assert not boundary(np.zeros((50, 60), bool)).any()
    whole = boundary(np.ones((100, 100), bool))
    assert whole.sum() == 100**2 - 94**2  # 0.02 × 141.4 is 3 pixels


IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (12, 10, 3)), np.ones((8, 8, 1))).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_stronger_level_by_level_and_the_same_again(kind):
    found = [corrupted(IMAGE, f"{kind}({level})", "a") for level in range(1, 6)]
    errors = [np.square(image.astype(float) - IMAGE).mean() for image in found]
    assert errors == sorted(errors) and errors[0] > 0
    assert all(image.dtype == np.uint8 and image.shape == IMAGE.shape and image.flags.c_contiguous for image in found)
    assert np.array_equal(found[2], corrupted(IMAGE, kind, "a"))  # level 3 where none is said
    assert np.array_equal(found[2], corrupted(IMAGE, f"{kind}(3)", "b")) == (kind != "gaussian_noise")


def test_noise_has_the_strength_that_it_says():
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert corrupted(grey, "gaussian_noise(1)", "a").std() == pytest.approx(0.08 * 255, rel=0.02)
    assert corrupted(grey, "brightness(2)", "a").mean() == pytest.approx(128 + 0.2 * 255, abs=1)
    assert np.ptp(corrupted(IMAGE, "contrast(3)", "a").astype(int), axis=(0, 1)).max() <= 0.2 * 256
    assert corrupted(IMAGE, "", "a") is IMAGE
