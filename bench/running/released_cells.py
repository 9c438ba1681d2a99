"""Released CAT-SAM checkpoints, and adapters of Hugging Face's peft, evaluated as a cell is evaluated, and stored as one where that is
asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bench.data.manifest import data_facts
from bench.errors import CheckpointError, RequestError
from bench.grid.files import file_sha256, write_together
from bench.grid.metrics import RULES
from bench.grid.plan import Request, choose_methods, names_of, open_dataset, protocol_of, specs_of
from bench.grid.progress import Progress
from bench.grid.provenance import provenance
from bench.grid.registry import DATASETS, METHODS
from bench.grid.spec import RunSpec, released_choice
from bench.grid.spreadsheet import spreadsheet
from bench.grid.store import Record, ResultStore
from bench.model.backbones import backbone_names, checkpoint_path, read_backbone
from bench.model.checkpoints import architecture_of, load_sam
from bench.model.hugging_face import adapter_config
from bench.model.released import load_released
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.running.cell import Cell, Result, build_model
from bench.running.workers import device_of, failure
from bench.types import Dataset

SOURCE, ADAPTER = "released checkpoint", "adapter"  # of a record whose weights were not trained here


@dataclass(frozen=True)
class Evaluation:
    """What is asked for. datasets: names with commas, or "all"; backbone "": told from the checkpoint's shapes; store: as a cell of
    so many `shots`, on the SAM in `pretrained`. adapter: a folder that is evaluated on the backbone of `checkpoint`, which is then SAM's
    own file, None for that in `pretrained`."""

    checkpoint: Path | None
    adapter: Path | None
    datasets: str
    data: Path
    protocol: str
    backbone: str | None
    out: Path
    store: bool
    shots: str | None
    pretrained: Path
    device: str


def evaluate_adapter(given: Evaluation) -> int:
    """As `evaluate_released`, of an adapter on the backbone that it names or that is given. Nothing here trained it, so its cell is one for
    all numbers of shots, as zero-shot SAM's is."""
    if given.shots:
        raise RequestError(f"--shots {given.shots}: an adapter stands once in every table, as zero-shot SAM does.")
    call = f"adapter(file={str(given.adapter)!r})"
    (choice,) = choose_methods(call)
    backbone = read_backbone(given.backbone or _backbone_of(Path(dict(choice.files)["file"]))).name
    datasets, seed, device, store = _begun(given)
    checkpoint = checkpoint_path(backbone, given.pretrained, given.checkpoint)
    sam = load_sam(backbone, checkpoint, device)
    specs = specs_of(Request(call, given.datasets, "1", seed, "0", backbone, given.protocol), sam.sha256, given.data)
    facts, model = {**provenance(device, checkpoint, given.out / "cache"), "source": ADAPTER}, build_model(specs[0], sam)
    print(f"{given.adapter}: {choice.label} on {backbone}, protocol {specs[0].protocol}.")
    return _each(specs, sam, lambda spec: model, datasets, facts, store, given)


def _begun(given: Evaluation) -> tuple[dict[str, Dataset], str, str, ResultStore]:
    """The opened data sets, the protocol's first seed, the device and the store, into which results can be written."""
    DATASETS.find_in(given.data)
    datasets = {name: open_dataset(name, given.data) for name in names_of(given.datasets, DATASETS)}
    seed, device, store = protocol_of(given.protocol).seeds[0], device_of(given.device), ResultStore(given.out)
    store.check_writable()
    return datasets, str(seed), device, store


def _backbone_of(adapter: Path) -> str:
    """The backbone whose name on Hugging Face an adapter's config has; RequestError where none is told."""
    path = (adapter if adapter.is_dir() else adapter.parent) / "adapter_config.json"
    base = str(adapter_config(path).get("base_model_name_or_path") or "nothing")
    found = [name for name in backbone_names() if base in read_backbone(name).names_there]
    if len(found) != 1:
        raise RequestError(f"{adapter} says that it is made for {base}, which is the name of no one backbone: --backbone names one.")
    return found[0]


def evaluate_released(given: Evaluation) -> int:
    """Evaluates, shows and keeps what is asked for; everything is checked before the first image. 0: all were evaluated, 1: some failed."""
    assert given.checkpoint
    if given.store and not given.shots:
        raise RequestError("--store needs --shots, the labelled images that the checkpoint was trained with: its file does not say it.")
    datasets, seed, device, store = _begun(given)
    method, model = load_released(given.checkpoint, given.backbone, given.protocol)
    backbone = read_backbone(given.backbone or architecture_of(model.sam.state_dict())).name
    sam = (_same_backbone(model.sam, backbone, given) if given.store else model.sam).to(device)
    request = Request(method, given.datasets, given.shots or "1", seed, "0", backbone, given.protocol)
    choices, sha256 = [released_choice(METHODS.get(method))], file_sha256(given.checkpoint, given.out / "cache")
    specs = [replace(spec, released_sha256=sha256) for spec in specs_of(request, sam.sha256, given.data, lambda _: choices)]
    if len(specs) > len(datasets):
        raise RequestError(f"--shots {given.shots}: a checkpoint was trained with one number of labelled images.")
    facts = provenance(device, checkpoint_path(backbone, given.pretrained) if given.store else None, given.out / "cache")
    facts |= {"source": SOURCE, "released": {"name": given.checkpoint.name, "sha256": sha256}}
    print(f"{given.checkpoint}: {METHODS.get(method).title} on {backbone}, protocol {specs[0].protocol}.")  # type: ignore[attr-defined]
    tuned = {name: parameter.detach() for name, parameter in model.tuned().items()}

    def adapted(spec: RunSpec) -> PromptableSegmenter:
        built = build_model(spec, sam)
        built.load_tuned(tuned)
        return built

    return _each(specs, sam, adapted, datasets, facts, store, given)


def _each(
    specs: Sequence[RunSpec],
    sam: Sam,
    adapted: Callable[[RunSpec], PromptableSegmenter],
    datasets: Mapping[str, Dataset],
    facts: Mapping[str, Any],
    store: ResultStore,
    given: Evaluation,
) -> int:
    """Evaluates and keeps data set by data set, none of which stops the others; prints the scores; 1 where one failed. adapted: the model
    of a cell, whose weights are there."""
    rows, places = [], []
    with Progress() as progress:
        for number, spec in enumerate(specs, 1):
            progress.cell(number, len(specs), spec.dataset)
            try:
                if given.store and store.status(spec).phase == "stored":
                    record, folder, done = store.read(spec), store.folder(spec), "was stored before"
                else:
                    cell = Cell(spec, sam, datasets[spec.dataset], store.folder(spec), progress.update, adapted=adapted(spec))
                    result = cell.run({**facts, "data": data_facts(cell.dataset, store.root / "cache")})
                    record, folder, done = result.record, _kept(result, store, given), "evaluated"
            except Exception as error:
                progress.done(f"FAILED: {failure(error, spec.method.name)}")
                continue
            progress.done(done)
            rows.append(_scores(record))
            places.append(f"{spec.dataset}: {folder}")
    if rows:
        heads = ("data set", "images", *(f"mIoU {rule}" for rule in RULES), *(f"Dice {rule}" for rule in RULES))
        print(tabulate(rows, heads, "pipe", floatfmt=".1f", missingval="-"))
        print(*places, sep="\n")
    return 0 if len(rows) == len(specs) else 1


def _kept(result: Result, store: ResultStore, given: Evaluation) -> Path:
    """Stores the cell, or writes its rows by image alone; returns where they are."""
    spec = result.record.spec
    if given.store:
        return store.save(result.record, result.images, result.history, result.tuned)
    name = given.checkpoint.stem if given.checkpoint else ""
    if given.adapter:
        of = "_".join(filter(None, (str(dict(spec.method.parameters)["file"]), name and f"{name}_{spec.checkpoint_sha256[:12]}")))
    else:
        of = f"{name}_{spec.released_sha256[:12]}"
    folder = store.root / "evaluated" / of
    images = result.images[result.images["selection"] == spec.settings.selections[0]].drop(columns="selection")
    write_together(folder, {f"{spec.dataset}.csv": spreadsheet(images)})
    return folder / f"{spec.dataset}.csv"


def _scores(record: Record) -> tuple[Any, ...]:
    scores = record.scores.get(record.spec.settings.selections[0], {})
    of_rules = (scores.get(f"{name}_{rule}") for name in ("miou", "dice") for rule in RULES)
    return (record.spec.dataset, record.cost.get("test_images"), *of_rules)


def _same_backbone(inside: Sam, name: str, given: Evaluation) -> Sam:
    """The SAM of that name in --pretrained; CheckpointError unless it is, bit for bit, the one inside the released file."""
    path = checkpoint_path(name, given.pretrained)
    sam, own = load_sam(name, path), inside.state_dict()
    changed = [key for key, tensor in sam.state_dict().items() if not torch.equal(tensor, own[key])]
    if changed:
        raise CheckpointError(
            f"{given.checkpoint} cannot be stored as a cell: the SAM inside it is not {path} ({len(changed)} tensors differ, "
            f"such as {changed[0]}); without --store it is evaluated."
        )
    return sam
