"""Training augmentation: flips and a random crop, as the reference does them."""

import numpy as np

from bench.grid.protocol import Settings
from bench.types import Sample


def augment_sample(sample: Sample, rng: np.random.Generator, settings: Settings) -> Sample:
    """The sample after `augment`; the objects that it states go the same way as its mask."""
    if sample.objects is None:
        return Sample(sample.name, *augment(sample.image, sample.mask, rng, settings))
    maps = np.dstack([sample.mask, *sample.objects.astype(np.uint8)])  # (H, W, 1 + n)
    image, maps = augment(sample.image, maps, rng, settings)
    return Sample(sample.name, image, maps[..., 0], maps[..., 1:].transpose(2, 0, 1) > 0)


def augment(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Vertical flip, horizontal flip and random crop of an image (H, W, 3) and its mask (H, W) or maps (H, W, n), as the settings ask.

    The crop is not resized: the model resizes what it gets.
    """
    if settings.flips:
        for axis in (0, 1):
            if rng.random() < 0.5:
                image, mask = np.flip(image, axis), np.flip(mask, axis)
    if settings.random_crop:
        rows, columns = random_crop(mask.shape[0], mask.shape[1], rng, settings.crop_area_min)
        image, mask = image[rows, columns], mask[rows, columns]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def random_crop(height: int, width: int, rng: np.random.Generator, area_min: float) -> tuple[slice, slice]:
    """Rows and columns of a crop of area share U(area_min, 1) at the image's own aspect ratio, at a uniform position."""
    share = np.sqrt(rng.uniform(area_min, 1.0))
    rows, columns = (max(1, round(side * share)) for side in (height, width))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return slice(top, top + rows), slice(left, left + columns)
