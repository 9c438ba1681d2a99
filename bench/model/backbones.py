"""The backbones: sizes of the architectures, and the files of configs/backbones/ that name pre-trained weights. Known without torch, so
that a grid is planned at once."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from bench import ROOT
from bench.errors import CheckpointError, RequestError, unknown
from bench.grid.spec import parse_call
from bench.grid.toml_reader import NO_KEY, load, part
from bench.types import Range

Size = Annotated[int, Range(1)]


@dataclass(frozen=True)
class SamConfig:
    """The sizes of a SAM. Sizes of images and patches in pixels, of a window in patches."""

    image_size: Size
    patch_size: Size
    width: Size
    depth: Size
    heads: Size
    window: Size
    global_blocks: tuple[Annotated[int, Range(0)], ...]
    decoder_width: Size = 256
    decoder_mlp: Size = 2048
    decoder_heads: Size = 8
    decoder_depth: Size = 2
    mask_channels: Size = 16
    iou_width: Size = 256

    @property
    def grid(self) -> int:
        """Patches along a side: an image has grid² tokens, a mask logit map side 4·grid."""
        return self.image_size // self.patch_size


CONFIGS = {
    "vit_b": SamConfig(1024, 16, 768, 12, 12, 14, (2, 5, 8, 11)),
    "vit_l": SamConfig(1024, 16, 1024, 24, 16, 14, (5, 11, 17, 23)),
    "vit_h": SamConfig(1024, 16, 1280, 32, 16, 14, (7, 15, 23, 31)),
    "tiny": SamConfig(128, 8, 192, 6, 6, 8, (2, 5), decoder_width=128, decoder_mlp=512, iou_width=128),
}


def frozen_bytes(config: SamConfig, parts: int, reads_first_global: bool, precision: str) -> int:
    """What `bench.training.prepared` keeps of an image that the first `parts` of an encoder, its blocks and then its neck, have seen."""
    if not parts:
        return 0
    channels = config.decoder_width if parts > config.depth else config.width
    reached = reads_first_global and parts > min(config.global_blocks, default=config.depth)
    return config.grid**2 * (4 * channels + reached * config.width * (2 if precision == "bf16" else 4))


BACKBONES, PRETRAINED = ROOT / "configs" / "backbones", ROOT / "pretrained"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of a model's folder from Hugging Face
Normalisation = Literal["mean_std", "min_max"]
Three = tuple[float, float, float]


def _is_architecture(name: str) -> str:
    return "" if name in CONFIGS else f"is no architecture: {', '.join(CONFIGS)} are"


@dataclass(frozen=True)
class BackboneSpec:
    """A file of configs/backbones/: a SAM that somebody trained.

    name: as it is asked for, "vit_b" or "vit_b(image_size=512)". architecture: of CONFIGS. file: its checkpoint, below `pretrained`.
    source: where to get that. sha256: of it, "" where nobody published one. hugging_face: the model's name there. normalisation: of the
    encoder's input, by pixel_mean and pixel_std of RGB in 0–255, or every image to 0–1 by its own least and largest value.
    """

    name: str = field(metadata=NO_KEY)
    title: str
    architecture: Annotated[str, _is_architecture]
    file: str
    source: str
    licence: str
    sha256: str = ""
    hugging_face: str = ""
    normalisation: Normalisation = "mean_std"
    pixel_mean: Three = (123.675, 116.28, 103.53)
    pixel_std: Three = (58.395, 57.12, 57.375)
    image_size: int = field(default=0, metadata=NO_KEY)  # 0: the architecture's own

    @property
    def config(self) -> SamConfig:
        """The sizes of its model."""
        own = CONFIGS[self.architecture]
        return replace(own, image_size=self.image_size or own.image_size)


def backbone_names() -> list[str]:
    """The names of the backbones: those of the files in configs/backbones/."""
    return sorted(path.stem for path in BACKBONES.glob("*.toml"))


def read_backbone(text: str) -> BackboneSpec:
    """The backbone that a user names, "medsam" or "vit_b(image_size=512)"; RequestError where there is none, or of no such size."""
    name, changes = parse_call(text) if "(" in text else (text.strip(), {})
    if name not in (known := backbone_names()):
        raise unknown("backbone", name, known)
    spec = _read(name)
    side, patch = (
        part(name, changes, {"image_size": Size}, "parameter of").get("image_size", spec.config.image_size),
        spec.config.patch_size,
    )
    if side % patch:
        raise RequestError(f"{name}(image_size={side}): a multiple of its patches' {patch} pixels is needed.")
    if side == spec.config.image_size:
        return spec
    return replace(spec, name=f"{name}(image_size={side})", image_size=side)


@cache
def _read(name: str) -> BackboneSpec:
    return load(BACKBONES / f"{name}.toml", BackboneSpec, name=name)


def checkpoint_path(backbone: str, pretrained: Path, checkpoint: Path | None = None) -> Path:
    """The checkpoint of a named backbone: the file given in its place, or its own below `pretrained`, either also as a model's folder from
    Hugging Face; CheckpointError where there is none."""
    spec = read_backbone(backbone)
    path = checkpoint or pretrained / spec.file
    path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)
    if not path.is_file():
        how = f"{spec.source}; put the file there, or give another by --checkpoint" if checkpoint is None else "a file is needed"
        raise CheckpointError(f"The checkpoint of {backbone} is not at {path}. {how}.")
    return path
