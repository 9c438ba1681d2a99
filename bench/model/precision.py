"""In which numbers a cell computes; the protocol's settings say it, because it changes the result."""

from contextlib import AbstractContextManager

import torch

from bench.grid.protocol import Settings


def set_products(settings: Settings) -> None:
    """How float32 matrix products are made in this process: as `matmul_precision` says, or in TF32 where `precision` asks for it."""
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else settings.matmul_precision)


def computing(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Within it, models compute in the settings' `precision`: "bf16" is PyTorch's autocast, with float32 weights, losses and optimizer."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
