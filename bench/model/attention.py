"""The encoder's attention without waste, and the one place where its kernel is chosen.

It computes what `bench.model.sam`'s reference path does, but projects every token once (not once a window), asks no query of padding, and
merges the padding of a window into one key.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.model.kernels import Bias, Kernel, chunked, flex, folded
from bench.model.products import project
from bench.model.sam_modules import Attention, get_rel_pos

ATTENTION: Mapping[str, Kernel] = {"chunked": chunked, "folded": folded, "flex": flex}
GPU_ONLY = ("flex",)  # on a CPU FlexAttention has no gradient, and writes all logits down
Projection = Callable[[Tensor], Tensor]


def choose(device: torch.device) -> str:
    """The kernel of ATTENTION for a device, by what `python -m bench.perf kernels` measured: on a CPU chunks are three times as fast as
    the folded one on a global block, and twice as fast with its gradients. On a GPU nothing was measured; the folded one is one fused
    call there, and can be compiled."""
    return "folded" if device.type == "cuda" or torch.compiler.is_dynamo_compiling() else "chunked"


def attention(
    attn: Attention,
    y: Tensor,
    window: int,
    prompts: Tensor,
    qkv: Projection,
    onto: Tensor | None = None,
    prompt_qkv: Projection | None = None,
) -> tuple[Tensor, Tensor]:
    """SAM's attention over y (B, h, w, C), in windows of a side or, where `window` is 0, at once; every window also sees prompts
    (B, P, C). Returns what it made of y, (B, h, w, C), on top of `onto` if that is given, and what it made of the prompts, (B, P, C),
    averaged over the windows.

    qkv is called with y, and once more with the prompts and the padding (B, E, C) where there are any; the prompts are left to
    prompt_qkv if that is given."""
    b, h, w, _ = y.shape
    n, side = prompts.shape[1], (window, window) if window else (h, w)
    padded = h % side[0] > 0 or w % side[1] > 0
    padding = [y.new_zeros(b, 1, y.shape[-1])] if padded else []  # SAM pads with zeros before the projection
    parts = (3, attn.num_heads, y.shape[-1] // attn.num_heads)
    places = qkv(y.flatten(1, 2)).unflatten(-1, parts).unflatten(1, (h, w))  # (B, h, w, 3, heads, c)
    extra = places.new_empty(b, 0, *parts)  # (B, E, 3, heads, c)
    if prompt_qkv is not None:
        extra = torch.cat([prompt_qkv(prompts), *map(qkv, padding)], 1).unflatten(-1, parts)
    elif n or padded:
        extra = qkv(torch.cat([prompts, *padding], 1)).unflatten(-1, parts)
    kernel, tables = ATTENTION[choose(y.device)], (attn.rel_pos_h, attn.rel_pos_w)
    shape, windowed, out = places.shape, _Windowed.apply(places, extra, side, n), []
    del places  # as much memory as the windows of all three
    for i, cut in enumerate(_cuts((h, w), side)):
        q, k, v = windowed[3 * i : 3 * i + 3]
        out.append(kernel(q, k, v, partial(_bias, cut.size, side, n), tables, attn.scale))
    image, attended = _Joined.apply(shape, side, n, *out)
    return project(attn.proj, image, onto), project(attn.proj, attended)


class _Cut(NamedTuple):
    """A part of an image whose windows are all cut alike: the windows' size and how many stand below and beside one another."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    windows: tuple[int, int]

    def of(self, places: Tensor) -> Tensor:
        """Places (B, h, w, …, heads, c) as a view of this part's windows, (…, B, below, beside, heads, high, wide, c)."""
        windows = places[:, self.rows, self.columns].unflatten(2, (-1, self.size[1])).unflatten(1, (-1, self.size[0]))
        between = range(5, windows.ndim - 2)
        return windows.permute(*between, 0, 1, 3, -2, 2, 4, -1)


def _cuts(length: tuple[int, int], side: tuple[int, int]) -> list[_Cut]:
    """The part of whole windows, and those of windows that the image's right and lower edges cut."""
    bands = [[band for band in ((0, n // s * s), (n // s * s, n)) if band[1] > band[0]] for n, s in zip(length, side, strict=True)]
    found = []
    for rows in bands[0]:
        for columns in bands[1]:
            covered = rows[1] - rows[0], columns[1] - columns[0]
            size = min(covered[0], side[0]), min(covered[1], side[1])
            found.append(_Cut(slice(*rows), slice(*columns), size, (covered[0] // size[0], covered[1] // size[1])))
    return found


def _with_tokens(image: Tensor, tokens: Tensor) -> Tensor:
    """Each window (B, below, beside, heads, high, wide, c) as a row of its places, and after them tokens (B, heads, t, c):
    (N, high·wide + t, c), N = B·below·beside·heads."""
    size = image.shape[4:6]
    rows = image.new_empty(*image.shape[:4], size.numel() + tokens.shape[2], image.shape[-1])
    rows[..., : size.numel(), :].unflatten(-2, size).copy_(image)
    rows[..., size.numel() :, :] = tokens[:, None, None]
    return rows.flatten(0, 3)


def _take_apart(rows: Tensor, image: Tensor) -> Tensor:
    """Writes the places of `_with_tokens`' rows into `image`, and returns the sum of the tokens over windows, (B, heads, t, c)."""
    windows, size = rows.unflatten(0, image.shape[:4]), image.shape[4:6]
    image.copy_(windows[..., : size.numel(), :].unflatten(-2, size))
    return windows[..., size.numel() :, :].sum((1, 2))


class _Windowed(torch.autograd.Function):
    """q, k and v of the windows of each cut, one cut after the other, from places (B, h, w, 3, heads, c) and extra tokens
    (B, E, 3, heads, c): the prompts and, where any window is padded, the padding. They stand after each window's places: in q the
    prompts, since nothing is asked of padding, in k and v all that the window sees. One copy each way, where PyTorch's own operators
    make several."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, extra: Tensor, side: tuple[int, int], prompts: int) -> tuple[Tensor, ...]:
        ctx.cuts, ctx.shapes = _cuts((places.shape[1], places.shape[2]), side), (places.shape, extra.shape)
        found: list[Tensor] = []
        for cut in ctx.cuts:
            seen = extra[:, :prompts] if cut.size == side else extra
            for i, image in enumerate(cut.of(places)):
                tokens = (seen if i else extra[:, :prompts])[:, :, i].transpose(1, 2)
                found.append(_with_tokens(image, tokens))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_places, d_extra = grads[0].new_empty(ctx.shapes[0]), grads[0].new_zeros(ctx.shapes[1])
        for at, cut in enumerate(ctx.cuts):
            for i, image in enumerate(cut.of(d_places)):
                tokens = _take_apart(grads[3 * at + i], image).transpose(1, 2)  # (B, tokens, heads, c)
                d_extra[:, : tokens.shape[1], i] += tokens
        return d_places, d_extra, None, None


class _Joined(torch.autograd.Function):
    """The image (B, h, w, C) and its prompts' mean over windows (B, P, C), from each cut's windows (N, high·wide + P, c) as `_Windowed`
    has them in q. shape: of the places that these come from."""

    @staticmethod
    def forward(ctx: Any, shape: torch.Size, side: tuple[int, int], prompts: int, *out: Tensor) -> tuple[Tensor, Tensor]:
        b, h, w, _, heads, c = shape
        ctx.cuts, ctx.heads = _cuts((h, w), side), heads
        image, attended = out[0].new_empty(b, h, w, heads, c), out[0].new_zeros(b, heads, prompts, c)
        for cut, part in zip(ctx.cuts, out, strict=True):
            attended += _take_apart(part, cut.of(image))
        return image.flatten(3), (attended / _count(ctx.cuts)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_image: Tensor, d_attended: Tensor) -> tuple[Tensor | None, ...]:
        d_image = d_image.unflatten(-1, (ctx.heads, -1))
        tokens = d_attended.unflatten(-1, (ctx.heads, -1)).transpose(1, 2) / _count(ctx.cuts)  # (B, heads, P, c)
        return None, None, None, *(_with_tokens(cut.of(d_image), tokens) for cut in ctx.cuts)


def _count(cuts: Sequence[_Cut]) -> int:
    """The windows of an image."""
    return sum(cut.windows[0] * cut.windows[1] for cut in cuts)


def _bias(cut: tuple[int, int], side: tuple[int, int], prompts: int, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Bias:
    """The relative positions' part of the logits; prompts have none. The padded keys of a window are equal but for their positions, so
    they are one key whose logit is the logarithm of their summed exponentials: of whole columns, and of the rest of the rows."""
    high, wide = cut
    queries = q[:, : high * wide].unflatten(1, cut)
    rows = torch.einsum("nhwc,hkc->nhwk", queries, _relative(side[0], rel_pos_h)[:high].to(q.dtype))
    columns = torch.einsum("nhwc,wkc->nhwk", queries, _relative(side[1], rel_pos_w)[:wide].to(q.dtype))
    rows, columns = rows.flatten(1, 2), columns.flatten(1, 2)
    if cut == side:
        return Bias(rows, columns, None)
    precise = rows.float(), columns.float()
    beside = precise[0].logsumexp(-1) + precise[1][..., wide:].logsumexp(-1)  # of no column: -inf
    below = precise[0][..., high:].logsumexp(-1) + precise[1][..., :wide].logsumexp(-1)
    merged = F.pad(torch.logaddexp(beside, below), (0, prompts), value=math.log(side[0] * side[1] - high * wide))
    return Bias(rows[..., :high], columns[..., :wide], merged[..., None])


def _relative(n: int, rel_pos: Tensor) -> Tensor:
    """(n, n, c): the embedding of query i's distance from key j."""
    if len(rel_pos) != 2 * n - 1:
        table: Tensor = get_rel_pos(n, n, rel_pos)  # SAM interpolates
        return table
    at = torch.arange(n, device=rel_pos.device)
    return rel_pos[at[:, None] - at + n - 1]
