"""The home distribution: clean, closed objects on varied backgrounds, on which the tiny SAM is pre-trained."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .outline import placed, random_outline
from .texture import Float, Patch, Shape, blend, darken, fill, finish, gaussian, lit, paint, pattern, random_colour, shifted, value_noise

MIN_AREA = 0.004  # of the image: a smaller visible part would be a speck
KEEP = 0.75  # of an object's visible part is left by every later object that overlaps it


def home(rng: np.random.Generator, size: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (size, size, 3) uint8 RGB and its labels (size, size) uint8: 0 background, k the visible part of object k."""
    image, colours = _background(rng, size)
    labels = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(3, 8))):
        patch = _place(rng, labels)
        if patch is not None:
            colours.append(_contrasting(rng, colours))
            _add(rng, image, patch, colours[-1])
            labels[patch.window][patch.alpha > 0.5] = labels.max() + 1
    return finish(rng, lit(rng, image, 0.4), blur=0.007 * size, noise=0.035), labels


def _background(rng: np.random.Generator, size: int) -> tuple[Float, list[Float]]:
    """A textured (size, size, 3) background of one or two materials, with the colours that it is made of."""
    image, colours = _material(rng, (size, size), random_colour(rng), size)
    if rng.random() < 0.35:
        other, more = _material(rng, (size, size), random_colour(rng), size)
        edge = (value_noise(rng, (size, size), rng.uniform(0.3, 0.7) * size, 2) > rng.uniform(0.4, 0.6)).astype(np.float32)
        image, colours = blend(image, other, gaussian(edge, rng.uniform(0.004, 0.03) * size)), colours + more
    return image, colours


def _material(rng: np.random.Generator, shape: Shape, colour: Float, size: int, weak: float = 0.5) -> tuple[Float, list[Float]]:
    """A texture (h, w, 3) of `colour` mixed with a second one, and both; the share `weak` of the textures hardly shows."""
    contrast = rng.uniform(0.03, 0.15) if rng.random() < weak else rng.uniform(0.15, 0.45)
    second = colour + contrast * (random_colour(rng) - colour)
    texture = blend(colour, second, pattern(rng, shape, size * math.exp(rng.uniform(math.log(0.03), math.log(0.25)))))
    return texture, [colour, second]


def _place(rng: np.random.Generator, labels: NDArray[np.uint8], tries: int = 8) -> Patch | None:
    """A patch for the next object that leaves enough of every earlier one visible; None where `tries` found none."""
    size = len(labels)
    for _ in range(tries):
        radius = size * math.exp(rng.uniform(math.log(0.085), math.log(0.3)))
        margin = 0.6 * radius / size
        centre = (rng.uniform(margin, 1 - margin, 2) * size).astype(np.float32)
        patch = fill(placed(random_outline(rng), centre, radius, rng.uniform(0, 2 * math.pi)), size, pad=0.06 * size)
        if _leaves_enough(labels, patch):
            return patch
    return None


def _leaves_enough(labels: NDArray[np.uint8], patch: Patch) -> bool:
    """Whether `patch` is big enough itself and hides less than its share of every object that is there already."""
    covered = labels[patch.window][patch.alpha > 0.5]
    if covered.size < 2 * MIN_AREA * labels.size:
        return False
    if not covered.any():
        return True
    visible = np.bincount(labels.ravel())[1:]
    left = visible - np.bincount(covered, minlength=len(visible) + 1)[1:]
    return bool(np.all(left >= np.maximum(KEEP * visible, MIN_AREA * labels.size)))


def _contrasting(rng: np.random.Generator, taken: list[Float], enough: float = 0.33, tries: int = 10) -> Float:
    """A colour (3,) at least `enough` away from every colour of `taken` where `tries` draws find one, else the best of them.

    A quarter of the colours is drawn near the background's, and may be half as far away.
    """
    others = np.stack(taken)
    best, best_distance = random_colour(rng), -1.0
    pull = 0.55 if rng.random() < 0.25 else 1.0
    for _ in range(tries):
        colour = taken[0] + pull * (random_colour(rng) - taken[0])
        distance = float(np.sqrt(((others - colour) ** 2).sum(1)).min())
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance > enough * pull:
            break
    return best


def _add(rng: np.random.Generator, image: Float, patch: Patch, colour: Float) -> None:
    """Paints an object of `colour` into `image`, sometimes with a soft drop shadow beside it and shading on it."""
    size = len(image)
    if rng.random() < 0.35:
        dx, dy = rng.uniform(-0.035, 0.035, 2) * size
        shadow = gaussian(shifted(patch.alpha, dx, dy), rng.uniform(0.008, 0.02) * size)
        darken(image, Patch(patch.window, shadow), rng.uniform(0.15, 0.45))
    texture, _ = _material(rng, patch.alpha.shape, colour, size, weak=0.7)
    texture = lit(rng, texture, 0.5)
    if rng.random() < 0.3:
        texture *= _dome(patch.alpha, rng.uniform(0.15, 0.4))[..., None]
    paint(image, Patch(patch.window, gaussian(patch.alpha, rng.uniform(0, 0.005) * size)), texture)


def _dome(alpha: Float, amount: float) -> Float:
    """A factor (h, w) that is 1 deep inside an object and falls by `amount` towards its border."""
    depth = np.asarray(cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3), np.float32)
    factor: Float = 1.0 - amount + amount * np.sqrt(depth / (float(depth.max()) + 1e-6))
    return factor
