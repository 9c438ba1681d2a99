"""Many measurements of `bench.profiling.model`, by turns, each in a process of its own; what they say together, as a table.

All processes get the same allocator settings. A ratio is of the two sides of one turn: of CPU seconds (on a GPU, of wall seconds), and of
user CPU seconds alone, without what the system took to clear new pages. What is called a gain is told from the latter on a CPU.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import fmean, median, stdev
from threading import Lock
from typing import Any

import pandas as pd
from scipy.stats import t

from bench.errors import last_words
from bench.grid.files import check_writable
from bench.grid.provenance import ROOT, device_name, git_state, package_version
from bench.profiling.model import HEIGHT, WIDTH, Job, cpu_jobs, gpu_jobs

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736"}  # keep freed memory: both sides, or malloc is the gain
Pair = tuple[Job, Job]  # fast, plain
Found = dict[str, Any]
Measured = tuple[Pair, tuple[Found, Found]]
_one_large_job = Lock()  # a plain training step takes 15 GiB


def measured_in_subprocess(job: Job) -> Found:
    """`bench.profiling.model.measure` in a new process."""
    return in_subprocess("bench.profiling.model", json.dumps(asdict(job)))


def in_subprocess(module: str, *words: str, seconds: float | None = None) -> Found:
    """What a module prints last, as JSON, in a new process with ALLOCATOR's settings and one thread; `failed` says why there is nothing,
    or no more than what it printed by then. seconds: after which it is ended."""
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            said, error = process.communicate(timeout=seconds)
        except BaseException as stopped:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            if not isinstance(stopped, subprocess.TimeoutExpired):
                raise
            return {**_printed(process.communicate()[0]), "failed": f"it took longer than {seconds:.0f} s"}
    if process.returncode:
        return {**_printed(said), "failed": last_words(process.returncode, error)}
    return _printed(said) or {"failed": "it printed nothing"}


def _printed(said: str) -> Found:
    """The last line that is a whole table of values; nothing where there is none."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                return found
    return {}


def turns(pairs: Sequence[Pair], rounds: int, seconds: float, at_once: int) -> Iterator[list[Measured]]:
    """Measures each pair's two sides after one another, `at_once` measurements side by side; the first side changes by turn. The first
    turn is of all pairs; later ones are of those that, by what they took before, still end in time."""
    began, cost = time.monotonic(), dict.fromkeys(pairs, 0.0)
    for turn in range(rounds):
        left = seconds - (time.monotonic() - began) if turn else float("inf")
        chosen = affordable(cost, left, at_once)
        with ThreadPoolExecutor(at_once) as workers:
            jobs = [job for pair in chosen for job in (pair if turn % 2 == 0 else pair[::-1])]
            found = dict(zip(jobs, workers.map(_timed_and_printed, jobs), strict=True))
        for pair in chosen:
            cost[pair] = sum(found[job][1] for job in pair)
        yield [((fast, plain), (found[fast][0], found[plain][0])) for fast, plain in chosen]


def affordable(cost: Mapping[Pair, float], seconds: float, at_once: int) -> list[Pair]:
    """The pairs, in their order, that end within the seconds, the cheapest of them first taken."""
    taken: list[Pair] = []
    for pair in sorted(cost, key=lambda pair: cost[pair]):
        wanted = [*taken, pair]
        longest = max(cost[one] for one in wanted)
        if max(longest, sum(cost[one] for one in wanted) / at_once + longest / 4) <= seconds:
            taken = wanted
    return [pair for pair in cost if pair in taken]


def _timed_and_printed(job: Job) -> tuple[Found, float]:
    alone: AbstractContextManager[object] = _one_large_job if job.path == "reference" and job.work == "train" else nullcontext()
    with alone:
        began = time.monotonic()
        found = measured_in_subprocess(job)
        seconds = time.monotonic() - began
    shown = {key: round(found[key], 3) for key in ("seconds", "user_seconds", "peak_mb") if key in found} or found
    print(f"{job.backbone} {job.method} {job.work} {job.path} {job.precision}: {shown}", flush=True)
    return found, seconds


def compare(device: str, methods: Sequence[str], rounds: int, minutes: float, at_once: int, out: Path) -> int:
    """Measures, prints, and writes <date>-<device>.json and .md after each turn, beside what was measured that day before. 1 where a
    measurement failed."""
    pairs = cpu_jobs(methods) if device == "cpu" else gpu_jobs(methods)
    print(f"Both sides run with {settings_in_words()}, one thread, {HEIGHT}×{WIDTH} pixels, {at_once} measurements at a time.", flush=True)
    path = unwritten(out / f"{datetime.now(UTC):%Y-%m-%d}-{slug(device_label(device))}")
    measurements: list[Measured] = []
    for turn in turns(pairs, rounds, 60 * minutes, at_once):
        measurements += turn
        text = _write(path, device, at_once, pairs, measurements)
    print(f"{text}\nWritten to {path}.json and .md")
    return int(any("failed" in found for _, both in measurements for found in both))


def unwritten(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … where that is taken; RequestError where nothing can be written there."""
    check_writable(path.parent)
    names = (path.with_name(f"{path.name}-{n}" if n > 1 else path.name) for n in count(1))
    return next(name for name in names if not any(name.with_suffix(kind).exists() for kind in (".json", ".md")))


def _write(path: Path, device: str, at_once: int, pairs: Sequence[Pair], measurements: Sequence[Measured]) -> str:
    """Writes what is measured so far, and returns the table."""
    peak = peak_of(measurements)
    rows = [summary(pair, [found for one, found in measurements if one == pair], peak) for pair in pairs]
    about: Found = {"device": device_label(device), "platform": platform.platform(), "torch": package_version("torch")}
    about |= dict(zip(("commit", "dirty"), git_state(ROOT), strict=True))
    about |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "pixels": [HEIGHT, WIDTH]}
    about |= {"allocator": ALLOCATOR, "at_once": at_once}
    text = pd.DataFrame(rows).to_markdown(index=False)
    plainly = [
        {"job": asdict(pair[0]), "plain_job": asdict(pair[1]), "fast": fast, "reference": plain} for pair, (fast, plain) in measurements
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows, "measurements": plainly}, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{about['device']}, torch {about['torch']}, {about['time']}, {settings_in_words()}\n\n{text}\n")
    return str(text)


def device_label(device: str) -> str:
    """The name of the GPU or processor."""
    return str(device_name("cuda:0" if device == "cuda" else "cpu"))


def settings_in_words() -> str:
    """ALLOCATOR as a shell has it."""
    return " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())


def peak_of(measurements: Sequence[Measured]) -> dict[str, float]:
    """The largest product rate measured, in TFLOP/s, by precision."""
    peak: dict[str, float] = {}
    for pair, both in measurements:
        for job, found in zip(pair, both, strict=True):
            peak[job.precision] = max(peak.get(job.precision, 0.0), found.get("gemm_tflops", 0.0))
    return peak


def summary(pair: Pair, measured: Sequence[tuple[Found, Found]], peak: Mapping[str, float]) -> dict[str, Any]:
    """A row of the table: the medians of a pair's turns, the ratios' range, the share of the measured product rate, and the verdict."""
    fast, plain = pair
    kept = [both for both in measured if not any("failed" in found for found in both)]
    row: dict[str, Any] = {"backbone": fast.backbone, "method": fast.method, "work": fast.work, "images": fast.images, "boxes": fast.boxes}
    row |= {"numbers": f"{fast.precision}/{plain.precision}", "compiled": fast.compile, "turns": len(kept)}
    if not kept:
        said = [found["failed"] for both in measured for found in both if "failed" in found]
        return {**row, "verdict": f"failed: {said[0]}" if said else "not measured"}
    ratios = [theirs["seconds"] / mine["seconds"] for mine, theirs in kept]
    of_user = [theirs["user_seconds"] / mine["user_seconds"] for mine, theirs in kept]
    seconds, peak_gib = ([median(both[side][key] for both in kept) for side in (0, 1)] for key in ("seconds", "peak_mb"))
    tflop = kept[0][1]["tflop"]
    return {
        **row,
        "reference s": round(seconds[1], 3),
        "fast s": round(seconds[0], 3),
        "ratio": round(median(ratios), 2),
        "range": f"{min(ratios):.2f}–{max(ratios):.2f}",
        "user only": round(median(of_user), 2),
        "user range": f"{min(of_user):.2f}–{max(of_user):.2f}",
        "reference GiB": round(peak_gib[1] / 2**30 * 1e6, 2),
        "fast GiB": round(peak_gib[0] / 2**30 * 1e6, 2),
        "TFLOP": round(tflop, 2),
        "reference MFU %": round(100 * tflop / seconds[1] / peak[plain.precision]),
        "fast MFU %": round(100 * tflop / seconds[0] / peak[fast.precision]),
        "verdict": verdict(ratios if fast.device == "cuda" else of_user),
    }


def verdict(ratios: Sequence[float]) -> str:
    """What the turns' ratios, plain by fast, allow to say: a gain or loss is larger than the turns differ among themselves, and
    than half their mean's 95 % interval (of Student's t, for two turns 6 times the difference of the two)."""
    turns = len(ratios)
    if turns < 2:
        return f"{turns} turn, too few to tell"
    interval = t.ppf(0.975, turns - 1) * stdev(ratios) / turns**0.5
    difference = fmean(ratios) - 1
    if abs(difference) <= max(interval, max(ratios) - min(ratios)):
        return "within the spread"
    return "gain" if difference > 0 else "loss"


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
