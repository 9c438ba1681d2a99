"""Prompts from masks, for training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F

from bench.data.objects import Objects
from bench.training.streams import Stream
from bench.types import Prompts, TrainingPrompts


def box_prompts(objects: Objects) -> Prompts:
    """The tight boxes of objects; no prompt where there are none."""
    return Prompts(boxes=torch.from_numpy(objects.boxes).float()) if len(objects) else Prompts()


def point_prompts(objects: Objects, stream: Stream) -> Prompts:
    """One random pixel of each object, as a foreground point; no prompt where there are none."""
    if not len(objects):
        return Prompts()
    points = np.array([_pixel(objects, i, stream.pixel(int(area))) for i, area in enumerate(objects.areas)], np.float32)
    return Prompts(points=torch.from_numpy(points)[:, None], labels=torch.ones(len(points), 1))


def _pixel(objects: Objects, i: int, number: int) -> tuple[int, int]:
    """x and y of one of the pixels of object i, counted in row-major order."""
    crop = objects.crop(i)
    y, x = divmod(int(np.flatnonzero(crop)[number]), crop.shape[1])
    left, top = objects.boxes[i, :2].tolist()
    return left + x, top + y


def mask_prompts(objects: Objects, stream: Stream, how: TrainingPrompts, side: int) -> Prompts:
    """Noisy masks (n, 1, side, side) of 0/1 of objects, as HQ-SAM trains with; no prompt where there are none.

    Gaussian noise of standard deviation 1 is added where the mask differs by ≥ 0.01 from itself after scaling down and up.
    """
    if not len(objects):
        return Prompts()
    masks = _scaled(objects, side)
    small = F.interpolate(masks, (side // how.noise_scale,) * 2, mode="bilinear", align_corners=False)
    again = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    incoherent = ((masks - again).abs() >= 0.01).float()
    return Prompts(masks=(masks + stream.noise(*masks.shape) * incoherent > how.noise_threshold).float())


def _scaled(objects: Objects, side: int) -> torch.Tensor:
    """The masks at another size, (n, 1, side, side), drawn one after the other onto one map of the image's size."""
    canvas, found = torch.zeros(1, 1, *objects.shape), []
    for i in range(len(objects)):
        place = canvas.numpy()[0, 0][objects.window(i)]
        place[...] = objects.crop(i)
        found.append(F.interpolate(canvas, (side, side), mode="bilinear", align_corners=False))
        place[...] = 0
    return torch.cat(found)


def training_prompts(kind: str, objects: Objects, stream: Stream, how: TrainingPrompts, side: int) -> Prompts:
    """Prompts of a kind ("point", "box" or "mask") for all objects of a training image."""
    if kind == "point":
        return point_prompts(objects, stream)
    return box_prompts(objects) if kind == "box" else mask_prompts(objects, stream, how, side)
