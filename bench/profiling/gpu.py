"""The first minutes on a card: is it set up right, and how long will a grid take? Steps in a fixed order, each in a process of its own that
a crash of the card ends alone, each bounded in time, each result written at once. Where nothing else is at hand it runs on a CPU.

python -m bench.profiling.gpu STEP BACKBONE DEVICE, which `bench.perf gpu` starts, prints a step's result as JSON.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.errors import RequestError, last_words
from bench.grid.files import check_writable
from bench.grid.plan import choose_methods
from bench.grid.protocol import load_protocol
from bench.grid.provenance import ROOT, git_state, package_version
from bench.grid.registry import METHODS
from bench.grid.store import RECORD, TUNED, ResultStore, read_cost
from bench.model.backbones import read_backbone
from bench.model.checkpoints import first_line, load_sam
from bench.model.method import build
from bench.model.precision import computing, repeatable
from bench.profiling.cost import measured
from bench.profiling.kernels import compare_kernels
from bench.profiling.model import Job, measure, timed, works
from bench.profiling.samples import Squares
from bench.profiling.turns import Found, device_label, in_subprocess, slug, unwritten
from bench.running.estimate import hours
from bench.running.workers import device_of
from bench.training.train import Example, backward, optimizer_of, steps_of
from bench.types import COMPILE_MODES, STEP_GRAPH, WHOLE, Prompts

APART = {"fp32": 1e-3, "bf16": 0.15}  # of the largest logit or gradient, from a CPU's fp32
SPEED_METHODS = ("lora", "cat_sam_a", "cat_sam_t")
PROFILED = 5  # steps
SHARE_OF_REST = 0.5  # that a step may take of the time that is left, so that one that hangs leaves time for the others
LEAST_SECONDS = 15.0
STEPS_OF_A_CELL, IMAGES_OF_A_CELL = 2000, {"paper": 103_600, "clean": 1_036}  # of a one-shot cell on WHU, by protocol
LITTLE_MB = 64  # of a card's memory for a cell that is to run out of it: cuBLAS takes 32, the model 16


def agreement(backbone: str, device: str) -> Found:
    """Every method on the tiny SAM: logits and gradients of a step in fp32, and logits in bf16, against those of a CPU."""
    torch.backends.cudnn.allow_tf32 = False  # else "fp32" convolves in fewer digits
    rows: list[dict[str, Any]] = []
    for name in METHODS.names():
        try:
            rows.append(_agreement(name, device))
        except RuntimeError as error:  # of one method; the others are to be known as well
            rows.append({"method": name, "agrees": f"NO: {first_line(error)}"})
        _so_far(rows)
    wrong = [row["method"] for row in rows if row["agrees"] != "yes"]
    return {"rows": rows, "ok": not wrong, "said": f"differs from a CPU: {', '.join(wrong)}" if wrong else f"{len(rows)} methods agree"}


def _agreement(name: str, device: str) -> dict[str, Any]:
    wanted, found = (_numbers(name, where, "fp32") for where in ("cpu", device))
    half = _numbers(name, device, "bf16", False)
    apart = {"logits": _apart(found[0], wanted[0]), "gradients": max(map(_apart, found[1:], wanted[1:]), default=0.0)}
    apart["bf16 logits"] = _apart(half[0], wanted[0])
    kept = all(value <= APART["bf16" if key == "bf16 logits" else "fp32"] for key, value in apart.items())
    return {"method": name, **{key: f"{value:.1e}" for key, value in apart.items()}, "agrees": "yes" if kept else "NO"}


def _so_far(rows: Sequence[Mapping[str, Any]], **more: object) -> None:
    """Prints what is known by now, which is kept where the step does not come to its end."""
    print(json.dumps({"rows": rows, **more}), flush=True)


def _numbers(method: str, device: str, precision: str, trains: bool = True) -> list[Tensor]:
    """The logits of an image, then the gradients of a training step where there is something to train."""
    generator = torch.Generator().manual_seed(0)
    model = build(method, load_sam("tiny", device=device), seed=0).eval()
    for tensor in model.tuned().values():  # what starts as zeros has gradients of zeros behind it
        tensor.data += 0.01 * torch.randn(tensor.shape, generator=generator).to(device)
    side = model.sam.config.image_size
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
    prompts = Prompts(boxes=torch.tensor([[8.0, 8.0, side / 2, side / 2]]))
    with torch.no_grad(), computing(precision, model.device):
        found = [model.decode(model.encode([image]), [prompts])[0].float().cpu()]
    if trains and model.tuned():
        with repeatable(model.device):
            backward(model, [Example(image, prompts, torch.ones(1, side, side, dtype=torch.uint8))], 0, WHOLE, precision)
        found += [tensor.grad.cpu() for tensor in model.tuned().values() if tensor.grad is not None]
    return found


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def repeats(backbone: str, device: str) -> Found:
    """A smoke cell from the command line, again, and on a GPU with steps as one graph: the same numbers and weights?"""
    ways: dict[str, list[str]] = {"again": [], **({STEP_GRAPH: ["--compile", STEP_GRAPH]} if device == "cuda" else {})}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        first = _smoke_cell(Path(folder) / "first", device)
        for way, flags in ways.items():
            try:
                other = _smoke_cell(Path(folder) / way, device, *flags)
                words = [f"{'the same' if same else 'OTHER'} {what}" for what, same in _same(first, other).items()]
            except RequestError as error:
                words = [f"FAILED: {error}"]
            rows.append({"smoke cell": way, "has": " and ".join(words)})
            _so_far(rows)
    said = "; ".join(f"{row['smoke cell']}: {row['has']}" for row in rows)
    return {"rows": rows, "ok": not any(word in said for word in ("OTHER", "FAILED")), "said": said}


def _same(one: Path, two: Path) -> dict[str, bool]:
    """What is the same of two stored cells."""
    scores = [json.loads((path / RECORD).read_text())["scores"] for path in (one, two)]
    return {"scores": scores[0] == scores[1], "weights": (one / TUNED).read_bytes() == (two / TUNED).read_bytes()}


def _smoke_cell(out: Path, device: str, *flags: str) -> Path:
    """The folder of a stored cell."""
    done = _run_smoke(out, device, *flags)
    found = list(out.glob(f"runs/*/*/*/{RECORD}"))
    if done.returncode or not found:
        raise RequestError(f"a smoke cell failed: {last_words(done.returncode, done.stderr or done.stdout)}")
    return found[0].parent


def _run_smoke(out: Path, device: str, *flags: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """`bench.run` of a smoke cell in a process of its own, which runs a line of Python before."""
    words = ["--methods", "cat_sam_a", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--device", device]
    run = [sys.executable, "-c", f"{before}\nimport sys, bench.run\nsys.exit(bench.run.main(sys.argv[1:]))"]
    return subprocess.run([*run, *words, *flags, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)


def out_of_memory(backbone: str, device: str) -> Found:
    """A smoke cell that may have LITTLE_MB of the card: does it fail alone, with a sentence? The card stays free for others."""
    if device == "cpu":
        return {"rows": [], "ok": True, "said": "only on a GPU: a CPU's memory is everybody's"}
    share = LITTLE_MB * 2**20 / torch.cuda.get_device_properties(device).total_memory
    with tempfile.TemporaryDirectory() as folder:
        done = _run_smoke(Path(folder), device, before=f"import torch; torch.cuda.set_per_process_memory_fraction({share})")
    said = (done.stdout + done.stderr).strip().splitlines()[-1:]
    told = done.returncode == 1 and "memory" in (done.stdout + done.stderr).lower() and "Traceback" not in done.stdout
    return {
        "rows": [{"exit code": done.returncode, "says": " ".join(said)}],
        "ok": told,
        "said": "told in a sentence" if told else "NOT told",
    }


def ceilings(backbone: str, device: str) -> Found:
    """What the card can do: copies, and products of square matrices in each kind of numbers."""
    side = 8192 if device == "cuda" else 1024
    rows: list[dict[str, Any]] = []
    source = torch.empty(side * side, device=device)
    target = torch.empty_like(source)
    rows.append({"what": "copy", "rate": f"{2 * source.nbytes / 1e9 / _best(lambda: target.copy_(source)):.0f} GB/s"})
    for name, kind, products in (("fp32", torch.float32, "highest"), ("tf32", torch.float32, "high"), ("bf16", torch.bfloat16, "highest")):
        torch.set_float32_matmul_precision(products)
        a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        rows.append({"what": f"{name} products", "rate": f"{2 * side**3 / 1e12 / _best(partial(torch.matmul, a, b)):.3g} TFLOP/s"})
    return {"rows": rows, "ok": True, "said": ", ".join(f"{row['what']} {row['rate']}" for row in rows)}


def _best(call: Callable[[], object]) -> float:
    """The least wall seconds of some calls."""
    return min(timed(call)["wall"] for _ in range(6))


def kernels(backbone: str, device: str) -> Found:
    """`bench.perf kernels` of the backbone, in the numbers that a card is used with."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        compare_kernels(device, backbone, "bf16" if device == "cuda" else "fp32", 1, 3)
    return {"rows": [], "text": said.getvalue(), "ok": True, "said": "those in use are marked as chosen"}


def speed(backbone: str, device: str) -> Found:
    """Steps and evaluations: the fast path in a card's usual numbers, with batches of 1 and 4 and, last, compiled, against the plain one in
    fp32."""
    plain: dict[tuple[str, str], Found] = {}
    precision, batches = ("bf16", (1, 4)) if device == "cuda" else ("fp32", (1,))
    pairs = [(name, work) for name in SPEED_METHODS for work in works(name)]
    asked = [(*pair, images, "") for pair in pairs for images in batches]
    asked += [(*pair, 1, COMPILE_MODES[0]) for pair in pairs if device == "cuda"]
    rows: list[dict[str, Any]] = []
    for method, work, images, compile in asked:
        if (method, work) not in plain:
            plain[method, work] = measure(Job(backbone, method, work, 1, 10, device, "reference", "fp32", "medium"))
        fast = measure(Job(backbone, method, work, images, 10, device, "fast", precision, "medium", compile))
        slow = plain[method, work]
        rows.append({"backbone": backbone, "method": method, "work": work, "images": images, "compiled": compile})
        rows[-1] |= {
            "images/s": round(images / fast["seconds"], 2),
            "times plain fp32": round(images * slow["seconds"] / fast["seconds"], 2),
            "share of the product rate %": round(100 * slow["tflop"] * images / fast["seconds"] / fast["gemm_tflops"]),
            "GB": round(fast["peak_mb"] / 1e3, 2),
            "plain GB": round(slow["peak_mb"] / 1e3, 2),
        }
        _so_far(rows)
    return {"rows": rows, "ok": True, "said": f"{min(row['times plain fp32'] for row in rows)} times the plain path, or more"}


def waits(backbone: str, device: str) -> Found:
    """Training steps as a cell makes them, one by one and as one graph: what a step takes, for how much of it the card computes, how
    often the host waits for it, and what it computes longest."""
    settings = replace(load_protocol("paper").resolve("cat_sam_t", "whu", 1), precision="bf16" if device == "cuda" else "fp32")
    rows: list[dict[str, Any]] = []
    for captures in (False, True) if device == "cuda" else (False,):
        model, data = build("cat_sam_t", load_sam(read_backbone(backbone).config, device=device), seed=0), Squares()
        steps = steps_of(model, optimizer_of(model, settings), data, data.support(1), settings, 0, capture=captures)
        for _ in range(PROFILED):  # the second one is recorded
            next(steps).losses.read()
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]) as trace:
            began = time.perf_counter()
            for step in islice(steps, PROFILED):
                last = step.losses
            last.read()
            seconds = time.perf_counter() - began
        rows.append({"steps": "one graph" if captures else "one by one", **_of_trace(trace, seconds, device)})
        _so_far(rows)
    return {"rows": rows, "ok": True, "said": "; ".join(f"{row['steps']} {row['ms a step']} ms" for row in rows)}


def _of_trace(trace: profile, seconds: float, device: str) -> dict[str, Any]:
    events = trace.key_averages()
    counts = {event.key: event.count for event in events}
    on_card = {event.key: event.self_device_time_total for event in events if event.device_type == DeviceType.CUDA}  # its kernels
    of_kernel = on_card if device == "cuda" else {event.key: event.self_cpu_time_total for event in events}
    longest = sorted(of_kernel, key=lambda key: of_kernel[key], reverse=True)[:5]
    computed = {"computing %": round(100 * sum(of_kernel.values()) / 1e6 / seconds)} if device == "cuda" else {}
    found = {"ms a step": round(1e3 * seconds / PROFILED, 1), **computed}
    found |= {name: round(counts.get(name, 0) / PROFILED, 1) for name in ("cudaLaunchKernel", "cudaGraphLaunch", "cudaStreamSynchronize")}
    return {**found, "longest": ", ".join(f"{key[:40]} {of_kernel[key] / 1e3 / PROFILED:.2f} ms" for key in longest)}


def cost(backbone: str, device: str) -> Found:
    """What `bench.run --dry-run` estimates by: a step, an image, memory."""
    found, rows = dict[str, dict[str, float]](), list[dict[str, str]]()
    for name in ("sam", *SPEED_METHODS):
        found[name] = measured(backbone, name, device)
        rows.append({"method": name, **{key: f"{value:.4g}" for key, value in found[name].items()}})
        _so_far(rows, costs=found)
    last = found[SPEED_METHODS[-1]]
    seconds = {name: STEPS_OF_A_CELL * last["step_seconds"] + n / last["images_per_second"] for name, n in IMAGES_OF_A_CELL.items()}
    said = "a one-shot cell of WHU takes about " + ", ".join(f"{hours(of)} under protocol {name}" for name, of in seconds.items())
    return {"rows": rows, "ok": True, "said": said, "costs": found}


STEPS: Mapping[str, tuple[str, Callable[[str, str], Found]]] = {
    "agreement": ("every method against a CPU", agreement),
    "repeats": ("the same cell twice", repeats),
    "out_of_memory": ("a cell without memory", out_of_memory),
    "ceilings": ("what the card can do", ceilings),
    "kernels": ("attention kernels and products", kernels),
    "speed": ("steps and evaluations", speed),
    "waits": ("where a step's time goes", waits),
    "cost": ("how long a grid takes", cost),
}


def first_minutes(device: str, backbone: str, minutes: float, out: Path, results: Path) -> int:
    """Runs the steps, prints and writes each at once to <date>-<device>-first.json and .md, and keeps the costs in the results folder
    for dry runs; 1 where a step failed or found something wrong, RequestError where there is no such device."""
    if device != "cpu" and not torch.cuda.is_available():
        raise RequestError("torch finds no GPU here, so there is nothing to check; --device cpu --backbone tiny shows what would be done.")
    device = device_of(device)
    path = unwritten(out / f"{datetime.now(UTC):%Y-%m-%d}-{slug(device_label(device))}-first")
    check_writable(results, "costs")
    ends, found = time.monotonic() + 60 * minutes, dict[str, Found]()
    about: Found = {"device": device_label(device), "backbone": backbone, "torch": package_version("torch"), "minutes": minutes}
    about |= {"commit": git_state(ROOT)[0], "time": datetime.now(UTC).isoformat(timespec="seconds")}
    print(f"{about['device']}, torch {about['torch']}, {backbone}: {minutes:g} minutes at most", flush=True)
    _write(path, about, found)  # now, so that whoever begins beside this one takes another name
    for name, (title, _) in STEPS.items():
        left = ends - time.monotonic()
        began = time.monotonic()
        if left < LEAST_SECONDS:
            found[name] = {"failed": "not begun: the minutes are over"}
        else:
            limit = max(LEAST_SECONDS, SHARE_OF_REST * left) if name != list(STEPS)[-1] else left
            found[name] = in_subprocess("bench.profiling.gpu", name, backbone, device, seconds=limit)
        found[name]["seconds"] = round(time.monotonic() - began, 1)
        print(f"{title}: {_verdict(found[name])} ({found[name]['seconds']:.0f} s)", flush=True)
        _write(path, about, found)
    _keep_costs(found.get("cost", {}).get("costs", {}), about, results)
    print(f"Written to {path}.json and .md")
    return int(not all(of.get("ok") for of in found.values()))


def _verdict(found: Found) -> str:
    return f"failed: {found['failed']}" if "failed" in found else f"{'' if found['ok'] else 'WRONG: '}{found['said']}"


def _write(path: Path, about: Found, found: Mapping[str, Found]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"about": about, "steps": found}, indent=1) + "\n")
    parts = [f"{about['device']}, torch {about['torch']}, {about['backbone']}, {about['time']}: `python -m bench.perf gpu`"]
    for name, of in found.items():
        table = of.get("text") or (pd.DataFrame(of["rows"]).to_markdown(index=False) if of.get("rows") else "")
        parts += [f"## {STEPS[name][0]}\n\n{_verdict(of)} ({of['seconds']:.0f} s)", *([table] if table else [])]
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def _keep_costs(costs: Mapping[str, Mapping[str, float]], about: Found, results: Path) -> None:
    store, machine = ResultStore(results), about["device"]
    for name, of in costs.items():
        choice = choose_methods(name)[0]
        if read_cost(kept := store.cost_file(choice, about["backbone"], machine)):
            print(f"{choice.label}: dry runs go on by what was measured before; remove {kept} and run this again to have the new cost.")
        else:
            store.keep_cost(choice, about["backbone"], machine, {**of, "commit": about["commit"], "torch": about["torch"]})


def main(words: Sequence[str]) -> None:
    """A step, in this process."""
    torch.set_num_threads(1)
    name, backbone, device = words
    read_backbone(backbone)
    print(json.dumps(STEPS[name][1](backbone, device)))


if __name__ == "__main__":
    main(sys.argv[1:])
