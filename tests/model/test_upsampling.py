"""Interpolation is PyTorch's, forward to the bit and backward to rounding, with the same bits each time."""

import pytest
import torch
import torch.nn.functional as F

from bench.model.precision import exact_products, repeatable
from bench.model.upsampling import resized

CPU = torch.device("cpu")
SIZES = [((5, 7), (11, 13)), ((64, 64), (90, 100)), ((9, 14), (3, 5)), ((6, 6), (6, 6)), ((1, 1), (4, 3))]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("before", "after"), [((5, 7), (11, 13)), ((64, 64), (90, 100)), ((9, 14), (3, 5)), ((6, 6), (6, 6)), ((1, 1), (4, 3))]
)
def test_values_and_gradients_are_those_of_interpolation(mode, before, after):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, *before, generator=generator).requires_grad_()
    mine, theirs = resized(maps, after, mode), F.interpolate(maps[:, None], after, mode=mode, align_corners=False)[:, 0]
    assert torch.equal(mine, theirs)
    grad = torch.randn(mine.shape, generator=generator)
    torch.testing.assert_close(*(torch.autograd.grad(out, maps, grad)[0] for out in (mine, theirs)), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_exact_under_lower_precisions():
    """Neither autocast nor the settings' products reach it, and both are as before afterwards."""
    maps, grad = torch.randn(1, 16, 16, requires_grad=True), torch.randn(1, 50, 40)
    (exact,) = torch.autograd.grad(resized(maps, (50, 40)), maps, grad)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with exact_products(CPU):
                assert torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled("cpu")
            (again,) = torch.autograd.grad(resized(maps, (50, 40)), maps, grad)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(exact, again)


def test_a_cpu_needs_no_flag():
    with repeatable(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
