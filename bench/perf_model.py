"""How fast the models are: the fast path against the plain one, each measurement in a process of its own, by turns.

A side's processes get the same allocator settings. Times on a CPU are user CPU seconds of one cold call, which leaves out the kernel's
clearing of new pages; on a GPU, wall seconds of a warm call. A ratio is of the two sides of one turn.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.backbones import CONFIGS
from bench.cell import peak_memory_mb, reset_peak_memory
from bench.checkpoints import load_sam
from bench.evaluation import predicted
from bench.method import build
from bench.paths import use
from bench.precision import computing
from bench.provenance import device_name, package_version
from bench.segmenter import PromptableSegmenter
from bench.train import Example, backward
from bench.types import WHOLE, Prompts

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736"}  # keep freed memory: both sides, or malloc is the gain
HEIGHT, WIDTH = 900, 1000
WORKS = ("train", "evaluate")


@dataclass(frozen=True)
class Job:
    """One measurement. work: of WORKS; path: of bench.paths; matmul: torch's float32 matmul precision."""

    backbone: str
    method: str
    work: str
    images: int
    boxes: int
    device: str
    path: str
    precision: str = "fp32"
    matmul: str = "highest"


def cpu_jobs(methods: Sequence[str]) -> list[tuple[Job, Job]]:
    """(fast, plain) of vit_b: a training step with 1 box, an image evaluated with 10."""
    jobs = [Job("vit_b", method, work, 1, 10 if work == "evaluate" else 1, "cpu", "fast") for method in methods for work in WORKS]
    return [(job, replace(job, path="plain")) for job in jobs]


def gpu_jobs(methods: Sequence[str]) -> list[tuple[Job, Job]]:
    """(fast in bf16, plain in fp32 with "medium" products) of all backbones with batches of 1 and 4, and fast in fp32 against plain."""
    pairs = []
    for backbone in ("vit_b", "vit_l", "vit_h"):
        for method in methods:
            for work in WORKS:
                for images in (1, 4):
                    plain = Job(backbone, method, work, images, 10, "cuda", "plain", "fp32", "medium")
                    pairs += [(replace(plain, path="fast", precision=precision), plain) for precision in ("bf16", "fp32")]
    return pairs


def measure(job: Job) -> dict[str, Any]:
    """Runs a job in this process: `seconds`, `cold_seconds` (user and system), `peak_mb` of the process or GPU, counted `tflop` (on the
    plain path: the work that the function asks for), and the device's measured `gemm_tflops`."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(job.matmul)
    model = build(job.method, load_sam(CONFIGS[job.backbone], device=job.device), seed=0)
    call = _call(model, job)
    on_gpu = job.device == "cuda"
    reset_peak_memory(model.device)
    with use(job.path):
        tflop = None
        if on_gpu or job.path == "plain":
            with Operations() as operations:
                times = _timed(call)
            tflop = operations.flop / 1e12 if job.path == "plain" else None
        else:
            times = _timed(call)
        if on_gpu:
            for _ in range(3):
                _timed(call)
            times["seconds"] = median(_timed(call)["wall"] for _ in range(10))
    peak = peak_memory_mb(model.device)
    return {**times, "peak_mb": round(peak, 1), "tflop": tflop, "gemm_tflops": gemm_tflops(job)}


class Operations(TorchDispatchMode):
    """Counts, in `flop`, the floating-point operations of products, convolutions and attention by torch's own formulas. torch's
    FlopCounterMode cannot be used in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flop += formula(*args, **kwargs, out_val=out)
        return out


def _call(model: PromptableSegmenter, job: Job) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator) for _ in range(job.images)]
    corners = torch.rand(job.images, job.boxes, 2, generator=generator) * 600
    prompts = [Prompts(boxes=torch.cat([xy, xy + 200], 1)) for xy in corners]
    if job.work == "train":
        targets = [torch.randint(0, 2, (job.boxes, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator) for _ in images]
        examples = [Example(*parts) for parts in zip(images, prompts, targets, strict=True)]
        optimizer = torch.optim.AdamW(model.train().tuned().values())

        def step() -> None:
            optimizer.zero_grad()
            backward(model, examples, 0, WHOLE, job.precision)
            optimizer.step()

        return step

    def evaluated() -> list[torch.Tensor]:
        with torch.inference_mode(), computing(job.precision, model.device):
            features = model.encode(images)
            if job.path == "plain":
                return [(logits > 0).any(0).cpu() for logits in model.decode(features, prompts)]
            return [mask.cpu() for mask in predicted(model, features, prompts)]

    model.eval()
    return evaluated


def _timed(call: Callable[[], object]) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"seconds": user, "system_seconds": system, "wall": wall}


def gemm_tflops(job: Job) -> float:
    """The best of several products of square matrices in the job's numbers: what the device can do, in TFLOP/s."""
    side = 8192 if job.device == "cuda" else 1536
    kind = torch.bfloat16 if job.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=job.device, dtype=kind) for _ in range(2))
    key = "wall" if job.device == "cuda" else "seconds"
    return 2 * side**3 / 1e12 / min(_timed(lambda: a @ b)[key] for _ in range(5))


def measured_apart(job: Job) -> dict[str, Any]:
    """`measure` in a new process with ALLOCATOR's settings and one thread."""
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.perf", "measure", json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def turns(pairs: Sequence[tuple[Job, Job]], rounds: int, seconds: float) -> Iterator[tuple[Job, Job, dict[str, Any], dict[str, Any]]]:
    """Each pair's two sides after one another, the first side changing by round; no round is begun that would not end in time."""
    began, longest = time.monotonic(), 0.0
    for turn in range(rounds):
        if turn and time.monotonic() - began + longest > seconds:
            return
        started = time.monotonic()
        for fast, plain in pairs:
            order = (fast, plain) if turn % 2 == 0 else (plain, fast)
            found = {}
            for job in order:
                found[job] = measured_apart(job)
                shown = {key: found[job].get(key) for key in ("failed", "seconds", "system_seconds", "peak_mb") if key in found[job]}
                print(f"{job.backbone} {job.method} {job.work} {job.path} {job.precision}: {shown}", flush=True)
            yield fast, plain, found[fast], found[plain]
        longest = max(longest, time.monotonic() - started)


def compare(device: str, methods: Sequence[str], rounds: int, minutes: float, out: Path) -> int:
    """Measures, prints and writes <date>-<device>.json and .md. 1 where a measurement failed."""
    pairs = cpu_jobs(methods) if device == "cpu" else gpu_jobs(methods)
    print(f"Both sides run with {' '.join(f'{k}={v}' for k, v in ALLOCATOR.items())}, one thread, {HEIGHT}×{WIDTH} pixels.", flush=True)
    measurements: list[dict[str, Any]] = [
        dict(zip(("fast_job", "plain_job", "fast", "plain"), one, strict=True)) for one in turns(pairs, rounds, 60 * minutes)
    ]
    rows = [summary(fast, plain, measurements) for fast, plain in pairs]
    about: dict[str, Any] = {
        "device": device_name("cuda:0" if device == "cuda" else "cpu"),
        "platform": platform.platform(),
        "allocator": ALLOCATOR,
    }
    about |= {"torch": package_version("torch"), "time": datetime.now(UTC).isoformat(timespec="seconds"), "pixels": [HEIGHT, WIDTH]}
    text = pd.DataFrame(rows).to_markdown(index=False)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{datetime.now(UTC):%Y-%m-%d}-{_slug(str(about['device']))}"
    plainly = [{k: asdict(v) if isinstance(v, Job) else v for k, v in one.items()} for one in measurements]
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows, "measurements": plainly}, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{about['device']}, torch {about['torch']}, {about['time']}\n\n{text}\n")
    print(f"Written to {path}.json and .md")
    return int(any("failed" in one[side] for one in measurements for side in ("fast", "plain")))


def summary(fast: Job, plain: Job, measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of a pair's turns, the ratios' range, and whether they are a gain: every turn's ratio above 1 by more than the spread."""
    mine: list[Any] = [one for one in measurements if one["fast_job"] == fast and one["plain_job"] == plain]
    kept = [one for one in mine if "failed" not in one["fast"] and "failed" not in one["plain"]]
    row: dict[str, Any] = {"backbone": fast.backbone, "method": fast.method, "work": fast.work, "images": fast.images, "boxes": fast.boxes}
    row |= {"numbers": f"{fast.precision}/{plain.precision}", "turns": len(kept)}
    if not kept:
        said = [one[side]["failed"] for one in mine for side in ("fast", "plain") if "failed" in one[side]]
        return {**row, "verdict": f"failed: {said[0]}"}
    whole = [_with_system(one["plain"]) / _with_system(one["fast"]) for one in kept]
    ratios = [one["plain"]["seconds"] / one["fast"]["seconds"] for one in kept]
    middle = {side: median(one[side]["seconds"] for one in kept) for side in ("fast", "plain")}
    peak = {side: median(one[side]["peak_mb"] for one in kept) / 2**30 * 1e6 for side in ("fast", "plain")}
    tflop = kept[0]["plain"]["tflop"]
    mfu = {side: 100 * tflop / middle[side] / median(one[side]["gemm_tflops"] for one in kept) for side in ("fast", "plain")}
    spread = max(ratios) - min(ratios)
    gain = len(kept) > 1 and min(ratios) - 1 > spread
    verdict = "gain" if gain else "one turn, no spread known" if len(kept) == 1 else "within the spread"
    return {
        **row,
        "plain s": round(middle["plain"], 3),
        "fast s": round(middle["fast"], 3),
        "ratio": round(median(ratios), 2),
        "range": f"{min(ratios):.2f}–{max(ratios):.2f}",
        "with kernel time": round(median(whole), 2),
        "plain GiB": round(peak["plain"], 2),
        "fast GiB": round(peak["fast"], 2),
        "TFLOP": round(tflop, 2),
        "plain MFU %": round(mfu["plain"]),
        "fast MFU %": round(mfu["fast"]),
        "verdict": verdict,
    }


def _with_system(found: Mapping[str, Any]) -> float:
    return float(found["seconds"] + found["system_seconds"])


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
