"""Evaluation: every image of a split is predicted from the prompts of its own ground truth, and counted."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.grid.metrics import ImageRow
from bench.grid.protocol import Settings
from bench.model.precision import computing
from bench.model.segmenter import PromptableSegmenter, at_once
from bench.model.transfer import Download, uploaded
from bench.model.upsampling import union
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
) -> Iterator[ImageRow]:
    """Yields the row of each image of the split, in the order of its names. The model is left in evaluation mode.

    An image without objects is predicted without any prompt. prepared: what earlier evaluations of this data set left to use again.
    names: only these images. The counts of a batch are fetched from the device after the next batch was started.
    """
    model.eval()
    prepared = prepared or Prepared(dataset)
    names = dataset.names(split) if names is None else names
    earlier: tuple[list[Item], Download] | None = None
    for items in prepared.batches(split, names, settings, at_once(model)[0], model.device):
        prompts = [model.placed(item.prompts, (item.truth.shape[0], item.truth.shape[1])) for item in items]
        truths = [uploaded(item.truth, model.device) for item in items]
        with computing(settings.precision, model.device):
            features = prepared.features(model, split, items, settings)
            unions = predicted(model, features, prompts)
        counted = torch.stack([pixels(mask, truth) for mask, truth in zip(unions, truths, strict=True)])
        if earlier:
            yield from _rows(*earlier)
        earlier = items, Download(counted)
    if earlier:
        yield from _rows(*earlier)


def predicted(model: PromptableSegmenter, features: Features, prompts: Sequence[Prompts]) -> list[Tensor]:
    """The union of each image's masks, (H, W) bool on the model's device; prompts of several images are decoded in one call."""
    unions: dict[int, Tensor] = {}
    for call in calls([len(p) for p in prompts], at_once(model)[1]):
        low = model.decode_low(features.only([i for i, _, _ in call]), [prompts[i].part(start, stop) for i, start, stop in call])
        for (i, _, _), maps in zip(call, low.logits, strict=True):
            found = union(maps.float(), features.sizes[i])
            unions[i] = unions[i] | found if i in unions else found
    return [unions[i] for i in range(len(prompts))]


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


def pixels(mask: Tensor, truth: Tensor) -> Tensor:
    """Pixel counts (4,) of two maps (H, W) bool on one device: in both, in either, true, predicted."""
    return torch.stack([(mask & truth).sum(), (mask | truth).sum(), truth.sum(), mask.sum()])


def _rows(items: Sequence[Item], counted: Download) -> Iterator[ImageRow]:
    for item, counts in zip(items, counted.read(), strict=True):
        yield ImageRow(item.name, item.prompts.count, *counts)
