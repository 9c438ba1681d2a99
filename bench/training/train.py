"""The training loop: `fit` yields one log a step, and can start at any step.

Everything random in step s follows from (seed, s) alone, so that a resumed training goes on exactly as if never interrupted.
"""

import inspect
import math
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.data.objects import Masks, Objects, sample_objects
from bench.errors import DivergedError
from bench.grid.protocol import Settings
from bench.model.dropout import part_of_batch
from bench.model.precision import computing, repeatable
from bench.model.segmenter import PromptableSegmenter
from bench.model.transfer import Download, pinned, uploaded
from bench.training.ahead import made_ahead
from bench.training.captured import CapturedStep, may_capture
from bench.training.losses import upsampled_loss
from bench.training.prepared import Prepared
from bench.training.process_group import SINGLE_PROCESS, ProcessGroup
from bench.training.prompts import prompts_of
from bench.training.streams import FreshStream, ReferenceStream, Stream
from bench.training.targets import LabelledMasks, Target, stacked, target_of
from bench.training.transforms import Augmentation, augmented
from bench.types import SEED, WHOLE, Dataset, Memory, Prompts


@dataclass(frozen=True)
class Log:
    """One step, counted from 1, of `steps`; `epoch` is counted from 1 too. The losses are before the step; `lr` is the first group's."""

    step: int
    steps: int
    epoch: int
    ends_epoch: bool
    loss: float
    bce: float
    dice: float
    lr: float


@dataclass(frozen=True)
class Example:
    """A training image (3, H, W) uint8 with prompts for n objects and their masks (n, H, W) uint8 0/1. identity: what the image is made
    of; two with the same one are the same image. () is none."""

    image: Tensor
    prompts: Prompts
    truth: Target
    identity: tuple[Hashable, ...] = ()

    @property
    def target(self) -> Tensor:
        """The masks as one tensor."""
        return stacked([self.truth])[0]

    def pinned(self, device: torch.device) -> "Example":
        """See `bench.model.transfer.pinned`."""
        truth = self.truth.pinned(device) if isinstance(self.truth, LabelledMasks) else pinned(self.truth, device)
        return Example(pinned(self.image, device), self.prompts.map(lambda x: pinned(x, device)), truth, self.identity)

    def there(self, device: torch.device) -> "Example":
        """With the image and masks on the device; prompts are scaled before they go there."""
        truth = self.truth.to(device) if isinstance(self.truth, LabelledMasks) else uploaded(self.truth, device)
        return Example(uploaded(self.image, device), self.prompts, truth, self.identity)


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """What training sees of an image at one step.

    image: (H, W, 3) uint8; objects: its n objects; kind: of its prompts, "point", "box" or "mask", one for each
    object; "none" where n is 0. augmentation: what made it of the image `name`.
    """

    name: str
    image: np.ndarray
    objects: Objects
    kind: str
    prompts: Prompts
    augmentation: Augmentation

    @property
    def example(self) -> Example:
        """As tensors; without objects the target is one empty mask."""
        identity = self.name, *self.augmentation.numbers
        return Example(torch.tensor(self.image).permute(2, 0, 1), self.prompts, target_of(self.objects), identity)

    @property
    def masks(self) -> Masks:
        """Of the objects, (n, H, W), made when they are asked for."""
        return self.objects.masks()


ALL = slice(None)


class ParameterGroup(NamedTuple):
    """Trained tensors that are stepped alike, by name. rate: where their learning rate's cosine starts; factor: what it is multiplied
    with in every epoch; decay: their weight decay."""

    names: tuple[str, ...]
    rate: float
    factor: float
    decay: float

    def __str__(self) -> str:
        return f"{len(self.names)} tensors: lr {self.factor * self.rate:g}, weight decay {self.decay:g}"


def parameter_groups(model: PromptableSegmenter, settings: Settings) -> list[ParameterGroup]:
    """The optimizer's groups: the protocol's rates and weight decays by group, in its order, and within each what the method says of
    factors and of tensors without decay."""
    rates, decays = dict(settings.lr_by_group), dict(settings.weight_decay_by_group)
    found: dict[tuple[str, float, float], list[str]] = {}
    for name in model.tuned():
        group = model.group_of(name) if rates or decays else ""
        decay = decays.get(group, settings.weight_decay) if model.decays(name) else 0.0
        found.setdefault((group if rates else "", model.rate_factor(name), decay), []).append(name)
    order = list(rates) or [""]
    alike = sorted(found.items(), key=lambda item: order.index(item[0][0]))
    return [ParameterGroup(tuple(names), rates.get(group, settings.lr), factor, decay) for (group, factor, decay), names in alike]


class AdamW(torch.optim.AdamW):
    """torch's, step for step, as it is written: around these methods torch imports torch.compile's 800 modules, 1.6 s of each process,
    to keep it out of them."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


for _name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
    setattr(AdamW, _name, inspect.unwrap(getattr(torch.optim.AdamW, _name)))


def optimizer_of(model: PromptableSegmenter, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters only, in the groups of `parameter_groups`."""
    tuned = model.tuned()
    groups = [{"params": [tuned[n] for n in g.names], "weight_decay": g.decay} for g in parameter_groups(model, settings)]
    return AdamW(groups, lr=settings.lr)


@dataclass(frozen=True)
class Step:
    """A step that was started, counted from 1 as `Log` is: the device may still be computing it."""

    number: int
    steps: int
    epoch: int
    ends_epoch: bool
    lr: float
    losses: Download

    def log(self, last_loss: float) -> Log:
        """Its log, when it is there. DivergedError, with the step and the last finite loss, where the loss is NaN or infinite."""
        total, bce, dice = self.losses.read()
        if not math.isfinite(total):
            raise DivergedError(f"The loss became {total} at step {self.number} of {self.steps}; the last finite one was {last_loss:.4g}.")
        return Log(self.number, self.steps, self.epoch, self.ends_epoch, total, bce, dice, self.lr)


def fit(
    model: PromptableSegmenter,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    support: Sequence[str],
    settings: Settings,
    seed: int,
    first_step: int = 0,
    memory: Memory = WHOLE,
    prepared: Prepared | None = None,
) -> Iterator[Log]:
    """Trains as `steps_of` does and yields the log of each step; the caller may evaluate between two of them."""
    last_loss = float("nan")
    for step in steps_of(model, optimizer, dataset, support, settings, seed, first_step, memory, prepared=prepared):
        log = step.log(last_loss)
        last_loss = log.loss
        yield log


def steps_of(
    model: PromptableSegmenter,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    support: Sequence[str],
    settings: Settings,
    seed: int,
    first_step: int = 0,
    memory: Memory = WHOLE,
    process_group: ProcessGroup = SINGLE_PROCESS,
    prepared: Prepared | None = None,
    capture: bool = False,
) -> Iterator[Step]:
    """Trains on the `support` images and yields each step once it is started: on a GPU, whoever reads a step's log after the next one was
    started keeps nobody waiting. A step's images are prepared while the one before it is computed.

    first_step: how many steps were made before, with the model and optimizer as they were then.
    process_group: the processes that share each batch; every one makes the same step.
    prepared: keeps what the encoder's frozen part says of images that training shows again.
    capture: on a GPU, a step whose shapes are those of the one before it is replayed as one graph (`bench.training.captured`).
    """
    each, device = epoch_steps(support, settings), model.device

    def examples_of(step: int) -> list[Example]:
        epoch, batch = divmod(step, each)
        part = slice(*process_group.share(images_of(support, settings, batch)))
        made = batch_of(dataset, support, settings, seed, epoch, batch, model.sam.config.grid, part)
        return [example.pinned(device) for example in made]

    shares = (process_group.share(images_of(support, settings, batch)) for batch in (0, each - 1))  # the last one may be shorter
    most = max(stop - first for first, stop in shares)
    model.encoder.pad_training_to(min(memory.micro_batch or most, most))
    groups = parameter_groups(model, settings)
    steps, alike = range(first_step, each * settings.epochs), repeats_one_sample(support, settings)
    kept = prepared if prepared and prepared.has_room(model, shown_images(support, settings), settings.precision) else None
    computed = CapturedStep(model, lambda given, seed, place: backward(model, given, seed, memory, settings.precision, place, kept))
    for step, examples in zip(steps, made_ahead(examples_of, steps, alike, lambda made: [e.there(device) for e in made]), strict=True):
        epoch, batch = divmod(step, each)
        lrs = [group.factor * cosine_lr(epoch, settings, group.rate) for group in groups]
        images = images_of(support, settings, batch)
        # The reference never calls train() again after its first evaluation.
        training = not (settings.eval_mode_after_first_look and epoch >= settings.evaluate_every)
        if model.training != training:  # it takes 2 ms
            model.train(training)
        optimizer.zero_grad()
        dropout_seed = int(_random("dropout", seed, step).integers(2**63))
        place = process_group.share(images)[0], images
        with repeatable(model.device):
            if capture and device.type == "cuda" and may_capture(memory, len(examples), kept is not None):
                own = computed(examples, dropout_seed, place)
            else:
                own = backward(model, examples, dropout_seed, memory, settings.precision, place, kept)
        losses = Download(process_group.summed(list(model.tuned().values()), own))
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        optimizer.step()
        yield Step(step + 1, steps.stop, epoch + 1, batch + 1 == each, lrs[0], losses)


def backward(
    model: PromptableSegmenter,
    examples: Sequence[Example],
    dropout_seed: int | None,
    memory: Memory = WHOLE,
    precision: str = "fp32",
    place: tuple[int, int] | None = None,
    prepared: Prepared | None = None,
) -> Tensor:
    """Adds the gradients of the batch's loss to the parameters', and returns that loss: total, bce, dice (3,), without a graph.
    The total holds the method's penalty too, if it has one.

    The loss is the mean over images of what each image's objects cost on average, so a part counts by its number of images.
    place: where the examples are only a part, the number of the first and the images of the whole batch; the sum over parts is the
    batch's. dropout_seed: None where the caller has seeded. prepared: keeps what the encoder's frozen part says of the images.
    """
    size = memory.micro_batch or max(1, len(examples))
    first, total = place or (0, len(examples))
    losses = torch.zeros(3, device=model.device)
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        images, sizes = [e.image for e in part], [(e.image.shape[-2], e.image.shape[-1]) for e in part]
        prompts = [model.placed(e.prompts, size) for e, size in zip(part, sizes, strict=True)]
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed)
        with part_of_batch(first + start, total), computing(precision, model.device):
            known = prepared.prefix(model, images, [e.identity for e in part], precision) if prepared else None
            features = model.encode(images, memory.checkpointing, known)
            loss = upsampled_loss(model.decode_low(features, prompts).logits, [e.truth for e in part])
        if features.penalty is not None:
            loss = loss._replace(total=loss.total + features.penalty.mean())
        (loss.total * (len(part) / total)).backward()
        losses += torch.stack(loss).detach() * (len(part) / total)
    return losses


def cosine_lr(epoch: int, settings: Settings, lr: float) -> float:
    """The learning rate of an epoch (counted from 0): a cosine over all epochs, without warm-up, from lr towards lr_min."""
    return settings.lr_min + (lr - settings.lr_min) * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2


def epoch_steps(support: Sequence[str], settings: Settings) -> int:
    """The steps of an epoch; the last one may have fewer images."""
    return math.ceil(len(support) / settings.batch)


def images_of(support: Sequence[str], settings: Settings, batch: int) -> int:
    """The images of an epoch's batch."""
    return min(settings.batch, len(support) - batch * settings.batch)


def shown_images(support: Sequence[str], settings: Settings) -> int | None:
    """How many different images training can show at a place in a batch, each as it is augmented; None where always new ones come."""
    if repeats_one_sample(support, settings):
        return 1
    if settings.augmentation_stream == "reseeded_workers":  # a place in a batch of a worker's turn has one recipe
        return len(support) * settings.batch * -(-epoch_steps(support, settings) // settings.loader_workers)
    return None if settings.random_crop else len(support) * settings.batch * (4 if settings.flips else 1)


def repeats_one_sample(support: Sequence[str], settings: Settings) -> bool:
    """Whether every epoch shows the same augmented sample, and no other."""
    return settings.augmentation_stream == "reseeded_workers" and len(support) == 1


def batch_of(
    dataset: Dataset, support: Sequence[str], settings: Settings, seed: int, epoch: int, batch: int, grid: int, part: slice = ALL
) -> list[Example]:
    """The examples of one step, or a part of them."""
    return [sample.example for sample in samples_of(dataset, support, settings, seed, epoch, batch, grid, part)]


def samples_of(
    dataset: Dataset, support: Sequence[str], settings: Settings, seed: int, epoch: int, batch: int, grid: int, part: slice = ALL
) -> list[TrainingSample]:
    """What one step sees, or a part of it: some of the epoch's shuffled support images, each with its own random recipe."""
    order = _random("order", seed, epoch).permutation(len(support))
    positions = range(batch * settings.batch, min((batch + 1) * settings.batch, len(support)))
    wanted = positions[part]
    streams: dict[int, Stream]
    if settings.augmentation_stream == "fresh":
        streams = {at: FreshStream(_random("recipe", seed, epoch, at)) for at in wanted}
    else:  # a batch's samples share a stream: those before the part are drawn too
        streams = dict.fromkeys(range(positions.start, wanted.stop), worker_stream(settings, seed, batch))
    drawn = {at: training_sample(dataset, support[order[at]], settings, stream, grid) for at, stream in streams.items()}
    return [drawn[at] for at in wanted]


def worker_stream(settings: Settings, seed: int, batch: int) -> ReferenceStream:
    """The randomness of an epoch's batch as the reference has it ("reseeded_workers"), the same in every epoch.

    Its loader's workers take batches in turn, each with a stream that starts from the seed in every epoch. So a worker's first batch
    has the reference's own numbers; later ones, which there go on where other images left the stream, start from numbers of ours.
    """
    turn = batch // settings.loader_workers
    return ReferenceStream(int(_random("worker", seed, turn).integers(int(SEED.most) + 1)) if turn else seed)


def training_sample(dataset: Dataset, name: str, settings: Settings, stream: Stream, grid: int) -> TrainingSample:
    """A training sample of the image `name`: augmented, with prompts of one kind for its objects; without objects there is no prompt."""
    how, loaded = dataset.training_prompts, dataset.load("train", name)
    height, width = loaded.mask.shape
    augmentation = Augmentation.drawn(height, width, stream, settings)
    sample = augmented(loaded, augmentation)
    kind, objects = stream.kind_and_objects(settings.prompt_types, sample_objects(sample, dataset.rule), how.max_objects)
    prompts = prompts_of(kind, objects, stream, how, 4 * grid)
    objects = objects.united() if kind == "none" and len(objects) else objects
    return TrainingSample(name, sample.image, objects, kind if len(objects) else "none", prompts, augmentation)


def _random(purpose: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])
