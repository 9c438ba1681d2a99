"""Hugging Face's SamModel and peft: the names that they have for SAM's tensors, and what an adapter is."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bench.errors import RequestError
from bench.model.sizes import SamConfig

if TYPE_CHECKING:
    from torch import Tensor

V = TypeVar("V")
SHARED = "shared_image_embedding.positional_embedding"  # the same tensor as the prompt encoder's, and the one that files have
Rules = tuple[tuple[str, str], ...]  # Meta's names, as patterns, and Hugging Face's; one after the other
_HEAD = r"(mlps\.\d|_head)\.layers\."  # of three layers
COMMON: Rules = (  # SAM 2 and SAM 3 have these too
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (rf"{_HEAD}0\.", r"\1.proj_in."),
    (rf"{_HEAD}1\.", r"\1.layers.0."),
    (rf"{_HEAD}2\.", r"\1.proj_out."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"^prompt_encoder\.pe_layer\..*", "prompt_encoder.shared_embedding.positional_embedding"),
)
RENAMED: Rules = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    *COMMON,
)
# What a SamHQModel adds: Hugging Face's names, and those of SAM-HQ's files.
HQ_RENAMED: Rules = (
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.layers\.0\.", "mask_decoder.hf_mlp.layers.1."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_in\.", "mask_decoder.hf_mlp.layers.0."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_out\.", "mask_decoder.hf_mlp.layers.2."),
    (r"^mask_decoder\.(compress_vit|encoder|mask)_conv1\.", r"mask_decoder.\1_0."),
    (r"^mask_decoder\.(compress_vit|encoder|mask)_norm\.", r"mask_decoder.\1_1."),
    (r"^mask_decoder\.(compress_vit|encoder|mask)_conv2\.", r"mask_decoder.\1_3."),
    (r"^mask_decoder\.compress_vit_(?=\d)", "mask_decoder.compress_vit_feat."),
    (r"^mask_decoder\.encoder_(?=\d)", "mask_decoder.embedding_encoder."),
    (r"^mask_decoder\.mask_(?=\d)", "mask_decoder.embedding_maskfeature."),
)


class PeftAdapter(NamedTuple):
    """An adapter of Hugging Face's peft on SAM's image encoder.

    config: its adapter_config.json, without where it belongs. tensors: by the encoder's own names, "blocks.0.attn.qkv.lora_A.weight"; what
    all layers share has no block's, "vera_A".
    """

    config: dict[str, Any]
    tensors: "dict[str, Tensor]"


def adapter_config(path: Path) -> dict[str, Any]:
    """The content of an adapter_config.json; RequestError where it is none."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise RequestError(f"{path} is no adapter_config.json: a table of values in JSON is needed.")
    return config


def hugging_face_name(name: str) -> str:
    """SamModel's name for a tensor of SAM."""
    return renamed(name, RENAMED)


def renamed(name: str, rules: Rules) -> str:
    """A name after all the rules."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def is_hugging_face(names: Iterable[str]) -> bool:
    """Whether a checkpoint's names are SamModel's."""
    return any(name.startswith("vision_encoder.") for name in names)


def from_hugging_face(tensors: Mapping[str, V], expected: Iterable[str]) -> dict[str, V]:
    """SamModel's tensors under SAM's names, as far as those are `expected`, and a SamHQModel's under SAM-HQ's; what has none keeps its
    own."""
    own = {hugging_face_name(name): name for name in expected}
    tied = own["prompt_encoder.shared_embedding.positional_embedding"]
    found = {own.get(name) or renamed(name, HQ_RENAMED): tensor for name, tensor in tensors.items() if name != SHARED}
    return found if tied in found or SHARED not in tensors else {**found, tied: tensors[SHARED]}


def to_hugging_face(tensors: Mapping[str, V]) -> dict[str, V]:
    """SAM's tensors under SamModel's names."""
    found = {hugging_face_name(name): tensor for name, tensor in tensors.items()}
    return {**found, SHARED: found["prompt_encoder.shared_embedding.positional_embedding"]}


def sam_model_config(config: SamConfig) -> dict[str, Any]:
    """The config.json of a SamModel of these sizes, what is the same of all left out."""
    vision = {
        "hidden_size": config.width,
        "output_channels": config.decoder_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "window_size": config.window,
        "global_attn_indexes": list(config.global_blocks),
        "mlp_dim": 4 * config.width,
        "num_pos_feats": config.decoder_width // 2,
    }
    prompts = {
        "hidden_size": config.decoder_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "mask_input_channels": config.mask_channels,
    }
    decoder = {
        "hidden_size": config.decoder_width,
        "mlp_dim": config.decoder_mlp,
        "num_hidden_layers": config.decoder_depth,
        "num_attention_heads": config.decoder_heads,
        "iou_head_hidden_dim": config.iou_width,
        "layer_norm_eps": 1e-5,  # as segment-anything's decoder has it
    }
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": vision,
        "prompt_encoder_config": prompts,
        "mask_decoder_config": decoder,
    }
