"""The model that is pre-trained, its loss and its optimisers at a step, and its foreground IoU on held-out images."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import DivergedError, RequestError
from bench.model.checkpoints import load_sam
from bench.model.decoder import Decoder
from bench.model.sam import Sam, Tuner
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import SamConfig
from bench.pretraining.config import PretrainConfig
from bench.pretraining.data import Batch, Cache, HeldOut, training_batch
from bench.pretraining.muon import Muon
from bench.training.losses import dice_loss


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
        self.step, self.seconds = 0, 0.0
        half = replace(config.model, image_size=config.model.image_size // 2)
        self._take(initialised(half if config.is_half(0) else config.model, config.seed))
        self.ema = {name: tensor.clone() for name, tensor in self.sam.state_dict().items()}

    def _take(self, sam: Sam) -> None:
        """Trains `sam` from now on, with optimisers that remember nothing."""
        self.sam = sam.to(self.device).requires_grad_(True)
        self.model = PromptableSegmenter(self.sam, Tuner(), Decoder())
        self.optimisers = _optimisers(self.sam, self.config)

    def grow(self) -> None:
        """From half the image size to the whole one, once its steps are done; the averaged weights grow too."""
        if self.sam.config != self.config.model and not self.config.is_half(self.step):
            self._take(grown(self.sam.state_dict(), self.config.model))
            self.ema = {n: t.to(self.device) for n, t in grown(self.ema, self.config.model).state_dict().items()}

    def batch(self, cache: Cache) -> Batch:
        """The next step's batch."""
        config, half = self.config, self.config.is_half(self.step)
        images = config.half_size_batch if half else config.batch
        side = 4 * self.sam.config.grid
        return training_batch(cache, (config.seed, self.step), images, config.objects, config.prompt_shares, side, half)

    def train_step(self, batch: Batch) -> StepLoss:
        """One update; DivergedError where the loss is not finite."""
        loss = self.loss(batch)
        if not torch.isfinite(loss.total):
            raise DivergedError(f"The loss of step {self.step} is {float(loss.total)}: lower lr or lr_matrices.")
        self.sam.zero_grad(set_to_none=True)
        loss.total.backward()
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
        both, either = _overlap(logits, targets)
        iou = F.mse_loss(scores, both / either.clamp(min=1))
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
        if self.sam.config != self.config.model and not self.config.is_half(step - 1):
            self._take(initialised(self.config.model, self.config.seed))
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


def grown(weights: dict[str, Tensor], config: SamConfig) -> Sam:
    """A Sam of `config` from the weights of one for smaller images: absolute and relative positions are interpolated."""
    sam = load_sam(config)
    own = {}
    for name, target in sam.state_dict().items():
        tensor = weights[name].cpu()
        if tensor.shape != target.shape and tensor.ndim == 4:  # pos_embed, (1, g, g, C)
            tensor = F.interpolate(tensor.permute(0, 3, 1, 2), target.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        elif tensor.shape != target.shape:  # rel_pos, (2g - 1, c)
            tensor = F.interpolate(tensor.T[None], len(target), mode="linear")[0].T
        own[name] = tensor.clone()
    sam.load_state_dict(own)
    return sam


def _optimisers(sam: Sam, config: PretrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimisers, each with its peak learning rate."""
    inner = [*sam.image_encoder.blocks.modules(), *sam.mask_decoder.transformer.modules()]
    matrices = [p for m in inner if isinstance(m, nn.Linear) for p in m.parameters() if p.ndim == 2] if config.lr_matrices else []
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
    sam = load_sam(trainer.sam.config, {name: tensor.clone() for name, tensor in weights.items()}, trainer.device)
    model = PromptableSegmenter(sam, Tuner(), Decoder())
    return pooled_iou(model, scenes.boxes), pooled_iou(model, scenes.points)
