"""A grid on this machine: its cells that are missing, run one after the other or by several workers; what became of all of them."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from bench.data.manifest import manifest_of, remember_data
from bench.errors import STOPPED, RequestError, counted
from bench.grid.catalogue import catalogue
from bench.grid.files import file_sha256
from bench.grid.kept import Frozen, in_words, needs, of_crops
from bench.grid.plan import (
    Request,
    RunContext,
    groups_by_method,
    open_dataset,
    open_datasets,
    protocols_of,
    specs_of,
    title,
    tuned_rates,
)
from bench.grid.progress import working
from bench.grid.registry import third_party
from bench.grid.spec import RunSpec
from bench.grid.store import CellStatus, ResultStore, grid_cell, read_state
from bench.grid.toml_reader import kinds
from bench.grid.tuned import untuned_name
from bench.model.backbones import PRETRAINED, checkpoint_path, read_backbone
from bench.running.estimate import estimate_in_words
from bench.running.loggers import loggers_of
from bench.training.launch import is_main_process
from bench.types import KEPT_BYTES, Dataset, Memory, Range

NAMED = 5  # cells that a sentence lists


@dataclass(frozen=True)
class Options:
    """Where things lie and how cells are run; nothing here changes a number."""

    data: Path = Path("data")
    pretrained: Path = PRETRAINED
    out: Path = Path("results")
    overwrite: str = "never"
    device: str = "auto"
    dry_run: bool = False
    save_every: Annotated[float, Range(0.0, 1e9)] = 60.0  # seconds between two resume files
    workers: Annotated[int, Range(1, 1024)] = 1  # processes; several take one thread each
    launcher: str = "local"
    profile: str = ""  # of the SLURM launcher: the name of a file in slurm/, or a path
    collect: bool = False  # a last SLURM job renders tables and report
    micro_batch: Annotated[int, Range(0, 65_536)] = 0  # images of a training step that are in memory together; 0: all
    checkpointing: bool = False
    devices: Annotated[int, Range(1, 1024)] = 1  # that train and evaluate each cell together, a process each
    compile: str = ""  # torch.compile's mode for the encoder, or STEP_GRAPH
    steal: bool = False  # cells that another process computes are computed here too
    group_writable: bool = False  # results can be written by other people of the folder's group
    keep_gb: Annotated[float, Range(0.0, 1e6)] = KEPT_BYTES / 2**30  # of prepared test images and frozen embeddings, over all workers

    log: str = ""  # loggers that follow training, "tensorboard,wandb"
    spill_gb: Annotated[float, Range(0.0, 1e6)] = 0.0  # of frozen embeddings beyond those, in a temporary file, over all workers
    embeddings: Path | None = None  # a folder for all frozen embeddings, which later runs read
    checkpoint: Path | None = None  # in place of the backbone's own file below `pretrained`

    def __post_init__(self) -> None:
        for name, kind in kinds(Options).items():
            for fault in (check(getattr(self, name)) for check in getattr(kind, "__metadata__", ())):
                if fault:
                    raise RequestError(f"--{name.replace('_', '-')} {getattr(self, name)} {fault}.")


Free = Callable[[Sequence[RunSpec], Path], list[RunSpec]]
# (all cells, those to run, the checkpoint, the backbone, the options) -> the exit code
Launcher = Callable[[Sequence[RunSpec], Sequence[RunSpec], Path, str, Options], int]


def run_grid(request: Request, options: Options, launcher: Launcher | None = None, free: Free | None = None) -> int:
    """Runs the cells of a request that are to be run; the exit code. Arguments as of `run_specs`; with a launcher the methods are known
    without torch."""
    loggers_of(options.log)
    cache = options.out / "cache"
    request = replace(request, backbone=read_backbone(request.backbone).name)
    checkpoint = checkpoint_path(request.backbone, options.pretrained, options.checkpoint)
    known = catalogue(request.methods, cache, request.backbone) if launcher or options.dry_run else None
    choose = (lambda text: list(catalogue(text, cache, request.backbone).choices)) if known else None
    registered = known.registered if known else groups_by_method
    sha256 = file_sha256(checkpoint, cache)
    specs = specs_of(request, sha256, options.data, choose, registered, options.out)
    if is_main_process():
        _warn_of_tuning_elsewhere(request, options.out)
        named = read_backbone(request.backbone)
        if checkpoint == options.pretrained / named.file and named.sha256 not in ("", sha256):
            has = f"{checkpoint} has the sha256 {sha256[:12]}…, and that of {request.backbone} is {named.sha256[:12]}…."
            print(f"Not the published file: {has}")
    return run_specs(specs, request.backbone, checkpoint, options, launcher, free, known.frozen if known else None)


def run_specs(
    specs: Sequence[RunSpec],
    backbone: str,
    checkpoint: Path,
    options: Options,
    launcher: Launcher | None = None,
    free: Free | None = None,
    frozen: Frozen | None = None,
) -> int:
    """Runs those of the cells that are to be run; the exit code. launcher: sends them elsewhere instead. free: of some cells, those that
    are left to this machine. frozen: of the methods, for what a dry run says."""
    store = ResultStore(options.out)
    states = {spec: store.status(spec) for spec in specs}
    store.compared.remember()
    changed = changed_data([spec for spec in specs if states[spec].phase == "stored"], store, options)
    stale = set(changed)
    missing = [spec for spec in specs if to_run(states[spec], options.overwrite, spec in stale)]
    if is_main_process():
        _warn_of_other_data(specs, [spec for spec in changed if spec not in missing], store)
    datasets = open_datasets(missing, options.data)
    if options.dry_run:
        list_cells(specs, states, missing)
        if frozen and (said := in_words(needs(missing, datasets, frozen), options.keep_gb, options.spill_gb, options.embeddings)):
            print(said)
        here = options.device if options.launcher == "local" else ""
        print(*estimate_in_words(missing, datasets, options.out, here, options.workers), sep="\n")
    elif is_main_process():
        store.check_writable(missing)
        if options.embeddings:
            options.embeddings.mkdir(parents=True, exist_ok=True)
            print(end=f"{said}\n" if (said := of_crops(missing)) else "")
        remember_data(datasets.values(), options.out / "cache")
    if launcher:
        return launcher(specs, missing, checkpoint, backbone, options)
    if options.dry_run:
        return 0
    own = free(missing, options.out) if free and is_main_process() and not options.steal else missing
    if missing and run_cells(backbone, checkpoint, own, datasets, options, lambda: store.write_grid(specs)):
        print("Stopped; the same command goes on from here.")
        return STOPPED
    if not is_main_process():
        return 0
    if not missing:
        store.write_grid(specs)
    _say_outdated([spec for spec in specs if spec not in missing], store)
    return summary(specs, missing, store)


def run_cells(
    backbone: str,
    checkpoint: Path,
    specs: Sequence[RunSpec],
    datasets: Mapping[str, Dataset],
    options: Options,
    begin: Callable[[], None],
) -> bool:
    """Runs cells, none of which stops the others; whether the user stopped it. begin: is called when the checkpoint was read, before the
    first cell."""
    from bench.model.checkpoints import load_sam
    from bench.running.workers import device_of, run_in_process, run_in_workers
    from bench.training.process_group import join_process_group, leave_process_group

    context = run_context(backbone, checkpoint, device_of(options.device), options)
    process_group, device = join_process_group(context.device)
    specs = process_group.broadcast(specs)
    if not specs:
        leave_process_group(process_group)
        return False
    workers = min(options.workers, len(specs))
    context = replace(context, device=device, kept_bytes=context.kept_bytes // workers, spilled_bytes=context.spilled_bytes // workers)
    with working(f"Loading {backbone}") if is_main_process() else contextlib.nullcontext():
        sam = load_sam(backbone, checkpoint, device)
    if is_main_process():
        begin()
    if workers > 1:
        return run_in_workers(specs, context, workers)
    stopped = run_in_process(specs, context, sam, datasets, process_group)
    if not stopped:
        leave_process_group(process_group)
    return stopped


def changed_data(stored: Sequence[RunSpec], store: ResultStore, options: Options) -> list[RunSpec]:
    """The stored cells whose data set has other files by now; one that is not here any more is passed over."""
    now: dict[str, str | None] = {}
    for name in dict.fromkeys(spec.dataset for spec in stored):
        with contextlib.suppress(RequestError):
            now[name] = manifest_of(open_dataset(name, options.data), options.out / "cache").fingerprint
    return [spec for spec in stored if spec.dataset in now and store.read(spec).fingerprint not in ("", now[spec.dataset])]


def _warn_of_tuning_elsewhere(request: Request, out: Path) -> None:
    """Says what tuned rates were chosen under and the request has otherwise."""
    for protocol in protocols_of(request.protocol):
        tuned = tuned_rates(protocol, out)
        if tuned and (said := tuned.elsewhere({**vars(request), "protocol": untuned_name(protocol.name)})):
            print(said)


def _warn_of_other_data(specs: Sequence[RunSpec], changed: Sequence[RunSpec], store: ResultStore) -> None:
    """Names the stored cells that look like those asked for, and which tables compare with none of them."""
    if changed:
        which = "; ".join(map(title, changed[:NAMED])) + ("; …" if len(changed) > NAMED else "")
        print(f"Stored from other data files than those in the data folder now: {len(changed)} of these cells ({which}).")
        print("  Tables say so and compare them with no newer cell; `--overwrite changed` runs them again.")
    asked = {grid_cell(spec).named: spec.checkpoint_sha256 for spec in specs}
    with contextlib.suppress(RequestError):  # a damaged file is written anew
        before = [cell for cell in store.grid() if asked.get(cell.named, cell.checkpoint_sha256) != cell.checkpoint_sha256]
        apart = [cell for cell in before if store.status_of(store.runs / cell.folder).phase == "stored"]
        if apart:
            print(f"Stored with other weights of {apart[0].backbone}: {len(apart)} of these cells, which stay in tables of their own.")


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


def run_context(backbone: str, checkpoint: Path, device: str, options: Options) -> RunContext:
    """Where and how the options run cells; RequestError where the encoder is to be compiled for a CPU, on which that makes it slower."""
    if options.compile and device == "cpu":
        raise RequestError(f"--compile {options.compile}: only for a GPU, and the device is cpu, on which a compiled encoder is slower.")
    same = {name: getattr(options, name) for name in ("data", "out", "overwrite", "save_every", "devices", "compile", "steal", "log")}
    memory = Memory(options.micro_batch, options.checkpointing)
    kept, spilled = int(options.keep_gb * 2**30), int(options.spill_gb * 2**30)
    embeddings = "" if options.embeddings is None else str(options.embeddings.absolute())
    at: dict[str, Any] = {"device": device, "memory": memory, "kept_bytes": kept, "spilled_bytes": spilled, "embeddings": embeddings}
    return RunContext(backbone, checkpoint, **same, **at)


def to_run(status: CellStatus, overwrite: str, changed: bool) -> bool:
    """Whether a cell is to be run: `never` leaves stored and failed cells, `failed` retries failed ones, `always` redoes all;
    `changed` those too whose data set has other files by now."""
    asked = {"always": True, "failed": status.phase == "failed", "changed": changed}
    return status.phase in ("pending", "unfinished") or asked.get(overwrite, False)


def list_cells(specs: Sequence[RunSpec], states: Mapping[RunSpec, CellStatus], missing: Sequence[RunSpec]) -> None:
    """Prints a line a cell: its phase, what it is, its key, and of those that have begun what became of them."""
    width = max((len(title(spec)) for spec in specs), default=0)
    for spec in specs:
        reason = "" if states[spec].phase == "pending" else states[spec].reason
        print(f"{states[spec].phase:10}  {title(spec):{width}}  {spec.key}  {reason}".rstrip())
    print(f"{counted(len(specs), 'cell')}, {len(missing)} to run.")


def summary(specs: Sequence[RunSpec], ran: Sequence[RunSpec], store: ResultStore) -> int:
    """Says what became of the cells; the exit code. A cell that `ran` and failed may have an earlier result, which stays."""
    states = {spec: store.status(spec) for spec in specs}
    counts = Counter(status.phase for status in states.values())
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items()))
    print(f"{counted(len(specs), 'cell')}: {phases}; in {store.runs}.")
    for spec, status in states.items():
        if status.phase == "failed":
            print(f"  failed: {title(spec)}: {status.reason}")
    ended = {spec: read_state(store.folder(spec)) or {} for spec in ran if states[spec].phase == "stored"}
    kept = [spec for spec, state in ended.items() if state.get("phase") == "failed"]
    for spec in kept:
        print(f"  failed, its earlier result stays: {title(spec)}: {ended[spec].get('error')}")
    if counts["failed"]:
        print("  `--overwrite failed` retries the failed cells.")
    if counts["unfinished"] + counts["pending"]:
        print("  The same command runs the rest.")
    return 0 if counts["stored"] == len(specs) and not kept else 1
