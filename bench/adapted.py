"""An adapted model, rebuilt from its cell."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.backbones import PRETRAINED, checkpoint_path
from bench.cell import build_model
from bench.checkpoints import load_sam
from bench.errors import CheckpointError, RequestError
from bench.sam import Sam
from bench.segmenter import PromptableSegmenter
from bench.store import TUNED, DamagedRecord, read_record


def load_run(
    cell: str | Path, sam: Sam | None = None, pretrained: Path = PRETRAINED, device: str | torch.device = "cpu"
) -> PromptableSegmenter:
    """The model of a stored cell's folder, with the weights of its protocol's first selection.

    sam: a loaded backbone to share; None loads the cell's from `pretrained`. RequestError or CheckpointError, in one
    sentence, where the cell is not stored or the backbone is not the one that it was tuned on.
    """
    folder = Path(cell)
    try:
        spec = read_record(folder).spec
    except DamagedRecord as damage:
        raise RequestError(f"{folder} is no stored cell: {damage}.") from None
    backbone = sam or load_sam(spec.backbone, checkpoint_path(spec.backbone, pretrained), device)
    if backbone.sha256 != spec.checkpoint_sha256:
        raise CheckpointError(
            f"{folder} was tuned on the {spec.backbone} checkpoint of sha256 {spec.checkpoint_sha256[:12]}…, "
            f"and this backbone is {backbone.sha256[:12] or 'not from a file'}…: the same one is needed."
        )
    model = build_model(spec, backbone)
    try:
        model.load_tuned(load_file(folder / TUNED))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The tuned weights {folder / TUNED} cannot be read ({error}).") from None
    return model.eval()
