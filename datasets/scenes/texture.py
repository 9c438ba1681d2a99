"""Textures, colours, anti-aliased patches and camera effects that every procedural scene is painted with.

Images are (h, w, 3) float32 RGB in 0..1 until `finish` quantises them; maps are (h, w) float32. Lengths are pixels,
angles radians. Everything stays float32: one float64 scalar would promote a whole image and cost three times as much.
"""

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Shape = tuple[int, int]
Window = tuple[slice, slice]

SUPERSAMPLE = 4


class Patch(NamedTuple):
    """A part of an image: `window` (rows, columns) and `alpha`, its (h, w) float32 coverage in 0..1."""

    window: Window
    alpha: Float


def ramp(shape: Shape, angle: float) -> Float:
    """Distance in pixels from the centre along `angle`, (h, w), negative on the near side."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] - 0.5 * (shape[0] - 1)
    x = np.arange(shape[1], dtype=np.float32)[None, :] - 0.5 * (shape[1] - 1)
    return math.cos(angle) * x + math.sin(angle) * y


def value_noise(rng: np.random.Generator, shape: Shape, cell: float, octaves: int = 3, gain: float = 0.5) -> Float:
    """Smooth noise (h, w) stretched to 0..1; `cell` is the coarsest lattice's spacing in pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(cell * 0.5**octave, 1.0)
        lattice = rng.random((math.ceil(shape[0] / step) + 2, math.ceil(shape[1] / step) + 2), dtype=np.float32)
        total += gain**octave * cv2.resize(lattice, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return unit(total)


def unit(values: Float) -> Float:
    """`values` stretched so that they span 0..1."""
    low, high = float(values.min()), float(values.max())
    return (values - low) * (1.0 / (high - low + 1e-6))


def ridges(rng: np.random.Generator, shape: Shape, cell: float, width: float, octaves: int = 2) -> Float:
    """Winding lines (h, w): 1 on the level curves of value noise, falling to 0 within about `width` of its range."""
    lines: Float = np.maximum(1.0 - np.abs(2.0 * value_noise(rng, shape, cell, octaves) - 1.0) / width, 0.0)
    return lines


def stripes(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """Wavy sine stripes (h, w) in 0..1, about `scale` pixels apart."""
    phase = ramp(shape, rng.uniform(0, math.pi)) * (2 * math.pi / scale)
    phase += rng.uniform(0, 4) * value_noise(rng, shape, 4 * scale, 1)
    waves: Float = 0.5 + 0.5 * np.sin(phase)
    return waves


def checks(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """A turned checkerboard (h, w) of 0 and 1 with fields of about `scale` pixels."""
    angle, aspect = rng.uniform(0, math.pi), rng.uniform(0.5, 1.5)
    rows = np.floor(ramp(shape, angle) / scale)
    columns = np.floor(ramp(shape, angle + 0.5 * math.pi) / (scale * aspect))
    fields: Float = np.mod(rows + columns, 2.0)
    return fields


def clouds(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """Soft value noise (h, w) in 0..1 with features of twice `scale` pixels."""
    return value_noise(rng, shape, 2 * scale, 3, rng.uniform(0.4, 0.75))


def grain(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """Fine noise (h, w) in 0..1 with features of a quarter of `scale` pixels."""
    return value_noise(rng, shape, max(0.25 * scale, 1.5), 1)


def fade(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """A straight gradient (h, w) from 0 to 1; `scale` is not used."""
    return unit(ramp(shape, rng.uniform(0, 2 * math.pi)))


def veins(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """Marble-like lines (h, w) in 0..1 on cells of twice `scale` pixels."""
    return ridges(rng, shape, 2 * scale, rng.uniform(0.2, 0.9))


PATTERNS = (clouds, clouds, stripes, checks, grain, fade, veins)


def pattern(rng: np.random.Generator, shape: Shape, scale: float) -> Float:
    """One of `PATTERNS` at random, (h, w) in 0..1."""
    return PATTERNS[int(rng.integers(len(PATTERNS)))](rng, shape, scale)


def random_colour(rng: np.random.Generator) -> Float:
    """An RGB colour (3,) in 0..1: any hue, more often pale than pure, never quite black or white."""
    hue, saturation, value = rng.random(), 0.9 * rng.random() ** 1.3, rng.uniform(0.12, 0.97)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def blend(first: Float, second: Float, weight: Float) -> Float:
    """`first` where `weight` (h, w) is 0 and `second` where it is 1; either is a colour (3,) or an image (h, w, 3)."""
    return first + (second - first) * weight[..., None]


def gaussian(values: Float, sigma: float) -> Float:
    """`values` blurred by `sigma` pixels; unchanged below 0.2, where the kernel would be a single pixel."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32) if sigma >= 0.2 else values


def fill(contours: Sequence[Float], size: int, pad: float = 0.0) -> Patch:
    """The area inside `contours`, (n, 2) XY in pixels, as a patch of a square image; nested contours are holes.

    The window is at least one pixel and clipped to the image; `pad` widens it on every side.
    """
    points = np.concatenate([np.asarray(c, np.float32) for c in contours])
    low = np.clip(np.floor(points.min(0) - pad), 0, size - 1).astype(int)
    high = np.maximum(np.clip(np.ceil(points.max(0) + pad) + 1, 0, size).astype(int), low + 1)
    width, height = (int(v) for v in high - low)
    fine = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    # Sub-pixel coordinates in 1/16 of a fine pixel, as `shift=4` tells OpenCV.
    cv2.fillPoly(fine, [np.round((c - low) * (16 * SUPERSAMPLE)).astype(np.int32) for c in contours], 255, cv2.LINE_8, 4)
    alpha = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) * (1 / 255)
    return Patch((slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))), alpha)


def coverage(patches: Iterable[Patch], size: int) -> Float:
    """Coverage (size, size) in 0..1 of all patches together."""
    cover = np.zeros((size, size), np.float32)
    for window, alpha in patches:
        cover[window] = np.maximum(cover[window], alpha)
    return cover


def paint(image: Float, patch: Patch, colour: Float) -> None:
    """Lays `colour`, (3,) or (h, w, 3) of the patch's size, over `image` in place."""
    region = image[patch.window]
    region += (colour - region) * patch.alpha[..., None]


def darken(image: Float, patch: Patch, strength: float) -> None:
    """Takes the share `strength` of the light away from `image` in place where the patch covers it."""
    image[patch.window] *= (1.0 - strength * patch.alpha)[..., None]


def shifted(values: Float, dx: float, dy: float) -> Float:
    """`values` (h, w) moved right by `dx` and down by `dy` pixels, zeros coming in."""
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return np.asarray(cv2.warpAffine(values, move, values.shape[::-1]), np.float32)


def lit(rng: np.random.Generator, image: Float, amount: float) -> Float:
    """`image` brightened towards a random side, by at most the share `amount` from side to side."""
    slope = rng.uniform(0, amount) / max(image.shape[:2])
    gain: Float = 1.0 + slope * ramp((image.shape[0], image.shape[1]), rng.uniform(0, 2 * math.pi))
    return image * gain[..., None]


def finish(rng: np.random.Generator, image: Float, blur: float, noise: float, gamma: float = 1.3) -> NDArray[np.uint8]:
    """The camera: blur of at most `blur` px, a gamma within 1/gamma..gamma, sensor noise of at most `noise` (sigma); uint8."""
    image = gaussian(image, rng.uniform(0, blur))
    image = np.asarray(cv2.pow(np.clip(image, 0.0, 1.0), gamma ** rng.uniform(-1, 1)), np.float32)
    image = image + rng.uniform(0, noise) * rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
