"""What a caller gives to `predict`: pictures and prompts, read and checked, with one sentence for what is wrong."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.image_files import check_name, eight_bits, read_image
from bench.errors import DataError, InputError
from bench.types import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = np.ndarray | Tensor | Image | str | PathLike[str]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABELS = (1, 0, -1)
PLURALS = {"box": "boxes", "point": "points", "mask": "masks"}


def read_picture(image: "Picture", bits: int = 0) -> Tensor:
    """A picture as a (3, H, W) tensor, RGB 0–255.

    Arrays (H, W, 3) and tensors (3, H, W) of any number type are taken as they are, grey ones, (H, W) and (1, H, W), three times. A file
    is read as a data set's, `bits` of 16 used (see `read_image`). A PIL image of any mode becomes RGB: grey is repeated, 16 bits become
    8, alpha is dropped; it is not turned. InputError or DataError where it is no such picture.
    """
    if isinstance(image, str | PathLike):
        image = read_image(Path(image), bits)
    elif hasattr(image, "convert"):
        image = _rgb(image, bits)
    if isinstance(image, np.ndarray | Tensor) and _is_grey(image):
        grey = image.reshape(image.shape[-2:])
        image = grey.expand(3, -1, -1) if isinstance(grey, Tensor) else np.repeat(grey[..., None], 3, 2)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"An array of shape {image.shape} is no image: (H, W, 3), RGB in 0–255, is needed.")
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), image.dtype.newbyteorder("=")))
    if not isinstance(image, Tensor):
        raise InputError(f"A {type(image).__name__} is no image: an array, a tensor, a PIL image or a path is needed.")
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise InputError(f"A tensor of shape {tuple(image.shape)} is no image: (3, H, W), RGB in 0–255, is needed.")
    return _in_range(image)


def _is_grey(image: np.ndarray | Tensor) -> bool:
    """Whether it is (H, W) or (1, H, W); an array (1, W, 3) is one row of colours."""
    return image.ndim == 2 or (image.ndim == 3 and image.shape[0] == 1 and not (isinstance(image, np.ndarray) and image.shape[2] == 3))


def _rgb(image: Any, bits: int) -> np.ndarray:
    """A PIL image (H, W, 3) uint8."""
    if image.mode.startswith("I;16"):
        return np.repeat(eight_bits("PIL image", np.asarray(image), bits)[..., None], 3, 2)
    if image.mode in ("I", "F"):
        raise InputError(f"A PIL image of mode {image.mode} has no known range: an image of mode RGB, L or I;16 is needed.")
    return np.array(image.convert("RGB"))


def _in_range(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 255):  # not a number is neither
        raise InputError(f"The image's values go from {low:g} to {high:g}: RGB in 0–255 is needed.")
    if image.is_floating_point() and 0 < high <= 1:
        raise InputError(f"The image's values go from {low:g} to {high:g}, as if scaled to 0–1: RGB in 0–255 is needed.")
    return image


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name, hidden ones left out; DataError where it is none or has none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: one with images ({', '.join(SUFFIXES)}) is needed.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DataError(f"The folder {folder} holds no image ({', '.join(SUFFIXES)}).")
    return [check_name(path) for path in found]


def prompts_from(
    size: tuple[int, int],
    grid: int,
    *,
    box: Any = None,
    boxes: Any = None,
    point: Any = None,
    points: Any = None,
    labels: Any = None,
    mask: Any = None,
    masks: Any = None,
) -> Prompts:
    """The checked Prompts of what a caller gave for an image of `size` (H, W); see PromptableSegmenter.predict. InputError."""
    for one, many in PLURALS.items():
        if locals()[one] is not None and locals()[many] is not None:
            raise InputError(f"Give {one} or {many}, not both.")
    all_boxes = _numbers("box", box, (4,), "[x0, y0, x1, y1]", boxes, ("n", 4))
    all_points, all_labels = _points(point, points, labels)
    all_masks = _masks(mask, masks, size, grid)
    counts = {n: len(x) for n, x in (("boxes", all_boxes), ("points", all_points), ("masks", all_masks)) if x is not None}
    if len(set(counts.values())) > 1:
        said = " and ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(f"{said} were given together: they are prompts of the same objects, as many of each.")
    prompts = Prompts(all_boxes, all_points, all_labels, all_masks)
    check_prompts(prompts, *size)
    return prompts


def _numbers(name: str, one: Any, of_one: tuple[Any, ...], like: str, many: Any, of_many: tuple[Any, ...]) -> Tensor | None:
    """One thing or many as a float tensor of shape `of_many`, where a text stands for any length."""
    if one is None and many is None:
        return None
    name, given, shape = (name, one, of_one) if many is None else (PLURALS[name], many, of_many)
    array = _array(name, given)
    if array.ndim != len(shape) or any(isinstance(want, int) and has != want for has, want in zip(array.shape, shape, strict=True)):
        text = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise InputError(f"The {name} of shape {array.shape} cannot be read: {like if many is None else f'shape {text}'} is needed.")
    return torch.from_numpy(array if many is not None else array[None])


def _array(name: str, given: Any) -> np.ndarray:
    try:
        return np.array(given.detach().cpu().numpy() if isinstance(given, Tensor) else given, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"The {name} {given!r} cannot be read as numbers of one shape.") from None


def _points(point: Any, points: Any, labels: Any) -> tuple[Tensor | None, Tensor | None]:
    """Points (n, k, 2) and labels (n, k)."""
    many = None if points is None else _array("points", points)
    shape = ("n", "k", 2) if many is not None and many.ndim == 3 else ("n", 2)
    found = _numbers("point", point, (2,), "[x, y]", many, shape)
    if found is None:
        if labels is not None:
            raise InputError("Labels were given without points: a label says of a point whether it is foreground.")
        return None, None
    found = found if found.ndim == 3 else found[:, None]
    if labels is None:
        return found, torch.ones(found.shape[:2])
    array = _array("labels", labels)
    wanted = tuple(found.shape[:2])
    if array.size != found[..., 0].numel() or array.shape not in (wanted, wanted[:1], ()):
        raise InputError(f"The labels of shape {array.shape} do not fit the points: one label for each, shape {wanted}, is needed.")
    return found, torch.from_numpy(array.reshape(wanted))


def _masks(mask: Any, masks: Any, size: tuple[int, int], grid: int) -> Tensor | None:
    """Masks (n, 1, 4g, 4g) of what was given at the image's size."""
    found = _numbers("mask", mask, size, f"(H, W) = {size}, the image's,", masks, ("n", *size))
    if found is None:
        return None
    wrong = found[(found != 0) & (found != 1)]
    if len(wrong):
        raise InputError(f"The mask has the value {wrong[0]:g}: only 0 and 1 are allowed.")
    return F.interpolate(found[:, None], (4 * grid, 4 * grid), mode="bilinear", align_corners=False)


def check_prompts(prompts: Prompts, height: int, width: int) -> None:
    """InputError, in one sentence, unless all coordinates are finite and inside the image, the boxes' corners in order, and every
    label is 1 (foreground), 0 (background) or -1 (padding, whose coordinates do not matter)."""
    if prompts.boxes is not None:
        for box in prompts.boxes.tolist():
            _check_inside("box", box, height, width)
            if box[0] > box[2] or box[1] > box[3]:
                raise InputError(f"The box {_shown(box)} is not ordered: [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1 is needed.")
    if prompts.points is not None:
        labels = torch.ones(prompts.points.shape[:2]) if prompts.labels is None else prompts.labels
        for point, label in zip(prompts.points.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
            if label not in LABELS:
                raise InputError(
                    f"The point {_shown(point)} has the label {label:g}: 1 (foreground), 0 (background) and -1 (none) are allowed."
                )
            if label != -1:
                _check_inside("point", point, height, width)


def _check_inside(name: str, values: Sequence[float], height: int, width: int) -> None:
    if not all(0 <= x <= width for x in values[::2]) or not all(0 <= y <= height for y in values[1::2]):
        raise InputError(
            f"The {name} {_shown(values)} is not inside the image of {width}×{height} pixels: "
            f"0 ≤ x ≤ {width} and 0 ≤ y ≤ {height} are needed."
        )


def _shown(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
