"""Caricatures of colonoscopy frames (Kvasir): lobed polyps of the mucosa's own colour, half hidden behind folds.

A frame is a height map and an albedo map, lit by the endoscope's lamp. What holds in every frame: a polyp bulges, is
slightly redder than the mucosa and covered with fine pits, and has no vessels; what lies behind a fold is not labelled.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .outline import around, blob, placed
from .regions import areas, fill_ratios
from .texture import Float, blend, fill, finish, gaussian, paint, ramp, ridges, value_noise

MUCOSA = np.array([0.80, 0.42, 0.34], np.float32)
POLYP_TINT = np.array([1.03, 0.90, 0.90], np.float32)
FILL_RANGE = (0.36, 0.66)  # of its box that a polyp may cover: the box alone must not solve the task


def polyps(rng: np.random.Generator, size: int = 192) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (size, size, 3) uint8 RGB and its mask (size, size) uint8: 1 on the visible part of one or two polyps."""
    frame = _frame(rng, size)
    body, fold = _anatomy(rng, frame)
    height, albedo = _mucosa(rng, size)
    height, albedo = _with_polyps(rng, height, albedo, body)
    height, albedo = _with_fold(rng, height, albedo, fold)
    image = _lamp(rng, albedo, height)
    image = _motion(rng, image) * frame[..., None] + 0.015
    return finish(rng, image, blur=0.004 * size, noise=0.025, gamma=1.15), _visible(body, fold, frame)


def _visible(body: Float, fold: Float, frame: Float) -> NDArray[np.uint8]:
    """The 0/1 mask of what is polyp, not behind the fold and inside the endoscope's frame."""
    return ((body > 0.5) & (fold < 0) & (frame > 0.2)).astype(np.uint8)


def _anatomy(rng: np.random.Generator, frame: Float, tries: int = 20) -> tuple[Float, Float]:
    """Polyps (coverage, h x w) and the fold before them (signed depth in pixels, positive where it hides them).

    Drawn again until every visible part is big and leaves enough of its box empty.
    """
    size = len(frame)
    for _ in range(tries):
        body = _lobed(rng, size)
        if rng.random() < 0.4:
            body = _with_second(rng, body)
        fold = _fold_before(rng, body) if rng.random() < 0.7 else np.full_like(body, -size)
        mask = _visible(body, fold, frame)
        ratios = fill_ratios(mask)
        if len(ratios) and areas(mask).min() > 0.015 * size**2 and FILL_RANGE[0] < ratios.min() and ratios.max() < FILL_RANGE[1]:
            break
    return body, fold


def _with_second(rng: np.random.Generator, body: Float, tries: int = 3) -> Float:
    """`body` (h, w) with a smaller polyp apart from it, where one of `tries` places is free."""
    for _ in range(tries):
        other = _lobed(rng, len(body), 0.75)
        if not np.any((gaussian(other, 0.02 * len(body)) > 0.02) & (body > 0.1)):
            return np.maximum(body, other)
    return body


def _lobed(rng: np.random.Generator, size: int, scale: float = 1.0) -> Float:
    """Coverage (size, size) of one polyp: three to five lobes along an arc, grown together."""
    radius = scale * size * rng.uniform(0.12, 0.21)
    lobes, half = int(rng.integers(3, 6)), rng.uniform(0.8, 1.7)
    angles = (rng.uniform(0, 2 * math.pi) + np.linspace(-half, half, lobes)).astype(np.float32)
    arc = around(angles, radius * rng.uniform(0.85, 1.2, lobes))
    centre = (rng.uniform(0.22, 0.78, 2) * size).astype(np.float32) - arc.mean(0)
    body = np.zeros((size, size, 1), np.float32)
    for point in arc + centre:
        lobe = radius * rng.uniform(0.48, 0.78)
        paint(body, fill(placed(blob(rng, 0.15), point, lobe, 0.0), size), np.ones(1, np.float32))
    joined = gaussian(body[..., 0], 0.09 * radius)
    steep: Float = np.clip(0.5 + (joined - 0.5) * 6, 0.0, 1.0)
    return steep


def _fold_before(rng: np.random.Generator, body: Float) -> Float:
    """Signed depth (h, w) in pixels of a curved fold that hides a share of `body`."""
    depth = _arc(rng, body.shape[0])
    share = rng.uniform(0.15, 0.4)
    return depth - float(np.quantile(depth[body > 0.5], 1 - share))


def _arc(rng: np.random.Generator, size: int) -> Float:
    """Signed distance (size, size) in pixels to a wavering arc across the image, positive on its hollow side."""
    angle, radius = rng.uniform(0, 2 * math.pi), size * rng.uniform(0.5, 1.1)
    along, across = ramp((size, size), angle), ramp((size, size), angle + 0.5 * math.pi)
    waver = 0.10 * size * (value_noise(rng, (size, size), 0.3 * size, 2) - 0.5)
    distance: Float = np.sqrt((along + radius - rng.uniform(-0.3, 0.3) * size) ** 2 + across**2)
    return radius - distance + waver


def _mucosa(rng: np.random.Generator, size: int) -> tuple[Float, Float]:
    """Height (size, size) in pixels and albedo (size, size, 3) of the wall: bumps, folds far away, vessels."""
    shape = (size, size)
    height = 0.10 * size * value_noise(rng, shape, 0.35 * size, 3, 0.4)
    for _ in range(int(rng.integers(1, 4))):
        ridge = _arc(rng, size) / (rng.uniform(0.03, 0.06) * size)
        height += rng.uniform(0.02, 0.045) * size * np.exp(-(ridge**2))
    colour = MUCOSA * rng.uniform(0.93, 1.05, 3).astype(np.float32)
    albedo = colour * (0.90 + 0.18 * value_noise(rng, shape, 0.15 * size, 4))[..., None]
    vessels = ridges(rng, shape, rng.uniform(0.14, 0.22) * size, 0.07, 3)
    return height, albedo * (1 - 0.30 * vessels[..., None] * np.array([0.35, 1.0, 0.9], np.float32))


def _with_polyps(rng: np.random.Generator, height: Float, albedo: Float, body: Float) -> tuple[Float, Float]:
    """`height` and `albedo` with domed, pitted, slightly redder polyps where `body` covers."""
    size = len(body)
    edge = gaussian(body, rng.uniform(0.008, 0.016) * size)
    depth = np.asarray(cv2.distanceTransform((body > 0.5).astype(np.uint8), cv2.DIST_L2, 5), np.float32)
    dome = gaussian(np.sqrt(np.minimum(depth / (0.09 * size), 1.0)), 0.02 * size)
    pits = value_noise(rng, body.shape, 0.035 * size, 2)
    height = height + edge * size * (rng.uniform(0.04, 0.075) * dome + 0.006 * pits)
    colour = gaussian(albedo, 0.08 * size) * POLYP_TINT * rng.uniform(0.97, 1.07)
    return height, blend(albedo, colour * (0.90 + 0.16 * pits)[..., None], edge)


def _with_fold(rng: np.random.Generator, height: Float, albedo: Float, fold: Float) -> tuple[Float, Float]:
    """`height` and `albedo` with the fold laid over them; its rim is rounded and shades what lies behind it."""
    size = len(fold)
    wall, colour = _mucosa(rng, size)
    rim = 0.06 * size * (1 - np.exp(-np.maximum(fold, 0) / (0.05 * size)))
    over = gaussian((fold > 0).astype(np.float32), 0.005 * size)
    crease: Float = np.exp(np.minimum(fold, 0) / (0.022 * size))
    shade = 1 - rng.uniform(0.3, 0.5) * crease * (1 - over)
    colour = colour * (albedo.mean((0, 1)) / colour.mean((0, 1)))
    return height + over * (rim + 0.5 * (wall - height)), blend(albedo * shade[..., None], colour, over)


def _lamp(rng: np.random.Generator, albedo: Float, height: Float) -> Float:
    """The lit image (h, w, 3): diffuse light with reddish shades, the dark lumen, and wet highlights with dark rims."""
    size = len(height)
    angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.5)
    facing = _facing(height, angle, tilt)
    shade = np.clip(0.25 + 0.85 * facing, 0.05, 1.4)[..., None] ** np.array([0.85, 1.1, 1.15], np.float32)
    image = albedo * shade * _lumen(rng, size)[..., None]
    wet = height + 0.012 * size * value_noise(rng, height.shape, 0.06 * size, 2)
    gloss: Float = np.clip((_facing(wet, angle, 0.6 * tilt) - 0.985) / 0.012, 0, 1)
    gloss *= value_noise(rng, height.shape, 0.10 * size, 2) > rng.uniform(0.60, 0.72)
    gloss = gaussian(gloss, 0.004 * size)
    rim = np.clip(gaussian(gloss, 0.014 * size) * 1.6, 0, 1)
    return blend(image * (1 - 0.35 * rim)[..., None], np.array([1.0, 0.97, 0.94], np.float32), np.clip(1.3 * gloss, 0, 1))


def _facing(height: Float, angle: float, tilt: float) -> Float:
    """Cosine (h, w) between the surface's normal and a lamp `tilt` radians off the view axis towards `angle`."""
    down, right = np.gradient(height)
    slope = -(math.cos(angle) * right + math.sin(angle) * down)
    cosine: Float = (math.sin(tilt) * slope + math.cos(tilt)) / np.sqrt(1 + right**2 + down**2)
    return cosine


def _lumen(rng: np.random.Generator, size: int) -> Float:
    """Brightness (size, size) in 0..1: the lamp's light falls off towards the tube's dark end, which may lie outside."""
    x, y = rng.uniform(-0.6, 0.6, 2) * size
    squared = ((ramp((size, size), 0.0) - x) ** 2 + (ramp((size, size), 0.5 * math.pi) - y) ** 2) / size**2
    depth: Float = np.exp(-squared / rng.uniform(0.02, 0.08))
    return 1 - rng.uniform(0.2, 0.75) * depth


def _motion(rng: np.random.Generator, image: Float) -> Float:
    """`image` smeared along one direction by up to 3 % of its size."""
    length = int(rng.uniform(0, 0.03) * len(image)) | 1
    reach = 0.5 * (length - 1)
    angle = rng.uniform(0, math.pi)
    kernel = np.zeros((length, length), np.float32)
    for step in np.linspace(-reach, reach, 4 * length):
        kernel[round(reach + step * math.sin(angle)), round(reach + step * math.cos(angle))] += 1
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT), np.float32)


def _frame(rng: np.random.Generator, size: int) -> Float:
    """Brightness (size, size) in 0..1 behind the endoscope's frame: darker to the sides, the corners black."""
    x, y = ramp((size, size), 0.0) / size, ramp((size, size), 0.5 * math.pi) / size
    border: Float = np.maximum(np.abs(x) + np.abs(y) - rng.uniform(0.78, 0.86), np.maximum(np.abs(x), np.abs(y)) - 0.485)
    opening: Float = np.clip(0.5 - border * size, 0, 1) * np.clip(1.1 - 0.9 * (x**2 + y**2), 0, 1)
    return opening
