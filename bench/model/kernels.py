"""The attention kernels: softmax(scale·q·kᵀ + bias)·v with a bias that is never written down as a (queries × keys) matrix.

Keys are the h·w places of an image or window, row by row, and after them E extra ones. The bias of a query's logit is
rows[query, row of the key] + columns[query, column of the key] on places, 0 on extra keys, and `last` on the last extra key.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import flex_attention


class Bias(NamedTuple):
    """rows: (N, h·w, h); columns: (N, h·w, w), queries after the first h·w having 0; last: (N, Q, 1), or None where the last key is as any
    extra one."""

    rows: Tensor
    columns: Tensor
    last: Tensor | None


Tables = tuple[Tensor, Tensor]  # of relative positions, along rows and columns
BiasOf = Callable[[Tensor, Tensor, Tensor], Bias]  # from q and the tables
Kernel = Callable[[Tensor, Tensor, Tensor, BiasOf, Tables, float], Tensor]
# q (N, Q, c), k and v (N, h·w + E, c), the bias's function and its tables, scale -> (N, Q, c)
LOGITS_AT_ONCE = 2**20  # 4 MiB of float32: fewer are more calls, more leave a core's cache
QUERIES_AT_ONCE = 1024  # in forward at least, if there are as many: from 768 on PyTorch's fused attention cuts them into larger blocks


def chunked(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """A few queries at a time: PyTorch's fused attention with their bias as its mask; backward computes bias and probabilities again
    instead of keeping them. For CPUs."""
    out: Tensor = _Chunked.apply(q, k, v, *tables, bias_of, scale)
    return out


def whole(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """All logits of some heads at a time, whose probabilities are kept for backward. For a CPU and few places, where what `chunked` does
    beside its products is most of its work."""
    out: Tensor = _Whole.apply(q, k, v, *bias_of(q, *tables), scale)
    return out


def folded(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """One call of PyTorch's fused attention: q gets the bias as further channels, k ones where it applies. For GPUs.

    In half precision v is padded to the same width, which the fastest kernel asks for.
    """
    bias = bias_of(q, *tables)
    parts = [q, *(_of_all(x, q) for x in bias if x is not None)]
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    unused = -sum(part.shape[-1] for part in parts) % 8
    ones_of = _ones if torch.compiler.is_compiling() else kept_ones
    ones = ones_of((h, w), k.shape[1], bias.last is not None, unused, scale, k.dtype, k.device)
    if unused:
        parts.insert(2, ones[None, :1, h : h + unused].expand(*q.shape[:2], -1))
    queries, keys = torch.cat(parts, -1), torch.cat([k, ones.expand(len(k), -1, -1)], -1)
    return fused(queries, keys, v if q.dtype == torch.float32 else F.pad(v, (0, ones.shape[-1])), scale, q.shape[-1])


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float, width: int) -> Tensor:
    """PyTorch's fused attention with no bias, (N, Q, width), where v may have further channels of 0."""
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale).squeeze(0)
    return out if out.shape[-1] == width else out[..., :width]


def _of_all(x: Tensor, q: Tensor) -> Tensor:
    """A part of the bias with 0 for the queries that have none."""
    return (x if x.shape[1] == q.shape[1] else F.pad(x, (0, 0, 0, q.shape[1] - x.shape[1]))).to(q.dtype)


def _ones(size: tuple[int, int], keys: int, last: bool, unused: int, scale: float, kind: torch.dtype, device: torch.device) -> Tensor:
    """What `folded` puts beside the keys, (keys, h + unused + w (+ 1)): 1 over the scale where a key is in a query's row and column, and
    where it is the last one; 0 in the channels that only make the width a multiple of 8."""
    rows, columns = _places(keys, *size, device)
    parts = [F.pad(F.one_hot(rows, size[0] + 1)[:, :-1], (0, unused)), F.one_hot(columns, size[1] + 1)[:, :-1]]
    if last:
        parts.append(F.pad(parts[0].new_ones(1, 1), (0, 0, keys - 1, 0)))
    return (torch.cat(parts, 1).to(torch.float64) / scale).to(kind)


@cache
def kept_ones(*given: Any) -> Tensor:
    """`_ones`, made once: the same for all blocks and images."""
    with torch.inference_mode(False):  # so that training may use what an evaluation made
        return _ones(*given)


def flex(q: Tensor, k: Tensor, v: Tensor, bias_of: BiasOf, tables: Tables, scale: float) -> Tensor:
    """PyTorch's FlexAttention, whose score function looks a logit's bias up. For GPUs, where it is compiled; elsewhere it writes all
    logits down."""
    bias = bias_of(q, *tables)
    h, w, without = bias.rows.shape[-1], bias.columns.shape[-1], q.shape[1] - bias.rows.shape[1]
    rows, columns = (F.pad(x, (0, 1, 0, without)) for x in (bias.rows, bias.columns))  # of a row or column that is none: 0
    row, column = _places(k.shape[1], h, w, k.device)
    if bias.last is not None:
        rows, row[-1] = torch.cat([rows, bias.last], -1), h + 1

    def biased(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[head, query, row[key]] + columns[head, query, column[key]]

    attend: Any = _compiled_flex() if q.device.type == "cuda" else flex_attention
    out: Tensor = attend(q[None], k[None], v[None], score_mod=biased, scale=scale)[0]
    return out


def _places(keys: int, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row and the column of each key; of an extra one, h and w."""
    place = torch.arange(keys, device=device)
    return (place // w).where(place < h * w, h), (place % w).where(place < h * w, w)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, bias_of: BiasOf, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, table_h, table_w)
        ctx.bias_of, ctx.scale = bias_of, scale
        out = torch.empty_like(q)
        heads_at_once, queries_at_once = _at_once(q, k, QUERIES_AT_ONCE)
        mask = k.new_empty(min(heads_at_once, len(q)), min(queries_at_once, q.shape[1]), k.shape[1])
        with torch.autocast(q.device.type, enabled=False):
            for heads in _slices(len(q), heads_at_once):
                bias = bias_of(q[heads], table_h, table_w)
                for queries in _slices(q.shape[1], queries_at_once):
                    parts = q[None, heads, queries], k[None, heads], v[None, heads]
                    biased = _write(_part(bias, queries), mask[: parts[0].shape[1], : parts[0].shape[2]])
                    out[heads, queries] = F.scaled_dot_product_attention(*parts, attn_mask=biased[None], scale=scale)[0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *tables = ctx.saved_tensors
        into = d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        trained = [i for i in (0, 1) if ctx.needs_input_grad[3 + i]]
        d_tables = [torch.zeros_like(table) for table in tables]
        heads_at_once, queries_at_once = _at_once(q, k)
        maps = q.new_empty(3, min(heads_at_once, len(q)), min(queries_at_once, q.shape[1]), k.shape[1])
        for heads in _slices(len(q), heads_at_once):
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (q[heads], *tables)]
                bias = _each(ctx.bias_of(*inputs), lambda x: x.to(q.dtype))
            d_bias = _back(q[heads] * ctx.scale, k[heads], v[heads], bias, grad[heads], maps, [x[heads] for x in into])
            d_q[heads] *= ctx.scale
            made, given = ([x for x in one if x is not None] for one in (bias, d_bias))
            of_q, *of_tables = torch.autograd.grad(made, [inputs[0], *(inputs[1 + i] for i in trained)], given)
            d_q[heads] += of_q
            for i, part in zip(trained, of_tables, strict=True):
                d_tables[i] += part
        return d_q, d_k, d_v, *d_tables, None, None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, last: Tensor | None, scale: float) -> Tensor:
        trains, step = any(ctx.needs_input_grad), _at_once(q, k)[0]
        out, logits = torch.empty_like(q), q.new_empty(min(step, len(q)), q.shape[1], k.shape[1])
        p = q.new_empty(len(q) if trains else len(logits), *logits.shape[1:])
        for heads in _slices(len(q), step):
            biased = _write(_each(Bias(rows, columns, last), lambda x, of=heads: x[of]), logits[: len(q[heads])])  # type: ignore[misc]
            biased.baddbmm_(q[heads], k[heads].mT, alpha=scale)
            into = p[heads] if trains else p[: len(biased)]
            torch.bmm(torch.softmax(biased, -1, out=into), v[heads], out=out[heads])
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.sizes, ctx.has_last = scale, (rows.shape, columns.shape), last is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        (d_q, d_k, d_v), (rows, columns) = (torch.empty_like(x) for x in (q, k, v)), (q.new_empty(size) for size in ctx.sizes)
        last, biased, size = q.new_empty(*q.shape[:2], 1) if ctx.has_last else None, rows.shape[1], (rows.shape[-1], columns.shape[-1])
        for heads in _slices(len(q), _at_once(q, k)[0]):
            torch.bmm(p[heads].mT, grad[heads], out=d_v[heads])
            d_logits = torch._softmax_backward_data(torch.bmm(grad[heads], v[heads].mT), p[heads], -1, p.dtype)
            for into, one, other in ((d_q, d_logits, k), (d_k, d_logits.mT, q)):
                torch.baddbmm(into[heads], one, other[heads], beta=0, alpha=ctx.scale, out=into[heads])
            places = d_logits[:, :biased, : math.prod(size)].unflatten(-1, size)
            torch.sum(places, -1, out=rows[heads])
            torch.sum(places, -2, out=columns[heads])
            if last is not None:
                last[heads] = d_logits[..., -1:]
        return d_q, d_k, d_v, rows, columns, last, None


def _back(q: Tensor, k: Tensor, v: Tensor, bias: Bias, grad: Tensor, maps: Tensor, into: Sequence[Tensor]) -> Bias:
    """Writes the gradients of some heads' q (which has the scale in it), k and v, but for what comes of the bias, `into` these, of which
    the last two are 0 before, and returns the gradients of the bias. maps: memory (3, heads, queries at once, keys)."""
    h, w = bias.rows.shape[-1], bias.columns.shape[-1]
    d_bias, (d_q, d_k, d_v) = _each(bias, torch.empty_like), into
    for queries in _slices(q.shape[1], maps.shape[2]):
        own, asked = grad[:, queries], q[:, queries]
        logits, p, d_logits = maps[:, : len(q), : asked.shape[1]]
        torch.softmax(_write(_part(bias, queries), logits).baddbmm_(asked, k.mT), -1, out=p)
        d_v.baddbmm_(p.mT, own)
        d_p = torch.bmm(own, v.mT, out=logits)
        torch._softmax_backward_data(d_p, p, -1, p.dtype, grad_input=d_logits)  # p·(d_p − Σ p·d_p)
        d_q[:, queries] = torch.bmm(d_logits, k)
        d_k.baddbmm_(d_logits.mT, asked)
        places = d_logits[..., : h * w].unflatten(-1, (h, w))
        biased = d_bias.rows[:, queries].shape[1]
        torch.sum(places[:, :biased], -1, out=d_bias.rows[:, queries])
        torch.sum(places[:, :biased], -2, out=d_bias.columns[:, queries])
        if d_bias.last is not None:
            d_bias.last[:, queries] = d_logits[..., -1:]
    return d_bias


def _write(bias: Bias, into: Tensor) -> Tensor:
    """`into` (n, Q, K) with the bias written over it."""
    h, w, biased = bias.rows.shape[-1], bias.columns.shape[-1], bias.rows.shape[1]
    torch.add(bias.rows[..., None], bias.columns[..., None, :], out=into[:, :biased, : h * w].unflatten(-1, (h, w)))
    into[:, biased:] = 0
    into[..., h * w :] = 0
    if bias.last is not None:
        into[..., -1:] = bias.last
    return into


def _each(bias: Bias, change: Callable[[Tensor], Tensor]) -> Bias:
    return Bias(change(bias.rows), change(bias.columns), None if bias.last is None else change(bias.last))


def _part(bias: Bias, queries: slice) -> Bias:
    return _each(bias, lambda x: x[:, queries].detach())


def _at_once(q: Tensor, k: Tensor, least: int = 1) -> tuple[int, int]:
    """How many heads, and queries of each, have about LOGITS_AT_ONCE logits: one head or several whole ones; at least so many queries."""
    queries = max(1, round(LOGITS_AT_ONCE / k.shape[1]))
    return max(1, queries // q.shape[1]), max(least, queries)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)
