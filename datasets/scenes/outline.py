"""Closed outlines of objects: lists of contours, each (n, 2) float32 XY around the origin with a radius of about 1."""

import math

import numpy as np
from numpy.typing import NDArray

from .texture import Float

Outline = list[Float]


def around(angles: Float, radii: NDArray[np.floating] | float = 1.0) -> Float:
    """The contour (n, 2) with the given polar coordinates."""
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1).astype(np.float32)


def turn(count: int, phase: float = 0.0) -> Float:
    """`count` angles that divide a full turn evenly, the first at `phase`."""
    return np.arange(count, dtype=np.float32) * (2 * math.pi / count) + phase


def stretched(contour: Float, aspect: float) -> Float:
    """`contour` made wider and flatter by `aspect`, its area kept."""
    return contour * np.array([aspect**0.5, aspect**-0.5], np.float32)


def placed(outline: Outline, centre: Float, radius: float, angle: float) -> Outline:
    """`outline` turned by `angle`, scaled to `radius` pixels and moved to `centre` (XY, pixels)."""
    cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]], np.float32)
    return [contour @ matrix + centre for contour in outline]


def polygon(rng: np.random.Generator) -> Outline:
    """An irregular polygon of 3 to 8 corners; the angles stay apart so that no sliver results."""
    corners = int(rng.integers(3, 9))
    angles = turn(corners) + rng.uniform(-0.3, 0.3, corners).astype(np.float32) * (2 * math.pi / corners)
    return [around(angles, rng.uniform(0.75, 1.15, corners))]


def rectangle(rng: np.random.Generator) -> Outline:
    """A rectangle, its sides up to 2.2 : 1."""
    half = stretched(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) * 0.8, rng.uniform(0.45, 2.2))
    return [half]


def ell(rng: np.random.Generator) -> Outline:
    """An L: a rectangle without one corner."""
    x, y = rng.uniform(-0.25, 0.35, 2)
    corners = np.array([[-1, -1], [1, -1], [1, y], [x, y], [x, 1], [-1, 1]], np.float32)
    return [stretched(corners * 0.85, rng.uniform(0.7, 1.4))]


def tee(rng: np.random.Generator) -> Outline:
    """A T with a broad stem."""
    half, y = rng.uniform(0.3, 0.5), rng.uniform(-0.3, 0.1)
    corners = np.array([[-1, -1], [1, -1], [1, y], [half, y], [half, 1], [-half, 1], [-half, y], [-1, y]], np.float32)
    return [stretched(corners * 0.9, rng.uniform(0.7, 1.4))]


def ellipse(rng: np.random.Generator) -> Outline:
    """An ellipse, its axes up to 2.2 : 1."""
    return [stretched(around(turn(40)), rng.uniform(0.45, 2.2))]


def blob(rng: np.random.Generator, wobble: float = 0.35) -> Outline:
    """A smooth blob: a circle whose radius wobbles by low harmonics of amplitude `wobble`."""
    angles = turn(64)
    radii = np.ones(64, np.float32)
    for harmonic in range(2, 6):
        radii += (wobble * rng.uniform(-1, 1) * 1.5 / harmonic) * np.cos(harmonic * angles + rng.uniform(0, 2 * math.pi))
    return [stretched(around(angles, np.clip(radii, 0.35, 1.6)), rng.uniform(0.65, 1.5))]


def star(rng: np.random.Generator) -> Outline:
    """A star or a cross-like wheel with 4 to 7 broad points."""
    points = int(rng.integers(4, 8))
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.2, rng.uniform(0.55, 0.75))
    return [around(turn(2 * points), radii)]


def ring(rng: np.random.Generator) -> Outline:
    """A thick ring: an ellipse or a rectangle with a hole of its own form."""
    outer = ellipse(rng)[0] if rng.random() < 0.6 else rectangle(rng)[0]
    return [outer * 1.15, outer * rng.uniform(0.45, 0.65)]


def crescent(rng: np.random.Generator) -> Outline:
    """A thick crescent: an arc with round ends."""
    half, thickness = rng.uniform(1.0, 2.0), rng.uniform(0.32, 0.5)
    along = np.linspace(-half, half, 24, dtype=np.float32)
    profile = thickness * np.sqrt(np.maximum(1.0 - (along / half) ** 2, 0.0)) * rng.uniform(0.9, 1.2)
    contour = np.concatenate([around(along, 1.0 + profile), around(along, 1.0 - profile)[::-1]])
    return [contour - contour.mean(0)]


def gear(rng: np.random.Generator) -> Outline:
    """A flower-like outline with 3 to 6 round lobes."""
    angles = turn(72)
    return [around(angles, 1.0 + rng.uniform(0.15, 0.35) * np.cos(int(rng.integers(3, 7)) * angles))]


OUTLINES = (polygon, polygon, rectangle, rectangle, ell, ell, tee, ellipse, ellipse, blob, blob, blob, star, gear, ring, crescent)


def random_outline(rng: np.random.Generator) -> Outline:
    """One of `OUTLINES` at random; rings and crescents are the rarer kinds."""
    return OUTLINES[int(rng.integers(len(OUTLINES)))](rng)
