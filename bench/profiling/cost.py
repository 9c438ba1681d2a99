"""What a method costs on this machine: a training step, an image and the peak memory, measured apart from all cells and kept.

A process for each method, so that nothing depends on what ran before: `python -m bench.profiling.cost BACKBONE METHOD DEVICE`, which
`bench.perf cost` starts, prints its numbers as JSON. On a CPU it has one thread.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from shlex import join
from statistics import median

import torch

from bench import ROOT
from bench.errors import last_words
from bench.grid.provenance import device_name, git_state
from bench.grid.spec import MethodChoice
from bench.grid.store import COST_FIELDS, ResultStore, read_cost
from bench.model.backbones import read_backbone
from bench.model.checkpoints import load_sam
from bench.model.method import build
from bench.profiling.model import Job, call_of, seconds_of, timed, works
from bench.running.cell import peak_memory_mb, reset_peak_memory

BOXES = {"train": 1, "evaluate": 10}  # of the one image
SECONDS, LEAST, MOST = 2.0, 3, 20  # of measuring a kind of call, and calls, after one that warms up
CPU_STEP_MB = 10  # to which the memory of a process is rounded: it differs by a few MB from run to run


def measure_costs(choices: Sequence[MethodChoice], backbone: str, device: str, store: ResultStore, calls: int = LEAST) -> int:
    """Measures and keeps the costs of methods that have none on this machine yet; 1 where a measurement failed. calls: of each kind, at
    least, after the one that warms up."""
    machine, failed = device_name(device) or device, 0
    for choice in choices:
        path = store.cost_file(choice, backbone, machine)
        if read_cost(path):
            print(f"{choice.label}: measured before; remove {path} to measure it again.")
            continue
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        call = [sys.executable, "-m", "bench.profiling.cost", backbone, choice.label, device, str(calls)]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"{choice.label}: failed: {last_words(done.returncode, done.stderr)}", file=sys.stderr)
            failed = 1
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        command = ["python", "-m", "bench.perf", "cost", "--backbone", backbone, "--methods", choice.label, "--device", device]
        how = {"command": join([*command, "--calls", str(calls)]), "commit": git_state(ROOT)[0], "torch": torch.__version__}
        store.keep_cost(choice, backbone, machine, {**found, **how})
        print(f"{choice.label}: " + ", ".join(f"{name} {found[name]:.4g}" for name in COST_FIELDS if name in found), flush=True)
    return failed


def measured(backbone: str, method: str, device: str, calls: int = LEAST) -> dict[str, float]:
    """COST_FIELDS of a method, on the one image of `bench.profiling.model`; no seconds of a step where nothing is trained."""
    torch.set_num_threads(1)
    model = build(method, load_sam(read_backbone(backbone).config, device=device), seed=0)
    reset_peak_memory(model.device)
    seconds = {}
    for work in reversed(works(method)):  # training first
        job = Job(backbone, method, work, 1, BOXES[work], device, "fast")
        seconds[work] = warm_seconds(call_of(model, job), device, calls)
    peak = peak_memory_mb(model.device)
    memory = peak if device == "cuda" else CPU_STEP_MB * round(peak / CPU_STEP_MB)
    step = {"step_seconds": seconds["train"]} if "train" in seconds else {}
    tuned = sum(4 * tensor.numel() for tensor in model.tuned().values())  # as a cell keeps them
    return {**step, "images_per_second": 1 / seconds["evaluate"], "peak_memory_mb": memory, "tuned_bytes": tuned}


def warm_seconds(call: Callable[[], object], device: str, calls: int = LEAST) -> float:
    """The median of `seconds_of` some calls, after a first one that is not counted."""
    timed(call)
    began, taken = time.monotonic(), list[float]()
    while len(taken) < calls or (len(taken) < MOST and time.monotonic() - began < SECONDS):
        taken.append(seconds_of(call, device))
    return median(taken)


if __name__ == "__main__":
    _, named, method, device, calls = sys.argv
    print(json.dumps(measured(named, method, device, int(calls))))
