"""The encoder's attention without waste, and the one place where its kernel is chosen.

It computes what `bench.model.sam`'s reference path does, but projects every token once (not once a window), asks no query of padding, and
merges the padding of a window into one key.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from bench.model.kernels import Bias, Kernel, chunked, flex, folded, fused, kept_ones, whole
from bench.model.products import Projection, is_stock, project
from bench.model.sam_modules import Attention

ATTENTION: Mapping[str, Kernel] = {"chunked": chunked, "whole": whole, "folded": folded, "flex": flex}
GPU_ONLY = ("flex",)  # on a CPU FlexAttention has no gradient, and writes all logits down
FEW_PLACES = 512  # of an image; from 1,024 on the probabilities that `whole` keeps are more than a core's cache, and much memory
WHOLE_WINDOWS = (
    "whole",
    "folded",
    "flex",
)  # of vit_l's 64×64 places in windows of 14 they make 70×70, which are a fifth more, and one call of four


class KeyValues(NamedTuple):
    """Keys and values that every window sees besides those of its tokens, and that ask nothing: (B, 2, K, C), keys first, all heads
    together, with no position.

    gate: (heads,), with which image tokens alone see them, by a softmax of their own whose result is multiplied with it and added to the
    attention's, so that 0 leaves the block as it is (LLaMA-Adapter, Zhang et al., ICLR 2024); None for one softmax over
    all keys.
    """

    pairs: Tensor
    gate: Tensor | None = None

    def repeated(self, windows: int) -> "KeyValues":
        """The same for images that are cut into so many windows each."""
        return self._replace(pairs=self.pairs.repeat_interleave(windows, 0))

    def read(self, q: Tensor, scale: float) -> Tensor | None:
        """What queries (B, t, heads, c) read behind the gate, (B, t, C); None where there is none."""
        if self.gate is None:
            return None
        keys, values = self.pairs.to(q.dtype).unflatten(-1, q.shape[-2:]).transpose(2, 3).unbind(1)  # (B, heads, K, c)
        out = (q.transpose(1, 2) * scale @ keys.mT).softmax(-1) @ values * self.gate[:, None, None].to(q.dtype)
        return out.transpose(1, 2).flatten(2)


def choose(device: torch.device, places: int) -> str:
    """The kernel of ATTENTION for a device and an image of so many places, by what `python -m bench.perf kernels` measured: on a CPU chunks
    are three times as fast as the folded one on a global block, and twice as fast with its gradients; of few places the whole one is
    faster still. On a GPU nothing was measured; the folded one is one fused call there, and can be compiled."""
    if device.type == "cuda" or torch.compiler.is_dynamo_compiling():
        return "folded"
    return "whole" if places <= FEW_PLACES else "chunked"


def attention(
    attn: Attention,
    y: Tensor,
    window: int,
    prompts: Tensor,
    qkv: Projection | None = None,
    onto: Tensor | None = None,
    prompt_qkv: Projection | None = None,
    proj: Projection | None = None,
    besides: KeyValues | None = None,
) -> tuple[Tensor, Tensor]:
    """SAM's attention over y (B, h, w, C), in windows of a side or, where `window` is 0, at once; every window also sees prompts
    (B, P, C). Returns what it made of y, (B, h, w, C), on top of `onto` if that is given, and what it made of the prompts, (B, P, C),
    averaged over the windows.

    qkv: in place of attn's; is called with y, then with the prompts and the padding (B, E, C) where there are any, or with all of them at
    once; the prompts are left to prompt_qkv if that is given. proj: in place of the output's projection. besides: seen by every window
    too."""
    b, h, w, _ = y.shape
    n, side = prompts.shape[1], (window, window) if window else (h, w)
    name = choose(y.device, max(h * w, b * h * w // 8))  # of windows that come as images there are many
    padded, fills = h % side[0] > 0 or w % side[1] > 0, name in WHOLE_WINDOWS
    parts = (3, attn.num_heads, y.shape[-1] // attn.num_heads)
    projected = _projected(attn, y.flatten(1, 2), prompts, padded, fills, qkv, prompt_qkv)
    image, of_prompts, of_padding = (x.unflatten(-1, parts) for x in projected)
    places = image.unflatten(1, (h, w))  # (B, h, w, 3, heads, c)
    if fills and padded:
        places, extra = _Padded.apply(places, of_padding, side), of_prompts  # (B, E, 3, heads, c)
    else:
        extra = torch.cat([of_prompts, of_padding], 1) if n and padded else of_prompts if n else of_padding
    few_kernels = fills and not torch.compiler.is_compiling()  # a compiler joins small steps itself
    kernel, tables = ATTENTION[name], (attn.rel_pos_h, attn.rel_pos_w)
    read = besides.read(places[:, :h, :w, 0].flatten(1, 2), attn.scale) if besides else None
    joined = besides.pairs.shape[2] if besides and read is None else 0
    if besides and joined:
        asking_nothing = F.pad(besides.pairs.transpose(1, 2), (0, 0, 1, 0)).unflatten(-1, parts[1:]).to(extra.dtype)  # (B, K, 3, heads, c)
        extra = torch.cat([extra[:, :n], asking_nothing, extra[:, n:]], 1)
    shape, out = places.shape, []
    unused = -(sum(side) + parts[-1]) % 8
    if name == "folded" and few_kernels and not joined and unused < 2 * side[1]:
        ones = kept_ones(side, math.prod(side) + n, False, unused, attn.scale, places.dtype, places.device)
        q, k, v = _Folded.apply(places, extra, _distances(*tables, side, places.dtype), ones, side)
        del places  # as much memory as the windows of all three
        out.append(fused(q, k, v, attn.scale, parts[-1]))
    else:
        windowed = _Windowed.apply(places, extra, side, n, joined)
        del places
        for i, cut in enumerate(_cuts((shape[1], shape[2]), side)):
            q, k, v = windowed[3 * i : 3 * i + 3]
            bias_of = partial(_bias_of_whole, side) if few_kernels else partial(_bias, cut.size, side, n)
            out.append(kernel(q, k, v, bias_of, tables, attn.scale))
    image, attended = _Joined.apply(shape, (h, w), side, n, *out)
    image = image if read is None else image + read.unflatten(1, (h, w))
    proj = proj or attn.proj
    return project(proj, image, onto), project(proj, attended) if n else attended


def _projected(
    attn: Attention, tokens: Tensor, prompts: Tensor, padded: bool, at_once: bool, qkv: Projection | None, prompt_qkv: Projection | None
) -> Sequence[Tensor]:
    """q, k and v of an image's tokens (B, t, C), (B, t, 3C), of its prompts and, where windows are `padded`, of a padding token; of what
    is not there (B, 0, 3C). at_once: by one call of qkv, which is fewer kernels, where a copy of all tokens is cheap."""
    lengths = [tokens.shape[1], prompts.shape[1], int(padded)]
    is_plain, own = qkv is None and is_stock(attn.qkv, nn.Linear), qkv or partial(project, attn.qkv)
    zeros = tokens.new_zeros(len(tokens), int(padded and not is_plain), tokens.shape[-1])  # with which SAM pads before the projection
    if at_once and not is_plain and prompt_qkv is None and any(lengths[1:]):
        return own(torch.cat([tokens, prompts, zeros], 1)).split(lengths, 1)
    image = own(tokens)
    nothing = image.new_empty(len(image), 0, image.shape[-1])
    of_prompts = (prompt_qkv or own)(prompts) if lengths[1] else nothing
    if padded and is_plain:
        return image, of_prompts, attn.qkv.bias.to(image.dtype).expand(len(image), 1, -1)
    return image, of_prompts, own(zeros) if padded else nothing


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


class _Padded(torch.autograd.Function):
    """Places (B, h, w, …) with padding (B, 1, …) below and beside them, so that they are whole windows."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, padding: Tensor, side: tuple[int, int]) -> Tensor:
        ctx.size = h, w = places.shape[1:3]
        whole = (-(-n // s) * s for n, s in zip((h, w), side, strict=True))
        padded = places.new_empty(len(places), *whole, *places.shape[3:])
        padded[:, :h, :w], padded[:, h:], padded[:, :h, w:] = places, padding[:, None], padding[:, None]
        return padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, w = ctx.size
        asked = ctx.needs_input_grad[1]
        return grad[:, :h, :w], (grad[:, h:].sum((1, 2)) + grad[:, :h, w:].sum((1, 2)))[:, None] if asked else None, None


def _with_tokens(image: Tensor, tokens: Tensor, more: int = 0) -> Tensor:
    """Each window (…, B, below, beside, heads, high, wide, c) as a row of its places, and after them tokens (…, B, heads, t, c):
    (…, N, high·wide + t, c), N = B·below·beside·heads. more: channels after these c, which hold anything."""
    *windows, high, wide, c = image.shape
    size, t = torch.Size((high, wide)), tokens.shape[-2]
    rows = image.new_empty(*windows, size.numel() + t, c + more)
    rows[..., : size.numel(), :c].unflatten(-2, size).copy_(image)
    if t:
        rows[..., size.numel() :, :c] = tokens.unflatten(-4, (-1, 1, 1))
    return rows.flatten(-6, -3)


def _take_apart(rows: Tensor, image: Tensor) -> Tensor:
    """Writes the places of `_with_tokens`' rows into `image`, and returns the sum of the tokens over windows, (…, B, heads, t, c)."""
    windows, size = rows.unflatten(-3, image.shape[-7:-3]), image.shape[-3:-1]
    image.copy_(windows[..., : size.numel(), :].unflatten(-2, size))
    return windows[..., size.numel() :, :].sum((-5, -4))


class _Windowed(torch.autograd.Function):
    """q, k and v of the windows of each cut, one cut after the other, from places (B, h, w, 3, heads, c) and extra tokens
    (B, E, 3, heads, c): the prompts, what is seen besides and, where any window is padded, the padding. They stand after each window's
    places: in q the prompts, since the others ask nothing, in k and v all that the window sees. One copy each way, where PyTorch's own
    operators make several."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, extra: Tensor, side: tuple[int, int], prompts: int, besides: int) -> tuple[Tensor, ...]:
        ctx.cuts, ctx.shapes = _cuts((places.shape[1], places.shape[2]), side), (places.shape, extra.shape)
        found: list[Tensor] = []
        tokens = extra.permute(2, 0, 3, 1, 4)  # (3, B, heads, E, c)
        for cut in ctx.cuts:
            if cut.size == side and not besides:
                found += _with_tokens(cut.of(places), tokens[..., :prompts, :]).unbind()
            else:
                seen = tokens[1:, ..., : prompts + besides, :] if cut.size == side else tokens[1:]
                of_cut = (tokens[0, ..., :prompts, :], *seen)
                found += [_with_tokens(image, seen) for image, seen in zip(cut.of(places), of_cut, strict=True)]
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_places, of_tokens = grads[0].new_empty(ctx.shapes[0]), []  # for each cut, of q, k and v (B, tokens, heads, c)
        for at, cut in enumerate(ctx.cuts):
            images = enumerate(cut.of(d_places))
            of_tokens.append([_take_apart(grads[3 * at + i], image).transpose(1, 2) for i, image in images])
        if len(of_tokens) == 1 and ctx.shapes[1][1] == of_tokens[0][0].shape[1]:
            return d_places, torch.stack(of_tokens[0], 2), None, None, None
        d_extra = grads[0].new_zeros(ctx.shapes[1])
        for of_cut in of_tokens:
            for i, tokens in enumerate(of_cut):
                d_extra[:, : tokens.shape[1], i] += tokens
        return d_places, d_extra, None, None, None


class _Folded(torch.autograd.Function):
    """What `folded` gives to `fused`, (N, h·w + P, width) each, of windows that nothing cuts and see prompts besides, from what `_Windowed`
    gets: with no copy that only puts channels beside one another, here and back."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, extra: Tensor, distances: Tensor, ones: Tensor, side: tuple[int, int]) -> tuple[Tensor, ...]:
        (cut,), c, size = _cuts((places.shape[1], places.shape[2]), side), places.shape[-1], math.prod(side)
        ctx.cut, ctx.shapes = cut, (places.shape, extra.shape)
        q, k, v = _with_tokens(cut.of(places), extra.permute(2, 0, 3, 1, 4), ones.shape[-1]).unbind()
        k[..., c:] = ones
        for part, seen in _by_distance(q[..., c:], q[..., :c].flatten(0, 1) @ distances.mT, side):
            part.copy_(seen)
        if q.shape[1] > size:
            q[:, size:, c:].zero_()
        if v.dtype != torch.float32:
            v[..., c:].zero_()
        ctx.save_for_backward(q, distances)
        return q, k, v if v.dtype != torch.float32 else v[..., :c]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (q, distances), c = ctx.saved_tensors, ctx.shapes[0][-1]
        d_q, d_k, d_v = (grad[..., :c] for grad in grads)
        of_all = q.new_zeros(*q.shape[:2], len(distances))
        for part, seen in _by_distance(grads[0][..., c:], of_all.flatten(0, 1), ctx.cut.size):
            seen.copy_(part)
        d_q.baddbmm_(of_all, distances.expand(len(q), -1, -1))  # the attention made it, and for nothing else
        d_places = q.new_empty(ctx.shapes[0])
        d_extra = [_take_apart(grad, image).transpose(1, 2) for grad, image in zip((d_q, d_k, d_v), ctx.cut.of(d_places), strict=True)]
        d_distances = of_all.flatten(0, 1).mT @ q[..., :c].flatten(0, 1) if ctx.needs_input_grad[2] else None
        return d_places, torch.stack(d_extra, 2), d_distances, None, None


class _Joined(torch.autograd.Function):
    """The image (B, h, w, C) and its prompts' mean over windows (B, P, C), from each cut's windows (N, high·wide + P, c) as `_Windowed`
    has them in q. shape: of the places that these come from, of which the first h·w are the image, the others padding."""

    @staticmethod
    def forward(
        ctx: Any, shape: torch.Size, size: tuple[int, int], side: tuple[int, int], prompts: int, *out: Tensor
    ) -> tuple[Tensor, Tensor]:
        b, high, wide, _, heads, c = shape
        ctx.set_materialize_grads(False)
        ctx.prompts = prompts
        ctx.cuts, ctx.heads, ctx.padding = _cuts((high, wide), side), heads, (high - size[0], wide - size[1])
        image = out[0].new_empty(b, high, wide, heads, c)
        attended = [_take_apart(part, cut.of(image)) for cut, part in zip(ctx.cuts, out, strict=True)]
        mean = sum(attended[1:], attended[0]) / _count(ctx.cuts)
        return image[:, : size[0], : size[1]].flatten(3), mean.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_image: Tensor, d_attended: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(ctx.padding):
            d_image = F.pad(d_image, (0, 0, 0, ctx.padding[1], 0, ctx.padding[0]))
        d_image = d_image.unflatten(-1, (ctx.heads, -1))
        if d_attended is None:  # most methods drop it
            tokens = d_image.new_zeros(len(d_image), ctx.heads, ctx.prompts, d_image.shape[-1])
        else:
            tokens = d_attended.unflatten(-1, (ctx.heads, -1)).transpose(1, 2) / _count(ctx.cuts)  # (B, heads, P, c)
        return None, None, None, None, *(_with_tokens(cut.of(d_image), tokens) for cut in ctx.cuts)


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


def _bias_of_whole(side: tuple[int, int], q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Bias:
    """As `_bias` of windows that nothing cuts, in few kernels."""
    rows, columns = _AtPlaces.apply(q, _distances(rel_pos_h, rel_pos_w, side, q.dtype), side).split(side, -1)
    return Bias(rows, columns, None)


class _AtPlaces(torch.autograd.Function):
    """The rows' and the columns' part of the bias of queries (N, h·w + P, c), (N, h·w + P, h + w), 0 for the last P: all distances
    (2h − 1 + 2w − 1, c) by one product, of which each place's own are a view, since one place further all of them are one further."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, distances: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(q, distances)
        ctx.size, (h, w) = size, size
        bias = q.new_empty(*q.shape[:2], h + w) if q.shape[1] == h * w else q.new_zeros(*q.shape[:2], h + w)
        for part, seen in _by_distance(bias, q.flatten(0, 1) @ distances.mT, size):
            part.copy_(seen)
        return bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, distances = ctx.saved_tensors
        of_all = q.new_zeros(q.shape[0] * q.shape[1], len(distances))
        for part, seen in _by_distance(grad, of_all, ctx.size):
            seen.copy_(part)
        d_q = (of_all @ distances).view(q.shape)
        return d_q, of_all.mT @ q.flatten(0, 1) if ctx.needs_input_grad[1] else None, None


def _by_distance(bias: Tensor, products: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the rows' part of the bias and then of the columns', that of each place and what it is of the products with all distances,
    (N·queries, 2h − 1 + 2w − 1), the farthest after one another: views (N, h, w, h) and (N, h, w, w).

    bias: (N, queries, h + w). Channels between the two hold what is next in the products, and take nothing back if they are 0."""
    (h, w), step, (n, queries, channels) = size, products.shape[1], bias.shape
    rows, columns = bias[:, : h * w].unflatten(1, size).split((channels - w, w), -1)
    yield rows, products.as_strided(rows.shape, (queries * step, w * step - 1, step, 1), h - 1)
    yield columns, products.as_strided((n, h, w, w), (queries * step, w * step, step - 1, 1), 2 * h - 1 + w - 1)


def _distances(rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int], kind: torch.dtype) -> Tensor:
    """The embeddings of all distances of two rows and of two columns, (2h − 1 + 2w − 1, c), from the largest negative one on; those of
    tables that are not trained are kept."""
    tables = rel_pos_h, rel_pos_w
    if any(table.requires_grad for table in tables):
        return torch.cat([_table(n, table).flip(0) for n, table in zip(size, tables, strict=True)]).to(kind)
    made_of = (size, kind, *((id(table), table.data_ptr(), table._version) for table in tables))
    known = _kept.get(rel_pos_h)
    if known is None or known[0] != made_of:
        with torch.inference_mode(False), torch.no_grad():  # so that training may use what an evaluation computed
            known = made_of, torch.cat([_table(n, table).flip(0) for n, table in zip(size, tables, strict=True)]).to(kind)
        _kept[rel_pos_h] = known
    return known[1]


_kept: Any = WeakTensorKeyDictionary()  # of a table of rows: what its distances were made of, and they


def _table(n: int, rel_pos: Tensor) -> Tensor:
    """(2n − 1, c): the embeddings of the distances 1 − n … n − 1; SAM interpolates where there are others."""
    if len(rel_pos) == 2 * n - 1:
        return rel_pos
    return F.interpolate(rel_pos.T[None], 2 * n - 1, mode="linear")[0].T


def _relative(n: int, rel_pos: Tensor) -> Tensor:
    """(n, n, c): the embedding of query i's distance from key j."""
    at = torch.arange(n, device=rel_pos.device)
    return _table(n, rel_pos)[at[:, None] - at + n - 1]
