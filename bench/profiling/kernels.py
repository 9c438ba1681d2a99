"""How fast each attention kernel and each product is on this device, by turns in one process, and how far their results lie apart: what
`bench.model.attention.choose` and `bench.model.products.choose_product` are to be judged by."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bench.model.attention import ATTENTION, GPU_ONLY, choose
from bench.model.backbones import read_backbone
from bench.model.checkpoints import first_line
from bench.model.kernels import Bias
from bench.model.products import PRODUCTS, choose_product
from bench.model.sizes import SamConfig
from bench.profiling.model import seconds_of

Call = Callable[[], tuple[Tensor, ...]]
WORKS = {False: "forward", True: "forward and backward"}


def compare_kernels(device: str, backbone: str, precision: str, images: int, rounds: int) -> int:
    """Times every kernel on a global block and on the windows of a backbone, and every product on its frozen layers, forward, and
    forward and backward, and prints a table of each."""
    torch.set_num_threads(1)
    config, kind = read_backbone(backbone).config, torch.bfloat16 if precision == "bf16" else torch.float32
    print(f"{backbone}, {images} images, {precision}, {device}; `differs`: from the first one, by the largest value")
    kernels = {name: kernel for name, kernel in ATTENTION.items() if device == "cuda" or name not in GPU_ONLY}
    parts = (
        (_attentions(config, images, kernels, device, kind), choose(torch.device(device), config.grid**2)),
        (_products(config, images, device, kind), choose_product(device)),
    )
    for cases, chosen in parts:
        rows = [row for what, trains, calls in cases for row in _raced(what, trains, calls, rounds, device, chosen)]
        print(f"\n{pd.DataFrame(rows).to_markdown(index=False)}", flush=True)
    return 0


def _attentions(
    config: SamConfig, images: int, kernels: Mapping[str, Any], device: str, kind: torch.dtype
) -> Iterator[tuple[str, bool, dict[str, Call]]]:
    """A global block, and the windows of one, by every kernel."""
    sides = {"global": (config.grid, 1), "windows": (config.window, math.ceil(config.grid / config.window) ** 2)}
    width = config.width // config.heads
    for what, (side, windows) in sides.items():
        drawn = _numbers(device, kind, *[(images * config.heads * windows, side**2, width)] * 4, *[(side, width)] * 2)
        for trains in WORKS:
            yield what, trains, {name: partial(_attended, kernel, trains, *drawn) for name, kernel in kernels.items()}


def _attended(kernel: Any, trains: bool, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    def bias_of(q: Tensor, rows: Tensor, columns: Tensor) -> Bias:
        return Bias(q @ rows.mT, q @ columns.mT, None)

    inputs = [x.detach().requires_grad_(trains) for x in (q, k, v)]
    with torch.set_grad_enabled(trains):
        out = kernel(*inputs, bias_of, tables, q.shape[-1] ** -0.5)
        return (out, *torch.autograd.grad(out, inputs, grad)) if trains else (out,)


def _products(config: SamConfig, images: int, device: str, kind: torch.dtype) -> Iterator[tuple[str, bool, dict[str, Call]]]:
    """The frozen layers of a block, by every product that works on the device."""
    c = config.width
    layers = {"qkv": (c, 3 * c), "proj": (c, c), "lin1": (c, 4 * c), "lin2": (4 * c, c)}
    ways = {name: way for name, way in PRODUCTS.items() if name == "torch" or (device == "cpu" and kind is torch.float32)}
    for what, (inner, outer) in layers.items():
        tokens = images * config.grid**2
        drawn = _numbers(device, kind, (tokens, inner), (outer, inner), (outer,), (tokens, outer))
        for trains in WORKS:
            yield what, trains, {name: partial(_multiplied, way, trains, *drawn) for name, way in ways.items()}


def _multiplied(way: Any, trains: bool, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_(trains)
    with torch.set_grad_enabled(trains):
        out = way(x, weight, bias)
        return (out, *torch.autograd.grad(out, x, grad)) if trains else (out,)


def _numbers(device: str, kind: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, kind) for shape in shapes]


def _raced(what: str, trains: bool, calls: Mapping[str, Call], rounds: int, device: str, chosen: str) -> list[dict[str, object]]:
    """A row for each way to compute the same."""
    first = next(iter(calls.values()))()
    differs: dict[str, str] = {}
    for name, call in calls.items():  # the calls that warm up
        try:
            differs[name] = f"{_difference(call(), first):.0e}"
        except Exception as error:  # a compiler's too, on a card that nobody has tried: the others are to be known
            differs[name] = f"failed: {first_line(error)}"
    works = [name for name in calls if not differs[name].startswith("failed")]
    times: dict[str, list[float]] = {name: [] if name in works else [math.nan] for name in calls}
    for _ in range(rounds):
        for name in works:
            times[name].append(seconds_of(calls[name], device))
    return [
        {
            "part": what,
            "work": WORKS[trains],
            "way": name,
            "ms": f"{1e3 * median(seconds):.2f}",
            "range": f"{1e3 * min(seconds):.2f}–{1e3 * max(seconds):.2f}",
            "differs": differs[name],
            "chosen": "yes" if name == chosen else "",
        }
        for name, seconds in times.items()
    ]


def _difference(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest difference of outputs and gradients, each over the largest value wanted of it."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True))
