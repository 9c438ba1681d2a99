"""The encoder's attention without waste, and the one place where its kernel is chosen.

It computes what `bench.sam`'s plain path does, but projects every token once (not once a window), asks no query of padding, and
merges the padding of a window into one key.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels import Bias, Kernel, chunked, folded
from bench.stock import Attention, get_rel_pos

ATTENTION: Mapping[str, Kernel] = {"chunked": chunked, "folded": folded}
Projection = Callable[[Tensor], Tensor]


def choose(device: torch.device) -> str:
    """The kernel of ATTENTION for a device: chunks were measured to be the fastest on a CPU. On a GPU neither was measured;
    the folded one is one fused call there."""
    return "folded" if device.type == "cuda" else "chunked"


def attention(attn: Attention, y: Tensor, window: int, prompts: Tensor, qkv: Projection) -> tuple[Tensor, Tensor]:
    """SAM's attention over y (B, h, w, C), in windows of a side or, where `window` is 0, at once; every window also sees prompts
    (B, P, C). Returns (B, h, w, C), and what became of the prompts, (B, P, C), averaged over the windows."""
    b, h, w, _ = y.shape
    n, side = prompts.shape[1], (window, window) if window else (h, w)
    padded = h % side[0] > 0 or w % side[1] > 0
    padding = [y.new_zeros(b, 1, y.shape[-1])] if padded else []  # SAM pads with zeros before the projection
    tokens = qkv(torch.cat([y.flatten(1, 2), prompts, *padding], 1)).unflatten(-1, (3, attn.num_heads, -1))  # (B, t, 3, heads, c)
    places, extra = tokens[:, : h * w].unflatten(1, (h, w)), tokens[:, h * w :]
    kernel = ATTENTION[choose(y.device)]
    out, attended = [], []
    for top, bottom in _bands(h, side[0]):
        line = []
        for left, right in _bands(w, side[1]):
            part, of_prompts = _windows(attn, places[:, top:bottom, left:right], extra, side, n, kernel)
            line.append(part)
            attended.append(of_prompts)
        out.append(torch.cat(line, 2))
    windows = -(-h // side[0]) * -(-w // side[1])
    return attn.proj(torch.cat(out, 1)), attn.proj(sum(attended[1:], attended[0]) / windows)


def _bands(length: int, side: int) -> Iterator[tuple[int, int]]:
    """The whole windows' part of a side, and the cut one's."""
    whole = length // side * side
    if whole:
        yield 0, whole
    if whole < length:
        yield whole, length


def _windows(attn: Attention, places: Tensor, extra: Tensor, side: tuple[int, int], prompts: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Windows that are all cut alike: places (B, h, w, 3, heads, c) with the extra tokens (B, E, 3, heads, c): the prompts and, where
    any window is padded, the padding. Returns (B, h, w, C), and the sum over windows of the prompts' part, (B, P, C)."""
    b, h, w = places.shape[:3]
    high, wide = min(h, side[0]), min(w, side[1])
    cut = (high, wide) != side
    extra = extra if cut else extra[:, :prompts]
    image = places.unflatten(2, (-1, wide)).unflatten(1, (-1, high))  # (B, rows, high, columns, wide, 3, heads, c)
    image = image.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)  # (3, B, rows, columns, heads, high·wide, c)
    repeated = extra.permute(2, 0, 3, 1, 4)[:, :, None, None].expand(-1, -1, *image.shape[2:4], -1, -1, -1)
    q, k, v = torch.cat([image, repeated], 5).flatten(1, 4)  # each (N, high·wide + E, c)
    q = q[:, : high * wide + prompts]  # nothing is asked of padding
    out = kernel(q, k, v, _bias(attn, q, (high, wide), side, prompts), attn.scale)
    out = out.unflatten(0, (b, h // high, w // wide, attn.num_heads))
    image = out[..., : high * wide, :].unflatten(-2, (high, wide)).permute(0, 1, 4, 2, 5, 3, 6)
    of_prompts = out[..., high * wide :, :].sum((1, 2)).transpose(1, 2)  # (B, P, heads, c)
    return image.reshape(b, h, w, -1), of_prompts.flatten(2)


def _bias(attn: Attention, q: Tensor, cut: tuple[int, int], side: tuple[int, int], prompts: int) -> Bias:
    """The relative positions' part of the logits; prompts have none. The padded keys of a window are equal but for their positions, so
    they are one key whose logit is the logarithm of their summed exponentials: of whole columns, and of the rest of the rows."""
    high, wide = cut
    queries = q[:, : high * wide].unflatten(1, cut)
    rows = torch.einsum("nhwc,hkc->nhwk", queries, _relative(side[0], attn.rel_pos_h)[:high])
    columns = torch.einsum("nhwc,wkc->nhwk", queries, _relative(side[1], attn.rel_pos_w)[:wide])
    rows, columns = rows.flatten(1, 2), columns.flatten(1, 2)
    if prompts:
        rows, columns = (F.pad(x, (0, 0, 0, prompts)) for x in (rows, columns))
    if cut == side:
        return Bias(rows, columns, None)
    beside = rows.logsumexp(-1) + columns[..., wide:].logsumexp(-1)  # of no column: -inf
    below = rows[..., high:].logsumexp(-1) + columns[..., :wide].logsumexp(-1)
    return Bias(rows[..., :high], columns[..., :wide], torch.logaddexp(beside, below)[..., None])


def _relative(n: int, rel_pos: Tensor) -> Tensor:
    """(n, n, c): the embedding of query i's distance from key j."""
    if len(rel_pos) != 2 * n - 1:
        table: Tensor = get_rel_pos(n, n, rel_pos)  # SAM interpolates
        return table
    at = torch.arange(n, device=rel_pos.device)
    return rel_pos[at[:, None] - at + n - 1]
