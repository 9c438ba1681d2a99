"""A stored cell's model as files for other tools: the released CAT-SAM format, plain SAM weights, Hugging Face's, or ONNX."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.errors import RequestError, need_known
from bench.exporting.merged import image_notes, mergeable, merged_tensors
from bench.exporting.onnx_files import write_onnx
from bench.exporting.peft_files import write_peft
from bench.grid.files import make_room
from bench.grid.store import Record, read_record
from bench.model.backbones import read_backbone
from bench.model.released import load_cat_sam, released_tensors
from bench.model.segmenter import PromptableSegmenter
from bench.model.sizes import PyramidConfig
from bench.running.adapted import cell_folder, load_run, tuned_spec

EXPORTS = Path("results") / "export"


def export_cell(cell: str, name: str, out: Path | None, pretrained: Path) -> list[Path]:
    """Writes a cell's model in a format of FORMATS; returns the paths of what was written.

    cell: its folder or key, as `load_run` takes it. out: the file (of "onnx" and "peft" the folder), which must not exist yet; None takes a
    name of its own below `results/export/`.
    RequestError, one sentence, where the cell or its backbone is not there, or the method has no such form.
    """
    need_known("model format", FORMATS, name)
    folder = cell_folder(cell)
    backbone = tuned_spec(folder).backbone
    if isinstance(read_backbone(backbone).config, PyramidConfig):
        raise RequestError(
            f"--format {name} is {FIRST_SAM[name]}, of the first SAM alone, and {folder} is a cell of {backbone}: "
            f"`python -m bench.predict --run` and bench.load_run use it as it is."
        )
    model = load_run(folder, pretrained=pretrained)
    record = read_record(folder)
    path = out or EXPORTS / ("_".join(record.spec.folder.parts) + SUFFIX.get(name, ""))
    return FORMATS[name](model, record, path)


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
    print(image_notes(model))
    return _save(tensors, path)


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


def _by_label(write: Callable[[PromptableSegmenter, str, Path], list[Path]]) -> Callable[[PromptableSegmenter, Record, Path], list[Path]]:
    return lambda model, record, path: write(model, record.spec.method.label, path)


FORMATS: Mapping[str, Callable[[PromptableSegmenter, Record, Path], list[Path]]] = {
    "cat-sam": _by_label(write_cat_sam),
    "sam": _by_label(write_sam),
    "peft": write_peft,
    "onnx": _by_label(write_onnx),
}
FIRST_SAM = {
    "cat-sam": "the released CAT-SAM checkpoints' format",
    "sam": "that of segment-anything's files",
    "peft": "for transformers' SamModel",
    "onnx": "two graphs of segment-anything's encoder and decoder",
}
SUFFIX = {"cat-sam": ".pth", "sam": ".pth"}
