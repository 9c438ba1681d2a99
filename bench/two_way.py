"""The two-way transformer of SAM's decoder over many prompts: what prompts share is computed once, and tokens may be hidden.

It computes what the stock module does. Prompts of one image without a mask start from the same source, so that all of the first
layer that reads it is computed once a source; the positions' share of a projection is computed once a call.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bench.products import project
from bench.stock import TwoWayTransformer


def two_way(
    transformer: TwoWayTransformer, sources: Tensor, which: Tensor, pe: Tensor, tokens: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the tokens (N, t, d) and each prompt's source (N, n, d) after the transformer.

    sources: (U, n, d); which: (N,), the source of each prompt; pe: (n, d), of the places; tokens: (N, t, d);
    visible: (N, 1, 1, t) bool, False where a token is only there to make lengths equal, or None. Hidden tokens come out as anything.
    """
    queries, source, shared = tokens, sources, True
    for layer in transformer.layers:
        queries = _self_attention(layer, queries, tokens, visible)
        seen = _look(layer.cross_attn_token_to_image, queries + tokens, source, pe, which if shared else None)
        queries = layer.norm2(queries + seen)
        queries = layer.norm3(queries + layer.mlp(queries))
        back = layer.cross_attn_image_to_token
        at = _project(back.q_proj, source, pe)
        if shared:
            at, source, shared = at[which], source[which], False
        read = _attend(back, at, back.k_proj(queries + tokens), back.v_proj(queries), visible)
        source = layer.norm4(source + read)
    seen = _look(transformer.final_attn_token_to_image, queries + tokens, source, pe, None)
    return transformer.norm_final_attn(queries + seen), source


def _self_attention(layer: Any, queries: Tensor, tokens: Tensor, visible: Tensor | None) -> Tensor:
    attn, first = layer.self_attn, layer.skip_first_layer_pe
    at = queries if first else queries + tokens
    out = _attend(attn, attn.q_proj(at), attn.k_proj(at), attn.v_proj(queries), visible)
    normed: Tensor = layer.norm1(out if first else queries + out)
    return normed


def _look(attn: Any, at: Tensor, source: Tensor, pe: Tensor, which: Tensor | None) -> Tensor:
    """Tokens attend to the source; `which` spreads shared sources over the prompts after the projections."""
    k, v = _project(attn.k_proj, source, pe), project(attn.v_proj, source)
    if which is not None:
        k, v = k[which], v[which]
    return _attend(attn, attn.q_proj(at), k, v, None)


def _project(linear: Any, source: Tensor, pe: Tensor) -> Tensor:
    """linear(source + pe)"""
    return project(linear, source) + F.linear(pe, linear.weight)


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax attention of projected q (N, a, c), k and v (N, b, c), and the output projection."""
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return project(attn.out_proj, out.transpose(1, 2).flatten(2))
