"""Runs a grid: every cell that is asked for and not stored yet is trained, evaluated and stored.

    python -m bench.run --methods paper --datasets whu,kvasir,sbu --shots 1
    python -m bench.run --methods sam,cat_sam_t --datasets synth_polyps --backbone tiny --protocol smoke      # CPU, seconds

Running it again is the retry: stored cells stay, unfinished ones go on where they stopped.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bench.data.manifest import remember_data
from bench.errors import ProcessGroupError, RequestError, one_sentence
from bench.grid.catalogue import Catalogue, catalogue
from bench.grid.files import file_sha256
from bench.grid.plan import Request, RunContext, choose_methods, open_datasets, specs_of, title
from bench.grid.plugins import add_option
from bench.grid.registry import third_party
from bench.grid.spec import RunSpec
from bench.grid.store import CellStatus, ResultStore
from bench.model.backbones import checkpoint_path
from bench.training.launch import is_distributed, is_main_process, launch_processes
from bench.types import COMPILE_MODES, KEPT_BYTES, Dataset, Memory

STOPPED = 130  # the exit code after Ctrl-C


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
    workers: int = 1  # processes; several take one thread each
    launcher: str = "local"
    profile: str = ""  # of the SLURM launcher: the name of a file in slurm/, or a path
    collect: bool = False  # a last SLURM job renders tables and report
    micro_batch: int = 0  # images of a training step that are in memory together; 0: all
    checkpointing: bool = False
    devices: int = 1  # that train and evaluate each cell together, a process each
    compile: str = ""  # torch.compile's mode for the encoder
    keep_gb: float = KEPT_BYTES / 2**30  # of prepared test images and frozen embeddings, over all workers


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all stored, 1 some failed or unfinished, 2 wrong request, 130 stopped)."""
    try:
        request, options = parse(arguments)
        if options.devices > 1 and options.launcher == "local" and not is_distributed():
            return _launch_processes(sys.argv[1:] if arguments is None else arguments, options)
        return run_grid(request, options)
    except ProcessGroupError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return 1


def run_grid(request: Request, options: Options) -> int:
    """Runs the cells of a request that are to be run; the exit code."""
    store = ResultStore(options.out)
    checkpoint = checkpoint_path(request.backbone, options.pretrained)
    known = _known_methods(request, options)
    choose = known.choose if known else choose_methods
    specs = specs_of(request, file_sha256(checkpoint, options.out / "cache"), options.data, choose)
    states = {spec: store.status(spec) for spec in specs}
    missing = [spec for spec in specs if to_run(states[spec], options.overwrite)]
    datasets = open_datasets(missing, options.data)
    if options.dry_run:
        _list_cells(specs, states, missing)
    elif is_main_process():
        store.check_writable()
        remember_data(datasets.values(), options.out / "cache")
    if known and options.launcher == "slurm":
        return _launch(specs, missing, known, checkpoint, request.backbone, options)
    if options.dry_run:
        return 0
    if is_main_process():
        store.write_grid(specs)
    if missing and _run_cells(request.backbone, checkpoint, missing, datasets, options):
        print("Stopped; the same command goes on from here.")
        return STOPPED
    if not is_main_process():
        return 0
    _say_outdated([spec for spec in specs if spec not in missing], store)
    return _summary(specs, store)


def _say_outdated(kept: Sequence[RunSpec], store: ResultStore) -> None:
    """Names what third parties changed in their code since cells were stored, of which only a `revision` tells the key."""
    changed: Counter[str] = Counter()
    for spec in kept:
        now = third_party(spec.method.name, spec.dataset)
        if now and store.status(spec).phase == "stored":
            was = store.read(spec).provenance.get("third_party") or {}
            changed.update(
                f"{spec.method.name if what == 'method' else spec.dataset} ({now[what]})" for what in now if was.get(what) != now[what]
            )
    for what, count in changed.items():
        print(f"Stored by other code of {what}: {count} of these cells, which stay until its `revision` is raised, or --overwrite always.")


def _known_methods(request: Request, options: Options) -> Catalogue | None:
    """The request's methods, known without torch where this process runs no cell itself."""
    if options.launcher == "local" and not options.dry_run:
        return None
    return catalogue(request.methods, options.out / "cache")


def _launch(
    specs: Sequence[RunSpec], missing: Sequence[RunSpec], known: Catalogue, checkpoint: Path, backbone: str, options: Options
) -> int:
    """Sends the cells to SLURM, whose nodes need whole paths."""
    from bench.cluster.profile import load_profile
    from bench.cluster.submit import Launch, launch

    profile = load_profile(options.profile)
    checkpoint, data, out = (Path(os.path.abspath(path)) for path in (checkpoint, options.data, options.out))
    device = profile.device_of(options.device)
    profile.check_devices(options.devices, device)
    context = replace(_context(backbone, checkpoint, device, options), data=data, out=out)
    return launch(specs, missing, Launch(context, profile, known.untrained, options.dry_run, options.collect))


def _context(backbone: str, checkpoint: Path, device: str, options: Options) -> RunContext:
    """Where and how the options run cells; RequestError where the encoder is to be compiled for a CPU, on which that makes it slower."""
    if options.compile and device == "cpu":
        raise RequestError(f"--compile {options.compile}: only for a GPU, and the device is cpu, on which a compiled encoder is slower.")
    return RunContext(
        backbone,
        checkpoint,
        options.data,
        options.out,
        device,
        options.overwrite,
        options.save_every,
        Memory(options.micro_batch, options.checkpointing),
        int(options.keep_gb * 2**30),
        options.devices,
        options.compile,
    )


def _run_cells(backbone: str, checkpoint: Path, specs: Sequence[RunSpec], datasets: Mapping[str, Dataset], options: Options) -> bool:
    """Runs cells, none of which stops the others; the checkpoint is looked into before the first one starts. Whether the user
    stopped it."""
    from bench.model.checkpoints import load_sam
    from bench.running.workers import device_of, run_here, run_in_workers
    from bench.training.process_group import join_process_group, leave_process_group

    context = _context(backbone, checkpoint, device_of(options.device), options)
    process_group, device = join_process_group(context.device)
    specs = process_group.broadcast(specs)
    workers = min(options.workers, len(specs))
    context = replace(context, device=device, kept_bytes=context.kept_bytes // workers)
    sam = load_sam(backbone, checkpoint, device)
    if workers > 1:
        return run_in_workers(specs, context, workers)
    stopped = run_here(specs, context, sam, datasets, process_group)
    if not stopped:
        leave_process_group(process_group)
    return stopped


def _launch_processes(arguments: Sequence[str], options: Options) -> int:
    """Runs this command as `devices` processes; the exit code."""
    import torch

    from bench.running.workers import device_of

    there = torch.cuda.device_count()
    if device_of(options.device) == "cuda" and there < options.devices:
        raise RequestError(f"--devices {options.devices}: torch finds {there} GPUs here; at most as many are allowed.")
    return launch_processes(["-m", "bench.run", *arguments], options.devices)


def to_run(status: CellStatus, overwrite: str) -> bool:
    """Whether a cell is to be run: `never` leaves stored and failed cells, `failed` retries failed ones, `always` redoes all."""
    return status.phase in ("pending", "unfinished") or overwrite == "always" or (overwrite == "failed" and status.phase == "failed")


def _list_cells(specs: Sequence[RunSpec], states: Mapping[RunSpec, CellStatus], missing: Sequence[RunSpec]) -> None:
    for spec in specs:
        reason = f"  ({states[spec].reason})" if states[spec].reason else ""
        print(f"{states[spec].phase:10}  {title(spec)}  {spec.folder}{reason}")
    print(f"{len(specs)} cells, {len(missing)} to run.")


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
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help="here, or as jobs of a cluster")
    parser.add_argument("--profile", default="", help="with --launcher slurm: the name of a file in slurm/, or the path of one")
    parser.add_argument("--collect", action="store_true", help="with --launcher slurm: a last job renders tables and report")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--overwrite", choices=["never", "failed", "always"], default="never")
    parser.add_argument("--save-every", type=float, default=Options.save_every, metavar="SECONDS", help="between two resume files")
    parser.add_argument("--workers", type=int, default=Options.workers, help="processes side by side, one thread (or one GPU) each")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs (or CPU processes) that run each cell together")
    parser.add_argument("--micro-batch", type=int, default=0, metavar="N", help="images of a training step in memory together; 0: all")
    parser.add_argument("--checkpointing", action="store_true", help="less memory: backward computes the encoder's blocks again")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="", help="the encoder by torch.compile, on a GPU")
    parser.add_argument("--keep-gb", type=float, default=Options.keep_gb, help="memory for prepared test images and frozen embeddings")
    parser.add_argument("--dry-run", action="store_true", help="list the cells with their state")
    add_option(parser)
    given = parser.parse_args(arguments)
    request = Request().with_suite(given.config) if given.config else Request()
    flags = {field.name: getattr(given, field.name) for field in fields(Request)}
    request = Request(**{name: getattr(request, name) if value is None else value for name, value in flags.items()})
    if given.workers < 1:
        raise RequestError(f"--workers {given.workers}: whole numbers from 1 are allowed.")
    if given.devices < 1:
        raise RequestError(f"--devices {given.devices}: whole numbers from 1 are allowed.")
    if given.workers > 1 and (given.devices > 1 or is_distributed()):
        raise RequestError(f"--workers {given.workers}: cells that several devices run together are run one after the other, --workers 1.")
    if given.workers > 1 and given.launcher == "slurm":
        raise RequestError(f"--workers {given.workers}: how many cells share a job of SLURM is for the profile to say, cells_per_job.")
    if given.micro_batch < 0:
        raise RequestError(f"--micro-batch {given.micro_batch}: whole numbers from 1, or 0 for the whole batch, are allowed.")
    options = Options(**{field.name: getattr(given, field.name) for field in fields(Options)})
    return request, options


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its numbers only with this set
    sys.exit(main())
