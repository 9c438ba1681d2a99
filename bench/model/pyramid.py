"""SAM 2's and SAM 3's parts, made of SAM's own modules where those are the same: what is theirs alone is written here.

Both have a pyramid of maps where SAM has a neck, and a mask decoder that reads its two finer maps too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.model.plain_attention import EPS, PlainBlock
from bench.model.sam_modules import MLP, MaskDecoder, PatchEmbed, PromptEncoder
from bench.model.sizes import HieraConfig, Sam3Config
from bench.model.upsampling import resized


class HieraEncoder(nn.Module):
    """SAM 2's image encoder: a Hiera, whose blocks lie in four stages, and a pyramid of their last outputs."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        first = config.blocks[0].before
        self.patch_embed = PatchEmbed(kernel_size=(7, 7), stride=(4, 4), padding=(3, 3), embed_dim=first)
        self.pos_embed = nn.Parameter(torch.zeros(1, first, config.positions, config.positions))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, first, config.windows[0], config.windows[0]))
        self.blocks = nn.ModuleList(
            PlainBlock(
                size.before, size.width, config.heads_of(stage), 4 * size.width, config.window_of(i), halves=size.grid != size.grid_before
            )
            for i, (size, stage) in enumerate(zip(config.blocks, config.stage_of, strict=True))
        )
        self.taken = config.taken
        self.neck = HieraNeck([config.blocks[i].width for i in (*config.taken, -1)], config.decoder_width)

    def embed(self, image: Tensor) -> Tensor:
        """The patch embedding (B, 4g, 4g, C/4) of a normalised image (B, 3, S, S)."""
        embedded: Tensor = self.patch_embed(image)
        return embedded

    def placed(self, x: Tensor) -> Tensor:
        """The patch embedding with its positions: those of the whole image, and those in a first window, over and over."""
        size, side = (x.shape[1], x.shape[2]), self.pos_embed_window.shape[-1]
        whole = resized(self.pos_embed[0], size, "bicubic")
        window = self.pos_embed_window[0].repeat(1, size[0] // side, size[1] // side)
        return x + (whole + window).permute(1, 2, 0)

    def features(self, x: Tensor, taken: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of the last block's output and those that were taken: the embedding (B, d, g, g), and the finer maps (B, d/8, 4g, 4g) and
        (B, d/4, 2g, 2g)."""
        return self.neck([each.permute(0, 3, 1, 2) for each in (*taken, x)])


class HieraNeck(nn.Module):
    """The two coarse maps are added up; the two fine ones are projected to what the decoder reads of them, once an image.

    convs: from the coarsest on. high_res: SAM 2 counts these two to its decoder. no_memory: what an image without a video is marked by.
    """

    def __init__(self, widths: Sequence[int], d: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, d, 1) for width in reversed(widths))
        self.high_res = high_res(d)
        self.no_memory = nn.Parameter(torch.zeros(d, 1, 1))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        coarsest, coarse, fine, finest = (conv(x) for conv, x in zip(self.convs, reversed(maps), strict=True))
        embedding = coarse + _doubled(coarsest) + self.no_memory
        return embedding, (self.high_res[0](finest), self.high_res[1](fine))


def high_res(d: int) -> nn.ModuleList:
    """The projections of the finest map and of the next one."""
    return nn.ModuleList([nn.Conv2d(d, d // 8, 1), nn.Conv2d(d, d // 4, 1)])


def _doubled(x: Tensor) -> Tensor:
    """Every place (B, d, h, w) as 2×2 places."""
    b, d, h, w = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(b, d, 2 * h, 2 * w)


class Sam3Encoder(nn.Module):
    """SAM 3's image encoder: a ViT with rotary positions, and a pyramid of its last output."""

    taken: tuple[int, ...] = ()

    def __init__(self, config: Sam3Config) -> None:
        super().__init__()
        patch, width = (config.patch_size, config.patch_size), config.width
        self.patch_embed = PatchEmbed(kernel_size=patch, stride=patch, embed_dim=width)
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.positions, config.positions, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        windows = [0 if i in config.global_blocks else config.window for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            PlainBlock(width, width, config.heads, config.mlp, window, step=1.0 if window else config.window / config.grid)
            for window in windows
        )
        self.neck = Sam3Neck(width, config.decoder_width)

    def embed(self, image: Tensor) -> Tensor:
        """The patch embedding (B, g, g, C) of a normalised image (B, 3, S, S)."""
        embedded: Tensor = self.patch_embed(image)
        return embedded

    def placed(self, x: Tensor) -> Tensor:
        """The patch embedding with its positions, over and over where the grid is larger than theirs, normed."""
        times = (-(-length // self.pos_embed.shape[1]) for length in x.shape[1:3])
        positions = self.pos_embed.repeat(1, *times, 1)[:, : x.shape[1], : x.shape[2]]
        normed: Tensor = self.norm(x + positions)
        return normed

    def features(self, x: Tensor, taken: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of the last block's output: the embedding (B, d, g, g), and the finer maps (B, d/8, 4g, 4g) and (B, d/4, 2g, 2g)."""
        return self.neck(x.permute(0, 3, 1, 2))


class Sam3Neck(nn.Module):
    """Three maps of one, at four times its side, at twice and at once, of which the finer two are projected as in `HieraNeck`."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        half, quarter = nn.ConvTranspose2d(width, width // 2, 2, stride=2), nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2)
        double = nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        finer = ([half, nn.GELU(), quarter], [double], [])  # type: tuple[list[nn.Module], ...]
        self.convs = nn.ModuleList(
            nn.Sequential(*up, nn.Conv2d(width // shrunk, d, 1), nn.Conv2d(d, d, 3, padding=1))
            for up, shrunk in zip(finer, (4, 2, 1), strict=True)
        )
        self.high_res = high_res(d)
        self.no_memory = nn.Parameter(torch.zeros(d, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        finest, fine, embedding = (conv(x) for conv in self.convs)
        return embedding + self.no_memory, (self.high_res[0](finest), self.high_res[1](fine))


class PaddedPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, as the newer ones are asked: a token of no point stands after a box too, and for no point and box at all
    there are two."""

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        corners: Tensor = super()._embed_boxes(boxes)
        return torch.cat([corners, self.not_a_point_embed.weight.expand(len(corners), 1, -1)], 1)

    def forward(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """As SAM's."""
        sparse, dense = super().forward(points, boxes, masks)
        if points is None and boxes is None:
            sparse = self.not_a_point_embed.weight.expand(len(sparse), 2, -1)
        return sparse, dense


class HighResMaskDecoder(MaskDecoder):
    """SAM's mask decoder with a token more in front, which says whether the object is there, and two finer maps to add while it upscales.

    stability: of the single mask, the share of the places above -margin that are above +margin too; where it is below `least_stability`,
    the one of the other three that is thought best stands in its place.
    """

    margin, least_stability = 0.05, 0.98

    def __init__(self, d: int, transformer: nn.Module, iou_width: int) -> None:
        super().__init__(transformer_dim=d, transformer=transformer, num_multimask_outputs=3, iou_head_hidden_dim=iou_width)
        self.iou_prediction_head.sigmoid_output = True
        self.obj_score_token = nn.Embedding(1, d)
        self.pred_obj_score_head = MLP(d, d, 1, 3)

    def is_stable(self, masks: Tensor) -> Tensor:
        """Of logits (N, h, w), which masks stay: (N,) bool."""
        inner, outer = ((masks > margin).flatten(1).sum(1) for margin in (self.margin, -self.margin))
        return inner >= self.least_stability * outer
