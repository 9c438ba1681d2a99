"""Outlines of what casts shadows: trees, fences, people, houses; foot at the origin, tip near y = 1, half width about 0.4."""

import math

import numpy as np

from .outline import Outline, around, blob, turn
from .texture import Float


def limb(start: Float, end: Float, thick: float, thin: float) -> Float:
    """A tapered bar (4, 2) from `start` to `end` with the given widths at either end."""
    along = end - start
    normal = np.array([-along[1], along[0]], np.float32) / (float(np.hypot(*along)) + 1e-6)
    at_start, at_end = normal * thick / 2, normal * thin / 2
    return np.stack([start + at_start, end + at_end, end - at_end, start - at_start]).astype(np.float32)


def _point(x: float, y: float) -> Float:
    return np.array([x, y], np.float32)


def bare_tree(rng: np.random.Generator) -> Outline:
    """A trunk with branches that fork once, each with a few twigs."""
    parts = [limb(_point(0, -0.02), _point(0, 0.95), 0.15, 0.07)]
    for number in range(int(rng.integers(3, 6))):
        side = 1 if number % 2 else -1
        start = _point(0, rng.uniform(0.25, 0.75))
        end = start + _point(side * rng.uniform(0.22, 0.42), rng.uniform(0.1, 0.35))
        parts.append(limb(start, end, 0.11, 0.06))
        middle = start + rng.uniform(0.4, 0.7) * (end - start)
        parts.append(limb(middle, middle + _point(side * rng.uniform(0, 0.15), rng.uniform(0.15, 0.3)), 0.08, 0.05))
    return parts


def leafy_tree(rng: np.random.Generator) -> Outline:
    """A trunk under a crown of many clusters of leaves, with light between them."""
    parts = [limb(_point(0, -0.02), _point(0, 0.6), 0.16, 0.10)]
    for _ in range(int(rng.integers(8, 13))):
        angle, distance = rng.uniform(0, 2 * math.pi), 0.36 * math.sqrt(rng.random())
        centre = _point(1.1 * distance * math.cos(angle), 0.68 + 0.9 * distance * math.sin(angle))
        parts.append(blob(rng, 0.5)[0] * rng.uniform(0.11, 0.19) + centre)
        parts.append(limb(_point(0, 0.4), centre, 0.08, 0.06))
    return parts


def fence(rng: np.random.Generator) -> Outline:
    """Upright pales on two rails; the foot line is the x axis."""
    count, width = int(rng.integers(3, 6)), rng.uniform(0.10, 0.13)
    parts = [limb(_point(-0.55, y), _point(0.55, y), 0.09, 0.09) for y in (0.22, 0.62)]
    for x in np.linspace(-0.5, 0.5, count):
        parts.append(limb(_point(float(x), 0.0), _point(float(x), rng.uniform(0.75, 0.85)), width, width))
    return parts


def person(rng: np.random.Generator) -> Outline:
    """A walking person with legs apart and one arm away from the body."""
    stride, side = rng.uniform(0.10, 0.18), float(rng.choice([-1, 1]))
    head = around(turn(24)) * np.array([0.10, 0.09], np.float32) + _point(0, 0.93)
    hip, shoulder = _point(0, 0.45), _point(0, 0.80)
    return [
        head,
        limb(hip - _point(0, 0.05), shoulder + _point(0, 0.08), 0.24, 0.22),
        limb(hip, _point(stride, 0.0), 0.14, 0.10),
        limb(hip, _point(-stride, 0.0), 0.14, 0.10),
        limb(shoulder, shoulder + _point(side * rng.uniform(0.18, 0.3), -rng.uniform(0.05, 0.3)), 0.10, 0.08),
        limb(shoulder, shoulder + _point(-side * 0.16, -0.3), 0.10, 0.08),
    ]


def house(rng: np.random.Generator) -> Outline:
    """A house front with a gable, a chimney and a lean-to."""
    half, eaves = rng.uniform(0.22, 0.32), rng.uniform(0.45, 0.6)
    front = [[-half, 0], [half, 0], [half, eaves], [0, eaves + 0.3], [-half, eaves]]
    side = float(rng.choice([-1, 1]))
    chimney = limb(_point(0.5 * side * half, eaves), _point(0.5 * side * half, eaves + 0.36), 0.09, 0.09)
    shed = limb(_point(-side * (half + 0.12), 0), _point(-side * (half + 0.12), 0.5 * eaves), 0.26, 0.26)
    return [np.array(front, np.float32), chimney, shed]


def sign(rng: np.random.Generator) -> Outline:
    """A post with a board, and a lamp on an arm."""
    side, y = float(rng.choice([-1, 1])), rng.uniform(0.5, 0.65)
    board = np.array([[-0.28, y], [0.28, y], [0.28, y + 0.26], [-0.28, y + 0.26]], np.float32)
    arm = limb(_point(0, 0.97), _point(side * 0.35, 1.0), 0.09, 0.09)
    return [limb(_point(0, 0), _point(0, 1.0), 0.12, 0.10), board, arm, blob(rng, 0.1)[0] * 0.11 + _point(side * 0.35, 0.97)]


CASTERS = (bare_tree, leafy_tree, leafy_tree, leafy_tree, fence, person, person, house, house, sign)


def random_caster(rng: np.random.Generator) -> Outline:
    """One of `CASTERS` at random: contours that are filled one by one, never as holes of one another."""
    return CASTERS[int(rng.integers(len(CASTERS)))](rng)
