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
from bench.model.precision import computing
from bench.model.segmenter import PromptableSegmenter
from bench.training.losses import Loss, upsampled_loss
from bench.training.process_group import SINGLE_PROCESS, ProcessGroup
from bench.training.prompts import training_prompts
from bench.training.transforms import augment_sample
from bench.types import WHOLE, Dataset, Memory, Prompts


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
    epoch_steps = math.ceil(len(support) / settings.batch)
    steps, last_loss = epoch_steps * settings.epochs, float("nan")
    for step in range(first_step, steps):
        epoch, batch = divmod(step, epoch_steps)
        images = min(settings.batch, len(support) - batch * settings.batch)
        first, stop = process_group.share(images)
        examples = batch_of(dataset, support, settings, seed, epoch, batch, model.sam.config.grid, slice(first, stop))
        # The reference never calls train() again after its first evaluation.
        model.train(not (settings.eval_mode_after_first_look and epoch >= settings.evaluate_every))
        optimizer.zero_grad()
        dropout_seed = int(_random("dropout", seed, step).integers(2**63))
        own = backward(model, examples, dropout_seed, memory, settings.precision, (first, images))
        loss = Loss(*process_group.summed(list(model.tuned().values()), own))
        if not torch.isfinite(loss.total):
            now = loss.total.item()
            raise DivergedError(f"The loss became {now} at step {step + 1} of {steps}; the last finite one was {last_loss:.4g}.")
        for group, rate in zip(optimizer.param_groups, settings.rates, strict=True):
            group["lr"] = cosine_lr(epoch, settings, rate)
        optimizer.step()
        last_loss = loss.total.item()
        yield Log(
            step + 1,
            steps,
            epoch + 1,
            batch + 1 == epoch_steps,
            last_loss,
            loss.bce.item(),
            loss.dice.item(),
            cosine_lr(epoch, settings, settings.lr),
        )


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


def batch_of(
    dataset: Dataset, support: Sequence[str], settings: Settings, seed: int, epoch: int, batch: int, grid: int, part: slice = ALL
) -> list[Example]:
    """The examples of one step, or a part of them: some of the epoch's shuffled support images, each with its own random recipe."""
    order = _random("order", seed, epoch).permutation(len(support))
    positions = range(batch * settings.batch, min((batch + 1) * settings.batch, len(support)))[part]
    return [example(dataset, support[order[at]], settings, recipe(settings, seed, epoch, at), grid) for at in positions]


def recipe(settings: Settings, seed: int, epoch: int, position: int) -> np.random.Generator:
    """The randomness of the example at a position of an epoch's order.

    "reseeded_workers" is the reference's: its loader's workers take batches in turn and start from one seed every epoch, so
    an example's recipe follows from its place in its worker's stream, whatever the epoch and the worker.
    """
    if settings.augmentation_stream == "fresh":
        return _random("recipe", seed, epoch, position)
    batch, within = divmod(position, settings.batch)
    return _random("recipe", seed, batch // settings.loader_workers * settings.batch + within)


def example(dataset: Dataset, name: str, settings: Settings, rng: np.random.Generator, grid: int) -> Example:
    """A training example of the image `name`: augmented, with prompts of one kind for its objects.

    An image without objects has no prompt and one all-zero target.
    """
    how = dataset.training_prompts
    sample = augment_sample(dataset.load("train", name), rng, settings)
    objects = sample_objects(sample, dataset.rule)
    if how.max_objects is not None and len(objects) > how.max_objects:
        objects = objects[np.sort(rng.choice(len(objects), how.max_objects, replace=False))]
    kind = str(rng.choice(settings.prompt_types))
    prompts = training_prompts(kind, objects, rng, how, 4 * grid)
    target = objects.astype(np.uint8) if len(objects) else np.zeros((1, *sample.mask.shape), np.uint8)
    return Example(torch.tensor(sample.image).permute(2, 0, 1), prompts, torch.from_numpy(target))


def _random(purpose: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])
