"""Caricatures of aerial building tiles (WHU): houses in parcels along a road, seen from straight above.

What holds in every tile: the sun stands to the upper left; a label is the whole footprint, so both halves of a ridged
roof and every attached shed belong, and courtyards, cast shadows, terraces and driveways never do, however alike their
tones are; a tree that leans over the eaves does not change the footprint.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .outline import blob, placed
from .regions import areas
from .roofs import FLAT, GABLED, HIPPED, Site, Wing, footprint, roof
from .texture import Float, Patch, Window, blend, darken, fill, finish, gaussian, paint, ramp, random_colour, shifted, value_noise

SUN = -0.75 * math.pi  # the direction towards the sun in the image: up and to the left
EMPTY_SHARE = 1 / 8
MIN_AREA = 0.005  # of the tile: a building that its border cuts to smaller pieces is left out
GRASS = np.array([[0.30, 0.37, 0.20], [0.36, 0.38, 0.24], [0.25, 0.32, 0.18], [0.44, 0.42, 0.28]], np.float32)
ROOFS = np.array(
    [[0.52, 0.31, 0.25], [0.45, 0.44, 0.44], [0.66, 0.64, 0.61], [0.30, 0.30, 0.32], [0.50, 0.41, 0.33], [0.42, 0.50, 0.56]], np.float32
)
CONCRETE = np.array([0.56, 0.55, 0.53], np.float32)
ASPHALT = np.array([0.43, 0.43, 0.44], np.float32)
TREE = np.array([0.17, 0.25, 0.12], np.float32)


def buildings(rng: np.random.Generator, size: int = 192) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A tile (size, size, 3) uint8 RGB and its mask (size, size) uint8: 1 on building footprints; 1 tile in 8 has none."""
    angle, street = rng.uniform(0, math.pi), rng.uniform(-0.25, 0.25) * size
    image = _ground(rng, size, angle)
    _street(rng, image, angle, street)
    mask = np.zeros((size, size), np.uint8)
    if rng.random() >= EMPTY_SHARE:
        for site in _sites(rng, size, angle, street):
            _build(rng, image, mask, site)
    _trees(rng, image, mask)
    return finish(rng, image, blur=0.004 * size, noise=0.02, gamma=1.15), mask


def _ground(rng: np.random.Generator, size: int, angle: float) -> Float:
    """Lawns and bare soil (size, size, 3) in strips along `angle`."""
    shape = (size, size)
    first, second = GRASS[rng.permutation(len(GRASS))[:2]]
    image = blend(first, second, value_noise(rng, shape, 0.3 * size, 4, 0.6))
    strips = np.floor(ramp(shape, angle) / (rng.uniform(0.25, 0.45) * size)) % 2
    soil = gaussian((value_noise(rng, shape, 0.4 * size, 3) > 0.62).astype(np.float32), 0.006 * size)
    image = blend(image * (1 + 0.10 * strips)[..., None], np.array([0.50, 0.45, 0.36], np.float32), 0.8 * soil)
    return image * (0.85 + 0.30 * value_noise(rng, shape, 0.02 * size, 2))[..., None]


def _street(rng: np.random.Generator, image: Float, angle: float, across: float) -> None:
    """Paints a street at the distance `across` from the centre, with footpaths and cars."""
    size = len(image)
    offset = np.abs(ramp((size, size), angle + 0.5 * math.pi) - across) / size
    tone = rng.uniform(0.9, 1.15) * (0.94 + 0.12 * value_noise(rng, (size, size), 0.05 * size, 3))[..., None]
    for half, colour in ((0.075, CONCRETE), (0.068, GRASS[0]), (0.050, ASPHALT)):
        image[:] = blend(image, colour * tone, np.clip((half - offset) * size + 0.5, 0, 1))
    for _ in range(int(rng.integers(0, 5))):
        lane, along = across + float(rng.choice([-0.03, 0.03])) * size, rng.uniform(-0.5, 0.5) * size
        _car(rng, image, _from_frame(size, angle, along, lane), angle)


def _from_frame(size: int, angle: float, along: float, across: float) -> Float:
    """The image position (XY, pixels) of a point in the street's frame."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([cosine * along - sine * across, sine * along + cosine * across], np.float32) + 0.5 * size


def _box(size: int, centre: Float, angle: float, half_width: float, half_depth: float, pad: float = 0.0) -> Patch:
    """A turned rectangle with half extents in pixels."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) * np.array([half_width, half_depth], np.float32)
    return fill(placed([corners], centre, 1.0, angle), size, pad)


def _car(rng: np.random.Generator, image: Float, centre: Float, angle: float) -> None:
    """Paints a car with its shadow and dark windscreens."""
    size = len(image)
    darken(image, _box(size, centre + 0.006 * size, angle, 0.036 * size, 0.016 * size), 0.5)
    paint(image, _box(size, centre, angle, 0.036 * size, 0.015 * size), random_colour(rng))
    paint(image, _box(size, centre, angle, 0.020 * size, 0.012 * size), np.full(3, 0.18, np.float32))
    paint(image, _box(size, centre, angle, 0.011 * size, 0.013 * size), random_colour(rng))


def _sites(rng: np.random.Generator, size: int, angle: float, street: float) -> list[Site]:
    """Places of houses in parcels on both sides of the street, in rows behind one another."""
    sites = []
    step = rng.uniform(0.36, 0.50) * size
    for row in (-2, -1, 1, 2):
        across = street + math.copysign((0.24 + 0.42 * (abs(row) - 1)) * size, row)
        start = rng.uniform(0, step)
        for column in range(-3, 4):
            along = start + column * step + rng.uniform(-0.03, 0.03) * size
            centre = _from_frame(size, angle, along, across + rng.uniform(-0.02, 0.02) * size)
            if np.all((centre > -0.05 * size) & (centre < 1.05 * size)) and rng.random() < 0.9:
                facing = 0.0 if row < 0 else math.pi
                sites.append(Site(centre, angle + facing + rng.normal(0, 0.05)))
    return sites


def _build(rng: np.random.Generator, image: Float, mask: NDArray[np.uint8], site: Site) -> None:
    """Paints one building with what surrounds it, and adds its footprint to `mask`, unless another is in the way."""
    size = len(image)
    wings = _wings(rng, size)
    cover = footprint(wings, site, size)
    clearance = 0.0 if rng.random() < 0.15 else 0.02 * size
    pieces = areas((cover > 0.5).astype(np.uint8))  # more than one where the tile's border cuts through
    if len(pieces) == 0 or pieces.min() < MIN_AREA * size**2 or np.any(mask[gaussian(cover, clearance) > 0.05]):
        return
    _paving(rng, image, site, wings)
    _cast_shadow(rng, image, cover)
    window = _window(cover)
    paint(image, Patch(window, gaussian(cover, 0.002 * size)[window]), _roof_colours(rng, size, wings, site, window))
    mask[cover > 0.5] = 1


def _wings(rng: np.random.Generator, size: int) -> list[Wing]:
    """The parts of one building: a main house, wings that make it an L, a T, a U or a court, and often a shed."""
    width, depth = rng.uniform(0.085, 0.15) * size, rng.uniform(0.06, 0.085) * size
    tone = ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.85, 1.15)
    form = str(rng.choice([HIPPED, GABLED, FLAT], p=[0.5, 0.3, 0.2]))
    wings = [Wing(0.0, 0.0, width, depth, form, tone)]
    arm, reach = rng.uniform(0.04, 0.055) * size, rng.uniform(0.05, 0.09) * size
    side = float(rng.choice([-1.0, 1.0]))
    plan = str(rng.choice(["plain", "ell", "tee", "u", "court"], p=[0.2, 0.35, 0.15, 0.18, 0.12]))
    ends = [arm - width, width - arm]
    offsets = {"plain": [], "ell": [side * (width - arm)], "tee": [0.0], "u": ends, "court": ends}
    for x in offsets[plan]:
        wings.append(Wing(x, depth + reach - arm, arm, reach + arm, form, _tone(rng, tone, 0.3)))
    if plan == "court":
        wings.append(Wing(0.0, depth + 2 * reach - 0.3 * arm, width, 0.8 * arm, form, _tone(rng, tone, 0.3)))
    if rng.random() < 0.55:
        half = rng.uniform(0.03, 0.05) * size
        x, y = -side * (width + 0.8 * half), rng.uniform(-0.3, 0.3) * depth
        wings.append(Wing(x, y, half, rng.uniform(0.7, 1.1) * half, FLAT, _tone(rng, tone, 0.9)))
    return wings


def _tone(rng: np.random.Generator, tone: Float, change: float) -> Float:
    """`tone` itself, or with the probability `change` another roof's colour."""
    return ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.8, 1.2) if rng.random() < change else tone


def _paving(rng: np.random.Generator, image: Float, site: Site, wings: list[Wing]) -> None:
    """A driveway towards the street and a terrace against the house, often in the tone of the roof."""
    size, main = len(image), wings[0]
    alike = main.colour.mean() * np.ones(3, np.float32)
    end, side, u = main.half_width, main.half_depth, rng.uniform
    driveway = (u(-0.8, 0.8) * end, side + 0.08 * size, u(0.025, 0.045) * size, 0.09 * size)
    terrace = (u(-0.5, 0.5) * end, -side - 0.02 * size, u(0.05, 0.09) * size, u(0.02, 0.05) * size)
    for x, y, half_width, half_depth in (driveway, terrace):
        colour = (alike if rng.random() < 0.6 else CONCRETE) * rng.uniform(0.9, 1.15)
        centre = placed([np.array([[x, y]], np.float32)], site.centre, 1.0, site.angle)[0][0]
        patch = _box(size, centre, site.angle, half_width, half_depth)
        paint(image, patch, colour * (0.92 + 0.16 * value_noise(rng, patch.alpha.shape, 0.04 * size, 2))[..., None])
        if rng.random() < 0.25:
            _car(rng, image, centre, site.angle + 0.5 * math.pi)


def _cast_shadow(rng: np.random.Generator, image: Float, cover: Float) -> None:
    """Darkens the ground on the side of the building that lies away from the sun."""
    size = len(image)
    length = rng.uniform(0.035, 0.06) * size
    steps = np.linspace(0, length, 5)[1:]
    shadow = np.max([shifted(cover, -step * math.cos(SUN), -step * math.sin(SUN)) for step in steps], axis=0)
    darken(image, Patch(_window(shadow), gaussian(shadow, 0.003 * size)[_window(shadow)]), rng.uniform(0.5, 0.62))


def _window(cover: Float) -> Window:
    """The smallest window that holds all of `cover`, two pixels wider where the image goes on."""
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    spans = [slice(max(int(hits[0]) - 2, 0), min(int(hits[-1]) + 3, len(cover))) for hits in (rows, columns)]
    return spans[0], spans[1]


def _roof_colours(rng: np.random.Generator, size: int, wings: list[Wing], site: Site, window: Window) -> Float:
    """The roof's colours (h, w, 3) in `window`, weathered, with skylights and chimneys."""
    y, x = np.mgrid[window].astype(np.float32) - site.centre[::-1, None, None]
    cosine, sine = math.cos(site.angle), math.sin(site.angle)
    along, across = cosine * x + sine * y, cosine * y - sine * x
    colours = roof(wings, along, across, SUN - site.angle, rng.uniform(0.2, 0.4))
    colours *= (0.90 + 0.20 * value_noise(rng, x.shape, 0.06 * size, 3, 0.7))[..., None]
    for _ in range(int(rng.integers(0, 4))):
        wing = wings[rng.integers(len(wings))]
        u, v = wing.x + rng.uniform(-0.6, 0.6) * wing.half_width, wing.y + rng.uniform(-0.6, 0.6) * wing.half_depth
        spot = np.maximum(np.abs(along - u), np.abs(across - v)) < rng.uniform(0.006, 0.012) * size
        colours = np.where(spot[..., None], np.float32(rng.choice([0.15, 0.25, 0.8])), colours)
    return colours


def _trees(rng: np.random.Generator, image: Float, mask: NDArray[np.uint8]) -> None:
    """Paints trees: some free, some leaning over the eaves."""
    size = len(image)
    rows, columns = np.nonzero(mask != np.roll(mask, 1, axis=1))
    for number in range(int(rng.integers(5, 15))):
        centre = (rng.random(2) * size).astype(np.float32)
        if number % 3 and len(rows):
            pick = rng.integers(len(rows))
            centre = np.array([columns[pick], rows[pick]], np.float32)
        elif mask[int(centre[1]), int(centre[0])]:
            continue
        _tree(rng, image, centre, rng.uniform(0.018, 0.04 if number % 3 else 0.065) * size)


def _tree(rng: np.random.Generator, image: Float, centre: Float, radius: float) -> None:
    """Paints one crown, lit from the sun's side, with its shadow."""
    size = len(image)
    away = np.array([-math.cos(SUN), -math.sin(SUN)], np.float32) * (0.6 * radius)
    outline = blob(rng, 0.5)
    shadow = fill(placed(outline, centre + away, radius, 0.0), size, 0.02 * size)
    darken(image, Patch(shadow.window, gaussian(shadow.alpha, 0.006 * size)), 0.45)
    crown = fill(placed(outline, centre, radius, 0.0), size)
    shape = crown.alpha.shape
    light = 1 + 0.35 * ramp((shape[0], shape[1]), SUN) / radius
    colour = TREE * rng.uniform(0.8, 1.3, 3).astype(np.float32) * (light * (0.6 + 0.9 * value_noise(rng, shape, 0.02 * size, 2)))[..., None]
    paint(image, crown, colour)
