"""Damaged images: five kinds in five levels, whose strengths are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019).

The same image, kind and level give the same pixels: noise is drawn from the image's name.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Annotated

import cv2
import numpy as np

from bench.grid.spec import choose_call
from bench.grid.toml_reader import Kinds
from bench.types import Range

USUAL_LEVEL = 3
SIDE = 224  # pixels: of the images that ImageNet-C's blur is given for
Pixels = np.ndarray  # (H, W, 3) float32, RGB in 0–1
Damage = Callable[[Pixels, float, np.random.Generator], Pixels]


def _gaussian_noise(image: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    return image + np.float32(std) * rng.standard_normal(image.shape, dtype=np.float32)


def _blur(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """sigma: in pixels of an image whose shorter side is SIDE."""
    return cv2.GaussianBlur(image, (0, 0), sigma * min(image.shape[:2]) / SIDE)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    _, content = cv2.imencode(".jpg", _bytes(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))[..., ::-1].astype(np.float32) / 255


def _brightness(image: Pixels, more: float, rng: np.random.Generator) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.minimum(hsv[..., 2] + np.float32(more), 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + np.float32(factor) * (image - mean)


CORRUPTIONS: Mapping[str, tuple[Damage, tuple[float, ...]]] = {  # with its strengths at the levels 1, 2, …
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (_blur, (1, 2, 3, 4, 6)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
}
KNOWN: Mapping[str, Kinds] = {name: {"level": Annotated[int, Range(1, len(of))]} for name, (_, of) in CORRUPTIONS.items()}


def read_corruption(text: str) -> tuple[str, int]:
    """The kind and level of a user's words, "jpeg(3)"; USUAL_LEVEL where none is given. RequestError for what there is not."""
    name, values = choose_call(text, KNOWN, "corruption")
    return name, values.get("level", USUAL_LEVEL)


def corrupted(image: np.ndarray, text: str, name: str) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB damaged as `text` says; itself for "". name: tells it from all other images."""
    if not text:
        return image
    kind, level = read_corruption(text)
    damage, strengths = CORRUPTIONS[kind]
    rng = np.random.default_rng(zlib.crc32(f"{kind}/{name}".encode()))
    return _bytes(damage(image.astype(np.float32) / 255, strengths[level - 1], rng))


def _bytes(image: Pixels) -> np.ndarray:
    return np.ascontiguousarray(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8))
