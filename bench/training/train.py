"""The training loop: `fit` yields one log a step, and can start at any step.

Everything random in step s follows from (seed, s) alone, so that a resumed training goes on exactly as if never interrupted.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.data.objects import sample_objects
from bench.errors import DivergedError
from bench.grid.protocol import Settings
from bench.model.dropout import part_of_batch
from bench.model.precision import computing, repeatable
from bench.model.segmenter import PromptableSegmenter
from bench.training.losses import Loss, upsampled_loss
from bench.training.process_group import SINGLE_PROCESS, ProcessGroup
from bench.training.prompts import training_prompts
from bench.training.streams import FreshStream, ReferenceStream, Stream
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
    """A training image (3, H, W) uint8 with prompts for n objects and their masks (n, H, W) uint8 0/1."""

    image: Tensor
    prompts: Prompts
    target: Tensor


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """What training sees of an image at one step.

    image: (H, W, 3) uint8; masks: its n objects, (n, H, W) bool; kind: of its prompts, "point", "box" or "mask", one for each
    object; "none" where n is 0. augmentation: what made it of the image `name`.
    """

    name: str
    image: np.ndarray
    masks: np.ndarray
    kind: str
    prompts: Prompts
    augmentation: Augmentation

    @property
    def example(self) -> Example:
        """As tensors; without objects the target is one empty mask."""
        target = self.masks if len(self.masks) else np.zeros((1, *self.image.shape[:2]), bool)
        return Example(torch.tensor(self.image).permute(2, 0, 1), self.prompts, torch.from_numpy(target.astype(np.uint8)))


ALL = slice(None)


def optimizer_of(model: PromptableSegmenter, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters only, those of one learning rate together, in the order of `Settings.rates`."""
    tuned = model.tuned()
    groups = [{"params": [p for name, p in tuned.items() if model.group_of(name) == group]} for group, _ in settings.lr_by_group]
    return torch.optim.AdamW(groups or tuned.values(), lr=settings.lr, weight_decay=settings.weight_decay)


def fit(
    model: PromptableSegmenter,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    support: Sequence[str],
    settings: Settings,
    seed: int,
    first_step: int = 0,
    memory: Memory = WHOLE,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[Log]:
    """Trains on the `support` images and yields the log of each step; the caller may evaluate between two of them.

    first_step: how many steps were made before, with the model and optimizer as they were then.
    process_group: the processes that share each batch; every one makes the same step.
    DivergedError, with the step and the last finite loss, where the loss is NaN or infinite.
    """
    each = epoch_steps(support, settings)
    steps, last_loss = each * settings.epochs, float("nan")
    for step in range(first_step, steps):
        epoch, batch = divmod(step, each)
        lrs = [cosine_lr(epoch, settings, rate) for rate in settings.rates]
        images = min(settings.batch, len(support) - batch * settings.batch)
        first, stop = process_group.share(images)
        examples = batch_of(dataset, support, settings, seed, epoch, batch, model.sam.config.grid, slice(first, stop))
        # The reference never calls train() again after its first evaluation.
        model.train(not (settings.eval_mode_after_first_look and epoch >= settings.evaluate_every))
        optimizer.zero_grad()
        dropout_seed = int(_random("dropout", seed, step).integers(2**63))
        with repeatable(model.device):
            own = backward(model, examples, dropout_seed, memory, settings.precision, (first, images))
        loss = Loss(*process_group.summed(list(model.tuned().values()), own))
        if not torch.isfinite(loss.total):
            now = loss.total.item()
            raise DivergedError(f"The loss became {now} at step {step + 1} of {steps}; the last finite one was {last_loss:.4g}.")
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        optimizer.step()
        last_loss = loss.total.item()
        yield Log(step + 1, steps, epoch + 1, batch + 1 == each, last_loss, loss.bce.item(), loss.dice.item(), lrs[0])


def backward(
    model: PromptableSegmenter,
    examples: Sequence[Example],
    dropout_seed: int,
    memory: Memory = WHOLE,
    precision: str = "fp32",
    place: tuple[int, int] | None = None,
) -> Tensor:
    """Adds the gradients of the batch's loss to the parameters', and returns that loss: total, bce, dice (3,), without a graph.
    The total holds the method's penalty too, if it has one.

    The loss is the mean over images of what each image's objects cost on average, so a part counts by its number of images.
    place: where the examples are only a part, the number of the first and the images of the whole batch; the sum over parts is the
    batch's.
    """
    size = memory.micro_batch or max(1, len(examples))
    first, total = place or (0, len(examples))
    losses = torch.zeros(3, device=model.device)
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        torch.manual_seed(dropout_seed)
        with part_of_batch(first + start, total), computing(precision, model.device):
            features = model.encode([e.image for e in part], memory.checkpointing)
            loss = upsampled_loss(model.decode_low(features, [e.prompts for e in part]).logits, [e.target for e in part])
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
    kind, masks = stream.kind_and_objects(settings.prompt_types, sample_objects(sample, dataset.rule), how.max_objects)
    prompts = training_prompts(kind, masks, stream, how, 4 * grid)
    return TrainingSample(name, sample.image, masks, kind if len(masks) else "none", prompts, augmentation)


def _random(purpose: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])
