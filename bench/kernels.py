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

from bench.products import product


class Bias(NamedTuple):
    """rows: (N, Q, h); columns: (N, Q, w); last: (N, Q, 1), or None where the last key is as any extra one."""

    rows: Tensor
    columns: Tensor
    last: Tensor | None


Tables = tuple[Tensor, Tensor]  # of relative positions, along rows and columns
BiasOf = Callable[[Tensor, Tensor, Tensor], Bias]  # from q and the tables
Kernel = Callable[[Tensor, Tensor, Tensor, BiasOf, Tables, float], Tensor]
# q (N, Q, c), k and v (N, h·w + E, c), the bias's function and its tables, scale -> (N, Q, c)
LOGITS_AT_ONCE = 2**20  # 4 MiB of float32: fewer are more calls, more leave a core's cache


def chunked(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """A few query rows at a time; backward computes bias and probabilities again instead of keeping them. For CPUs."""
    out: Tensor = _Chunked.apply(q, k, v, *tables, bias_of, scale)
    return out


def folded(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """One call of PyTorch's fused attention: q gets the bias as further channels, k ones where it applies. For GPUs.

    In half precision v is padded to the same width, which the fastest kernel asks for.
    """
    bias = bias_of(q, *tables)
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


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, bias_of: BiasOf, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, table_h, table_w)
        ctx.bias_of, ctx.scale = bias_of, scale
        out = torch.empty_like(q)
        heads_at_once, queries_at_once = _at_once(q, k)
        with torch.autocast(q.device.type, enabled=False):
            for heads in _slices(len(q), heads_at_once):
                bias = _each(bias_of(q[heads], table_h, table_w), lambda x: x.to(q.dtype))
                for queries in _slices(q.shape[1], queries_at_once):
                    p = _probabilities(q[heads, queries], k[heads], _part(bias, queries), scale)
                    out[heads, queries] = _times(p, v[heads].mT)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *tables = ctx.saved_tensors
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        trained = [i for i in (0, 1) if ctx.needs_input_grad[3 + i]]
        d_tables = [torch.zeros_like(table) for table in tables]
        heads_at_once, queries_at_once = _at_once(q, k)
        for heads in _slices(len(q), heads_at_once):
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (q[heads], *tables)]
                bias = _each(ctx.bias_of(*inputs), lambda x: x.to(q.dtype))
            d_bias = _back(
                q[heads], k[heads], v[heads], bias, grad[heads], ctx.scale, queries_at_once, (d_q[heads], d_k[heads], d_v[heads])
            )
            made, given = ([x for x in one if x is not None] for one in (bias, d_bias))
            of_q, *of_tables = torch.autograd.grad(made, [inputs[0], *(inputs[1 + i] for i in trained)], given)
            d_q[heads] += of_q
            for i, part in zip(trained, of_tables, strict=True):
                d_tables[i] += part
        return d_q, d_k, d_v, *d_tables, None, None


def _back(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias, grad: Tensor, scale: float, queries_at_once: int, into: tuple[Tensor, Tensor, Tensor]
) -> Bias:
    """Writes the gradients of some heads' q, k and v `into` these, without what comes of the bias, and returns the gradients of that."""
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    d_q, d_k, d_v = into
    d_bias = _each(bias, torch.empty_like)
    for queries in _slices(q.shape[1], queries_at_once):
        at, first = (slice(None), queries), queries.start == 0
        p = _probabilities(q[at], k, _part(bias, queries), scale)
        d_v.baddbmm_(p.mT, grad[at], beta=0 if first else 1)
        d_logits = torch._softmax_backward_data(_times(grad[at], v), p, -1, p.dtype)  # p·(d_p − Σ p·d_p)
        d_q[at] = _times(d_logits, k.mT).mul_(scale)
        d_k.baddbmm_(d_logits.mT, q[at], beta=0 if first else 1, alpha=scale)
        places = d_logits[..., : h * w].unflatten(-1, (h, w))
        torch.sum(places, -1, out=d_bias.rows[at])
        torch.sum(places, -2, out=d_bias.columns[at])
        if d_bias.last is not None:
            d_bias.last[at] = d_logits[..., -1:]
    return d_bias


def _each(bias: Bias, change: Callable[[Tensor], Tensor]) -> Bias:
    return Bias(change(bias.rows), change(bias.columns), None if bias.last is None else change(bias.last))


def _part(bias: Bias, queries: slice) -> Bias:
    return _each(bias, lambda x: x[:, queries].detach())


def _at_once(q: Tensor, k: Tensor) -> tuple[int, int]:
    """How many heads, and queries of each, have about LOGITS_AT_ONCE logits: one head or several whole ones."""
    queries = max(1, LOGITS_AT_ONCE // k.shape[1])
    return max(1, queries // q.shape[1]), queries


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _probabilities(q: Tensor, k: Tensor, bias: Bias, scale: float) -> Tensor:
    """(n, Q, K)"""
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    logits = _times(q * scale, k)
    places = logits[..., : h * w].unflatten(-1, (h, w))
    places += bias.rows[..., None]
    places += bias.columns[..., None, :]
    if bias.last is not None:
        logits[..., -1:] += bias.last
    return logits.softmax(-1)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a (n, Q, c) times b (n, K, c) transposed: (n, Q, K)."""
    return product(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b.mT)
