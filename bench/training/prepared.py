"""What evaluating a data set needs of each image each time, prepared once by threads that run ahead, and kept within bounds."""

import threading
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bench.data.boundary import boundary
from bench.data.objects import sample_objects
from bench.grid.protocol import Settings
from bench.model.implementation import implementation
from bench.model.segmenter import PromptableSegmenter
from bench.training.conditions import Condition
from bench.types import KEPT_BYTES, Dataset, Features, Prompts, Sample, Split

BATCHES_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Item:
    """One image of an evaluation: image (3, H, W) uint8; truth (H, W) bool, and its boundary region; how many objects are in it, and the
    prompts that it is asked with."""

    name: str
    image: Tensor
    truth: Tensor
    edge: np.ndarray
    objects: int
    prompts: Prompts

    @property
    def bytes(self) -> int:
        """Its memory."""
        return self.image.nbytes + self.truth.nbytes + self.edge.nbytes


class Prepared:
    """The items of a data set, and the embeddings that a frozen encoder gave them.

    Both are kept in the process's memory while their sum is below `limit_bytes`; what comes later is made again each time.
    """

    def __init__(self, dataset: Dataset, limit_bytes: int = KEPT_BYTES) -> None:
        self.dataset, self.limit_bytes, self.used_bytes = dataset, limit_bytes, 0
        self._kept: dict[Hashable, object] = {}
        self._reused: PromptableSegmenter | None = None
        self._lock = threading.Lock()

    def reuse(self, model: PromptableSegmenter) -> None:
        """Keeps this model's embeddings too, because it will be asked with other prompts, and drops those of the one before."""
        if model is not self._reused:
            self._reused = model
            for key in [key for key in self._kept if isinstance(key, tuple) and key[0] == "features" and not key[-1]]:
                self.used_bytes -= _bytes(self._kept.pop(key))

    def batches(
        self, split: Split, names: Sequence[str], settings: Settings, size: int, condition: Condition | None = None
    ) -> Iterator[list[Item]]:
        """The items of these images in lists of `size`; the next lists are prepared while the caller computes."""
        starts = iter(range(0, len(names), size))
        with ThreadPoolExecutor(max(1, min(8, torch.get_num_threads()))) as threads:

            def ahead(count: int) -> list[list[Future[Item]]]:
                batches = [names[start : start + size] for start in islice(starts, count)]
                return [[threads.submit(self.item, split, name, settings, condition) for name in batch] for batch in batches]

            waiting = ahead(BATCHES_AHEAD)
            try:
                while waiting:
                    items = [item.result() for item in waiting.pop(0)]
                    waiting += ahead(1)
                    yield items
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def item(self, split: Split, name: str, settings: Settings, condition: Condition | None = None) -> Item:
        """The item of one image; condition: another than the settings'."""
        condition = condition or Condition(settings.evaluation_prompt)
        key = ("item", split, name, condition)
        found = self._kept.get(key)
        if isinstance(found, Item):
            return found
        sample = self.dataset.load(split, name)
        image = torch.from_numpy(np.ascontiguousarray(condition.image(sample, self.dataset).transpose(2, 0, 1)))
        objects, truth = sample_objects(sample, self.dataset.rule), sample.mask.astype(bool)
        prompts = condition.prompts(sample, objects, self.dataset)
        item = Item(name, image, torch.from_numpy(truth), boundary(truth), len(objects), prompts)
        self._keep(key, item, item.bytes)
        return item

    def features(
        self, model: PromptableSegmenter, split: Split, items: Sequence[Item], settings: Settings, corruption: str = ""
    ) -> Features:
        """The model's features of the items. Those of an encoder that nothing is added to depend on the image alone: they are made once
        for every prompt, selection, evaluation, seed and method of that kind."""
        images = [item.image for item in items]
        frozen = model.encoder.is_frozen
        if not frozen and model is not self._reused:
            return model.encode(images)
        how = (model.normalise_native_size, settings.precision, settings.matmul_precision, implementation(), corruption, frozen)
        keys = [("features", split, item.name, id(model.sam if frozen else model), *how) for item in items]
        kept = [self._kept.get(key) for key in keys]
        if all(isinstance(one, Features) for one in kept):
            return _together([one for one in kept if isinstance(one, Features)], model.device)
        features = model.encode(images)
        for i, key in enumerate(keys):
            one = features.only([i])
            self._keep(key, one, _bytes(one))
        return features

    def _keep(self, key: Hashable, value: "Item | Features", size: int) -> None:
        with self._lock:
            if key in self._kept or self.used_bytes + size > self.limit_bytes:
                return
            self.used_bytes += size
            if isinstance(value, Features):
                value = value._replace(embedding=value.embedding.cpu().clone(), first_global=value.first_global.cpu().clone())
            self._kept[key] = value


def evaluation_prompts(sample: Sample, dataset: Dataset, settings: Settings) -> Prompts:
    """The tight boxes of the sample's objects, or one point of each; the points depend on the image alone."""
    return Condition(settings.evaluation_prompt).prompts(sample, sample_objects(sample, dataset.rule), dataset)


def _bytes(features: object) -> int:
    return features.embedding.nbytes + features.first_global.nbytes if isinstance(features, Features) else 0


def _together(features: Sequence[Features], device: torch.device) -> Features:
    embedding = torch.cat([f.embedding for f in features]).to(device)
    first_global = torch.cat([f.first_global for f in features]).to(device)
    return Features(embedding, first_global, tuple(f.sizes[0] for f in features), tuple(f.native[0] for f in features))
