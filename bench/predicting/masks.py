"""The masks of tasks, predicted and written, so many images at a time as fit in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bench.errors import RequestError
from bench.grid.files import write_together
from bench.model.segmenter import PromptableSegmenter, at_once
from bench.predicting.tasks import Task, prepared
from bench.reporting.overlays import overlay_picture
from bench.training.evaluation import predicted
from bench.types import Prompts


def results(model: PromptableSegmenter, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any], str]]:
    """Each task with its row of predictions.csv, files written, or with what went wrong; so many images at a time as fit in memory."""
    size = at_once(model)[0]
    for start in range(0, len(tasks), size):
        ready: list[tuple[Task, Tensor, list[Prompts]]] = []
        for task in tasks[start : start + size]:
            try:
                ready.append((task, *prepared(task, model.sam.config.grid)))
            except RequestError as error:  # it was readable when the command began
                yield task, {}, str(error)
        for (task, image, prompts), mask in zip(ready, _masks(model, ready), strict=True):
            yield task, _written(task, image, prompts, mask), ""


@torch.inference_mode()
def _masks(model: PromptableSegmenter, ready: Sequence[tuple[Task, Tensor, list[Prompts]]]) -> list[np.ndarray]:
    """The union of all masks of each image, (H, W) bool; every image is encoded once, whatever kinds of prompts it has."""
    if not ready:
        return []
    features = model.encode([image for _, image, _ in ready])
    owners = [i for i, (_, _, prompts) in enumerate(ready) for _ in prompts]
    unions = predicted(model, features.only(owners), [p for _, _, prompts in ready for p in prompts])
    masks = [torch.zeros(size, dtype=torch.bool, device=model.device) for size in features.sizes]
    for i, union in zip(owners, unions, strict=True):
        masks[i] |= union
    return [mask.cpu().numpy() for mask in masks]


def _written(task: Task, image: Tensor, prompts: Sequence[Prompts], mask: np.ndarray) -> dict[str, Any]:
    """Writes mask and overlay; the row of predictions.csv."""
    _write(task.mask, mask.astype(np.uint8) * 255)
    if task.overlay:
        given = [keywords["mask"] for _, keywords in task.prompts if "mask" in keywords]
        _write(task.overlay, overlay_picture(image.permute(1, 2, 0).numpy(), mask, prompts, given)[..., ::-1])
    height, width = mask.shape
    count = sum(p.count for p in prompts)
    return {
        "image": str(task.image),
        "mask": str(task.mask),
        "prompts": count,
        "height": height,
        "width": width,
        "foreground_pixels": int(mask.sum()),
    }


def _write(path: Path, pixels: np.ndarray) -> None:
    write_together(path.parent, {path.name: cv2.imencode(".png", pixels)[1].tobytes()}, durable=False)
