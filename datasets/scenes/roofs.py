"""Roofs seen from above: footprints made of wings, and the planes of hipped, gabled and flat roofs over them."""

import math
from typing import NamedTuple

import numpy as np

from .outline import Outline, placed
from .texture import Float, coverage, fill

HIPPED, GABLED, FLAT = "hipped", "gabled", "flat"


class Wing(NamedTuple):
    """A rectangular part of a building in its own frame: centre and half extents in pixels, roof form, colour (3,)."""

    x: float
    y: float
    half_width: float
    half_depth: float
    form: str
    colour: Float


class Site(NamedTuple):
    """Where a building stands: its centre in the image (XY, pixels) and the angle of its long side."""

    centre: Float
    angle: float


def footprint(wings: list[Wing], site: Site, size: int) -> Float:
    """Coverage (size, size) in 0..1 of all wings together."""
    return coverage((fill(placed(rectangle_of(wing), site.centre, 1.0, site.angle), size) for wing in wings), size)


def rectangle_of(wing: Wing) -> Outline:
    """The outline of one wing in the building's frame, in pixels."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    return [signs * np.array([wing.half_width, wing.half_depth], np.float32) + np.array([wing.x, wing.y], np.float32)]


def roof(wings: list[Wing], x: Float, y: Float, sun: float, contrast: float) -> Float:
    """Colours (h, w, 3) of the roof at the building-frame coordinates `x`, `y` (h, w) in pixels.

    The sun stands at the angle `sun` of that frame; a plane that faces it is brighter by the share `contrast`. Where
    wings overlap the higher roof shows, which gives valleys where hipped roofs meet.
    """
    top = np.full(x.shape, -np.inf, np.float32)
    colours = np.zeros((*x.shape, 3), np.float32)
    for wing in wings:
        height, tone = _planes(wing, x, y, sun, contrast)
        above = height > top
        top = np.where(above, height, top)
        colours = np.where(above[..., None], wing.colour * tone[..., None], colours)
    return colours


def _planes(wing: Wing, x: Float, y: Float, sun: float, contrast: float) -> tuple[Float, Float]:
    """Height (h, w) of one wing's roof, below 0 outside it, and the brightness of its planes around 1."""
    right, down = x - wing.x, y - wing.y
    to_end, to_side = wing.half_width - np.abs(right), wing.half_depth - np.abs(down)
    inside = np.minimum(to_end, to_side)
    if wing.form == FLAT:
        kerb = np.where(inside < 0.06 * min(wing.half_width, wing.half_depth) + 1.0, 1.12, 1.0).astype(np.float32)
        return np.where(inside > -1, 0.5, inside).astype(np.float32), kerb
    along_x = to_end < to_side if wing.form == HIPPED else np.full(x.shape, wing.half_width < wing.half_depth)
    lit_x, lit_y = np.sign(right) * math.cos(sun), np.sign(down) * math.sin(sun)
    tone = 1 + contrast * np.where(along_x, lit_x, lit_y)
    height = inside if wing.form == HIPPED else np.where(along_x, to_end, to_side)
    ridge = np.where(height > min(wing.half_width, wing.half_depth) - 1.2, 1.1, 1.0)
    seams = 1 + 0.035 * np.sin(np.where(along_x, down, right) * 2.2)
    return np.where(inside > -1, height, inside).astype(np.float32), (tone * ridge * seams).astype(np.float32)
