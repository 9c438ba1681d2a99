"""The attention kernels: softmax(scale·q·kᵀ + bias)·v with a bias that is never written down as a (queries × keys) matrix.

Keys are the h·w places of an image or window, row by row, and after them E extra ones. The bias of a query's logit is
rows[query, row of the key] + columns[query, column of the key] on places, 0 on extra keys, and `last` on the last extra key.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Bias(NamedTuple):
    """rows: (N, Q, h); columns: (N, Q, w); last: (N, Q, 1), or None where the last key is as any extra one."""

    rows: Tensor
    columns: Tensor
    last: Tensor | None


Kernel = Callable[[Tensor, Tensor, Tensor, Bias, float], Tensor]  # q (N, Q, c), k and v (N, h·w + E, c), bias, scale -> (N, Q, c)
LOGITS_AT_ONCE = 2**18  # 1 MiB of float32, which stays in a core's cache


def chunked(q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> Tensor:
    """A few query rows at a time; backward computes their probabilities again instead of keeping them. For CPUs."""
    out: Tensor = _Chunked.apply(q, k, v, bias.rows.to(q.dtype), bias.columns.to(q.dtype), _cast(bias.last, q), scale)
    return out


def folded(q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> Tensor:
    """One call of PyTorch's fused attention: q gets the bias as further channels, k ones where it applies. For GPUs.

    In half precision v is padded to the same width, which the fastest kernel asks for.
    """
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    place = torch.arange(k.shape[1], device=q.device)
    image = place < h * w
    ones = [F.one_hot(index.where(image, size), size + 1)[:, :size] for index, size in ((place // w, h), (place % w, w))]
    parts = [q * scale, bias.rows, bias.columns]
    if bias.last is not None:
        parts.append(bias.last)
        ones.append((place == len(place) - 1)[:, None])
    keys = torch.cat([one.to(k.dtype) for one in ones], 1).expand(len(k), -1, -1)
    queries, keys = torch.cat([part.to(q.dtype) for part in parts], -1), torch.cat([k, keys], -1)
    width, c = -(-keys.shape[-1] // 8) * 8, v.shape[-1]
    queries, keys = (F.pad(x, (0, width - x.shape[-1])) for x in (queries, keys))
    if q.dtype != torch.float32:
        v = F.pad(v, (0, width - c))
    return F.scaled_dot_product_attention(queries[None], keys[None], v[None], scale=1.0)[0, ..., :c]


def _cast(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else x.to(like.dtype)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, last: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, rows, columns, last)
        ctx.scale = scale
        out = torch.empty_like(q)
        with torch.autocast(q.device.type, enabled=False):
            for heads, at in _chunks(q, k):
                p = _probabilities(q[at], k[heads], Bias(rows[at], columns[at], None if last is None else last[at]), scale)
                torch.bmm(p, v[heads], out=out[at])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, columns, last = ctx.saved_tensors
        h, w = rows.shape[-1], columns.shape[-1]
        d_q, d_rows, d_columns = torch.empty_like(q), torch.empty_like(rows), torch.empty_like(columns)
        d_k, d_v, d_last = torch.zeros_like(k), torch.zeros_like(v), None if last is None else torch.empty_like(last)
        for heads, at in _chunks(q, k):
            p = _probabilities(q[at], k[heads], Bias(rows[at], columns[at], None if last is None else last[at]), ctx.scale)
            d_v[heads].baddbmm_(p.mT, grad[at])
            d_p = torch.bmm(grad[at], v[heads].mT)
            d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)  # p·(d_p − Σ p·d_p)
            torch.bmm(d_logits, k[heads], out=d_q[at])
            d_k[heads].baddbmm_(d_logits.mT, q[at])
            places = d_logits[..., : h * w].unflatten(-1, (h, w))
            torch.sum(places, -1, out=d_rows[at])
            torch.sum(places, -2, out=d_columns[at])
            if d_last is not None:
                d_last[at] = d_logits[..., -1:]
        return d_q.mul_(ctx.scale), d_k.mul_(ctx.scale), d_v, d_rows, d_columns, d_last, None


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Heads, and the same heads with some of their queries, that have about LOGITS_AT_ONCE logits: one head or several whole ones."""
    queries = max(1, LOGITS_AT_ONCE // k.shape[1])
    heads = max(1, queries // q.shape[1])
    for n in range(0, q.shape[0], heads):
        for s in range(0, q.shape[1], queries):
            yield slice(n, n + heads), (slice(n, n + heads), slice(s, s + queries))


def _probabilities(q: Tensor, k: Tensor, bias: Bias, scale: float) -> Tensor:
    """(n, Q, K)"""
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    logits = q.new_empty(*q.shape[:2], k.shape[1])
    torch.add(bias.rows[..., None], bias.columns[..., None, :], out=logits[..., : h * w].unflatten(-1, (h, w)))
    if k.shape[1] > h * w:
        logits[..., h * w :] = 0
    if bias.last is not None:
        logits[..., -1:] = bias.last
    return logits.baddbmm_(q, k.mT, alpha=scale).softmax(-1)
