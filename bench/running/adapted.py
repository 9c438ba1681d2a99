"""An adapted model, rebuilt from its cell."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.errors import CheckpointError, RequestError
from bench.grid.registry import METHODS
from bench.grid.spec import MethodChoice, RunSpec, choose_method
from bench.grid.store import RECORD, TUNED, DamagedRecord, read_record
from bench.model.backbones import PRETRAINED, checkpoint_files, checkpoint_path, read_backbone
from bench.model.checkpoints import check_numbers, load_sam
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.running.cell import build_model

RESULTS = Path("results")


def load_run(
    cell: str | Path,
    sam: Sam | None = None,
    pretrained: Path = PRETRAINED,
    device: str | torch.device = "cpu",
    results: Path = RESULTS,
) -> PromptableSegmenter:
    """The model of a stored cell, with the weights of its protocol's first selection, in evaluation mode and float32.

    cell: its folder, wherever that was moved, or its key or the start of one, looked for below `results`. sam: a loaded backbone
    to share; None loads the cell's from `pretrained` onto `device`. RequestError or CheckpointError, in one sentence, where the
    cell is not stored, its weights are damaged, its method changed since, or the backbone is not the one that it was tuned on.
    """
    folder = cell_folder(cell, results)
    spec = tuned_spec(folder)
    backbone = sam or load_sam(spec.backbone, tuned_on(folder, spec, pretrained), device)
    if backbone.sha256 != spec.checkpoint_sha256:
        raise CheckpointError(
            f"{folder} was tuned on the {spec.backbone} checkpoint of sha256 {spec.checkpoint_sha256[:12]}…, "
            f"and this backbone is {backbone.sha256[:12] or 'not from a file'}…: the same one is needed."
        )
    model = build_model(spec, backbone)
    try:
        tuned = load_file(folder / TUNED)
        model.load_tuned(tuned)
        check_numbers("the tuned weights", tuned, (torch.float32,))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The tuned weights {folder / TUNED} cannot be read ({error}).") from None
    except CheckpointError as error:
        raise CheckpointError(f"{folder / TUNED}: {error}") from None
    return model.eval()


def tuned_on(folder: Path, spec: RunSpec, pretrained: Path) -> Path:
    """The backbone's checkpoint below `pretrained`: of the name that the cell's record has, which is another than the backbone's own where
    --checkpoint was given or Hugging Face's was there. CheckpointError where none is there."""
    name = (read_record(folder).provenance.get("checkpoint") or {}).get("name", "")
    files = (pretrained / name, *checkpoint_files(read_backbone(spec.backbone), pretrained)) if name else ()
    return next((path for path in files if path.name == name and path.is_file()), None) or checkpoint_path(spec.backbone, pretrained)


def tuned_spec(folder: Path) -> RunSpec:
    """What the cell in a folder is; RequestError unless it is stored, with weights of its own, by a method that this code can build."""
    try:
        spec = read_record(folder).spec
    except DamagedRecord as damage:
        raise RequestError(f"{folder} is no stored cell: {damage}.") from None
    if spec.reevaluation:
        raise RequestError(f"{folder} has no weights: it evaluates those of the cell {spec.reevaluation.parent}, which is to be named.")
    if not (folder / TUNED).is_file():
        raise CheckpointError(f"The tuned weights {folder / TUNED} cannot be read: they are gone, and the cell has to be run again.")
    _check_method(folder, spec.method)
    return spec


def cell_folder(cell: str | Path, results: Path = RESULTS) -> Path:
    """The folder of a cell that a user names by it, by the cell's key or by the start of one; RequestError where none or several fit."""
    folder = Path(cell)
    if folder.exists() or not re.fullmatch(r"[0-9a-f]{1,12}", str(cell)):
        return folder
    found = sorted(
        path.parent for path in results.glob(f"runs/*/*/*_{cell}*/{RECORD}") if path.parent.name.rpartition("_")[2].startswith(str(cell))
    )
    if len(found) == 1:
        return found[0]
    some = f" ({', '.join(map(str, found[:3]))}{', …' if len(found) > 3 else ''})" if found else ""
    raise RequestError(
        f"{str(cell)!r} is the key of {len(found)} stored cells of {results}{some}: that of one, or a cell's folder, is needed."
    )


def _check_method(folder: Path, stored: MethodChoice) -> None:
    """RequestError unless the method of this code is the one that the cell was made with, as far as its revision says."""
    try:
        cls = METHODS.get(stored.name)
        now = choose_method(cls, stored.arguments)
    except RequestError as error:
        raise RequestError(f"{folder} has a method that this code cannot build: {error}") from None
    if stored.revision not in (now.revision, *cls.also_loads):  # type: ignore[attr-defined]
        raise RequestError(
            f"{folder} was made with revision {stored.revision} of {stored.name}, and this code has revision {now.revision}: "
            "take the code that made it."
        )
