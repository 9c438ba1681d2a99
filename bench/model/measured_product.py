"""Which of several products is the fastest on this host: measured once, and kept in the user's cache for all processes."""

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from bench.grid.files import write_together
from bench.grid.provenance import cpu_model

TOKENS, WIDTH = 500, 768  # of the product that is measured: 0.6 GFLOP
ROUNDS = 3
FASTER = 1.03  # than the first one another must be, by this factor: less is chance
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # as F.linear


def fastest(products: Mapping[str, Linear], threads: int) -> str:
    """The name of the fastest, as it was measured before with this processor, torch and number of threads, or now (0.2 s). The first one
    where nothing can be kept (a home that is read-only): other processes would measure, and perhaps choose, for themselves."""
    about = {"cpu": cpu_model(), "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, "threads": threads}
    name = f"products-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.json"
    try:
        home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        folder = Path(os.environ.get("XDG_CACHE_HOME") or home) / "sam-peft-bench"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _read(folder / name)
            if known not in products:
                milliseconds = measured(products, threads)
                known = chosen(milliseconds)
                content = {**about, "product": known, "milliseconds": milliseconds}
                write_together(folder, {name: (json.dumps(content, indent=1) + "\n").encode()}, durable=False)
    except (OSError, RuntimeError):  # the second where there is no home
        return next(iter(products))
    return known


def _read(path: Path) -> str:
    """The product that a file names; "" for none and for a damaged one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text())["product"])
    return ""


def chosen(milliseconds: Mapping[str, float]) -> str:
    """The fastest; the first one, unless another is clearly faster."""
    first, best = next(iter(milliseconds)), min(milliseconds, key=lambda name: milliseconds[name])
    return best if milliseconds[first] > FASTER * milliseconds[best] else first


def measured(products: Mapping[str, Linear], threads: int) -> dict[str, float]:
    """The milliseconds of each product with a frozen layer, forward and backward, at best of some rounds by turns; of the processor
    where it has one thread, whatever else runs."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    with torch.inference_mode(False), torch.enable_grad():
        x, weight = torch.ones(TOKENS, WIDTH, requires_grad=True), torch.ones(WIDTH, WIDTH)
        frozen = x.detach()
        times: dict[str, list[float]] = {name: [] for name in products}
        for turn in range(1 + ROUNDS):  # the first one warms up
            for name, linear in products.items():
                began = clock()
                (linear(x, weight, weight[0]) * frozen).sum().backward()  # given a gradient, PyTorch would import SymPy first
                times[name] += [1e3 * (clock() - began)] * (turn > 0)
    return {name: round(min(of), 3) for name, of in times.items()}
