"""The things that pass between the rooms: samples, prompts, features and data sets, their shapes fixed and documented once."""

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, get_args

import numpy as np

from bench.errors import RequestError

if TYPE_CHECKING:  # the planning of a grid must not wait for torch
    import torch
    from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Shots = int | Literal["full"]
ProgressCallback = Callable[[float, str], None]  # told the share of the work that is done, and what is being done; may raise to stop
FULL: Final = "full"  # all labelled images; also the name of a method, which no code may branch on


@dataclass(frozen=True)
class Range:
    """Beside a number's type, `Annotated[int, Range(1, 64)]`: both ends are allowed."""

    least: float
    most: float = math.inf

    def __call__(self, value: float) -> str:
        """Why a number is not in it, as the end of a sentence; "" where it is."""
        if self.least <= value <= self.most:
            return ""
        if value < self.least:
            return f"is too small: at least {_said(self.least)} is needed"
        return f"is {'too large' if value > self.most else 'no number'}: at most {_said(self.most)} is allowed"


def _said(limit: float) -> str:
    """1 and 1.0 alike: of two equal ranges, `Annotated` keeps the one that came first."""
    return str(int(limit)) if float(limit).is_integer() else str(limit)


SHOTS = Range(1, 2**31 - 1)
SEED = Range(0, 2**32 - 1)  # and of draws: what the generators of "reseeded_workers" take


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth.

    image: (H, W, 3) uint8 RGB; mask: (H, W) uint8, 1 foreground and 0 background; name: unique in its split.
    objects: (n, H, W) bool, where the data set says itself which objects there are, touching or not; labels: (H, W) of whole numbers,
    the same of objects that do not overlap: i + 1 where object i is, 0 where none is. Neither: they are the mask's components.
    class_map: (H, W) uint8, the class id of every pixel, 0 for the background, of a data set that has classes; such a sample states
    its objects, and classes (n,) is the class id of each. `bench.data.objects.class_objects` makes labels and classes from a class map.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    objects: np.ndarray | None = None
    labels: np.ndarray | None = None
    class_map: np.ndarray | None = None
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class ObjectRule:
    """Which connected components of a mask are objects: those of an area larger than
    max(min_area, largest area × relative_area) pixels, under 4- or 8-connectivity."""

    connectivity: Literal[4, 8] = 8
    min_area: int = 10
    relative_area: float = 0.0

    def limit(self, areas: np.ndarray) -> float:
        """The area in pixels that an object must exceed, in a mask whose components have `areas` (n,)."""
        return max(self.min_area, self.relative_area * float(areas.max(initial=0)))

    def count(self, sample: Sample) -> int:
        """How many objects a sample has, without a map for each."""
        import cv2  # planning reads few images or none

        areas: np.ndarray
        if sample.labels is not None:
            areas = np.bincount(sample.labels.ravel(), minlength=1)[1:]
        elif sample.objects is not None:
            areas = np.count_nonzero(sample.objects, axis=(1, 2))
        else:
            stats = cv2.connectedComponentsWithStats(sample.mask, connectivity=self.connectivity)[2]
            areas = stats[1:, cv2.CC_STAT_AREA]  # label 0 is the background
        return int(np.count_nonzero(areas > self.limit(areas)))


@dataclass(frozen=True)
class TrainingPrompts:
    """How a data set's training prompts are made: at most `max_objects` objects an image (None: all); a mask prompt gets
    noise where it differs from itself scaled down by `noise_scale` and up again, and is then cut at > `noise_threshold`."""

    max_objects: Annotated[int, Range(1)] | None = None
    noise_scale: Annotated[int, Range(1, 256)] = 8
    noise_threshold: float = 0.5


@dataclass(frozen=True)
class Memory:
    """Levers that trade time for memory in a training step; the gradients are the same.

    micro_batch: images that are in memory together, 0 for the whole batch. checkpointing: keep the encoder's blocks' inputs
    only, and compute the blocks again in backward.
    """

    micro_batch: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise RequestError(f"A micro-batch of {self.micro_batch} images: whole numbers from 1, or 0 for the whole batch, are allowed.")


WHOLE = Memory()
COMPILE_MODES = ("default", "reduce-overhead")  # of torch.compile; the second uses CUDA graphs
STEP_GRAPH = "step-graph"  # instead: nothing is compiled, and a training step is one CUDA graph where shapes repeat
KEPT_BYTES = 4 * 2**30  # of what evaluation prepared once, a process


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of one image, in pixels of that image; n prompts give n masks. All None: no prompt, one mask.

    boxes: (n, 4) xyxy; points: (n, k, 2) xy with labels (n, k): 1 foreground, 0 background, -1 padding;
    masks: (n, 1, 4g, 4g) for a backbone with a g×g grid, 0/1 or logits. All float tensors, labels too or integers.
    placed: whether they are in the pixels of a model's input already, and where the model is (`PromptableSegmenter.placed`).
    """

    boxes: "Tensor | None" = None
    points: "Tensor | None" = None
    labels: "Tensor | None" = None
    masks: "Tensor | None" = None
    placed: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        """The number of masks these prompts ask for: 1 without a prompt, but 0 where not one box (0, 4) is given."""
        return self.count if any(x is not None for x in (self.boxes, self.points, self.masks)) else 1

    @property
    def count(self) -> int:
        """The number of prompts; 0 without a prompt."""
        given = [x for x in (self.boxes, self.points, self.masks) if x is not None]
        return given[0].shape[0] if given else 0

    def to(self, device: "torch.device | str") -> "Prompts":
        """The same prompts on another device."""
        return self.map(lambda x: x.to(device))

    def part(self, start: int, stop: int) -> "Prompts":
        """The prompts start … stop-1; without a prompt, itself."""
        return self.map(lambda x: x[start:stop])

    def map(self, change: "Callable[[Tensor], Tensor]") -> "Prompts":
        """The prompts with each of their tensors changed."""
        boxes, points, labels, masks = (None if x is None else change(x) for x in (self.boxes, self.points, self.labels, self.masks))
        return Prompts(boxes, points, labels, masks, placed=self.placed)


class Features(NamedTuple):
    """What the encoder says of B images on a g×g grid.

    embedding: (B, d, g, g), the neck's output; first_global: (B, g, g, C), the output of the first global-attention block, or (B, 0)
    where the decoder does not read it and it was not kept;
    sizes: the images' own (H, W); native: whether the image was taken as it was (protocol `normalise_native_size = false`).
    penalty: what training adds to each image's loss, (B,), where the method has such a thing. high_res: the finer maps that the decoders
    of SAM 2 and SAM 3 read, (B, d/8, 4g, 4g) and (B, d/4, 2g, 2g).
    """

    embedding: "Tensor"
    first_global: "Tensor"
    sizes: tuple[tuple[int, int], ...]
    native: tuple[bool, ...]
    penalty: "Tensor | None" = None
    high_res: "tuple[Tensor, ...]" = ()

    def only(self, images: "Sequence[int]") -> "Features":
        """The features of these images, by their places in the batch."""
        at = list(images)
        if at == list(range(len(self.sizes))):
            return self
        sizes, native = tuple(self.sizes[i] for i in at), tuple(self.native[i] for i in at)
        penalty = None if self.penalty is None else _rows(self.penalty, at)
        high_res = tuple(_rows(each, at) for each in self.high_res)
        return Features(_rows(self.embedding, at), _rows(self.first_global, at), sizes, native, penalty, high_res)

    def mapped(self, change: "Callable[[Tensor], Tensor]") -> "Features":
        """The features with what the encoder gave changed, the penalty apart."""
        high_res = tuple(change(each) for each in self.high_res)
        return self._replace(embedding=change(self.embedding), first_global=change(self.first_global), high_res=high_res)


def _rows(tensor: "Tensor", at: "Sequence[int]") -> "Tensor":
    """Some rows, cut out one by one: a GPU would wait for a list of their numbers."""
    import torch

    return torch.cat([tensor[i : i + 1] for i in at])


class Dataset(ABC):
    """A data set: names by split, and the sample behind a name. One file in `datasets/` is one data set.

    A subclass names itself, its object rule and its official few-shot lists (shots -> names); `revision` is raised whenever
    its meaning changes (which images, which pixels), so that old cells are not mistaken for new ones. pool: the data set whose
    training images are its own too, if another's: both have the same draws and the same `val`.
    classes: id (1 to 255) -> name, where there are several; methods stay binary, one mask an object, and see none of it. metric: of
    `bench.grid.metrics`, what its papers report. settings: what its cells have in place of a protocol's common settings.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pool: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    rule: ClassVar[ObjectRule]
    training_prompts: ClassVar[TrainingPrompts] = TrainingPrompts()
    official: ClassVar[Mapping[int, tuple[str, ...]]] = {}
    val_images: ClassVar[int] = 64
    classes: ClassVar[Mapping[int, str]] = {}
    metric: ClassVar[str] = "miou"
    settings: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def is_generated(cls, data: Path) -> bool:
        """Whether what lies below `data` is a generated stand-in for the real images; such cells have keys of their own."""
        return False

    @classmethod
    def revision_of(cls, data: Path) -> int:
        """The revision of the data set that lies below `data`; differs from `revision` where its meaning stands in files there."""
        return cls.revision

    @classmethod
    @abstractmethod
    def open(cls, data: Path) -> Self:
        """The data set found below the folder `data`; DataError (one sentence: which folder was looked for, how to get it,
        which official image is missing, which image has no mask) where it is absent or incomplete."""

    @abstractmethod
    def names(self, split: Split) -> tuple[str, ...]:
        """The names of a split, sorted. `val` is part of `train` (or apart from both, where the data set has such a split)."""

    @abstractmethod
    def load(self, split: Split, name: str) -> Sample:
        """Reads one sample; DataError, naming the file, where it is broken."""

    def files(self) -> Mapping[str, Path]:
        """The files that samples are read from, by a name that does not depend on where they lie; none where they are drawn."""
        return {}

    def support(self, shots: Shots, draw: int = 0, hold_out_val: bool = False) -> tuple[str, ...]:
        """The names of the training images of a few-shot run.

        Draw 0 is the official list where there is one for `shots`; any other draw, or number of shots, takes the images whose
        hash of (data set, shots, draw, name) is smallest, so it never depends on the method, and is stratified by nothing. `val`
        images are never drawn, and an image without any object by the data set's rule is passed over: it has no prompt to train
        with. `full` takes the whole training split, without the `val` images if `hold_out_val`.
        """
        if shots == FULL:
            return self._pool() if hold_out_val else self.names("train")
        if draw == 0 and shots in self.official:
            return self.official[shots]
        drawn = tuple(itertools.islice(filter(self._has_object, self._hashed(shots, draw)), shots))
        if len(drawn) < shots:
            raise RequestError(
                f"Data set {self.name} cannot give {shots} shots: {len(drawn)} training images have an object, and 'full' takes all."
            )
        return tuple(sorted(drawn))

    def draw_revision(self, shots: Shots, draw: int) -> int:
        """1 where `support` passes over an image without objects, which draws of an earlier version had; else 0."""
        if shots == FULL or (draw == 0 and shots in self.official) or type(self).support is not Dataset.support:
            return 0
        return int(not all(map(self._has_object, self._hashed(shots, draw)[:shots])))

    def _hashed(self, shots: int, draw: int) -> list[str]:
        pool = self._pool()
        if not 1 <= shots <= len(pool):
            raise RequestError(f"Data set {self.name} cannot give {shots} shots: 1 to {len(pool)} or 'full' are allowed.")
        return hash_order(pool, self.pool or self.name, shots, draw)

    def _has_object(self, name: str) -> bool:
        if name not in self._counted:
            self._counted[name] = self.rule.count(self.load("train", name)) > 0
        return self._counted[name]

    @cached_property
    def _counted(self) -> dict[str, bool]:
        return {}

    def _pool(self) -> tuple[str, ...]:
        held_out = set(self.names("val"))
        return tuple(n for n in self.names("train") if n not in held_out)

    def hold_out(self, train: tuple[str, ...]) -> tuple[str, ...]:
        """The default `val` split: of the training images in no official list, those with the smallest hash; at most
        `val_images` and at most a quarter of them."""
        listed = {n for names in self.official.values() for n in names}
        free = [n for n in train if n not in listed]
        return tuple(sorted(hash_order(free, self.pool or self.name, "val")[: min(self.val_images, len(free) // 4)]))


def hash_order(names: "tuple[str, ...] | list[str]", *salt: object) -> list[str]:
    """`names` in the order of sha256(salt, name): a shuffle that depends on nothing else."""

    def digest(name: str) -> bytes:
        return hashlib.sha256("\0".join([*map(str, salt), name]).encode()).digest()

    return sorted(names, key=digest)
