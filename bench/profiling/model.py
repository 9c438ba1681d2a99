"""One measurement of how fast a model is: a training step or an evaluation, on the fast path or the plain one, in this process;
python -m bench.profiling.model JOB, which `bench.perf model` starts, prints it as JSON.

Times on a CPU are process CPU seconds of one cold call, the kernel's clearing of new pages counted; on a GPU, wall seconds of a warm one.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.grid.registry import METHODS
from bench.grid.spec import parse_call
from bench.model.backbones import read_backbone
from bench.model.checkpoints import load_sam
from bench.model.implementation import use
from bench.model.method import build
from bench.model.precision import computing, repeatable
from bench.model.products import product
from bench.model.segmenter import PromptableSegmenter
from bench.running.cell import peak_memory_mb, reset_peak_memory
from bench.training.evaluation import predicted
from bench.training.train import AdamW, Example, backward
from bench.types import COMPILE_MODES, WHOLE, Prompts

HEIGHT, WIDTH = 900, 1000
WORKS = ("evaluate", "train")


@dataclass(frozen=True)
class Job:
    """One measurement. work: of WORKS; path: of `bench.model.implementation`; matmul: torch's float32 matmul precision; compile:
    torch.compile's mode for the encoder, "" for none."""

    backbone: str
    method: str
    work: str
    images: int
    boxes: int
    device: str
    path: str
    precision: str = "fp32"
    matmul: str = "highest"
    compile: str = ""


def cpu_jobs(methods: Sequence[str]) -> list[tuple[Job, Job]]:
    """(fast, plain) of vit_b: a training step with 1 box, an image evaluated with 10."""
    jobs = [Job("vit_b", method, work, 1, 10 if work == "evaluate" else 1, "cpu", "fast") for method in methods for work in works(method)]
    return [(job, replace(job, path="reference")) for job in jobs]


def works(method: str) -> tuple[str, ...]:
    """A method that trains nothing is evaluated only."""
    return WORKS if getattr(METHODS.get(parse_call(method)[0]), "trains", True) else WORKS[:1]


def gpu_jobs(methods: Sequence[str]) -> list[tuple[Job, Job]]:
    """(fast in bf16, plain in fp32 with "medium" products) of all backbones with batches of 1 and 4, and fast in fp32 against plain; of
    vit_l also with a compiled encoder."""
    pairs = []
    for backbone, modes in (("vit_b", ()), ("vit_l", COMPILE_MODES), ("vit_h", ())):
        for method in methods:
            for work in works(method):
                for images in (1, 4):
                    plain = Job(backbone, method, work, images, 10, "cuda", "reference", "fp32", "medium")
                    fast = [replace(plain, path="fast", precision=precision) for precision in ("bf16", "fp32")]
                    pairs += [(one, plain) for one in (*fast, *(replace(fast[0], compile=mode) for mode in modes))]
    return pairs


def measure(job: Job) -> dict[str, Any]:
    """Runs a job in this process: `seconds`, of which `user_seconds`, `peak_mb` of the process or GPU, counted `tflop` (on the plain
    path: the work that the function asks for), and the device's measured `gemm_tflops`."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(job.matmul)
    model = build(job.method, load_sam(read_backbone(job.backbone).config, device=job.device), seed=0)
    if job.compile:
        model.encoder.compile_walk(job.compile)
    call = call_of(model, job)
    on_gpu = job.device == "cuda"
    reset_peak_memory(model.device)
    with use(job.path):
        tflop = None
        if on_gpu or job.path == "reference":
            with Operations() as operations:
                times = timed(call)
            tflop = operations.flop / 1e12 if job.path == "reference" else None
        else:
            times = timed(call)
        if on_gpu:
            for _ in range(3):
                timed(call)
            times["seconds"] = median(timed(call)["wall"] for _ in range(10))
    peak = peak_memory_mb(model.device)
    return {**times, "peak_mb": round(peak, 1), "tflop": tflop, "gemm_tflops": gemm_tflops(job)}


class Operations(TorchDispatchMode):
    """Counts, in `flop`, the floating-point operations of products, convolutions and attention by torch's own formulas. It must not
    surround inference mode, in which operators come unresolved. Its own work is too little to be seen in a measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


def call_of(model: PromptableSegmenter, job: Job) -> Callable[[], object]:
    """A training step or an evaluation of the job's images, drawn at random, to be called again and again."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator) for _ in range(job.images)]
    corners = torch.rand(job.images, job.boxes, 2, generator=generator) * 600
    prompts = [Prompts(boxes=torch.cat([xy, xy + 200], 1)) for xy in corners]
    if job.work == "train":
        targets = [torch.randint(0, 2, (job.boxes, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator) for _ in images]
        examples = [Example(*parts) for parts in zip(images, prompts, targets, strict=True)]
        optimizer = AdamW(model.train().tuned().values())

        def step() -> None:
            optimizer.zero_grad()
            with repeatable(model.device):
                backward(model, examples, 0, WHOLE, job.precision)
            optimizer.step()

        return step

    def evaluated() -> list[torch.Tensor]:
        with torch.no_grad(), computing(job.precision, model.device):
            features = model.encode(images)
            if job.path == "reference":
                return [(logits > 0).any(0).cpu() for logits in model.decode(features, prompts)]
            return [mask.cpu() for mask in predicted(model, features, prompts)]

    model.eval()
    return evaluated


def timed(call: Callable[[], object]) -> dict[str, float]:
    """What a call takes: `seconds` of the processor, `user_seconds` of them, and `wall`."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"seconds": user + system, "user_seconds": user, "wall": wall}


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Of a call: on a GPU wall seconds, on a CPU the processor's, which do not depend on what else runs."""
    return timed(call)["wall" if device == "cuda" else "seconds"]


def gemm_tflops(job: Job) -> float:
    """The best of several products of square matrices in the job's numbers, by PyTorch's product and by `bench.model.products`: what the
    device can do, in TFLOP/s."""
    side = 8192 if job.device == "cuda" else 1536
    kind = torch.bfloat16 if job.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=job.device, dtype=kind) for _ in range(2))
    return 2 * side**3 / 1e12 / min(seconds_of(way, job.device) for way in (lambda: a @ b.T, lambda: product(a, b)) for _ in range(6))


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
