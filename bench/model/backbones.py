"""The sizes of the SAMs, and where their checkpoints lie. Known without torch, so that a grid is planned at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench import ROOT
from bench.errors import CheckpointError, unknown
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


FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
    "tiny": "tiny.safetensors",
}
PRETRAINED = ROOT / "pretrained"
HOW_TO_GET = "Meta's files are linked from the page github.com/facebookresearch/segment-anything#model-checkpoints"


def checkpoint_path(arch: str, pretrained: Path) -> Path:
    """Where the checkpoint of a named architecture lies below `pretrained`; CheckpointError where it does not."""
    if arch not in FILES:
        raise unknown("backbone", arch, FILES)
    path = pretrained / FILES[arch]
    if not path.is_file():
        raise CheckpointError(f"The checkpoint of {arch} is not at {path}. {HOW_TO_GET}; put the file there.")
    return path
