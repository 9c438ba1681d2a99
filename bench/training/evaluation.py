"""Evaluation: every image of a split is predicted from the prompts of its own ground truth, and counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.data.boundary import boundary
from bench.grid.metrics import ImageRow
from bench.grid.metrics import count as counted
from bench.grid.protocol import Settings
from bench.model.precision import computing
from bench.model.segmenter import PromptableSegmenter, at_once
from bench.model.transfer import Download
from bench.model.upsampling import union
from bench.training.by_object import ArrivingCover, Covered, ObjectTruth
from bench.training.conditions import Condition
from bench.training.prepared import Item, Prepared
from bench.types import Dataset, Features, Prompts, Sample, Split

Part = tuple[int, int, int]  # of an image's prompts: the image's index, the first prompt, the one after the last


@torch.inference_mode()
def evaluate(
    model: PromptableSegmenter,
    dataset: Dataset,
    split: Split,
    settings: Settings,
    prepared: Prepared | None = None,
    names: Sequence[str] | None = None,
    condition: Condition | None = None,
) -> Iterator[ImageRow]:
    """Yields the row of each image of the split, in the order of its names. The model is left in evaluation mode.

    An image without objects is predicted without any prompt. prepared: what earlier evaluations of this data set left to use again.
    names: only these images. condition: other prompts than the settings', or damaged images. What a batch gave is fetched from the device
    after the next batch was started.
    """
    model.eval()
    prepared = prepared or Prepared(dataset)
    names = dataset.names(split) if names is None else names
    condition = condition or Condition(settings.evaluation_prompt, side=4 * model.sam.config.grid)
    corruption = condition.corruption
    earlier: tuple[list[Item], list[Arriving]] | None = None
    for items in prepared.batches(split, names, settings, at_once(model)[0], model.device, condition):
        prompts = [model.placed(item.prompts, (item.truth.shape[0], item.truth.shape[1])) for item in items]
        with computing(settings.precision, model.device):
            features = prepared.features(model, split, items, settings, corruption)
            found = predictions(model, features, prompts, [item.by_object for item in items])
        if earlier:
            yield from _rows(*earlier)
        earlier = items, [(Download(of.union), Download(of.ious), of.covered.download() if of.covered else None) for of in found]
    if earlier:
        yield from _rows(*earlier)


class Predicted(NamedTuple):
    """Of an image: the union of its masks, (H, W) bool, and SAM's estimate of each mask's IoU, (n,), both on the model's device; what
    each mask covers, where that was asked for."""

    union: Tensor
    ious: Tensor
    covered: Covered | None = None


Arriving = tuple[Download, Download, ArrivingCover | None]  # of an image, the parts of `Predicted`


def predicted(model: PromptableSegmenter, features: Features, prompts: Sequence[Prompts]) -> list[Tensor]:
    """The union of each image's masks, (H, W) bool on the model's device."""
    return [found.union for found in predictions(model, features, prompts)]


def predictions(
    model: PromptableSegmenter, features: Features, prompts: Sequence[Prompts], told: Sequence[ObjectTruth | None] = ()
) -> list[Predicted]:
    """What the model gives for each image; prompts of several images are decoded in one call. told: of each image, if its masks are to
    be looked at one by one, the objects that they are of."""
    covered = {i: Covered(truth, features.sizes[i], model.device) for i, truth in enumerate(told) if truth is not None}
    none = [torch.zeros(size, dtype=torch.bool, device=model.device) for size in features.sizes]
    unions, ious = dict(enumerate(none)), {i: [mask.new_zeros(0, dtype=torch.float)] for i, mask in enumerate(none)}
    for call in calls([len(p) for p in prompts], at_once(model)[1]):
        low = model.decode_low(features.only([i for i, _, _ in call]), [prompts[i].part(start, stop) for i, start, stop in call])
        for (i, _, _), maps, of in zip(call, low.logits, low.iou, strict=True):
            ious[i].append(of.float())
            if i in covered:
                covered[i].add(maps.float())
            else:
                unions[i] = unions[i] | union(maps.float(), features.sizes[i])
    unions |= {i: of.union for i, of in covered.items()}
    return [Predicted(unions[i], torch.cat(ious[i]), covered.get(i)) for i in range(len(prompts))]


def calls(counts: Sequence[int], limit: int) -> Iterator[list[Part]]:
    """Cuts the prompts of images that have so many into runs of at most `limit`, in order."""
    call: list[Part] = []
    room = limit
    for i, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + room)
            call.append((i, start, stop))
            start, room = stop, room - (stop - start)
            if not room:
                yield call
                call, room = [], limit
    if call:
        yield call


def predict_masks(model: PromptableSegmenter, samples: Sequence[Sample], prompts: Sequence[Prompts]) -> list[np.ndarray]:
    """The union of each image's masks, (H, W) bool."""
    with torch.inference_mode():
        features = model.encode([torch.tensor(sample.image).permute(2, 0, 1) for sample in samples])
        return [mask.cpu().numpy() for mask in predicted(model, features, prompts)]


def _rows(items: Sequence[Item], found: Sequence[Arriving]) -> Iterator[ImageRow]:
    for item, (of_masks, of_ious, covered) in zip(items, found, strict=True):
        mask, of = of_masks.array(), of_ious.array()
        row, edge = counted(item.name, item.objects, mask, item.truth.numpy()), boundary(mask)
        both, either = int(np.count_nonzero(edge & item.edge)), int(np.count_nonzero(edge | item.edge))
        iou = 100 * float(of.mean()) if len(of) else None
        row = replace(row, pixels=mask.size, boundary_intersection=both, boundary_union=either, predicted_iou=iou)
        row = replace(row, boundary_truth=int(np.count_nonzero(item.edge)))
        yield replace(row, confusion=covered.confusion(), instances=covered.instances(of)) if covered else row
