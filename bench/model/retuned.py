"""Methods that tune SAM's own weights: a module that shares the frozen one's tensors, but for trainable copies of some."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from bench.model.decoder import Decoder
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT, MaskDecoder

M = TypeVar("M", bound=nn.Module)


def retuned(module: M, own: Callable[[str], bool], above: str = "") -> M:
    """`module` once more, with a trainable copy of each parameter that `own` says of its name; nothing changes in `module`.

    All other tensors are the frozen module's, as plain attributes: no memory, and not among the new one's parameters, which are
    the copies alone, under their names in `module`. For modules without buffers, as SAM's encoder and mask decoder are.
    """
    twin: M = object.__new__(type(module))
    twin.__dict__.update({name: copy(value) if isinstance(value, dict | set) else value for name, value in vars(module).items()})
    for name, parameter in module.named_parameters(recurse=False):
        if own(above + name):
            twin._parameters[name] = nn.Parameter(parameter.detach().clone())
        else:
            del twin._parameters[name]
            twin.__dict__[name] = parameter  # the same object, so it is where the backbone is, also after `sam.to(…)`
    for name, child in module.named_children():
        twin._modules[name] = retuned(child, own, f"{above}{name}.")
    return twin


@torch.no_grad()
def with_tensors(module: M, tensors: Mapping[str, Tensor]) -> M:
    """`module` once more, with these values of its tensors, by their names in it."""
    twin = retuned(module, tensors.__contains__)
    for name, parameter in twin.named_parameters():
        parameter.copy_(tensors[name])
    return twin


def used_parameters(*modules: nn.Module) -> int:
    """How many numbers these modules compute with, each tensor counted once: shared ones count, and those that a tuner computed in
    place of the frozen ones; what stands behind a copy does not."""
    held = (x for top in modules for module in top.modules() for x in (*module._parameters.values(), *vars(module).values()))
    return sum(tensor.numel() for tensor in {id(x): x for x in held if isinstance(x, Tensor)}.values())


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tuned tensors of a `retuned` module, under the frozen one's names."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


class RetunedTuner(Tuner):
    """Walks `own`, a `retuned` image encoder, in place of the frozen one."""

    def __init__(self, own: ImageEncoderViT) -> None:
        super().__init__()
        self.own = own

    def walked(self, vit: ImageEncoderViT) -> ImageEncoderViT:
        return self.own

    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor] | None:
        return own_tensors(self.own)


class RetunedDecoder(Decoder):
    """SAM's mask decoder, fine-tuned: every weight that its single mask is made with, as far as `own` says so of its name.

    The mask is all that the loss sees, so the hypernetworks of the other three masks and the head that estimates the IoU would
    get no gradient; they stay SAM's, as does the one that tells whether there is an object. So it has the single mask alone.
    """

    has_others = False
    UNREACHED = ("iou_prediction_head.", "pred_obj_score_head.", *(f"output_hypernetworks_mlps.{i}." for i in (1, 2, 3)))

    def __init__(self, sam: Sam, own: Callable[[str], bool] = lambda name: True) -> None:
        super().__init__()
        self.own = retuned(sam.mask_decoder, lambda name: own(name) and not name.startswith(self.UNREACHED))

    def mask_decoder(self, sam: Sam) -> MaskDecoder:
        return self.own

    def merged(self, sam: Sam) -> dict[str, Tensor] | None:
        return own_tensors(self.own)
