"""Stored cells asked once more: their weights on other prompts, other data sets and damaged images, without training.

A re-evaluation is a cell of its own, which names its parent and has no weights. It lies in the parent's results folder.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby, product
from pathlib import Path

from bench.data.manifest import remember_data
from bench.data.prompt_table import TablePrompt, read_prompts
from bench.errors import STOPPED, CheckpointError, DataError, RequestError, need_known, unknown
from bench.grid.families import SIGN, members
from bench.grid.files import file_sha256, write_together
from bench.grid.plan import families_by_method, names_of, open_dataset
from bench.grid.protocol import PRECISIONS
from bench.grid.registry import DATASETS
from bench.grid.spec import Reevaluation, RunSpec, split_calls
from bench.grid.store import RECORD, REEVALUATIONS, ResultStore
from bench.running.adapted import cell_folder, tuned_on, tuned_spec
from bench.running.grid import Options, list_cells, run_cells, summary, to_run
from bench.training.conditions import boxes_file, canonical_corruption, canonical_prompt, prompt_file, read_boxes
from bench.types import Dataset


@dataclass(frozen=True)
class Asked:
    """What stored cells are asked, as a user writes it; texts have commas between their parts, and "" leaves it to each cell.

    cells: a cell's folder, a folder of cells, or a key or the start of one, each. methods: of those only these, by name or label.
    """

    cells: Sequence[str]
    prompts: str = ""
    datasets: str = ""
    corruptions: str = "none"
    precisions: str = ""
    methods: str = ""


def reevaluate(asked: Asked, options: Options) -> int:
    """Evaluates what is not stored yet; the exit code. Everything is checked before the first image."""
    store = ResultStore(options.out)
    parents = [spec for spec in parents_of(asked, store) if _checked(spec, store, options)]
    names = [] if not asked.datasets else _datasets(asked.datasets, options.data)
    datasets = {name: open_dataset(name, options.data) for name in dict.fromkeys(names or [spec.dataset for spec in parents])}
    _check_files(asked.prompts, datasets.values())
    specs = [spec for name in datasets for spec in _specs(asked, [p for p in parents if names or p.dataset == name], name, options.data)]
    states = {spec: store.status(spec) for spec in specs}
    missing = [spec for spec in specs if to_run(states[spec], options.overwrite, False)]
    if options.dry_run:
        list_cells(specs, states, missing)
        return 0
    store.check_writable(missing)
    remember_data(datasets.values(), options.out / "cache")
    for text in split_calls(asked.prompts):  # a copy of each file of boxes stays beside the results, by its content
        path, kept = boxes_file(text), prompt_file(store.root, canonical_prompt(text))
        if path and kept:
            write_together(kept.parent, {kept.name: path.read_bytes()})
    if not missing:
        store.write_grid(specs, REEVALUATIONS)
    for (backbone, _), of in groupby(sorted(missing, key=_weights), key=_weights):
        cells = list(of)
        parent = next(spec for spec in parents if _weights(spec) == _weights(cells[0]))
        checkpoint = tuned_on(store.folder(parent), parent, options.pretrained)
        if run_cells(backbone, checkpoint, cells, datasets, options, lambda: store.write_grid(specs, REEVALUATIONS)):
            print("Stopped; the same command goes on from here.")
            return STOPPED
    return summary(specs, missing, store)


def parents_of(asked: Asked, store: ResultStore) -> list[RunSpec]:
    """The cells that are named, each once; RequestError for one that is not there, has no weights or lies below another results folder,
    and for a method that none of them has."""
    folders = dict.fromkeys(folder for cell in asked.cells for folder in _folders(cell, store))
    specs = list({spec.key: spec for spec in (_in_place(folder, store) for folder in folders)}.values())
    wanted: set[str] = set()
    for word in split_calls(asked.methods):
        names = members(word, families_by_method()) if word.startswith(SIGN) else [word]
        if not any(_is_one(spec, names) for spec in specs):
            raise unknown("method among these cells", word, sorted({spec.method.label for spec in specs}))
        wanted.update(names)
    return [spec for spec in specs if not wanted or _is_one(spec, wanted)]


def _folders(cell: str, store: ResultStore) -> list[Path]:
    """The folders of the cells that a user's word names; of a folder of cells those below it that have weights of their own."""
    folder = cell_folder(cell, store.root)
    if (folder / RECORD).is_file() or not folder.is_dir():
        return [folder]
    found = sorted(path.parent for path in folder.rglob(RECORD) if "_of_" not in path.parent.name)
    if not found:
        raise RequestError(f"No cell is stored below {folder}: a cell's folder, a folder of cells or a key is needed.")
    return found


def _in_place(folder: Path, store: ResultStore) -> RunSpec:
    spec = tuned_spec(folder)
    if store.folder(spec).resolve() != folder.resolve():
        raise RequestError(f"{folder} is not {store.folder(spec)}: --out names the results folder that a cell belongs to.")
    return spec


def _is_one(spec: RunSpec, methods: Collection[str]) -> bool:
    return spec.method.name in methods or spec.method.label in methods


def _weights(spec: RunSpec) -> tuple[str, str]:
    return spec.backbone, spec.checkpoint_sha256


def _checked(spec: RunSpec, store: ResultStore, options: Options) -> bool:
    """CheckpointError unless the backbone is the one that the cell was tuned on."""
    sha256 = file_sha256(tuned_on(store.folder(spec), spec, options.pretrained), options.out / "cache")
    if sha256 != spec.checkpoint_sha256:
        raise CheckpointError(
            f"The cell {spec.key} was tuned on the {spec.backbone} checkpoint of sha256 {spec.checkpoint_sha256[:12]}…, and that in "
            f"{options.pretrained} is {sha256[:12]}…: the same one is needed."
        )
    return True


def _datasets(text: str, data: Path) -> list[str]:
    DATASETS.find_in(data)
    return names_of(text, DATASETS)


def _check_files(prompts: str, datasets: Iterable[Dataset]) -> None:
    """DataError where a file of boxes has an image that is no test image of one of the data sets, or a box that is not inside it."""
    for path, dataset in product(filter(None, map(boxes_file, split_calls(prompts))), datasets):
        names = dataset.names("test")
        read_boxes(path)  # each by itself is one
        for image, of_image in read_prompts(path).items():
            if image not in names:
                near = get_close_matches(image, names, n=1) or names[:1]
                raise DataError(f"{path}: {image!r} is no test image of {dataset.name}, whose images have names such as {near[0]!r}.")
            _check_inside(path, image, of_image, dataset)


def _check_inside(path: Path, image: str, prompts: Sequence[TablePrompt], dataset: Dataset) -> None:
    height, width = dataset.load("test", image).mask.shape
    for prompt in prompts:
        if prompt.box[2] > width or prompt.box[3] > height:
            box = ", ".join(f"{value:g}" for value in prompt.box)
            raise DataError(
                f"{path}, row {prompt.row}: the box [{box}] is not inside the image {image} of {dataset.name}, {width}×{height} pixels."
            )


def _specs(asked: Asked, parents: Sequence[RunSpec], dataset: str, data: Path) -> list[RunSpec]:
    """The re-evaluations of these parents on a data set, prompts innermost, so that they can share what the encoder says."""
    prompts, corruptions = split_calls(asked.prompts), split_calls(asked.corruptions)
    precisions = split_calls(asked.precisions)
    need_known("precision", PRECISIONS, *precisions)
    cls = DATASETS.get(dataset)
    where = {"dataset": dataset, "dataset_revision": cls.revision_of(data), "generated": cls.is_generated(data)}  # type: ignore[attr-defined]
    found: dict[RunSpec, None] = {}
    for parent, corruption in product(parents, map(canonical_corruption, corruptions or ["none"])):
        settings = replace(parent.settings, selections=parent.settings.selections[:1])  # whose weights are stored
        for precision, prompt in product(precisions or [settings.precision], prompts or [settings.evaluation_prompt]):
            again = Reevaluation(parent.key, parent.dataset, canonical_prompt(prompt), corruption)
            found[replace(parent, **where, settings=replace(settings, precision=precision), reevaluation=again)] = None  # type: ignore[arg-type]
    return list(found)
