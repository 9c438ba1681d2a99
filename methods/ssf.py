"""SSF (Lian et al., Scaling & Shifting Your Features, NeurIPS 2022): a scale and a shift after every operation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.model.method import LATER, EncoderMethod
from bench.model.retuned import RetunedTuner, retuned
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT, LayerNorm2d
from bench.model.scaling import scaled_onto

OF_NECKS = (LayerNorm2d, nn.Conv2d, nn.ConvTranspose2d)
STD = 0.02  # of the official code's initialisation, around 1 and 0; the paper does not give it


class ScaleShift(nn.Module):
    """γ·layer(x) + β, channel by channel. `layer` is frozen and has a bias."""

    def __init__(self, layer: Any, channels_first: bool) -> None:
        super().__init__()
        self.layer, self.channels_first = layer, channels_first
        self.gamma, self.beta = (nn.Parameter(torch.empty(len(layer.bias))) for _ in range(2))
        nn.init.normal_(self.gamma, mean=1, std=STD)
        nn.init.normal_(self.beta, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 1, 1) if self.channels_first else (-1,)
        return scaled_onto(self.beta.view(shape), self.layer(x), self.gamma.view(shape))

    def merged(self) -> dict[str, Tensor]:
        """The layer's weight and bias with which it is the whole (section 3.3 of the paper: re-parameterisation)."""
        weight, bias, gamma, beta = (x.detach() for x in (self.layer.weight, self.layer.bias, self.gamma, self.beta))
        shape = [1] * weight.ndim
        shape[isinstance(self.layer, nn.ConvTranspose2d)] = -1  # whose outputs are its weight's second dimension
        return {"weight": gamma.view(shape) * weight, "bias": gamma * bias + beta}


class SSFTuner(RetunedTuner):
    """Walks an encoder in which scales and shifts stand behind the frozen layers."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(scaled(retuned(sam.image_encoder, lambda name: False)))

    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor] | None:
        pairs = [(name, module) for name, module in self.own.named_modules() if isinstance(module, ScaleShift)]
        return {f"{name}.{kind}": tensor for name, module in pairs for kind, tensor in module.merged().items()}


def scaled(own: ImageEncoderViT) -> ImageEncoderViT:
    """`own` with a scale and shift after the patch embedding and the norm behind it, each block's norms, projections and MLP layers, and
    the neck's layers: all that have a bias to merge a shift into."""
    _scale(own.patch_embed, ("proj",), channels_first=True)
    _scale(own, ("norm",))
    for block in own.blocks:
        _scale(block, ("norm1", "norm2"))
        _scale(block.attn, ("qkv", "proj"))
        _scale(block.mlp, ("lin1", "lin2"))
        _scale(block, ("proj",))
    for part in list(own.neck.modules()):
        if isinstance(part, nn.Sequential | nn.ModuleList):
            _scale(part, [name for name, layer in part.named_children() if isinstance(layer, OF_NECKS)], channels_first=True)
    return own


def _scale(part: nn.Module, names: Sequence[str], channels_first: bool = False) -> None:
    for name in names:
        layer = getattr(part, name, None)
        if getattr(layer, "bias", None) is not None:
            setattr(part, name, ScaleShift(layer, channels_first))


@METHODS.register("ssf")
@dataclass(frozen=True)
class SSF(EncoderMethod):
    """After the patch embedding, norm1, qkv, proj, norm2, and both layers of the MLP, as in the official ViT; for its last norm
    stand the two of SAM's neck. Its convolutions have no bias that a shift could be merged into, and get none; those of the newer necks
    have one.

    decay: whether scales and shifts have weight decay, which they have not in the original.
    """

    decay: bool = field(default=True, metadata=LATER)
    title: ClassVar[str] = "SSF"
    source: ClassVar[str] = "Lian et al., Scaling & Shifting Your Features, NeurIPS 2022"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "a scale and a shift after every operation"
    pyramid: ClassVar[str] = "also behind the layer that widens the residual, and the pyramid's convolutions"
    rates: ClassVar[str] = "AdamW 1e-3, decay 0.05 (CIFAR-100)"
    oracle: ClassVar[str] = "hooks behind a stock ViT's layers, 1e-5"

    def decays(self, name: str) -> bool:
        return self.decay or not name.startswith("tuner.")

    def tuner(self, sam: Sam) -> Tuner:
        return SSFTuner(sam)
