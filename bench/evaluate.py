"""Evaluation: every image of a split is predicted from the prompts of its own ground truth, and counted."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.metrics import ImageRow, count
from bench.objects import object_masks
from bench.prompts import box_prompts, point_prompts
from bench.protocol import Settings
from bench.segmenter import PromptableSegmenter
from bench.types import Dataset, Features, Prompts, Sample, Split

IMAGES_A_BATCH = 4
PROMPTS_A_CALL = 32  # bounds the memory of an image with hundreds of buildings


@torch.inference_mode()
def evaluate(model: PromptableSegmenter, dataset: Dataset, split: Split, settings: Settings) -> Iterator[ImageRow]:
    """Yields the row of each image of the split, in the order of its names. The model is left in evaluation mode.

    An image without objects is predicted without any prompt.
    """
    model.eval()
    names = dataset.names(split)
    for start in range(0, len(names), IMAGES_A_BATCH):
        samples = [dataset.load(split, name) for name in names[start : start + IMAGES_A_BATCH]]
        prompts = [evaluation_prompts(sample, dataset, settings) for sample in samples]
        for sample, given, predicted in zip(samples, prompts, predict_masks(model, samples, prompts), strict=True):
            yield count(sample.name, given.count, predicted, sample.mask)


def evaluation_prompts(sample: Sample, dataset: Dataset, settings: Settings) -> Prompts:
    """The tight boxes of the sample's objects, or one point of each; the points depend on the image alone."""
    objects = object_masks(sample.mask, dataset.rule)
    if settings.evaluation_prompt == "box":
        return box_prompts(objects)
    return point_prompts(objects, np.random.default_rng(zlib.crc32(f"{dataset.name}/{sample.name}".encode())))


@torch.inference_mode()
def predict_masks(model: PromptableSegmenter, samples: Sequence[Sample], prompts: Sequence[Prompts]) -> list[np.ndarray]:
    """The union of each image's masks, (H, W) bool."""
    features = model.encode([torch.tensor(sample.image).permute(2, 0, 1) for sample in samples])
    if sum(map(len, prompts)) <= PROMPTS_A_CALL:
        return [_union(logits) for logits in model.decode(features, prompts)]
    return [_predict_in_parts(model, _only(features, i), p) for i, p in enumerate(prompts)]


def _predict_in_parts(model: PromptableSegmenter, features: Features, prompts: Prompts) -> np.ndarray:
    starts = range(0, len(prompts), PROMPTS_A_CALL)
    parts = [_union(model.decode(features, [prompts.part(s, s + PROMPTS_A_CALL)])[0]) for s in starts]
    return np.logical_or.reduce(parts)


def _only(features: Features, i: int) -> Features:
    return Features(features.embedding[i : i + 1], features.first_global[i : i + 1], features.sizes[i : i + 1], features.native[i : i + 1])


def _union(logits: Tensor) -> np.ndarray:
    found: np.ndarray = (logits > 0).any(0).cpu().numpy()
    return found
