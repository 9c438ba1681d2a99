"""A tuned model as one SAM: the weights that a stock SAM computes it with, and how images have to be taken for them."""

from functools import cache

import torch
from torch import Tensor

from bench.grid.registry import METHODS
from bench.model.method import build, outline
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import CONFIGS


def image_notes(model: PromptableSegmenter) -> str:
    """How a tool has to prepare images for the exported weights, where that is not what SAM's own predictor does."""
    side = model.sam.config.image_size
    said = [] if model.resize == "longest_side" else [
        f"squashed to {side} × {side} pixels, whatever their shape, and SamPredictor keeps the aspect ratio and pads: squash them before "
        "it, or train under a protocol with resize=longest_side"
    ]  # fmt: skip
    said += ["scaled to 0–1 each, which SamPredictor does not do"] if model.sam.normalisation == "min_max" else []
    said += [f"taken raw where they have exactly that size ({side})"] if not model.normalise_native_size else []
    return f"Images were {'; they were '.join(said)}." if said else "Images are taken as SamPredictor takes them."


def merged_tensors(model: PromptableSegmenter) -> dict[str, Tensor] | None:
    """A stock SAM's state dict that computes what the model does; None where the method adds what no weight of SAM holds."""
    encoder, decoder = model.tuner.merged(model.sam.image_encoder), model.decoder.merged(model.sam)
    if encoder is None or decoder is None:
        return None
    merged = {f"image_encoder.{name}": tensor for name, tensor in encoder.items()}
    merged |= {f"mask_decoder.{name}": tensor for name, tensor in decoder.items()}
    merged |= {f"prompt_encoder.{name}": tensor for name, tensor in model.decoder.prompt_tensors().items()}
    own = model.sam.state_dict()
    wrong = [name for name, tensor in merged.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise ValueError(f"The method merges into what SAM has not: {', '.join(wrong[:3])}.")
    return {name: tensor.detach() for name, tensor in {**own, **merged}.items()}


@cache
def mergeable() -> tuple[str, ...]:
    """The registered methods that, by their defaults, can be merged into SAM's weights."""
    names, sam = METHODS.names(), outline(CONFIGS["tiny"])
    with torch.device("meta"):
        return tuple(name for name in names if merged_tensors(build(name, sam)) is not None)
