"""A pre-training on disk: it is saved every minute, goes on where it was, and ends as a checkpoint with its card."""

import hashlib
import io
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bench.errors import CheckpointError
from bench.grid.files import write_together
from bench.model.checkpoints import first_line
from bench.model.precision import deterministic
from bench.pretraining.card import Facts, card
from bench.pretraining.config import PretrainConfig, run_key
from bench.pretraining.curve import CurvePoint, append_point, draw_curve, read_curve, write_curve
from bench.pretraining.data import held_out, open_cache
from bench.pretraining.trainer import StepLoss, Trainer, evaluated
from bench.running.workers import StopSignal

SAVE_EVERY, SAY_EVERY = 60.0, 15.0  # seconds


class Run:
    """A pre-training on disk: its trainer, its folder, and what it has reached."""

    def __init__(self, config: PretrainConfig, folder: Path, device: str) -> None:
        self.config, self.folder = config, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.cache = open_cache(folder.parent / "cache", config.cache_images, config.model.image_size, len(os.sched_getaffinity(0)), say)
        self.scenes = held_out(config.held_out_images, config.model.image_size)
        self.trainer = Trainer(config, device)
        self.resume_file, self.curve_file = folder / "resume.pt", folder / "curve.csv"
        if self.resume_file.is_file():
            self.trainer.load(read_resume(self.resume_file))
            say(f"going on from step {self.trainer.step} of {self.resume_file}")

    def save(self) -> None:
        """Writes the resume file, as a whole or not at all."""
        buffer = io.BytesIO()
        torch.save(self.trainer.state(), buffer)
        write_together(self.folder, {self.resume_file.name: buffer.getvalue()}, durable=False)

    def train(self, stop: Callable[[], bool]) -> bool:
        """Trains until the last step, or until `stop`, and saves; whether it was the last step."""
        trainer, config = self.trainer, self.config
        saved, progress = time.monotonic(), Progress(config, trainer.step)
        while trainer.step < config.steps and not stop():
            started = time.monotonic()
            trainer.grow()
            progress.add(trainer.train_step(trainer.batch(self.cache)))
            trainer.seconds += time.monotonic() - started
            progress.report(trainer.step)
            if trainer.step % config.evaluate_every == 0 or trainer.step == config.steps:
                self.evaluate(progress.mean_loss())
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        return trainer.step == config.steps

    def evaluate(self, loss: float) -> None:
        """Adds a point to the curve; `loss` is the mean one since the last."""
        trainer = self.trainer
        own, averaged = evaluated(trainer, trainer.sam.state_dict(), self.scenes), evaluated(trainer, trainer.ema, self.scenes)
        images = self.config.images_after(trainer.step)
        append_point(self.curve_file, CurvePoint(trainer.step, images, trainer.seconds, loss, *own, *averaged))
        say(f"step {trainer.step}: box IoU {own[0]:.1f} (averaged weights {averaged[0]:.1f}), point IoU {own[1]:.1f} ({averaged[1]:.1f})")


class Progress:
    """The log's lines: one every `SAY_EVERY` seconds, with the mean loss of its steps, the speed and the time that is left."""

    def __init__(self, config: PretrainConfig, step: int) -> None:
        self.config, self.step, self.since = config, step, time.monotonic()
        self.losses: list[float] = []
        self.parts: list[list[float]] = []

    def add(self, loss: StepLoss) -> None:
        """Takes note of a step's loss."""
        self.parts.append([part.item() for part in loss])
        self.losses.append(self.parts[-1][0])

    def report(self, step: int) -> None:
        """Says how it goes where it is time to."""
        seconds = time.monotonic() - self.since
        if seconds < SAY_EVERY:
            return
        total, bce, dice, iou = (sum(column) / len(self.parts) for column in zip(*self.parts, strict=True))
        rate = (self.config.images_after(step) - self.config.images_after(self.step)) / seconds
        left = (self.config.images_after(self.config.steps) - self.config.images_after(step)) / rate
        say(
            f"step {step}/{self.config.steps}  loss {total:.3f} (bce {bce:.3f}, dice {dice:.3f}, iou {iou:.3f})  "
            f"{rate:.1f} images/s  {left / 60:.0f} min left"
        )
        self.parts, self.step, self.since = [], step, time.monotonic()

    def mean_loss(self) -> float:
        """Of the steps since this was last asked."""
        losses, self.losses = self.losses, []
        return sum(losses) / max(1, len(losses))


def read_resume(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote; CheckpointError, naming the file, where it is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "optimisers" not in state:
            raise ValueError("it is no state of a pre-training")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"The resume file {path} is truncated or damaged ({first_line(error)}): delete it to start again.") from None
    return state


def say(line: str) -> None:
    """A line of the log, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def finish(run: Run, out: Path, command: str) -> None:
    """Writes the better of the last and the averaged weights, the curve with its picture, and the card."""
    trainer, points = run.trainer, read_curve(run.curve_file)
    averaged = points[-1].averaged_box_iou > points[-1].box_iou
    weights = trainer.ema if averaged else trainer.sam.state_dict()
    rounded = {name: tensor.half().float() for name, tensor in weights.items()}
    box, point = evaluated(trainer, rounded, run.scenes)
    content = save({name: tensor.detach().cpu().half().contiguous() for name, tensor in sorted(weights.items())})
    facts = Facts(
        box_iou=box,
        point_iou=point,
        objects=run.scenes.objects,
        images=points[-1].images,
        seconds=trainer.seconds,
        parameters=sum(p.numel() for p in trainer.sam.parameters()),
        averaged=averaged,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        device=trainer.device,
    )
    write_curve(out.with_name(f"{out.stem}_curve.csv"), points)
    draw_curve(out.with_name(f"{out.stem}_curve.png"), points, f"Pre-training of {out.stem}, {facts.objects} held-out objects")
    text = card(out, run.config, facts, command).encode()
    write_together(out.parent, {f"{out.stem}.md": text, out.name: content})  # a checkpoint that is there is finished: it comes last
    say(
        f"wrote {out} ({len(content) / 1e6:.1f} MB): box IoU {box:.2f}, point IoU {point:.2f}, {'averaged' if averaged else 'last'} weights"
    )


@contextmanager
def repeatable(config: PretrainConfig, device: str) -> Iterator[None]:
    """Within it, a CPU's run has the config's threads and always the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with deterministic() if device == "cpu" else nullcontext():  # else two threads add up index gradients in any order
            yield
    finally:
        torch.set_num_threads(threads)


def pretrain(config: PretrainConfig, out: Path, work: Path, device: str, command: str, stop: Callable[[], bool] | None = None) -> bool:
    """Pre-trains, or goes on with it, and writes the checkpoint `out`, its curve and its card; False where `stop` came first, which is
    Ctrl-C where none is given.

    work: a folder for the cache and for one folder a run, by `run_key`. command: for the card.
    """
    with repeatable(config, device):
        run = Run(config, work / run_key(config), device)
        with StopSignal() as signals:
            done = run.train(stop or (lambda: signals.asked))
        if done:
            finish(run, out, command)
        else:
            say(f"stopped at step {run.trainer.step} of {config.steps}; the same command goes on from there")
    return done
