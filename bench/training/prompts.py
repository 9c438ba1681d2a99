"""Prompts from masks, for training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F

from bench.data.objects import Objects
from bench.grid.prompts import USUAL_COUNT, prompt_value
from bench.training.streams import Stream
from bench.types import Prompts, TrainingPrompts


def box_prompts(objects: Objects) -> Prompts:
    """The tight boxes of objects; no prompt where there are none."""
    return Prompts(boxes=torch.from_numpy(objects.boxes).float()) if len(objects) else Prompts()


def point_prompts(objects: Objects, stream: Stream, count: int = 1) -> Prompts:
    """Random pixels of each object, so many, as foreground points; no prompt where there are none."""
    if not len(objects):
        return Prompts()
    chosen = [[_pixel(objects, i, stream.pixel(int(area))) for _ in range(count)] for i, area in enumerate(objects.areas)]
    return Prompts(points=torch.tensor(chosen, dtype=torch.float32), labels=torch.ones(len(chosen), count))


def _pixel(objects: Objects, i: int, number: int) -> tuple[int, int]:
    """x and y of one of the pixels of object i, counted in row-major order."""
    crop = objects.crop(i)
    y, x = divmod(int(np.flatnonzero(crop)[number]), crop.shape[1])
    left, top = objects.boxes[i, :2].tolist()
    return left + x, top + y


def jittered(prompts: Prompts, size: tuple[int, ...], jitter: float, stream: Stream) -> Prompts:
    """Boxes, each side moved by U(-jitter, jitter) of the box's width or height, and kept in the image of `size` (H, W). An object's
    numbers depend on its place among the others alone, whatever the jitter; jitter 0 moves nothing."""
    if prompts.boxes is None:
        return prompts
    boxes, last = prompts.boxes.numpy(), np.array([size[1], size[0]] * 2, np.float32) - 1
    moves = stream.moves(*boxes.shape).astype(np.float32) * np.float32(jitter)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return Prompts(boxes=torch.from_numpy(np.clip(boxes + moves * sides, 0, last)))


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


def prompts_of(prompt: str, objects: Objects, stream: Stream, how: TrainingPrompts, side: int) -> Prompts:
    """What `bench.grid.prompts` calls so, for all objects of an image; without objects there is no prompt. side: of mask prompts."""
    kind, value = prompt_value(prompt)
    if kind in ("point", "points"):
        return point_prompts(objects, stream, 1 if kind == "point" else value or USUAL_COUNT)
    if kind == "box":
        return jittered(box_prompts(objects), objects.shape, value, stream) if value else box_prompts(objects)
    return mask_prompts(objects, stream, how, side) if kind == "mask" else Prompts()
