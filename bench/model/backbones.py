"""The backbones: sizes of the architectures, and the files of configs/backbones/ that name pre-trained weights. Known without torch, so
that a grid is planned at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from bench import ROOT
from bench.errors import CheckpointError, RequestError, need_known
from bench.grid.spec import parse_call
from bench.grid.toml_reader import NO_KEY, load, part
from bench.model.sizes import CONFIGS, SamConfig, Size

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
    source: where to get that. sha256: of it, "" where nobody published one. hugging_face: the name of its SamModel there. also: other
    names there of the same weights. normalisation: of the encoder's input, by pixel_mean and pixel_std of RGB in 0–255, or every image
    to 0–1 by its own least and largest value.
    """

    name: str = field(metadata=NO_KEY)
    title: str
    architecture: Annotated[str, _is_architecture]
    file: str
    source: str
    licence: str
    sha256: str = ""
    hugging_face: str = ""
    also: tuple[str, ...] = ()
    normalisation: Normalisation = "mean_std"
    pixel_mean: Three = (123.675, 116.28, 103.53)
    pixel_std: Three = (58.395, 57.12, 57.375)
    image_size: int = field(default=0, metadata=NO_KEY)  # 0: the architecture's own

    @property
    def config(self) -> SamConfig:
        """The sizes of its model."""
        own = CONFIGS[self.architecture]
        return replace(own, image_size=self.image_size or own.image_size)

    @property
    def names_there(self) -> tuple[str, ...]:
        """Its names on Hugging Face, "owner/model"."""
        return tuple(filter(None, (self.hugging_face, *self.also)))


def backbone_names() -> list[str]:
    """The names of the backbones: those of the files in configs/backbones/."""
    return sorted(path.stem for path in BACKBONES.glob("*.toml"))


def read_backbone(text: str) -> BackboneSpec:
    """The backbone that a user names, "medsam" or "vit_b(image_size=512)"; RequestError where there is none, or of no such size."""
    name, changes = parse_call(text) if "(" in text else (text.strip(), {})
    need_known("backbone", backbone_names(), name)
    spec = _read(name)
    side = part(name, changes, {"image_size": Size}, "parameter of").get("image_size", spec.config.image_size)
    if side % spec.config.multiple:
        raise RequestError(f"{name}(image_size={side}): a multiple of {spec.config.multiple} pixels is needed.")
    if side == spec.config.image_size:
        return spec
    return replace(spec, name=f"{name}(image_size={side})", image_size=side)


@cache
def _read(name: str) -> BackboneSpec:
    return load(BACKBONES / f"{name}.toml", BackboneSpec, name=name)


def checkpoint_path(backbone: str, pretrained: Path, checkpoint: Path | None = None) -> Path:
    """The checkpoint of a named backbone: the file given in its place, or the first of `checkpoint_files`; either may be a model's folder
    from Hugging Face. CheckpointError where there is none."""
    spec = read_backbone(backbone)
    found = _file_in(checkpoint, spec) if checkpoint else next(checkpoint_files(spec, pretrained), None)
    if found is None:
        how = (
            "A file, or a model's folder from Hugging Face, is needed"
            if checkpoint
            else f"{spec.source}; put the file there{_from_hugging_face(spec, pretrained)}"
        )
        raise CheckpointError(f"The checkpoint of {backbone} is not at {checkpoint or pretrained / spec.file}. {how}.")
    return found


def checkpoint_files(spec: BackboneSpec, pretrained: Path) -> Iterator[Path]:
    """The files below `pretrained` that are a backbone's checkpoint, its own first, then those of the folders that `hf download` makes:
    pretrained/MODEL, pretrained/OWNER/MODEL, or its cache's pretrained/models--OWNER--MODEL/snapshots/REVISION."""
    places = [pretrained / spec.file]
    for name in spec.names_there:
        cached = pretrained / f"models--{name.replace('/', '--')}" / "snapshots"
        places += [pretrained / name.partition("/")[2], pretrained / name, *sorted(cached.glob("*"))]
    return filter(None, (_file_in(place, spec) for place in dict.fromkeys(places)))


def _file_in(place: Path, spec: BackboneSpec) -> Path | None:
    """A file, or that of a model's folder; None where there is none."""
    return next((path for path in (place, *(place / name for name in (*FOLDER_FILES, spec.file))) if path.is_file()), None)


def _from_hugging_face(spec: BackboneSpec, pretrained: Path) -> str:
    """How else a backbone's checkpoint may come below `pretrained`, in words."""
    downloads = [f", or `hf download {name} --local-dir {pretrained / name.partition('/')[2]}`" for name in spec.names_there[:1]]
    return "".join((*downloads, ", or give another by --checkpoint"))
