"""How fast each attention kernel is on this device, by turns in one process: what `bench.attention.choose` is to be judged by."""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bench.attention import ATTENTION, choose
from bench.backbones import CONFIGS
from bench.kernels import Bias

Case = tuple[str, tuple[int, int], int]  # its name, the places' rows and columns, and how many heads and windows there are


def compare_kernels(device: str, backbone: str, precision: str, images: int, rounds: int) -> int:
    """Times every kernel forward, and forward and backward, on a global block and on the windows of a backbone, and prints a table."""
    config, rows = CONFIGS[backbone], []
    windows = math.ceil(config.grid / config.window) ** 2
    cases = [
        ("global", (config.grid, config.grid), images * config.heads),
        ("windows", (config.window, config.window), images * config.heads * windows),
    ]
    for case in cases:
        for trains in (False, True):
            calls = {
                name: _call(kernel, case, config.width // config.heads, device, precision, trains) for name, kernel in ATTENTION.items()
            }
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(rounds + 1):  # the first one warms up
                for name, call in calls.items():
                    times[name] += [_seconds(call, device)][: turn and 1]
            rows += [_row(case, trains, name, found, device) for name, found in times.items()]
    print(f"{backbone}, {images} images, {precision}, {device}; `chosen` is what `bench.attention.choose` takes")
    print(pd.DataFrame(rows).to_markdown(index=False))
    return 0


def _call(kernel: Any, case: Case, width: int, device: str, precision: str, trains: bool) -> Callable[[], object]:
    _, (h, w), count = case
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(count, h * w, width, generator=generator).to(device, kind).requires_grad_(trains) for _ in range(4))
    tables = tuple(torch.randn(side, width, generator=generator).to(device, kind) for side in (h, w))

    def bias_of(q: Tensor, rows: Tensor, columns: Tensor) -> Bias:
        return Bias(q @ rows.mT, q @ columns.mT, None)

    def call() -> object:
        with torch.set_grad_enabled(trains):
            out = kernel(q, k, v, bias_of, tables, width**-0.5)
            return torch.autograd.grad(out, (q, k, v), grad) if trains else out

    return call


def _seconds(call: Callable[[], object], device: str) -> float:
    """On a GPU, wall seconds; on a CPU, the process's."""
    synchronise = torch.cuda.synchronize if device == "cuda" else partial(int, 0)
    clock = time.perf_counter if device == "cuda" else time.process_time
    synchronise()
    began = clock()
    call()
    synchronise()
    return clock() - began


def _row(case: Case, trains: bool, name: str, seconds: list[float], device: str) -> dict[str, object]:
    shown = {"block": case[0], "work": "forward and backward" if trains else "forward", "kernel": name}
    shown |= {"ms": f"{1e3 * median(seconds):.2f}", "range": f"{1e3 * min(seconds):.2f}–{1e3 * max(seconds):.2f}"}
    return {**shown, "chosen": "yes" if name == choose(torch.device(device)) else ""}
