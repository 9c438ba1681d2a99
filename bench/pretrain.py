"""Pre-trains the tiny SAM on procedural home images; a run that was interrupted goes on where it was.

`python -m bench.pretrain --config configs/pretrain/tiny.toml` makes pretrained/tiny.safetensors (about an hour of two CPU
cores); `--config configs/pretrain/smoke.toml --out results/smoke.safetensors` shows in seconds that it works.
"""

import argparse
import math
import pickle
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from bench.backbones import CONFIGS, SamConfig
from bench.checkpoints import load_sam
from bench.decoder import Decoder
from bench.errors import CheckpointError, DivergedError, RequestError, unknown
from bench.losses import dice_loss
from bench.pretrain_curve import CurvePoint, append_point, draw_curve, read_curve
from bench.pretrain_data import Batch, Cache, HeldOut, generator_processes, held_out, open_cache, training_batch
from bench.pretrain_muon import Muon
from bench.protocol import read_toml
from bench.sam import Sam, Tuner
from bench.segmenter import PromptableSegmenter

ROOT = Path(__file__).parent.parent
SAVE_EVERY, SAY_EVERY = 60.0, 15.0  # seconds
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
        if not self.warmup_steps + self.cooldown_steps <= self.steps:
            raise RequestError(f"steps = {self.steps} is too small for {self.warmup_steps} steps of warm-up and {self.cooldown_steps} of cool-down.")
        if len(self.prompt_shares) != 3 or not math.isclose(sum(self.prompt_shares), 1):
            raise RequestError(f"prompt_shares = {list(self.prompt_shares)} must be three shares (box, point, mask) that sum to 1.")

    def rate(self, step: int) -> float:
        """The factor of the learning rates in `step` (from 0): warm-up, then constant, then linear to 0."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / max(1, self.cooldown_steps))


def read_config(path: Path, device: str, steps: int | None = None) -> PretrainConfig:
    """The config of a file, as it holds on `device`; RequestError for a key that is unknown, missing or of another type."""
    content = read_toml(path)
    gpu, model = content.pop("gpu", {}), content.pop("model", {})
    known = {name: kind for name, kind in get_type_hints(PretrainConfig).items() if name != "model"}
    _check_keys(f"{path}", content, known)
    _check_keys(f"{path} [gpu]", gpu, known)
    _check_keys(f"{path} [model]", model, [f.name for f in fields(SamConfig)])
    content |= gpu if device == "cuda" else {}
    content |= {} if steps is None else {"steps": steps}
    missing = [name for name in known if name not in content]
    if missing:
        raise RequestError(f"{path} lacks {', '.join(missing)}.")
    values = {name: _typed(f"{path}: {name}", content[name], kind) for name, kind in known.items()}
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
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


class StepLoss(NamedTuple):
    """Scalars: the weighted sum, and its parts."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    iou: Tensor


class Trainer:
    """A model, its optimisers and its moving average at a step; all that a resume file holds."""

    def __init__(self, config: PretrainConfig, device: str) -> None:
        self.config, self.device = config, device
        self.sam = initialised(config.model, config.seed).to(device).requires_grad_(True)
        self.model = PromptableSegmenter(self.sam, Tuner(), Decoder())
        self.ema = {name: tensor.clone() for name, tensor in self.sam.state_dict().items()}
        self.optimisers = _optimisers(self.sam, config)
        self.step, self.seconds = 0, 0.0

    def train_step(self, batch: Batch) -> StepLoss:
        """One update; DivergedError where the loss is not finite."""
        loss = self.loss(batch)
        if not torch.isfinite(loss.total):
            raise DivergedError(f"The loss of step {self.step} is {float(loss.total)}: lower lr or lr_matrices.")
        self.sam.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * self.config.rate(self.step)
            optimiser.step()
        self.step += 1
        self._average()
        return loss

    def loss(self, batch: Batch) -> StepLoss:
        """BCE and dice of the masks at the images' size, and the error of the IoU head."""
        low, scores = predictions(self.model, batch)
        targets = batch.targets().to(self.device)
        logits = F.interpolate(low[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        bce, dice = F.binary_cross_entropy_with_logits(logits, targets), dice_loss(logits, targets)
        iou = F.mse_loss(scores, _ious(logits, targets))
        return StepLoss(self.config.bce_weight * bce + dice + self.config.iou_weight * iou, bce, dice, iou)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        own = self.sam.state_dict()
        names = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.ema[n] for n in names], [own[n] for n in names], 1 - decay)

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "length": [self.config.steps, self.config.cooldown_steps],
            "sam": self.sam.state_dict(),
            "ema": self.ema,
            "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`; RequestError where the run was already cooling down for another number of steps."""
        step, (steps, cooldown) = state["step"], state["length"]
        start = min(steps - cooldown, self.config.steps - self.config.cooldown_steps)
        if [steps, cooldown] != [self.config.steps, self.config.cooldown_steps] and step > start:
            raise RequestError(
                f"The stored run is at step {step} of {steps} ({cooldown} of cool-down): it cannot go on with steps = "
                f"{self.config.steps} and cooldown_steps = {self.config.cooldown_steps}, which part ways at step {start}."
            )
        self.sam.load_state_dict(state["sam"])
        self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = step, state["seconds"]


def initialised(config: SamConfig, seed: int) -> Sam:
    """A Sam of random weights: the encoder's linear layers from N(0, 0.02²), an orthogonal patch embedding that loses nothing."""
    sam = load_sam(config, seed=seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in sam.image_encoder.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(sam.image_encoder.patch_embed.proj.weight)
        nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    return sam


def _optimisers(sam: Sam, config: PretrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimisers, each with its peak learning rate."""
    inner = [*sam.image_encoder.blocks.modules(), *sam.mask_decoder.transformer.modules()]
    matrices = [m.weight for m in inner if isinstance(m, nn.Linear)] if config.lr_matrices else []
    taken = {id(p) for p in matrices}
    rest = [p for p in sam.parameters() if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    if not matrices:
        return [(adamw, config.lr)]
    return [(Muon(matrices, config.lr_matrices, weight_decay=config.weight_decay), config.lr_matrices), (adamw, config.lr)]


def predictions(model: PromptableSegmenter, batch: Batch) -> tuple[Tensor, Tensor]:
    """Low-resolution logits (N, 4g, 4g) and IoU estimates (N,) of all prompts of a batch, in order."""
    decoded = model.decode_low(model.encode(batch.images), batch.prompts)
    return torch.cat(decoded.logits), torch.cat(decoded.iou)


def _overlap(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in the intersection and in the union of `logits` > 0 and `targets`, per object (N,)."""
    predicted, wanted = (logits > 0).flatten(1), (targets > 0).flatten(1)
    return (predicted & wanted).sum(1), (predicted | wanted).sum(1)


def _ious(logits: Tensor, targets: Tensor) -> Tensor:
    both, either = _overlap(logits, targets)
    return both / either.clamp(min=1)


@torch.inference_mode()
def pooled_iou(model: PromptableSegmenter, batches: list[Batch]) -> float:
    """Foreground IoU in percent, pooled: the sum of all objects' intersections over the sum of their unions."""
    both = either = 0
    for batch in batches:
        targets = batch.targets().to(model.device)
        logits = F.interpolate(predictions(model, batch)[0][:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        sums = _overlap(logits, targets)
        both, either = both + int(sums[0].sum()), either + int(sums[1].sum())
    return 100 * both / max(1, either)


def evaluated(trainer: Trainer, weights: dict[str, Tensor], scenes: HeldOut) -> tuple[float, float]:
    """Box and point IoU in percent on the held-out images, with `weights` in the place of the trainer's own."""
    sam = load_sam(trainer.config.model, weights, trainer.device)
    model = PromptableSegmenter(sam, Tuner(), Decoder())
    return pooled_iou(model, scenes.boxes), pooled_iou(model, scenes.points)
