"""A stored cell's model as files for other tools: the released CAT-SAM format, plain SAM weights, or ONNX."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import RequestError, unknown
from bench.exporting.onnx_files import write_onnx
from bench.grid.files import make_room
from bench.grid.registry import METHODS
from bench.grid.store import read_record
from bench.model.method import build
from bench.model.released import load_cat_sam, released_tensors
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import CONFIGS
from bench.running.adapted import cell_folder, load_run

EXPORTS = Path("results") / "export"


def export_cell(cell: str, name: str, out: Path | None, pretrained: Path) -> list[Path]:
    """Writes a cell's model in a format of FORMATS; returns the paths of what was written.

    cell: its folder or key, as `load_run` takes it. out: the file (of "onnx" the folder), which must not exist yet; None takes a name of
    its own below `results/export/`.
    RequestError, one sentence, where the cell or its backbone is not there, or the method has no such form.
    """
    if name not in FORMATS:
        raise unknown("model format", name, FORMATS)
    folder = cell_folder(cell)
    model = load_run(folder, pretrained=pretrained)
    spec = read_record(folder).spec
    path = out or EXPORTS / ("_".join(spec.folder.parts) + SUFFIX.get(name, ""))
    return FORMATS[name](model, spec.method.label, path)


def write_cat_sam(model: PromptableSegmenter, label: str, path: Path) -> list[Path]:
    """The official released format, which `bench.load_cat_sam` and the official code read: {"model": the tensors}."""
    try:
        tensors = released_tensors(model)
        load_cat_sam(tensors, sam=model.sam)  # which knows the sizes
    except RequestError:
        what = "which is for cat_sam_t and cat_sam_a with their default sizes"
        raise RequestError(f"{label} cannot be written in the released CAT-SAM format, {what}.") from None
    return _save({"model": tensors}, path)


def write_sam(model: PromptableSegmenter, label: str, path: Path) -> list[Path]:
    """Plain SAM weights that compute what the tuned model does; every SAM tool loads them as one of Meta's files."""
    tensors = merged_tensors(model)
    if tensors is None:
        can = ", ".join(mergeable())
        raise RequestError(f"{label} cannot be merged into plain SAM weights, because it adds what they cannot hold; these can: {can}.")
    print(_as_it_takes_images(model))
    return _save(tensors, path)


def _as_it_takes_images(model: PromptableSegmenter) -> str:
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
    own = model.sam.state_dict()
    wrong = [name for name, tensor in merged.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise ValueError(f"The method merges into what SAM has not: {', '.join(wrong[:3])}.")
    return {name: tensor.detach() for name, tensor in {**own, **merged}.items()}


def mergeable() -> list[str]:
    """The registered methods that, by their defaults, can be merged into SAM's weights."""
    with torch.device("meta"):
        sam = Sam(CONFIGS["tiny"])
        return [name for name in METHODS.names() if merged_tensors(build(name, sam)) is not None]


def _save(content: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes a .pth by rename; tensors that stand twice are written once."""
    make_room(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return [path]


FORMATS: Mapping[str, Callable[[PromptableSegmenter, str, Path], list[Path]]] = {
    "cat-sam": write_cat_sam,
    "sam": write_sam,
    "onnx": write_onnx,
}
SUFFIX = {"cat-sam": ".pth", "sam": ".pth"}
