"""The two-way transformer of SAM's decoder over many prompts at once; tokens may be hidden.

It computes what the stock module does. A place of the source is projected for the tokens' sake only, so the tokens' side is multiplied
with the projection instead: a prompt has few tokens, and 8 heads of 8 are half of the projection's 128 channels. The positions' share is
computed once a call.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model.sam_modules import TwoWayTransformer


def two_way(
    transformer: TwoWayTransformer, sources: Tensor, which: Tensor, pe: Tensor, tokens: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the tokens (N, t, d) and each prompt's source (N, n, d) after the transformer.

    sources: (U, n, d); which: (N,), the source of each prompt; pe: (n, d), of the places; tokens: (N, t, d);
    visible: (N, 1, 1, t) bool, False where a token is only there to make lengths equal, or None. Hidden tokens come out as anything.
    """
    queries, source = tokens, sources[which]
    for layer in transformer.layers:
        queries = _self_attention(layer, queries, tokens, visible)
        queries = layer.norm2(queries + _look(layer.cross_attn_token_to_image, queries + tokens, source, pe))
        queries = layer.norm3(queries + layer.mlp(queries))
        source = layer.norm4(_read(layer.cross_attn_image_to_token, source, pe, queries + tokens, queries, visible))
    seen = _look(transformer.final_attn_token_to_image, queries + tokens, source, pe)
    return transformer.norm_final_attn(queries + seen), source


def _self_attention(layer: Any, queries: Tensor, tokens: Tensor, visible: Tensor | None) -> Tensor:
    attn, first = layer.self_attn, layer.skip_first_layer_pe
    at = queries if first else queries + tokens
    q, k, v = (_heads(attn, x) for x in (attn.q_proj(at), attn.k_proj(at), attn.v_proj(queries)))
    out = attn.out_proj(_together(F.scaled_dot_product_attention(q, k, v, attn_mask=visible)))
    normed: Tensor = layer.norm1(out if first else queries + out)
    return normed


def _look(attn: Any, at: Tensor, source: Tensor, pe: Tensor) -> Tensor:
    """What tokens `at` (N, t, d) see in the source: (N, t, d)."""
    q = _heads(attn, attn.q_proj(at))
    p = _logits(q, attn.k_proj, source, pe).softmax(-1)
    seen = (p.flatten(1, 2) @ source).unflatten(1, p.shape[1:3])  # (N, heads, t, d)
    values = seen @ _by_head(attn, attn.v_proj.weight).mT + attn.v_proj.bias.unflatten(0, (attn.num_heads, 1, -1))
    out: Tensor = attn.out_proj(_together(values))
    return out


def _read(attn: Any, source: Tensor, pe: Tensor, at: Tensor, queries: Tensor, visible: Tensor | None) -> Tensor:
    """The source (N, n, d) plus what its places read from the tokens, found by `at` and valued by `queries`."""
    logits = _logits(_heads(attn, attn.k_proj(at)), attn.q_proj, source, pe)
    if visible is not None:
        logits = logits.masked_fill(~visible.mT, -torch.inf)
    values = _heads(attn, attn.v_proj(queries)) @ _by_head(attn, attn.out_proj.weight.mT)  # (N, heads, t, d)
    values = values + attn.out_proj.bias / attn.num_heads  # a place's probabilities sum to 1 for each head
    return torch.baddbmm(source, logits.softmax(2).flatten(1, 2).mT, values.flatten(1, 2))


def _logits(tokens: Tensor, layer: Any, source: Tensor, pe: Tensor) -> Tensor:
    """The products of tokens (N, heads, t, c) with layer(source + pe), head by head, over the root of c: (N, heads, t, n)."""
    n, heads, t, c = tokens.shape
    tokens = tokens / math.sqrt(c)
    of_source = (tokens @ layer.weight.unflatten(0, (heads, c))).flatten(1, 2) @ source.mT  # (N, heads·t, n)
    positions = F.linear(pe, layer.weight, layer.bias).unflatten(-1, (heads, c)).permute(1, 2, 0)  # (heads, c, n)
    of_positions = tokens.transpose(0, 1).flatten(1, 2) @ positions  # (heads, N·t, n)
    return of_source.unflatten(1, (heads, t)) + of_positions.unflatten(1, (n, t)).transpose(0, 1)


def _heads(attn: Any, x: Tensor) -> Tensor:
    """(N, t, heads·c) as (N, heads, t, c)."""
    return x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    """(N, heads, t, c) as (N, t, heads·c)."""
    return x.transpose(1, 2).flatten(2)


def _by_head(attn: Any, weight: Tensor) -> Tensor:
    """(heads·c, d) as (heads, c, d)."""
    return weight.unflatten(0, (attn.num_heads, -1))
