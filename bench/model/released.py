"""Released CAT-SAM checkpoints: their names for tensors, told apart and loaded as a model of this project."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench.errors import CheckpointError, RequestError
from bench.model.backbones import read_backbone
from bench.model.checkpoints import HQ_PARTS, architecture_of, check_numbers, load_sam, read_tensors
from bench.model.method import build
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import CONFIGS, SamConfig

# Our names of trained tensors, and the released ones.
RULES = (
    (r"tuner\.token\.weight", r"image_encoder.hq_token"),
    (r"tuner\.bridges\.(\d+)\.(.+)", r"image_encoder.hq_token_proj.\1.adapter.\2"),
    (r"tuner\.bridge_in\.(\d+)\.(.+)", r"image_encoder.hq_token_down_proj.\1.adapter.0.\2"),
    (r"tuner\.bridge_out\.(.+)", r"image_encoder.shared_up_proj.\1"),
    (r"tuner\.shared\.(.+)", r"image_encoder.prompt_generator.shared_mlp.\1"),
    (r"tuner\.embedding\.(.+)", r"image_encoder.prompt_generator.embedding_generator.\1"),
    (r"tuner\.light\.(\d+)\.(.+)", r"image_encoder.prompt_generator.lightweight_mlp_\1.0.\2"),
    (r"tuner\.handcrafted\.(.+)", r"image_encoder.prompt_generator.prompt_generator.proj.\1"),
    (r"decoder\.(.+)", r"mask_decoder.\1"),
)
# The frozen SAM stands twice in a released file, under these prefixes; its decoder stands once.
FROZEN_COPIES = {
    "image_encoder.": ("image_encoder.sam_img_encoder.", "ori_sam.image_encoder."),
    "prompt_encoder.": ("prompt_encoder.sam_prompt_encoder.", "ori_sam.prompt_encoder."),
    "mask_decoder.": ("mask_decoder.",),
}


def load_cat_sam(
    checkpoint: str | Path | Mapping[str, Tensor], sam: str | SamConfig | Sam | None = None, protocol: str = "paper"
) -> PromptableSegmenter:
    """The model of a released CAT-SAM checkpoint, T or A told from its keys.

    checkpoint: a path or a state dict, bare or under "model". sam: the backbone's name or sizes (its weights are the
    checkpoint's), or a loaded Sam (its own weights are used and shared); None tells it from the shapes.
    CheckpointError, in one sentence, for keys that are missing, unexpected or of another shape.
    """
    return load_released(checkpoint, sam, protocol)[1]


def load_released(
    checkpoint: str | Path | Mapping[str, Tensor], sam: str | SamConfig | Sam | None = None, protocol: str = "paper"
) -> tuple[str, PromptableSegmenter]:
    """The method's name, and the model as `load_cat_sam` gives it."""
    tensors, source = _released(checkpoint)
    check_numbers(source, tensors)
    method = "cat_sam_t" if any(".hq_token_proj." in name for name in tensors) else "cat_sam_a"
    try:
        backbone = sam if isinstance(sam, Sam) else load_sam(_config(sam, tensors), frozen_part(tensors))
        model = build(method, backbone, protocol=protocol)
        names = {own: released_name(own) for own in model.tuned()}
        missing = sorted(set(names.values()) - set(tensors))
        extra = sorted(set(tensors) - set(released_tensors(model)) - {"ori_sam.pixel_mean", "ori_sam.pixel_std"})
        if missing or extra:
            raise CheckpointError(f"missing {missing[:3]}, unexpected {extra[:3]}.")
        model.load_tuned({own: tensors[name].float() for own, name in names.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{source} is no {method} of this backbone: {error}") from None
    return method, model


def released_tensors(model: PromptableSegmenter) -> dict[str, Tensor]:
    """A CAT-SAM's state dict as it is released: the frozen SAM and the token twice. RequestError for a model of another method."""
    try:
        trained = {released_name(own): parameter.detach() for own, parameter in model.tuned().items()}
        token = trained["image_encoder.hq_token"]
    except KeyError as name:
        raise RequestError(f"Only the tensors of a CAT-SAM have names in the released format, and {name} is none of them.") from None
    frozen = model.sam.state_dict()
    copies = {
        prefix + name[len(own) :]: name
        for own, prefixes in FROZEN_COPIES.items()
        for prefix in prefixes
        for name in frozen
        if name.startswith(own)
    }
    return {**{name: frozen[own] for name, own in copies.items()}, **trained, "mask_decoder.hf_token.weight": token}


def released_name(own: str) -> str:
    """The released name of one of `PromptableSegmenter.tuned`'s names; KeyError for one that has none."""
    for pattern, name in RULES:
        if re.fullmatch(pattern, own):
            return re.sub(pattern, name, own)
    raise KeyError(own)


def frozen_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SAM's own tensors, under SAM's names, out of a released checkpoint."""
    found: dict[str, Tensor] = {}
    for own, copies in FROZEN_COPIES.items():
        for prefix in reversed(copies):
            found |= {own + n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix) and not HQ_PARTS.match(n)}
    return found


def _released(checkpoint: str | Path | Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    if isinstance(checkpoint, str | Path):
        if not Path(checkpoint).is_file():
            raise CheckpointError(f"There is no file {checkpoint}: the path of a released CAT-SAM checkpoint is needed.")
        tensors, source = read_tensors(Path(checkpoint)), str(checkpoint)
    else:
        tensors, source = dict(checkpoint), "The state dict"
        if isinstance(tensors.get("model"), Mapping):
            tensors = dict(tensors["model"])
    if "image_encoder.hq_token" not in tensors:
        raise CheckpointError(f"{source} is no CAT-SAM checkpoint: it has no image_encoder.hq_token.")
    return tensors, source


def _config(sam: str | SamConfig | None, tensors: Mapping[str, Tensor]) -> SamConfig:
    if isinstance(sam, SamConfig):
        return sam
    name = sam or architecture_of(frozen_part(tensors))
    if not sam and name.partition("(")[0] not in CONFIGS:
        raise CheckpointError(f"its SAM is {name}, and one of {', '.join(CONFIGS)} or a SamConfig is needed.")
    return read_backbone(name).config
