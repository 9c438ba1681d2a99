"""In which numbers a cell computes, which the protocol's settings say, because it changes the result; and that it computes them again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from bench.grid.protocol import Settings


def products_of(settings: Settings) -> AbstractContextManager[None]:
    """Within it, float32 products are made as `matmul_precision` says, or in TF32 where `precision` asks for it; convolutions too."""
    return _float32("high" if settings.precision == "tf32" else settings.matmul_precision)


@contextmanager
def _float32(products: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = products != "highest"  # PyTorch convolves in TF32 unless told
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def computing(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Within it, models compute in the settings' `precision`: "bf16" is PyTorch's autocast, with float32 weights, losses and optimizer."""
    if not torch.amp.is_autocast_available(device.type):  # "meta", where nothing is computed
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Within it, float32 products are made of all of float32's digits, whatever the settings say."""
    with _float32("highest"), computing("fp32", device):
        yield


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it, a GPU adds up in an order that is always the same, and what has no kernel for that is an error that names it. For training
    steps: what evaluations compute is the same each time anyway, and a CPU always computes the same."""
    if device.type != "cuda":
        yield
        return
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with deterministic():
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it, every sum is added up in an order that is always the same; an operation that cannot is an error."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)  # to warn only would leave attention's gradients to chance
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
