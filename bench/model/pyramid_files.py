"""The tensors of SAM 2's and SAM 3's files under this project's names: Meta's .pt files and Hugging Face's, video models' as well."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bench.model.hugging_face import COMMON, Rules, renamed

# This project's names, and theirs.
_META: Rules = (
    (r"^image_encoder\.neck\.high_res\.", "sam_mask_decoder.conv_s"),
    (r"^image_encoder\.neck\.no_memory$", "no_mem_embed"),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
)
_META_MLP: Rules = ((r"(?<=\.mlp)\.lin1\.", ".layers.0."), (r"(?<=\.mlp)\.lin2\.", ".layers.1."))
_FPN = {"0.0": "0.dconv_2x2_0", "0.2": "0.dconv_2x2_1", "0.3": "0.conv_1x1", "0.4": "0.conv_3x3"}
_FPN |= {"1.0": "1.dconv_2x2", "1.1": "1.conv_1x1", "1.2": "1.conv_3x3", "2.0": "2.conv_1x1", "2.1": "2.conv_3x3"}
_HUGGING_FACE: Rules = (
    (r"^image_encoder\.neck\.high_res\.", "mask_decoder.conv_s"),
    (r"^image_encoder\.neck\.no_memory$", "no_memory_embedding"),
    (r"\.point_embeddings\.\d\.", ".point_embed."),
    (r"^(mask_decoder.*)\.out_proj\.", r"\1.o_proj."),
    *COMMON,
)
_PROJ: Rules = ((r"(?<=\.mlp)\.lin1\.", ".proj_in."), (r"(?<=\.mlp)\.lin2\.", ".proj_out."))
_HUGGING_FACE_SAM3: Rules = (
    (r"^image_encoder\.pos_embed$", "vision_encoder.backbone.embeddings.position_embeddings"),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.backbone.embeddings.patch_embeddings.projection."),
    (r"^image_encoder\.norm\.", "vision_encoder.backbone.layer_norm."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_encoder.backbone.layers.\1.attention.o_proj."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.", r"vision_encoder.backbone.layers.\1.attention."),
    (r"^image_encoder\.blocks\.(\d+)\.mlp\.lin", r"vision_encoder.backbone.layers.\1.mlp.fc"),
    (r"^image_encoder\.blocks\.", "vision_encoder.backbone.layers."),
    *((rf"^image_encoder\.neck\.convs\.{at}\.(\d)\.", rf"vision_encoder.neck.fpn_layers.{at}.@{at}\1.") for at in range(3)),
    (r"@00\.|@10\.", "scale_layers.0."),
    (r"@02\.", "scale_layers.2."),
    (r"@(03|11|20)\.", "proj1."),
    (r"@(04|12|21)\.", "proj2."),
)
LAYOUTS: Mapping[str, Rules] = {
    "this project's": (),
    "Meta's SAM 2": (
        *_META,
        (r"^image_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"^image_encoder\.(?!neck)", "image_encoder.trunk."),
        *_META_MLP,
    ),
    "Hugging Face's SAM 2": (
        *_HUGGING_FACE,
        *_PROJ,
        (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed.projection."),
        (r"^image_encoder\.neck\.", "vision_encoder.neck."),
        (r"^image_encoder\.", "vision_encoder.backbone."),
    ),
    "Meta's SAM 3": (
        (r"^image_encoder\.neck\.convs\.(\d\.\d)\.", r"detector.backbone.vision_backbone.sam2_convs.@\1."),
        *((rf"@{re.escape(at)}\.", f"{name}.") for at, name in _FPN.items()),
        *((pattern, f"tracker.{name}") for pattern, name in _META),
        (r"^image_encoder\.norm\.", "image_encoder.ln_pre."),
        (r"^(image_encoder.*\.mlp)\.lin", r"\1.fc"),
        (r"^image_encoder\.", "detector.backbone.vision_backbone.trunk."),
    ),
    "Hugging Face's SAM 3": (*_HUGGING_FACE, *_HUGGING_FACE_SAM3, *_PROJ),
    "Hugging Face's SAM 3 with its detector": (
        *_HUGGING_FACE,
        *_HUGGING_FACE_SAM3,
        *_PROJ,
        (r"^vision_encoder\.neck\.", "tracker_neck."),
        (r"^vision_encoder\.", "detector_model.vision_encoder."),
        (r"^(no_memory_embedding|prompt_encoder|mask_decoder)", r"tracker_model.\1"),
    ),
}


def name_in(layout: str, own: str) -> str:
    """The name that a tensor has in a layout; several may share one."""
    return renamed(own, LAYOUTS[layout])


def layout_of(tensors: Iterable[str], expected: Iterable[str]) -> str:
    """The layout of which a file has the most names."""
    known, wanted = set(tensors), list(expected)
    return max(LAYOUTS, key=lambda layout: sum(any(part in known for part in _parts(name_in(layout, own))) for own in wanted))


def pyramid_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SAM 2 or SAM 3 that are `expected`, as far as they are there, in this project's names and shapes. What only a video
    or a text needs is left out."""
    layout = layout_of(tensors, expected)
    found = {}
    for own, like in expected.items():
        parts = [tensors[name] for name in _parts(name_in(layout, own)) if name in tensors]
        if parts:
            found[own] = _shaped(own, torch.cat(parts), like)
    return found


def _parts(name: str) -> list[str]:
    """A tensor's name, and those of the three that Hugging Face makes of SAM 3's fused projection."""
    fused = ".attention.qkv."
    return [name, *(name.replace(fused, f".attention.{part}_proj.") for part in "qkv")] if fused in name else [name]


def _shaped(own: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of another layout in the shape that is expected, if it has as many numbers: of a table of points one row, of positions those
    of places alone."""
    if (row := re.fullmatch(r"prompt_encoder\.point_embeddings\.(\d)\.weight", own)) and len(tensor) == 4:
        tensor = tensor[int(row[1])][None]
    if own == "image_encoder.pos_embed" and tensor.ndim == 3 and tensor.shape[1] == like.shape[1] ** 2 + 1:
        tensor = tensor[:, 1:]  # the first is a class token's, from before SAM 3
    return tensor.reshape(like.shape) if tensor.numel() == like.numel() else tensor
