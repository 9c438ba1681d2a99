"""Mask maps in token layout: an upscaled map stays one row of channels a place, (n, g², 4, 4, c), for as long as nothing looks aside.

A transposed convolution of kernel 2 and stride 2 turns every place into 2×2 places by itself, so it is a matrix product, and the
norm and activation after it need no map either. Only a mask itself, of one channel, is put in order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model.products import product


def upscaled(layers: Any, places: Tensor, high_res: Sequence[Tensor] = ()) -> Tensor:
    """Transposed convolution, LayerNorm2d, GELU, transposed convolution, and what follows: (n, g², d) -> (n, g², 4, 4, c). high_res: what
    is added to the second's result and to the first's."""
    first, norm, activation, second, *rest = layers
    x = _split(first, places)  # (n, g², 4, c')
    x = activation(normed(norm, x + high_res[1] if high_res else x))
    x = _split(second, x)
    x = x + high_res[0] if high_res else x
    for layer in rest:
        x = layer(x)
    return x


def _split(layer: Any, x: Tensor) -> Tensor:
    """A transposed convolution of kernel 2 and stride 2 on places (…, c): (…, 4, c'), the four in reading order."""
    weight: Tensor = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4·c', c)
    bias: Tensor = layer.bias.repeat(4)
    return product(x, weight, bias).unflatten(-1, (4, -1))


def normed(norm: Any, x: Tensor) -> Tensor:
    """A LayerNorm2d of channels (…, c) that lie together."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def in_order(places: Tensor) -> Tensor:
    """(n, g², 4, 4, c) -> (n, 4g, 4g, c): places of places of places as a map."""
    n, side, c = len(places), int(places.shape[1] ** 0.5), places.shape[-1]
    split = places.reshape(n, side, side, 2, 2, 2, 2, c)  # rows and columns of: the grid, its halves, their halves
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n, 4 * side, 4 * side, c)


def in_places(maps: Tensor, side: int) -> Tensor:
    """Maps (n, c, 4g, 4g) as (n, g², 4, 4, c), or (n, c, 2g, 2g) as (n, g², 4, c), side: g."""
    x = maps.unflatten(3, (side, -1)).unflatten(2, (side, -1)).permute(0, 2, 4, 3, 5, 1).flatten(1, 2)  # (n, g², 4 or 2, 4 or 2, c)
    if x.shape[2] == 2:
        return x.flatten(2, 3)
    return x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def masks(weights: Tensor, places: Tensor) -> Tensor:
    """Each prompt's channels (n, g², 4, 4, c) times its weights (n, c), as maps (n, 4g, 4g)."""
    return in_order(torch.matmul(places.flatten(1, 3), weights[..., None]).unflatten(1, places.shape[1:4]))[..., 0]


def masks_of_one(weights: Tensor, places: Tensor) -> Tensor:
    """As `masks`, of one image's channels (g², 4, 4, c) for all its prompts' weights (n, c)."""
    return in_order((weights @ places.flatten(0, 2).mT).unflatten(1, places.shape[:3])[..., None])[..., 0]


def feature_masks(layers: Any, weights: Tensor, places: Tensor) -> Tensor:
    """Convolution, LayerNorm2d, GELU, convolution (3×3, padding 1) of the maps (n, g², 4, 4, c), times weights (n, c): (n, 4g, 4g).

    The weights are multiplied into the last convolution first, which is linear: it then has one output channel instead of c.
    """
    first, norm, activation, last = layers
    x = first(in_order(places).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (n, 4g, 4g, c'), channels last throughout
    x = activation(normed(norm, x))
    kernel = torch.einsum("no,oiyx->nyxi", weights, last.weight)
    size = x.shape[1:3]
    taps = kernel.flip(1, 2).flatten(1, 2) @ x.flatten(1, 2).mT  # (n, 9, 16g²): each place's share in its nine neighbours
    spread = F.fold(taps, size, 3, padding=1)[:, 0]
    return spread + (weights @ last.bias)[:, None, None]
