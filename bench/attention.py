"""The encoder's attention without waste, and the one place where its kernel is chosen.

It computes what `bench.sam`'s plain path does, but projects every token once (not once a window), asks no query of padding, and
merges the padding of a window into one key.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.kernels import Bias, Kernel, chunked, folded
from bench.products import project
from bench.stock import Attention, get_rel_pos

ATTENTION: Mapping[str, Kernel] = {"chunked": chunked, "folded": folded}
Projection = Callable[[Tensor], Tensor]


def choose(device: torch.device) -> str:
    """The kernel of ATTENTION for a device, by what `python -m bench.perf kernels` measured: on a CPU chunks are 1.9 times as fast on a
    global block and 1.5 times as fast with its gradients. On a GPU nothing was measured; the folded one is one fused call there."""
    return "folded" if device.type == "cuda" else "chunked"


def attention(attn: Attention, y: Tensor, window: int, prompts: Tensor, qkv: Projection) -> tuple[Tensor, Tensor]:
    """SAM's attention over y (B, h, w, C), in windows of a side or, where `window` is 0, at once; every window also sees prompts
    (B, P, C). Returns (B, h, w, C), and what became of the prompts, (B, P, C), averaged over the windows.

    qkv is called with y, and once more with the prompts and the padding (B, E, C) where there are any."""
    b, h, w, _ = y.shape
    n, side = prompts.shape[1], (window, window) if window else (h, w)
    padded = h % side[0] > 0 or w % side[1] > 0
    padding = [y.new_zeros(b, 1, y.shape[-1])] if padded else []  # SAM pads with zeros before the projection
    parts = (3, attn.num_heads, y.shape[-1] // attn.num_heads)
    places = qkv(y.flatten(1, 2)).unflatten(-1, parts).unflatten(1, (h, w))  # (B, h, w, 3, heads, c)
    extra = places.new_empty(b, 0, *parts)  # (B, E, 3, heads, c)
    if n or padded:
        extra = qkv(torch.cat([prompts, *padding], 1)).unflatten(-1, parts)
    kernel = ATTENTION[choose(y.device)]
    out, attended = [], []
    for band in places.split(_bands(h, side[0]), 1):
        line = []
        for part in band.split(_bands(w, side[1]), 2):
            attended_part, of_prompts = _windows(attn, part, extra, side, n, kernel)
            line.append(attended_part)
            attended.append(of_prompts)
        out.append(torch.cat(line, 2))
    windows = -(-h // side[0]) * -(-w // side[1])
    return project(attn.proj, torch.cat(out, 1)), project(attn.proj, sum(attended[1:], attended[0]) / windows)


def _bands(length: int, side: int) -> list[int]:
    """The lengths of the whole windows' part of a side, and of the cut one's."""
    return [part for part in (length // side * side, length % side) if part]


def _windows(attn: Attention, places: Tensor, extra: Tensor, side: tuple[int, int], prompts: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Windows that are all cut alike: places (B, h, w, 3, heads, c) with the extra tokens (B, E, 3, heads, c): the prompts and, where
    any window is padded, the padding. Returns (B, h, w, C), and the sum over windows of the prompts' part, (B, P, C)."""
    b, h, w = places.shape[:3]
    high, wide = cut = min(h, side[0]), min(w, side[1])
    extra = extra[:, :prompts] if cut == side else extra
    q, k, v = _Windowed.apply(places, extra, high, wide, prompts)
    out = kernel(q, k, v, partial(_bias, cut, side, prompts), (attn.rel_pos_h, attn.rel_pos_w), attn.scale)
    out = out.unflatten(0, (b, h // high, w // wide, attn.num_heads))
    image = out[..., : high * wide, :].unflatten(-2, (high, wide)).permute(0, 1, 4, 2, 5, 3, 6)
    of_prompts = out[..., high * wide :, :].sum((1, 2)).transpose(1, 2)  # (B, P, heads, c)
    return image.reshape(b, h, w, -1), of_prompts.flatten(2)


class _Windowed(torch.autograd.Function):
    """places (B, h, w, 3, heads, c) as windows of high × wide, the extra tokens (B, E, 3, heads, c) after each one's places: q with
    `prompts` of them (N, high·wide + prompts, c), k and v with all (N, high·wide + E, c), N = B·rows·columns·heads. One copy each way,
    where PyTorch's own operators make two."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, extra: Tensor, high: int, wide: int, prompts: int) -> tuple[Tensor, ...]:
        ctx.window, ctx.shapes = (high, wide), (places.shape, extra.shape)
        found: list[Tensor] = []
        for image, token in zip(_as_windows(places, high, wide), extra.permute(2, 0, 3, 1, 4)[:, :, None, None], strict=True):
            token = token if found else token[..., :prompts, :]  # nothing is asked of padding
            one = places.new_empty(*image.shape[:4], high * wide + token.shape[-2], image.shape[-1])
            one[..., : high * wide, :].unflatten(-2, (high, wide)).copy_(image)
            one[..., high * wide :, :] = token
            found.append(one.flatten(0, 3))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        high, wide = ctx.window
        d_places, d_extra = (grads[0].new_zeros(shape) for shape in ctx.shapes)
        images = _as_windows(d_places, high, wide)
        for i, grad in enumerate(grads):
            windows = grad.unflatten(0, images.shape[1:5])
            images[i].copy_(windows[..., : high * wide, :].unflatten(-2, (high, wide)))
            tokens = windows[..., high * wide :, :].sum((1, 2)).transpose(1, 2)  # (B, tokens, heads, c)
            d_extra[:, : tokens.shape[1], i] = tokens
        return d_places, d_extra, None, None, None


def _as_windows(places: Tensor, high: int, wide: int) -> Tensor:
    """(B, h, w, 3, heads, c) as a view (3, B, rows, columns, heads, high, wide, c)."""
    return places.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).permute(5, 0, 1, 3, 6, 2, 4, 7)


def _bias(cut: tuple[int, int], side: tuple[int, int], prompts: int, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Bias:
    """The relative positions' part of the logits; prompts have none. The padded keys of a window are equal but for their positions, so
    they are one key whose logit is the logarithm of their summed exponentials: of whole columns, and of the rest of the rows."""
    high, wide = cut
    queries = q[:, : high * wide].unflatten(1, cut)
    rows = torch.einsum("nhwc,hkc->nhwk", queries, _relative(side[0], rel_pos_h)[:high].to(q.dtype))
    columns = torch.einsum("nhwc,wkc->nhwk", queries, _relative(side[1], rel_pos_w)[:wide].to(q.dtype))
    rows, columns = rows.flatten(1, 2), columns.flatten(1, 2)
    if prompts:
        rows, columns = (F.pad(x, (0, 0, 0, prompts)) for x in (rows, columns))
    if cut == side:
        return Bias(rows, columns, None)
    precise = rows.float(), columns.float()
    beside = precise[0].logsumexp(-1) + precise[1][..., wide:].logsumexp(-1)  # of no column: -inf
    below = precise[0][..., high:].logsumexp(-1) + precise[1][..., :wide].logsumexp(-1)
    return Bias(rows[..., :high], columns[..., :wide], torch.logaddexp(beside, below)[..., None])


def _relative(n: int, rel_pos: Tensor) -> Tensor:
    """(n, n, c): the embedding of query i's distance from key j."""
    if len(rel_pos) != 2 * n - 1:
        table: Tensor = get_rel_pos(n, n, rel_pos)  # SAM interpolates
        return table
    at = torch.arange(n, device=rel_pos.device)
    return rel_pos[at[:, None] - at + n - 1]
