"""What a pre-training is: a file of configs/pretrain/, read and checked."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from bench.errors import RequestError
from bench.grid.toml_reader import NO_KEY, build, kinds, part, read_toml
from bench.model.sizes import CONFIGS, SamConfig
from bench.types import SEED, Range

LENGTH = ("summary", "steps", "cooldown_steps", "evaluate_every")  # what may change when a run goes on
Natural = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Amount = Annotated[float, Range(0.0)]
Share = Annotated[float, Range(0.0, 1.0)]


@dataclass(frozen=True)
class PretrainConfig:
    """A file of configs/pretrain/: everything that can change the checkpoint. Its [gpu] section replaces values on a GPU,
    its [model] section sizes of the tiny architecture."""

    summary: str
    seed: Annotated[int, SEED]
    threads: Positive  # of the CPU
    cache_images: Positive
    held_out_images: Positive
    steps: Positive  # the last `cooldown_steps` of them bring the learning rate linearly to 0
    cooldown_steps: Natural
    warmup_steps: Positive
    half_size_steps: Natural  # the first steps see the images at half their size: a quarter of the tokens, four times as fast
    half_size_batch: Positive  # images a step, in those
    batch: Positive  # images a step
    objects: Positive  # prompts an image, at most
    prompt_shares: tuple[Share, Share, Share]  # of images prompted with boxes, points and noisy masks
    lr_matrices: Amount  # Muon, for the matrices of encoder blocks and the decoder's transformer; 0: AdamW for all
    lr: Amount  # AdamW, for everything else
    weight_decay: Amount
    bce_weight: Amount
    iou_weight: Amount  # of the squared error of SAM's own IoU estimate; dice has weight 1
    ema_decay: Share
    evaluate_every: Positive  # steps
    model: SamConfig = field(default=CONFIGS["tiny"], metadata=NO_KEY)

    def __post_init__(self) -> None:
        least = self.half_size_steps + self.warmup_steps + self.cooldown_steps
        if self.steps < least:
            raise RequestError(f"steps = {self.steps} is too small: half size, warm-up and cool-down together take {least}.")
        if not math.isclose(sum(self.prompt_shares), 1):
            raise RequestError(f"prompt_shares = {list(self.prompt_shares)} must be three shares (box, point, mask) that sum to 1.")

    def rate(self, step: int) -> float:
        """The factor of the learning rates in `step` (from 0): warm-up (at both sizes), then constant, then linear to 0."""
        since = step - self.half_size_steps if step >= self.half_size_steps else step
        return min(1.0, (since + 1) / self.warmup_steps, (self.steps - step) / max(1, self.cooldown_steps))

    def is_half(self, step: int) -> bool:
        """Whether `step` sees images of half the size."""
        return step < self.half_size_steps

    def images_after(self, steps: int) -> int:
        """How many images the first `steps` steps see."""
        half = min(steps, self.half_size_steps)
        return half * self.half_size_batch + (steps - half) * self.batch


def squeezed(config: PretrainConfig, steps: int) -> PretrainConfig:
    """The same schedule in `steps` steps, all its parts in proportion."""
    if steps < 4:
        raise RequestError(f"--steps {steps} is too small: whole numbers from 4 are allowed.")
    parts = {name: getattr(config, name) * steps // config.steps for name in ("half_size_steps", "warmup_steps", "cooldown_steps")}
    parts["warmup_steps"] = max(1, parts["warmup_steps"])
    return replace(config, steps=steps, **parts)


def read_config(path: Path, device: str) -> PretrainConfig:
    """The config of a file, as it holds on `device`; RequestError for a key that is unknown, missing or has a wrong value."""
    gpu, model = (Annotated[Mapping[str, Any], kinds(cls)] for cls in (PretrainConfig, SamConfig))
    values = part(str(path), read_toml(path), {**kinds(PretrainConfig), "gpu": gpu, "model": model})
    on_gpu, sizes = values.pop("gpu", {}), values.pop("model", {})
    return build(str(path), values | (on_gpu if device == "cuda" else {}), PretrainConfig, model=replace(CONFIGS["tiny"], **sizes))


def run_key(config: PretrainConfig) -> str:
    """Names the folder of a run: all of its config but the length, so that a run can be made longer while it is going on."""
    kept = {name: value for name, value in asdict(config).items() if name not in LENGTH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
