"""The sizes of the backbones, block by block. Known without torch, so that a grid is planned at once."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, NamedTuple

from bench.types import Range

Size = Annotated[int, Range(1)]


class BlockSize(NamedTuple):
    """Of a block: the width and grid of what it gets, (B, grid_before, grid_before, before), and of what it gives."""

    before: int
    width: int
    grid_before: int
    grid: int


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

    @property
    def blocks(self) -> tuple[BlockSize, ...]:
        """The sizes of each block. What tuners add to a block has these; `width` and `grid` are those of the first global one."""
        return (BlockSize(self.width, self.width, self.grid, self.grid),) * self.depth

    @property
    def taken(self) -> tuple[int, ...]:
        """The blocks whose output the neck reads, beside the last one's."""
        return ()

    @property
    def detailed(self) -> int:
        """The numbers an image has in the finer maps that the decoder reads beside the embedding."""
        return 0

    @property
    def multiple(self) -> int:
        """What an image's side is a multiple of."""
        return self.patch_size

    @property
    def widest(self) -> int:
        """The numbers of the largest map that a block gives."""
        return max(block.grid**2 * block.width for block in self.blocks)


@dataclass(frozen=True)
class PyramidConfig(SamConfig):
    """What SAM 2 and SAM 3 have in common: the decoder also reads two finer maps of the encoder's, one twice and one four times the grid.

    positions: the side of the grid that the encoder's positions are stored for.
    """

    positions: Size = 7

    @property
    def detailed(self) -> int:
        return self.grid**2 * 3 * self.decoder_width  # 4·d/4 and 16·d/8


@dataclass(frozen=True)
class HieraConfig(PyramidConfig):
    """The sizes of a SAM 2. Its blocks are in four stages: width and heads double from one to the next, and the grid's side is halved.

    `width`, `heads` and `window` are the third stage's, whose grid is the decoder's. stages: blocks of each; windows: of each, in places.
    """

    stages: tuple[Size, ...] = (1, 1, 1, 1)
    windows: tuple[Size, ...] = (8, 4, 14, 7)

    @property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of each block, from 0."""
        return tuple(stage for stage, blocks in enumerate(self.stages) for _ in range(blocks))

    @property
    def blocks(self) -> tuple[BlockSize, ...]:
        sizes = [(self.width * 2**stage // 4, self.grid * 4 // 2**stage) for stage in self.stage_of]
        before = [sizes[0], *sizes[:-1]]
        return tuple(BlockSize(was[0], now[0], was[1], now[1]) for was, now in zip(before, sizes, strict=True))

    @property
    def taken(self) -> tuple[int, ...]:
        return tuple(end - 1 for end in accumulate(self.stages[:-1]))

    @property
    def multiple(self) -> int:
        return self.patch_size // 4 * max(self.windows[0], 8)  # whole first windows, and three times half the side

    def heads_of(self, stage: int) -> int:
        """The heads of a stage's blocks."""
        return self.heads * 2**stage // 4

    def window_of(self, block: int) -> int:
        """The window of a block, 0 for all places. The first one of a stage has that of the stage before."""
        return 0 if block in self.global_blocks else self.windows[self.stage_of[max(0, block - 1)]]


@dataclass(frozen=True)
class Sam3Config(PyramidConfig):
    """The sizes of a SAM 3: a plain ViT. mlp: the width inside of its blocks' MLP."""

    mlp: Size = 4736


def hiera(
    width: int, heads: int, stages: tuple[int, ...], windows: tuple[int, ...], global_blocks: tuple[int, ...], positions: int
) -> HieraConfig:
    """A Hiera of SAM 2.1, as its authors give one: width and heads of the first stage."""
    return HieraConfig(
        1024, 16, 4 * width, sum(stages), 4 * heads, windows[2], global_blocks, positions=positions, stages=stages, windows=windows
    )


CONFIGS = {
    "vit_b": SamConfig(1024, 16, 768, 12, 12, 14, (2, 5, 8, 11)),
    "vit_l": SamConfig(1024, 16, 1024, 24, 16, 14, (5, 11, 17, 23)),
    "vit_h": SamConfig(1024, 16, 1280, 32, 16, 14, (7, 15, 23, 31)),
    "tiny": SamConfig(128, 8, 192, 6, 6, 8, (2, 5), decoder_width=128, decoder_mlp=512, iou_width=128),
    "hiera_t": hiera(96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    "hiera_s": hiera(96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    "hiera_b+": hiera(112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    "hiera_l": hiera(144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
    "sam3": Sam3Config(1008, 14, 1024, 32, 16, 24, (7, 15, 23, 31), positions=24),
    "tiny_sam2": HieraConfig(
        128, 16, 64, 5, 4, 6, (3,), decoder_width=64, decoder_mlp=128, iou_width=64, positions=4, stages=(1, 1, 2, 1), windows=(8, 4, 6, 3)
    ),
    "tiny_sam3": Sam3Config(112, 14, 64, 4, 4, 4, (1, 3), decoder_width=64, decoder_mlp=128, iou_width=64, positions=4, mlp=296),
}


def frozen_bytes(config: SamConfig, parts: int, reads_first_global: bool, precision: str) -> int:
    """What `bench.training.prepared` keeps of an image that the first `parts` of an encoder, its blocks and then its neck, have seen."""
    if not parts:
        return 0
    blocks = config.blocks
    if parts > config.depth:
        kept = config.decoder_width * config.grid**2 + config.detailed
    else:
        given = (parts - 1, *(block for block in config.taken if block < parts))
        kept = sum(blocks[i].width * blocks[i].grid ** 2 for i in given)
    reached = reads_first_global and parts > min(config.global_blocks, default=config.depth)
    return 4 * kept + config.grid**2 * reached * config.width * (2 if precision == "bf16" else 4)
