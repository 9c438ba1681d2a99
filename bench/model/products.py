"""Products with frozen weights, by PyTorch or by oneDNN, and the one place where a device's way is chosen.

PyTorch has oneDNN's product of ordinary tensors as an operator of its compiler only, without a gradient; that is why it has one here.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.model.implementation import implementation
from bench.model.measured_product import Linear, fastest
from bench.model.sam_modules import MLPBlock

TOKENS_AT_ONCE = 1000  # of 4096; malloc has room for a part's map where a map of all tokens was, but not where one of the same size was
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
M = TypeVar("M", bound=nn.Module)
Projection = Callable[[Tensor], Tensor]  # what may stand in for a linear layer


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, of float32 on a CPU; weight and bias get no gradient."""
    out: Tensor = _Product.apply(x, weight, bias)
    return out


PRODUCTS: Mapping[str, Linear] = {"torch": F.linear, "onednn": by_onednn} if HAS_ONEDNN else {"torch": F.linear}


def choose_product(device: str) -> str:
    """The product of PRODUCTS for a kind of device: on a CPU the one that is faster there, by measurement once a host. A name does not say:
    of two AMD processors one is a ninth faster by oneDNN and one by PyTorch, backward by up to a half (`python -m bench.perf kernels`)."""
    return "torch" if device != "cpu" else _kept or _fastest(torch.get_num_threads())


_kept = ""


def keep_product(name: str) -> None:
    """Makes a CPU's products as `name` says from now on, so that training which goes on gives the numbers that it would have given; by
    measurement where that is none of PRODUCTS."""
    global _kept
    _kept = name if name in PRODUCTS else ""


@cache
def _fastest(threads: int) -> str:
    return fastest(PRODUCTS, threads) if len(PRODUCTS) > 1 else "torch"


def project(layer: Projection, x: Tensor, onto: Tensor | None = None) -> Tensor:
    """layer(x), plus `onto` if that is given; where the layer is an nn.Linear, or a sequence with such, by `product`."""
    if isinstance(layer, nn.Sequential):
        for part in layer:
            x = project(part, x)
        projected = x
    elif not is_stock(layer, nn.Linear) or implementation() == "reference":
        projected = layer(x)
    elif onto is None or layer.bias is None or not _is_ordinary(x, layer.weight):
        projected = product(x, layer.weight, layer.bias)
    else:
        return _onto(onto.flatten(0, -2), x.flatten(0, -2), layer.weight, layer.bias).view(onto.shape)
    return projected if onto is None else onto + projected


def is_stock(module: Any, kind: type[M]) -> TypeGuard[M]:
    """Whether calling the module is nothing but that class's forward, so that its tensors may be computed with directly."""
    if type(module) is not kind:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooks and "forward" not in vars(module)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, c) times weight (o, c) transposed, plus bias (o,): F.linear."""
    is_ours = _is_ordinary(x, weight) and not _learns(weight, bias)
    return PRODUCTS[_by(x)](x, weight, bias) if is_ours else F.linear(x, weight, bias)


def _is_ordinary(x: Tensor, weight: Tensor) -> bool:
    """Whether these are a CPU's float32 numbers, for which products are made here; a compiler makes its own."""
    numbers = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return numbers and x.numel() > 0 and not torch.compiler.is_dynamo_compiling()


def _by(x: Tensor) -> str:
    return choose_product(x.device.type)


def _learns(*tensors: Tensor | None) -> bool:
    """Whether any of these gets a gradient: trained itself, or computed from what is."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


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


def perceptron(mlp: Any, x: Tensor, onto: Tensor, lin1: Projection | None = None, lin2: Projection | None = None) -> Tensor:
    """onto + mlp(x), with lin1 and lin2 in place of its two layers where they are given. SAM's, frozen, is computed for some tokens at a
    time on a CPU, where large and short-lived maps cost new memory."""
    if lin1 or lin2:
        return project(lin2 or mlp.lin2, mlp.act(project(lin1 or mlp.lin1, x)), onto)
    weights = _weights(mlp) if implementation() == "fast" else None
    if weights is None or not _is_ordinary(x, weights[0]) or _learns(*weights):
        out: Tensor = onto + mlp(x)
        return out
    parts: Tensor = _Perceptron.apply(onto.flatten(0, -2), x.flatten(0, -2), *weights)
    return parts.view(x.shape)


def _weights(mlp: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The tensors that SAM's MLP computes with; None of another one."""
    is_sams = is_stock(mlp, MLPBlock) and is_stock(mlp.lin1, nn.Linear) and is_stock(mlp.lin2, nn.Linear)
    if not is_sams or not is_stock(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        return None
    weights = mlp.lin1.weight, mlp.lin1.bias, mlp.lin2.weight, mlp.lin2.bias
    return None if any(weight is None for weight in weights) else weights


class _Perceptron(torch.autograd.Function):
    """SAM's frozen MLP of tokens (n, C), TOKENS_AT_ONCE at a time; of what is between, backward needs the input of GELU only."""

    @staticmethod
    def forward(ctx: Any, onto: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        trains = ctx.needs_input_grad[1]
        out, kept = torch.empty_like(x), []
        memory = x.new_empty(min(TOKENS_AT_ONCE, len(x)), len(weight1))
        for residual, part, into in zip(*(tokens.split(TOKENS_AT_ONCE) for tokens in (onto, x, out)), strict=True):
            reused = memory[: len(part)]
            hidden = _hidden(part, weight1, bias1, None if trains else reused)
            kept += [hidden] * trains
            _onto(residual, torch.ops.aten.gelu.out(hidden, out=reused), weight2, bias2, into)
        ctx.save_for_backward(weight1, weight2, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight1, weight2, *kept = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None, None
        linear, out = PRODUCTS[_by(grad)], torch.empty_like(grad)
        for part, hidden, into in zip(grad.split(TOKENS_AT_ONCE), kept, out.split(TOKENS_AT_ONCE), strict=True):
            of_hidden = torch.ops.aten.gelu_backward(linear(part, weight2.mT, None), hidden)
            into.copy_(linear(of_hidden, weight1.mT, None))
        return grad, out, None, None, None, None


def _hidden(x: Tensor, weight: Tensor, bias: Tensor, memory: Tensor | None) -> Tensor:
    """x (n, c)·weightᵀ + bias, in that memory if it is given and PyTorch makes the product."""
    return torch.mm(x, weight.mT, out=memory).add_(bias) if _by(x) == "torch" else by_onednn(x, weight, bias)


def _onto(onto: Tensor, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """onto (n, o) + x (n, c)·weightᵀ + bias, as `out` if given: where PyTorch makes the product, onto what is there."""
    if _by(x) == "torch":
        return torch.add(onto, bias, out=out).addmm_(x, weight.mT)
    return torch.add(onto, product(x, weight, bias), out=out)
