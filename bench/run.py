"""Runs a grid: every cell that is asked for and not stored yet is trained, evaluated and stored.

    python -m bench.run --methods all --datasets whu,kvasir,sbu --shots 1
    python -m bench.run --methods sam,cat_sam_t --datasets synth_polyps --backbone tiny --protocol smoke      # CPU, seconds

Running it again is the retry: stored cells stay, unfinished ones go on where they stopped.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bench.backbones import checkpoint_path
from bench.errors import DataError, DivergedError, RequestError
from bench.plan import Request, open_datasets, specs_of
from bench.progress import Progress
from bench.provenance import file_sha256, provenance
from bench.spec import RunSpec
from bench.store import CellStatus, ResultStore
from bench.types import Dataset

if TYPE_CHECKING:
    from bench.sam import Sam

HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """Where things lie and how cells are run; nothing here changes a number."""

    data: Path = Path("data")
    pretrained: Path = Path("pretrained")
    out: Path = Path("results")
    overwrite: str = "never"
    device: str = "auto"
    dry_run: bool = False
    save_every: float = 60.0  # seconds between two resume files


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all stored, 1 some failed or unfinished, 2 wrong request, 130 stopped)."""
    try:
        request, options = parse(arguments)
        return run_grid(request, options)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_grid(request: Request, options: Options) -> int:
    """Runs the cells of a request that are to be run; the exit code."""
    store = ResultStore(options.out)
    checkpoint = checkpoint_path(request.backbone, options.pretrained)
    specs = specs_of(request, file_sha256(checkpoint, options.out / "cache"))
    states = {spec: store.status(spec) for spec in specs}
    missing = [spec for spec in specs if to_run(states[spec], options.overwrite)]
    datasets = open_datasets(missing, options.data)
    if options.dry_run:
        return _list_cells(specs, states, missing)
    store.check_writable()
    store.write_grid(specs)
    if missing:
        from bench.checkpoints import load_sam

        sam = load_sam(request.backbone, checkpoint, device_of(options.device))
        _run_cells(missing, sam, datasets, store, checkpoint, options)
    return _summary(specs, store)


def to_run(status: CellStatus, overwrite: str) -> bool:
    """Whether a cell is to be run: `never` leaves stored and failed cells, `failed` retries failed ones, `always` redoes all."""
    return status.phase in ("pending", "unfinished") or overwrite == "always" or (overwrite == "failed" and status.phase == "failed")


def _run_cells(
    specs: Sequence[RunSpec], sam: "Sam", datasets: Mapping[str, Dataset], store: ResultStore, checkpoint: Path, options: Options
) -> None:
    """Runs cells one after the other; one that fails never stops the others."""
    facts = provenance(str(sam.pixel_mean.device), checkpoint, options.out / "cache")
    with Progress() as progress, StopSignal() as stop:
        for index, spec in enumerate(specs, 1):
            progress.cell(index, len(specs), title(spec))
            if options.overwrite == "always" or store.status(spec).phase == "failed":
                store.discard(spec)
            outcome = run_cell(spec, sam, datasets[spec.dataset], store, facts, Watcher(spec, store, progress, stop), options.save_every)
            progress.done(outcome)
            if stop.asked:
                progress.note("Stopped; the same command goes on from here.")
                break


def run_cell(
    spec: RunSpec, sam: "Sam", dataset: Dataset, store: ResultStore, facts: Mapping[str, Any], watch: "Watcher", save_every: float
) -> str:
    """Runs and stores one cell; returns what became of it, in a few words. A failure is noted in the cell's folder."""
    from bench.cell import Cell, Stopped

    with contextlib.suppress(OSError):
        store.heartbeat(spec, "starting")
    try:
        result = Cell(spec, sam, dataset, store.folder(spec), watch, save_every).run(facts)
        store.save(result.record, result.images, result.history, result.tuned)
        first = spec.settings.selections[0]
        return f"mIoU {result.record.scores[first]['miou_all']:.1f} ({first})"
    except (Stopped, KeyboardInterrupt):
        watch.stop.asked = True
        return "stopped"
    except OSError as error:  # the disk, not the cell: left unfinished, so that running again is the retry
        return f"not stored: {error.strerror or error} ({store.folder(spec)})"
    except Exception as error:
        reason = failure(error)
        with contextlib.suppress(OSError):
            store.fail(spec, reason)
        return f"FAILED: {reason}"


def failure(error: Exception) -> str:
    """One sentence for a cell's failure; what nobody foresaw is printed in full to stderr as well."""
    if isinstance(error, DivergedError | DataError | RequestError):
        return str(error)
    if "out of memory" in str(error) or isinstance(error, MemoryError):
        return "Out of memory: take a smaller backbone, or a GPU with more memory."
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Watcher:
    """Shows a cell's progress, writes its heartbeat and passes on a request to stop."""

    def __init__(self, spec: RunSpec, store: ResultStore, progress: Progress, stop: StopSignal) -> None:
        self.spec, self.store, self.progress, self.stop = spec, store, progress, stop
        self._beat = 0.0

    def __call__(self, share: float, doing: str) -> None:
        from bench.cell import Stopped

        self.progress.update(share, doing)
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            with contextlib.suppress(OSError):
                self.store.heartbeat(self.spec, "running", {"share": round(share, 4), "doing": doing})
        if self.stop.asked:
            raise Stopped


def title(spec: RunSpec) -> str:
    """A cell in a few words."""
    draw = f" draw {spec.draw}" if spec.draw else ""
    return f"{spec.dataset} {spec.method.label} {spec.shots}-shot{draw} seed {spec.seed}"


def device_of(name: str) -> str:
    """"cpu" or "cuda"; "auto" takes the GPU where there is one. RequestError where "cuda" is asked for and absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("Device cuda was asked for, but torch finds no GPU here: cpu and auto are allowed.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _list_cells(specs: Sequence[RunSpec], states: Mapping[RunSpec, CellStatus], missing: Sequence[RunSpec]) -> int:
    for spec in specs:
        reason = f"  ({states[spec].reason})" if states[spec].reason else ""
        print(f"{states[spec].phase:10}  {title(spec)}  {spec.folder}{reason}")
    print(f"{len(specs)} cells, {len(missing)} to run.")
    return 0


def _summary(specs: Sequence[RunSpec], store: ResultStore) -> int:
    states = {spec: store.status(spec) for spec in specs}
    counts = Counter(status.phase for status in states.values())
    print(f"{len(specs)} cells: " + ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) + f"; in {store.runs}.")
    for spec, status in states.items():
        if status.phase == "failed":
            print(f"  failed: {title(spec)}: {status.reason}")
    if counts["failed"]:
        print("  `--overwrite failed` retries the failed cells.")
    if counts["unfinished"] + counts["pending"]:
        print("  The same command runs the rest.")
    return 0 if counts["stored"] == len(specs) else 1


def parse(arguments: Sequence[str] | None) -> tuple[Request, Options]:
    """The request and the options of a command line; a suite file's values stand behind the flags."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").splitlines()[0])
    for field in fields(Request):
        parser.add_argument(f"--{field.name}", help=f"default: {field.default or 'the protocol’s'}")
    parser.add_argument("--config", type=Path, help="a suite, configs/suites/….toml; flags go before it")
    parser.add_argument("--data", type=Path, default=Options.data, help="folder of the data sets")
    parser.add_argument("--pretrained", type=Path, default=Options.pretrained, help="folder of SAM's checkpoints")
    parser.add_argument("--out", type=Path, default=Options.out, help="folder of the results")
    parser.add_argument("--launcher", choices=["local"], default="local")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--overwrite", choices=["never", "failed", "always"], default="never")
    parser.add_argument("--save-every", type=float, default=Options.save_every, metavar="SECONDS", help="between two resume files")
    parser.add_argument("--dry-run", action="store_true", help="list the cells with their state")
    given = parser.parse_args(arguments)
    request = Request().with_suite(given.config) if given.config else Request()
    flags = {field.name: getattr(given, field.name) for field in fields(Request)}
    request = Request(**{name: getattr(request, name) if value is None else value for name, value in flags.items()})
    options = Options(given.data, given.pretrained, given.out, given.overwrite, given.device, given.dry_run, given.save_every)
    return request, options


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its numbers only with this set
    sys.exit(main())
