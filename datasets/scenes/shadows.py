"""Caricatures of outdoor photographs with cast shadows (SBU): soft, branching shadows over textured ground and objects.

What holds in every picture: a shadow is bluish, keeps the texture that it falls on and grows softer away from its foot;
it covers bright objects too, which may stay brighter than dark ground in the sun; dark objects that stand in the light
are never shadow. The mask is where the shadow has more than half of its full strength.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .casters import limb, random_caster
from .outline import Outline, blob, ellipse, placed, polygon, rectangle
from .regions import specks
from .texture import Float, Patch, blend, coverage, fill, finish, gaussian, lit, paint, ramp, value_noise

GROUNDS = np.array(
    [[0.55, 0.54, 0.52], [0.46, 0.50, 0.30], [0.70, 0.62, 0.48], [0.62, 0.50, 0.42], [0.42, 0.42, 0.44], [0.66, 0.66, 0.64]], np.float32
)
DARK = np.array([[0.16, 0.15, 0.15], [0.14, 0.18, 0.11], [0.20, 0.14, 0.11], [0.12, 0.14, 0.20]], np.float32)
SKYLIGHT = np.array([1.0, 0.95, 0.86], np.float32)  # the share of sunlight that a shadow takes from R, G, B
MIN_AREA = 0.004  # of the image: smaller patches of shadow are lit again


def shadows(rng: np.random.Generator, size: int = 192) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (size, size, 3) uint8 RGB and its mask (size, size) uint8: 1 where shadow has over half its strength."""
    away = rng.uniform(0, 2 * math.pi)  # the direction in which shadows fall
    shade, feet = _shade(rng, size, away)
    image = _ground(rng, size)
    _litter(rng, image, shade)
    image *= 1 - rng.uniform(0.50, 0.64) * shade[..., None] * SKYLIGHT
    standing = _standing(rng, image, feet, shade, away)
    shade = shade * (1 - standing)
    mask = (shade > 0.5).astype(np.uint8)
    mask -= specks(mask, 0.5 * MIN_AREA * size**2)
    return finish(rng, lit(rng, image, 0.3), blur=0.003 * size, noise=0.03, gamma=1.15), mask


def _shade(rng: np.random.Generator, size: int, away: float) -> tuple[Float, list[Float]]:
    """Strength (size, size) in 0..1 of one to three cast shadows, and the feet (XY, pixels) of what casts them."""
    shade = np.zeros((size, size), np.float32)
    feet = []
    for _ in range(int(rng.integers(1, 4))):
        length = rng.uniform(0.45, 0.85) * size
        middle = rng.uniform(0.22, 0.78, 2) * size
        foot = (middle - 0.5 * length * np.array([math.cos(away), math.sin(away)])).astype(np.float32)
        sharp = coverage((fill([contour], size) for contour in _thrown(rng, foot, length, away)), size)
        soft = _penumbra(rng, sharp, foot, length, away)
        if np.any((soft > 0.1) & (gaussian(shade, 0.02 * size) > 0.05)) and rng.random() < 0.85:
            continue
        shade = np.maximum(shade, soft)
        feet.append(foot)
    lost = specks((shade > 0.5).astype(np.uint8), MIN_AREA * size**2).astype(np.float32)
    kept: Float = 1 - np.clip(3 * gaussian(lost, 0.012 * size), 0, 1)
    return shade * kept, feet


def _thrown(rng: np.random.Generator, foot: Float, length: float, away: float) -> Outline:
    """The contours of a caster thrown along `away` from `foot`, sheared and wider than it is tall in the low sun."""
    lean, width = rng.uniform(-0.25, 0.25), rng.uniform(0.7, 1.1)
    shear = np.array([[width, 0.0], [lean, 1.0]], np.float32)
    # The caster's y axis points along `away`.
    return placed([contour @ shear for contour in random_caster(rng)], foot, length, away - 0.5 * math.pi)


def _penumbra(rng: np.random.Generator, sharp: Float, foot: Float, length: float, away: float) -> Float:
    """`sharp` (h, w) blurred more and more with the distance from its foot."""
    size = len(sharp)
    sigma = rng.uniform(0.007, 0.014) * size
    middle = 0.5 * (size - 1)
    distance = ramp(sharp.shape, away) - math.cos(away) * (foot[0] - middle) - math.sin(away) * (foot[1] - middle)
    near, far = gaussian(sharp, 0.35 * sigma), gaussian(sharp, sigma)
    weight: Float = np.clip(distance / length, 0, 1)
    return near + (far - near) * weight


def _ground(rng: np.random.Generator, size: int) -> Float:
    """Two textured kinds of ground (size, size, 3) that meet along a kerb."""
    first, second = GROUNDS[rng.permutation(len(GROUNDS))[:2]]
    edge = ramp((size, size), rng.uniform(0, 2 * math.pi)) - rng.uniform(-0.4, 0.4) * size
    edge += float(rng.choice([0.0, 0.12])) * size * value_noise(rng, (size, size), 0.3 * size, 3)
    return blend(_surface(rng, size, first), _surface(rng, size, second), np.clip(0.5 + edge, 0, 1))


def _surface(rng: np.random.Generator, size: int, colour: Float) -> Float:
    """One kind of ground (size, size, 3): grainy and stained, sometimes laid with slabs."""
    shape = (size, size)
    tone = 0.72 + 0.30 * value_noise(rng, shape, 0.03 * size, 3, 0.7) + 0.22 * value_noise(rng, shape, 0.4 * size, 4)
    if rng.random() < 0.4:
        tone = tone * _joints(rng, size)
    return colour * tone[..., None]


def _joints(rng: np.random.Generator, size: int) -> Float:
    """A factor (size, size) that darkens the joints between slabs."""
    angle, side = rng.uniform(0, math.pi), rng.uniform(0.09, 0.2) * size
    joints = np.ones((size, size), np.float32)
    for turned in (angle, angle + 0.5 * math.pi):
        offset = np.abs(np.mod(ramp((size, size), turned), side) - 0.5 * side)
        joints *= 1 - 0.25 * np.clip(offset - 0.5 * side + 1.6, 0, 1)
    return joints


def _litter(rng: np.random.Generator, image: Float, shade: Float) -> None:
    """Paints flat things that shadows fall on: bright ones, most of them inside the shadows, and dark stains."""
    size = len(image)
    rows, columns = np.nonzero(shade > 0.5)
    for number in range(int(rng.integers(2, 7))):
        centre = (rng.random(2) * size).astype(np.float32)
        bright = number % 2 == 0
        if bright and len(rows):
            pick = rng.integers(len(rows))
            centre = np.array([columns[pick], rows[pick]], np.float32)
        outline = (rectangle, ellipse, polygon)[rng.integers(3)](rng) if bright else blob(rng, 0.5)
        patch = fill(placed(outline, centre, rng.uniform(0.03, 0.09) * size, rng.uniform(0, 2 * math.pi)), size, 0.02 * size)
        colour = rng.uniform(0.75, 0.95) * np.array([1.0, 0.97, 0.92]) if bright else DARK[rng.integers(len(DARK))] * rng.uniform(1.0, 1.6)
        alpha = gaussian(patch.alpha, 0.004 * size) if bright else 0.85 * gaussian(patch.alpha, 0.01 * size)
        texture = 0.85 + 0.3 * value_noise(rng, patch.alpha.shape, 0.04 * size, 2)
        paint(image, Patch(patch.window, alpha), colour.astype(np.float32) * texture[..., None])


def _standing(rng: np.random.Generator, image: Float, feet: list[Float], shade: Float, away: float) -> Float:
    """Paints dark upright things, at the feet of the shadows and beside them; returns their coverage (h, w)."""
    size = len(image)
    back = np.array([math.cos(away + 2.6), math.sin(away + 2.6)], np.float32)
    patches = [fill([limb(foot, foot + back * rng.uniform(0.1, 0.25) * size, 0.05 * size, 0.035 * size)], size) for foot in feet]
    rows, columns = np.nonzero((shade > 0.02) & (shade < 0.3))
    for _ in range(int(rng.integers(1, 3)) if len(rows) else 0):
        pick = rng.integers(len(rows))
        outline = rectangle(rng) if rng.random() < 0.5 else blob(rng, 0.3)
        centre = np.array([columns[pick], rows[pick]], np.float32)
        patches.append(fill(placed(outline, centre, rng.uniform(0.035, 0.07) * size, rng.uniform(0, 2 * math.pi)), size))
    for patch in patches:
        texture = 0.75 + 0.5 * value_noise(rng, patch.alpha.shape, 0.05 * size, 2)
        paint(image, patch, DARK[rng.integers(len(DARK))] * rng.uniform(0.9, 1.5) * texture[..., None])
    return coverage(patches, size)
