"""Products with frozen weights: on a CPU by oneDNN, which was measured to be a ninth faster in float32 than PyTorch's default there.

PyTorch has oneDNN's product of ordinary tensors as an operator of its compiler only, without a gradient; that is why it has one here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.paths import chosen
from bench.stock import MLPBlock

TOKENS_AT_ONCE = 1024
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x); where it is an nn.Linear, or a sequence with such, by `product`."""
    if isinstance(layer, nn.Sequential):
        for part in layer:
            x = project(part, x)
        return x
    if type(layer) is not nn.Linear or chosen() == "plain":
        projected: Tensor = layer(x)
        return projected
    return product(x, layer.weight, layer.bias)


def perceptron(mlp: Any, x: Tensor) -> Tensor:
    """mlp(x). SAM's is computed for some tokens at a time on a CPU, where large and short-lived maps cost new memory."""
    if type(mlp) is not MLPBlock or chosen() == "plain":
        out: Tensor = mlp(x)
        return out
    tokens = x.flatten(0, -2)
    parts = tokens.split(TOKENS_AT_ONCE) if x.device.type == "cpu" else [tokens]
    return torch.cat([project(mlp.lin2, mlp.act(project(mlp.lin1, part))) for part in parts]).view(x.shape)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, c) times weight (o, c) transposed, plus bias (o,): F.linear."""
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    if (learns and torch.is_grad_enabled()) or not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)
    return out


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    numbers = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return HAS_ONEDNN and numbers and x.device.type == "cpu" and x.numel() > 0


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn(grad, weight.mT, None), None, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
