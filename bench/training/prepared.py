"""What a data set's cells need of each image again and again, prepared once by threads that run ahead, and kept within bounds."""

import os
import sys
import tempfile
import threading
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.data.boundary import boundary
from bench.data.objects import sample_objects
from bench.grid.protocol import Settings
from bench.model.implementation import implementation
from bench.model.sam import Prefix
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import frozen_bytes
from bench.model.transfer import pinned, uploaded
from bench.training.by_object import ObjectTruth
from bench.training.conditions import Condition
from bench.training.embedding_files import EmbeddingFiles
from bench.types import KEPT_BYTES, Dataset, Features, Prompts, Sample, Split

BATCHES_AHEAD = 2
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Item:
    """One image of an evaluation: image (3, H, W) uint8; truth (H, W) bool, and its boundary region; how many objects are in it, and the
    prompts that it is asked with. by_object: the objects, where it states them and is asked for each."""

    name: str
    image: Tensor
    truth: Tensor
    edge: np.ndarray
    objects: int
    prompts: Prompts
    by_object: ObjectTruth | None = None

    @property
    def bytes(self) -> int:
        """Its memory."""
        of = self.prompts
        given = sum(x.nbytes for x in (of.boxes, of.points, of.labels, of.masks) if x is not None)
        return self.image.nbytes + self.truth.nbytes + self.edge.nbytes + given + (self.by_object.bytes if self.by_object else 0)

    def pinned(self, device: torch.device) -> "Item":
        """See `bench.model.transfer.pinned`."""
        return replace(self, image=pinned(self.image, device), truth=pinned(self.truth, device))


class Prepared:
    """The items of a data set, and what the frozen part of an encoder said of its images.

    Both are kept in the process's memory while their sum is below `limit_bytes`, then what was encoded in a file of at most
    `spilled_bytes`, which is gone with the process; what comes later is made again each time. files: keep all that was encoded, for
    later runs too.
    """

    def __init__(
        self, dataset: Dataset, limit_bytes: int = KEPT_BYTES, spilled_bytes: int = 0, files: EmbeddingFiles | None = None
    ) -> None:
        self.dataset, self.limit_bytes, self.used_bytes = dataset, limit_bytes, 0
        self._items: dict[Hashable, Item] = {}
        self._encoded: dict[Hashable, Tensor] = {}
        self._spill, self._files = Spill(spilled_bytes), files
        self._reused: PromptableSegmenter | None = None
        self._features: dict[Hashable, Features] = {}
        self._lock = threading.Lock()

    def reuse(self, model: PromptableSegmenter) -> None:
        """Keeps this model's embeddings too, because it will be asked with other prompts, and drops those of the one before."""
        if model is not self._reused:
            self.used_bytes -= sum(map(_bytes, self._features.values()))
            self._reused, self._features = model, {}

    def batches(
        self,
        split: Split,
        names: Sequence[str],
        settings: Settings,
        size: int,
        device: torch.device = CPU,
        condition: Condition | None = None,
    ) -> Iterator[list[Item]]:
        """The items of these images in lists of `size`, ready to be copied to the device; the next lists are prepared while the caller
        computes."""
        starts = iter(range(0, len(names), size))
        with ThreadPoolExecutor(max(1, min(8, torch.get_num_threads()))) as threads:

            def ready(name: str) -> Item:
                return self.item(split, name, settings, condition).pinned(device)

            def ahead(count: int) -> list[list[Future[Item]]]:
                batches = [names[start : start + size] for start in islice(starts, count)]
                return [[threads.submit(ready, name) for name in batch] for batch in batches]

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
        key = split, name, condition
        found = self._items.get(key)
        if found is not None:
            return found
        sample = self.dataset.load(split, name)
        image = torch.from_numpy(np.ascontiguousarray(condition.image(sample, self.dataset).transpose(2, 0, 1)))
        objects, truth = sample_objects(sample, self.dataset.rule), sample.mask.astype(bool)
        prompts = condition.prompts(sample, objects, self.dataset)
        told = ObjectTruth.of(sample, objects) if condition.asks_for_objects else None
        item = Item(name, image, torch.from_numpy(truth), boundary(truth), len(objects), prompts, told)
        with self._lock:
            if key not in self._items and self._takes(item.bytes):
                self._items[key] = item
        return item

    def features(
        self, model: PromptableSegmenter, split: Split, items: Sequence[Item], settings: Settings, corruption: str = ""
    ) -> Features:
        """The model's features of the items. What an encoder's frozen part says depends on the image alone: it is made once for every
        prompt, selection, evaluation, seed and method of that kind."""
        images, shown = [item.image for item in items], [(split, item.name, corruption) for item in items]
        key = *shown, settings.precision, torch.get_float32_matmul_precision()
        if kept := self._features.get(key) if model is self._reused else None:
            return kept.mapped(lambda x: uploaded(x, model.device))
        found = model.encode(images, known=self.prefix(model, images, shown, settings.precision))
        if model is self._reused and not model.encoder.is_frozen and self._takes(_bytes(found)):
            self._features[key] = found.mapped(lambda x: x.cpu())
        return found

    def prefix(self, model: PromptableSegmenter, images: Sequence[Tensor], identities: Sequence[Hashable], precision: str) -> Prefix | None:
        """What the encoder's frozen part says of images (3, H, W), each known by its identity; None where nothing of it is frozen."""
        parts = model.encoder.frozen_parts
        if not parts:
            return None
        names = ["x", *["first_global"] * (model.decoder.reads_first_global and model.encoder.reaches_global(parts))]
        names += [f"maps{i}" for i in range(model.encoder.maps_after(parts))]
        how = model.normalise_native_size, model.resize, precision, torch.get_float32_matmul_precision(), implementation()
        place = model.encoder.is_compiled, parts, len(images)  # the same place in a batch of that size: a sum's order may depend on it
        halved = precision == "bf16" and model.decoder.halves_first_global
        made_by = id(model.sam), model.execution  # cells that go on may have another product than those beside them
        keys = {name: [(identity, made_by, i, name, *how, *place) for i, identity in enumerate(identities)] for name in names}
        paths: dict[Hashable, Path] = {}
        if self._files and not all(key in self._encoded for of_name in keys.values() for key in of_name):
            paths = {key: self._files.path(images[key[2]], (*key[2:], halved, model.execution)) for of in keys.values() for key in of}
        found = {name: [self._kept(key, paths.get(key)) for key in of_name] for name, of_name in keys.items()}
        if all(tensor is not None for of_name in found.values() for tensor in of_name):
            kept = {name: _together([x for x in of_name if x is not None], model.device) for name, of_name in found.items()}
            return Prefix(kept["x"], kept.get("first_global"), parts, tuple(of for name, of in kept.items() if name.startswith("maps")))
        made = model.prefix(images)
        for name, of_name in keys.items():
            rows = made.maps[int(name[4:])] if name.startswith("maps") else getattr(made, name)
            low = name == "first_global" and halved
            for i, key in enumerate(of_name):
                self._keep(key, rows[i : i + 1].to(torch.bfloat16) if low else rows[i : i + 1], paths.get(key))
        return made

    def has_room(self, model: PromptableSegmenter, images: int | None, precision: str) -> bool:
        """Whether what the encoder's frozen part says of so many images, None for ever new ones, would take at most half of the memory:
        the other half is for evaluation."""
        parts, config = model.encoder.frozen_parts, model.sam.config
        size = frozen_bytes(config, parts, model.decoder.reads_first_global, precision)
        return bool(parts) and images is not None and (self._files is not None or images * size <= self.limit_bytes / 2)

    def _kept(self, key: Hashable, path: Path | None) -> Tensor | None:
        """A row, of the memory, the file without a name, or the file at `path`."""
        found = self._encoded.get(key)
        found = self._spill.get(key) if found is None else found
        if found is None and self._files and path:
            found = self._files.read(path)
            if found is not None:
                self._remember(key, found)
        return found

    def _keep(self, key: Hashable, value: Tensor, path: Path | None) -> None:
        """Keeps a copy of a row, (1, …), on the host, unless there is one already."""
        if self._files and path:
            self._files.write(path, value)
        if not self._remember(key, value) and not self._files:
            self._spill.put(key, value)

    def _remember(self, key: Hashable, value: Tensor) -> bool:
        """Keeps a copy in memory; whether there is one, or one in the file."""
        if key in self._encoded or key in self._spill:
            return True
        if fits := self._takes(value.nbytes):
            self._encoded[key] = value.to("cpu", non_blocking=True) if value.is_cuda else value.clone()  # in pinned memory: see `Download`
        return fits

    def _takes(self, size: int) -> bool:
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        return True


class Spill:
    """Tensors in a file without a name, in the folder for temporary files (TMPDIR): it ends with the process, however that ends."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._file = tempfile.TemporaryFile() if limit_bytes else None  # noqa: SIM115
        self._places: dict[Hashable, tuple[int, int, torch.dtype, torch.Size, tuple[int, ...]]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def put(self, key: Hashable, value: Tensor) -> None:
        """Writes a tensor, as long as there is room; a full disk is said once, and ends it."""
        if self._file is None or self.used_bytes + value.nbytes > self.limit_bytes:
            return
        dense = value.to("cpu").clone()
        in_memory = dense.as_strided((dense.numel(),), (1,))  # in the order of its strides, on which a sum's order may depend
        try:
            self._file.seek(self.used_bytes)
            self._file.write(in_memory.view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            print(f"No more embeddings are spilled to {tempfile.gettempdir()}: {error.strerror}.", file=sys.stderr)
            self.limit_bytes = 0
            return
        self._places[key] = self.used_bytes, value.nbytes, dense.dtype, dense.shape, dense.stride()
        self.used_bytes += value.nbytes

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor, if it was written."""
        if self._file is None or key not in self._places:
            return None
        start, size, dtype, shape, stride = self._places[key]
        content = os.pread(self._file.fileno(), size, start)  # not by seek, which tries again to write what a full disk did not take
        return torch.frombuffer(bytearray(content), dtype=dtype).as_strided(shape, stride)


def evaluation_prompts(sample: Sample, dataset: Dataset, settings: Settings, side: int = 0) -> Prompts:
    """What the settings ask with for the sample's objects; what is random depends on the image alone. side: of mask prompts."""
    return Condition(settings.evaluation_prompt, side=side).prompts(sample, sample_objects(sample, dataset.rule), dataset)


def _bytes(features: Features) -> int:
    return sum(x.nbytes for x in (features.embedding, features.first_global, *features.high_res))


def _together(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows (1, …) as one float32 tensor on the device."""
    there = [uploaded(row, device).to(torch.float32) for row in rows]
    return there[0] if len(there) == 1 else torch.cat(there)
