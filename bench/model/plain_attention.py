"""The blocks of SAM 2's and SAM 3's encoders, under the names of SAM's own: their attention has no bias of relative positions."""

from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.model.attention import KeyValues
from bench.model.implementation import implementation
from bench.model.products import Projection, project
from bench.model.sam_modules import MLPBlock, window_partition, window_unpartition

THETA = 10_000.0  # of SAM 3's rotary positions
EPS = 1e-6  # of an encoder's norms


class PlainAttention(nn.Module):
    """The projections of a block's attention; all heads are of one width."""

    def __init__(self, before: int, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(before, 3 * width), nn.Linear(width, width)
        self.num_heads = heads


class PlainBlock(nn.Module):
    """A block that may widen its tokens and halve their grid's side, as Hiera's do, or turn queries and keys by their positions, as SAM
    3's do.

    before, width: of what it gets and gives; window: a side in places, 0 for all; halves: whether the queries are pooled, 2×2 each.
    step: of the positions from one place to the next, 0 for a block without any. `bench.model.sam.attend` is its first half, and
    `feed_forward` its second.
    """

    def __init__(self, before: int, width: int, heads: int, mlp: int, window: int, halves: bool = False, step: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(before, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = PlainAttention(before, width, heads), MLPBlock(width, mlp, nn.GELU)
        if before != width:
            self.proj = nn.Linear(before, width)
        self.window_size, self.halves, self.step = window, halves, step

    def residual(self, tokens: Tensor) -> Tensor:
        """What the attention is added to, of tokens (…, before): themselves, or widened."""
        return project(self.proj, self.norm1(tokens)) if hasattr(self, "proj") else tokens

    def shortcut(self, x: Tensor) -> Tensor:
        """The same of a map (B, h, w, before), which is pooled too where the queries are."""
        onto = self.residual(x)
        return pooled(onto) if self.halves else onto


def pooled(x: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, h/2, w/2, C): the largest of 2×2 places."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class _Cut(NamedTuple):
    """How a map of places is cut into windows: their side, the map's size and that of whole windows."""

    side: tuple[int, int]
    size: tuple[int, int]
    whole: tuple[int, int]

    @classmethod
    def of(cls, window: int, size: tuple[int, int]) -> "_Cut":
        side = (window, window) if window else size
        return cls(side, size, (-(-size[0] // side[0]) * side[0], -(-size[1] // side[1]) * side[1]))

    def halved(self) -> "_Cut":
        """Of the queries' places, where 2×2 of them became one."""
        half = [(a // 2, b // 2) for a, b in self]
        return _Cut(*half)

    def apart(self, x: Tensor) -> Tensor:
        """(B, h, w, C), already of whole windows, as (B·windows, side, side, C)."""
        return window_partition(x, self.side[0])[0] if self.side != self.size else x

    def together(self, windows: Tensor) -> Tensor:
        """The opposite, without what made them whole."""
        return window_unpartition(windows, self.side[0], self.whole, self.size) if self.side != self.size else windows


def attend_plain(
    block: PlainBlock,
    x: Tensor,
    y: Tensor,
    prompts: Tensor,
    qkv: Projection | None,
    by_window: bool,
    prompt_qkv: Projection | None,
    proj: Projection | None,
    besides: KeyValues | None,
) -> tuple[Tensor, Tensor]:
    """`bench.model.sam.attend` of such a block; y: norm1(x). Prompts are not pooled, and have no position."""
    attn, b, n = block.attn, len(x), prompts.shape[1]
    onto = block.shortcut(x)
    projection = qkv or partial(project, attn.qkv)
    cut = _Cut.of(block.window_size, (x.shape[1], x.shape[2]))
    if by_window or implementation() == "reference":
        places = projection(cut.apart(_padded(y, None, cut)).flatten(1, 2)).unflatten(1, cut.side)
    else:
        nothing = projection(y.new_zeros(b, 1, y.shape[-1])) if cut.whole != cut.size else None
        places = cut.apart(_padded(projection(y.flatten(1, 2)).unflatten(1, cut.size), nothing, cut))
    windows = len(places) // b
    q, k, v = places.chunk(3, -1)  # each (B·windows, side, side, C)
    if block.step:
        q, k = (turned(part, attn.num_heads, block.step) for part in (q, k))
    if block.halves:
        q, cut = pooled(q), cut.halved()
    q, k, v = (part.flatten(1, 2) for part in (q, k, v))
    if n:
        of_prompts = (prompt_qkv or projection)(prompts).repeat_interleave(windows, 0).chunk(3, -1)
        q, k, v = (torch.cat(both, 1) for both in zip(of_prompts, (q, k, v), strict=True))
    besides = besides.repeated(windows) if besides else None
    if besides and besides.gate is None:
        k, v = (torch.cat(both, 1) for both in zip((k, v), besides.pairs.to(k.dtype).unbind(1), strict=True))
    out = _attended(q, k, v, attn.num_heads)
    of_image, width = out[:, n:], out.shape[-1] // attn.num_heads
    read = besides.read(q[:, n:].unflatten(-1, (attn.num_heads, -1)), width**-0.5) if besides else None
    of_image = of_image if read is None else of_image + read
    image, attended = cut.together(of_image.unflatten(1, cut.side)), out[:, :n].unflatten(0, (b, windows)).mean(1)
    proj = proj or attn.proj
    return project(proj, image, onto), project(proj, attended) if n else attended


def _padded(x: Tensor, nothing: Tensor | None, cut: _Cut) -> Tensor:
    """(B, h, w, C) made of whole windows by zeros, or by (B, 1, C)."""
    below, beside = (whole - length for whole, length in zip(cut.whole, cut.size, strict=True))
    if nothing is None:
        return F.pad(x, (0, 0, 0, beside, 0, below)) if below or beside else x
    x = torch.cat([x, nothing[:, None].expand(-1, x.shape[1], beside, -1)], 2)
    return torch.cat([x, nothing[:, None].expand(-1, below, x.shape[2], -1)], 1)


def _attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention between tokens (N, t, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    by_hand = implementation() == "reference"
    out = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v if by_hand else F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def turned(x: Tensor, heads: int, step: float) -> Tensor:
    """Queries or keys (B, h, w, C), pair by pair turned by their places' angles: half of a head's pairs by x, half by y."""
    cos, sin = _angles(x.shape[1], x.shape[2], x.shape[-1] // heads, step, x.device)
    first, second = x.unflatten(-1, (heads, -1, 2)).float().unbind(-1)  # (B, h, w, heads, c/2)
    out = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return out.flatten(3).to(x.dtype)


@lru_cache(maxsize=32)
def _angles(high: int, wide: int, width: int, step: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every place and pair of a head, (h, w, 1, c/2)."""
    with torch.inference_mode(False), torch.no_grad():  # so that training may use what an evaluation computed
        speeds = 1 / THETA ** (torch.arange(0, width // 2, 2, device=device).float() / (width // 2))  # (c/4,)
        x, y = (torch.arange(n, device=device).float()[:, None] * step * speeds for n in (wide, high))
        angles = torch.cat([x.expand(high, -1, -1), y[:, None].expand(-1, wide, -1)], -1)[:, :, None]
        return angles.cos(), angles.sin()
