"""How long the harness itself takes with many cells: planned, stored, read back, sent to a SLURM that answers at once."""

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import ROOT
from bench.grid.files import write_together
from bench.grid.metrics import RULES, ImageRow, Images, scores
from bench.grid.plan import Request, specs_of
from bench.grid.provenance import PACKAGES
from bench.grid.published import PUBLISHED, read_published
from bench.grid.registry import DATASETS, METHODS
from bench.grid.rows import COUNTS, IMAGES
from bench.grid.spec import RunSpec
from bench.grid.store import RECORD, Record, ResultStore, record_bytes

LIMIT_SECONDS = 10.0  # for each 10,000 cells
LIMIT_MB = 2000.0
SUBMIT_SECONDS = 5.0  # for each 1,000 cells
REPORT_CELLS, REPORT_IMAGES, REPORT_SECONDS = 500, 64, 4.0
COMMANDS = {  # of a cluster that answers at once: what is timed is the launcher, not SLURM
    "sbatch": 'case "$*" in *--test-only*) cat >/dev/null;; *--parsable*) bash -s; echo 1;; *) echo "Submitted batch job 7";; esac',
    "scontrol": 'echo "MaxArraySize = 1001"; echo "MaxJobCount = 100000"',
    **dict.fromkeys(("squeue", "scancel", "sinfo", "srun"), ":"),
}
LAUNCH = "import sys; from bench.run import main; code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
LOAD = """import resource, sys, time
from bench import results
began = time.process_time()
rows = len(results(sys.argv[1]))
seconds = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
if sys.platform == "linux":  # there the line above holds the peak of the process that started this one
    status = open("/proc/self/status").read().split()
    peak = int(status[status.index("VmHWM:") + 1]) * 1024
print(rows, seconds, peak / 1e6)"""
SCORES = ("miou", "mean_image_iou", "dice")
DATA_SETS = read_published(PUBLISHED["1"]).datasets


def planned(cells: int) -> list[RunSpec]:
    """That many specs of every method on the paper's data sets, at 1 and 16 shots, 5 draws and as many seeds as it takes."""
    few = len(METHODS.names()) * len(DATA_SETS) * 2 * 5
    seeds = ",".join(map(str, range(-(-cells // few))))
    request = Request(datasets=",".join(DATA_SETS), shots="1,16", draws="0,1,2,3,4", seeds=seeds)
    return specs_of(request, "0" * 64)[:cells]


def made_up(spec: RunSpec) -> Record:
    """A record as full as a real one, its numbers drawn by the cell's key."""
    draw = random.Random(spec.key)
    scores = {
        str(kind): {f"{score}_{rule}": draw.uniform(40, 90) for score in SCORES for rule in RULES} for kind in spec.settings.selections
    }
    counts = {"trainable_parameters": 1333248, "total_parameters": 313684000, "tuned_bytes": 5333000, "steps": 2000, "looks": 100}
    spent = {"training_seconds": draw.random(), "evaluation_seconds": draw.random(), "peak_memory_mb": draw.random()}
    packages = dict.fromkeys(PACKAGES, "1.0.0")
    machine = {"cpu": "a processor", "device": "cuda:0", "device_name": "an accelerator", "host": f"node{draw.randrange(99)}", "threads": 8}
    machine |= {"platform": "Linux-6.1.0-x86_64-with-glibc2.36", "python": "3.11.7", "slurm": None, "command": "run.py --methods all"}
    checkpoint = {"name": "sam_vit_l_0b3195.pth", "sha256": spec.checkpoint_sha256}
    code = {"git": {"commit": "0" * 40, "dirty": False}, "packages": packages, "time": "2026-01-01T00:00:00+00:00"}
    return Record(spec, scores, {**counts, **spent}, {**machine, **code, "checkpoint": checkpoint})


def fill(store: ResultStore, specs: Iterable[RunSpec]) -> None:
    """Writes a made-up record for every spec, and nothing else of a cell: nothing else is read."""
    for spec in specs:
        write_together(store.folder(spec), {RECORD: record_bytes(made_up(spec))}, durable=False)


def fill_with_rows(store: ResultStore, specs: Sequence[RunSpec]) -> None:
    """As `fill`, with rows of REPORT_IMAGES images in every cell, and the scores that they have."""
    for spec in specs:
        draw, rows = random.Random(spec.key), []
        for i in range(REPORT_IMAGES):
            truth, added = draw.randrange(500, 5000), draw.randrange(500)
            both = int(truth * draw.uniform(0.5, 0.95))
            rows.append(ImageRow(f"image{i}", draw.randrange(1, 5), both, truth + added, truth, both + added))
        lines = [
            ",".join(map(str, (kind, row.name, *(getattr(row, name) for name in COUNTS))))
            for kind in spec.settings.selections
            for row in rows
        ]
        record = replace(made_up(spec), scores={kind: scores(Images.of(rows)) for kind in spec.settings.selections})
        content = "\n".join((",".join(("selection", "name", *COUNTS)), *lines, ""))
        write_together(store.folder(spec), {IMAGES: content.encode(), RECORD: record_bytes(record)}, durable=False)


def time_report(cells: int) -> bool:
    """Prints the seconds of a processor of `bench.report` in a process of its own, on a store of that many cells that also have rows by
    image; whether they are within the limit, which is of REPORT_CELLS or fewer."""
    seeds = ",".join(map(str, range(-(-cells // 20))))
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(Path(folder))
        specs = specs_of(Request(methods="paper", datasets=",".join(DATA_SETS), seeds=seeds), "0" * 64)[:cells]
        store.write_grid(specs)
        fill_with_rows(store, specs)
        before = _cpu_of_children()
        subprocess.run([sys.executable, "-m", "bench.report", "--out", folder], cwd=ROOT, check=True, capture_output=True)
        took, limit = _cpu_of_children() - before, REPORT_SECONDS * max(1.0, cells / REPORT_CELLS)
    print(
        f"bench.report of {len(specs)} cells with {REPORT_IMAGES} images: {took:.2f} s of a processor; the limit is {limit:g} s", flush=True
    )
    return took <= limit


def time_store(cells: int, read_back: Callable[[ResultStore], int]) -> int:
    """Prints the seconds of a processor, which depend little on what else runs, for planning, reading back, loading and the report of
    some, and the loading's peak memory; 1 where a limit is exceeded.

    read_back: makes tables of a store and returns how many.
    """
    limit = LIMIT_SECONDS * max(1.0, cells / 10_000)
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(Path(folder))
        began = time.process_time()
        names = len(METHODS.names()) + len(DATASETS.names())
        _print_seconds(f"load {names} methods and data sets, and torch with them (once a process, not counted)", began)
        began = time.process_time()
        specs = planned(cells)
        pending = sum(store.status(spec).phase == "pending" for spec in specs)
        planning = _print_seconds(f"plan {cells} cells: specs, keys, state ({pending} pending)", began)
        began = time.process_time()
        store.write_grid(specs)
        fill(store, specs)
        del specs
        _print_seconds("write their records (no limit)", began)
        began = time.process_time()
        made = read_back(store)
        reading = _print_seconds(f"read them back into the paper's table ({made} tables)", began)
        loading, peak = _load_in_subprocess(store.root)
    kept = planning + reading <= limit and loading <= limit and peak <= LIMIT_MB
    kept &= time_report(min(cells, REPORT_CELLS))
    print(
        f"planning and reading back: {planning + reading:.2f} s, loading: {loading:.2f} s; the limit of each is {limit:g} s of a processor"
    )
    print(f"peak memory of loading: {peak:.0f} MB; the limit is {LIMIT_MB:g} MB; limits: {'kept' if kept else 'EXCEEDED'}")
    return 0 if kept else 1


def _load_in_subprocess(root: Path) -> tuple[float, float]:
    """The seconds of a processor and peak megabytes of `bench.results()` in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(root)], cwd=ROOT, check=True, capture_output=True, text=True)
    rows, seconds, megabytes = map(float, done.stdout.split())
    print(f"load {rows:.0f} rows with bench.results(): {seconds:.2f} s, {megabytes:.0f} MB", flush=True)
    return seconds, megabytes


def time_submit(cells: int) -> int:
    """Prints the seconds of a processor that launching takes with nothing cached, and again; 1 where a limit is exceeded."""
    limit, domains = SUBMIT_SECONDS * max(1.0, cells / 1000), ("synth_buildings", "synth_polyps", "synth_shadows")
    each = len(METHODS.names()) * len(domains)
    seeds = range(-(-cells // each))
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for name, answer in COMMANDS.items():
            (Path(folder) / name).write_text(f"#!/bin/bash\n{answer}\n")
            (Path(folder) / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        grid = [f"--datasets={','.join(domains)}", f"--seeds={','.join(map(str, seeds))}", "--backbone=tiny", "--protocol=demo"]
        for what in ("launch with nothing cached", "launch again"):
            began, before = time.perf_counter(), _cpu_of_children()
            command = [sys.executable, "-c", LAUNCH, *grid, f"--out={folder}/out", "--launcher=slurm", "--profile=testcluster"]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            cause = {0: "", 9: ", but it imported torch"}.get(done.returncode, f", but it failed: {done.stderr.strip()}")
            wall, took = time.perf_counter() - began, _cpu_of_children() - before
            print(f"{what}, {len(seeds) * each} cells{cause}: {took:.2f} s of a processor, {wall:.2f} s in all", flush=True)
            kept &= took <= limit and not cause
    print(f"the limit of each is {limit:g} s; limits: {'kept' if kept else 'EXCEEDED'}")
    return 0 if kept else 1


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print_seconds(what: str, began: float) -> float:
    seconds = time.process_time() - began
    print(f"{what}: {seconds:.2f} s", flush=True)
    return seconds
