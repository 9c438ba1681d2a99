"""Channels times numbers that are trained, onto something else."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def scaled_onto(onto: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """onto + x·scale, of shapes that are broadcast to that of x: `torch.addcmul`, whose own gradient takes two more passes over x."""
    out: Tensor = _ScaledOnto.apply(onto, x, scale)
    return out


class _ScaledOnto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, onto: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, scale)
        ctx.shape = onto.shape
        return torch.addcmul(onto, x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale), asked = ctx.saved_tensors, ctx.needs_input_grad
        d_onto = grad.sum_to_size(ctx.shape) if asked[0] else None
        return d_onto, grad * scale if asked[1] else None, (grad * x).sum_to_size(scale.shape) if asked[2] else None
