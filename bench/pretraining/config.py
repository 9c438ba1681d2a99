"""What a pre-training is: a file of configs/pretrain/, read and checked."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from bench.errors import RequestError, unknown
from bench.grid.protocol import read_toml
from bench.model.backbones import CONFIGS, SamConfig

LENGTH = ("summary", "steps", "cooldown_steps", "evaluate_every")  # what may change when a run goes on


@dataclass(frozen=True)
class PretrainConfig:
    """A file of configs/pretrain/: everything that can change the checkpoint. Its [gpu] section replaces values on a GPU,
    its [model] section sizes of the tiny architecture."""

    summary: str
    seed: int
    threads: int  # of the CPU
    cache_images: int
    held_out_images: int
    steps: int  # the last `cooldown_steps` of them bring the learning rate linearly to 0
    cooldown_steps: int
    warmup_steps: int
    half_size_steps: int  # the first steps see the images at half their size: a quarter of the tokens, four times as fast
    half_size_batch: int  # images a step, in those
    batch: int  # images a step
    objects: int  # prompts an image, at most
    prompt_shares: tuple[float, ...]  # of images prompted with boxes, points and noisy masks
    lr_matrices: float  # Muon, for the matrices of encoder blocks and the decoder's transformer; 0: AdamW for all
    lr: float  # AdamW, for everything else
    weight_decay: float
    bce_weight: float
    iou_weight: float  # of the squared error of SAM's own IoU estimate; dice has weight 1
    ema_decay: float
    evaluate_every: int  # steps
    model: SamConfig = field(default=CONFIGS["tiny"])

    def __post_init__(self) -> None:
        least = self.half_size_steps + self.warmup_steps + self.cooldown_steps
        if self.steps < least:
            raise RequestError(f"steps = {self.steps} is too small: half size, warm-up and cool-down together take {least}.")
        if len(self.prompt_shares) != 3 or not math.isclose(sum(self.prompt_shares), 1):
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
    """The config of a file, as it holds on `device`; RequestError for a key that is unknown, missing or of another type."""
    content = read_toml(path)
    gpu, model = content.pop("gpu", {}), content.pop("model", {})
    known = {name: kind for name, kind in get_type_hints(PretrainConfig).items() if name != "model"}
    _check_keys(f"{path}", content, known)
    _check_keys(f"{path} [gpu]", gpu, known)
    _check_keys(f"{path} [model]", model, [f.name for f in fields(SamConfig)])
    content |= gpu if device == "cuda" else {}
    missing = [name for name in known if name not in content]
    if missing:
        raise RequestError(f"{path} lacks {', '.join(missing)}.")
    values = {name: _typed(f"{path}: {name}", content[name], kind) for name, kind in known.items()}
    sizes: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
    return PretrainConfig(**values, model=replace(CONFIGS["tiny"], **sizes))


def _check_keys(where: str, given: dict[str, Any], allowed: Any) -> None:
    for key in given:
        if key not in allowed:
            raise unknown(f"key in {where}", key, allowed)


def _typed(where: str, value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind == tuple[float, ...] and isinstance(value, list) and all(type(v) in (int, float) for v in value):
        return tuple(map(float, value))
    if type(value) is kind:
        return value
    raise RequestError(f"{where} = {value!r} has the wrong type: {getattr(kind, '__name__', kind)} is needed.")


def run_key(config: PretrainConfig) -> str:
    """Names the folder of a run: all of its config but the length, so that a run can be made longer while it is going on."""
    kept = {name: value for name, value in asdict(config).items() if name not in LENGTH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
