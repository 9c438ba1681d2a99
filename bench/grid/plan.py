"""From what a user asks for to the cells it means, every name, number and file checked before anything starts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.errors import DataError, RequestError
from bench.grid.families import SIGN, members
from bench.grid.protocol import Protocol, Settings, load_protocol
from bench.grid.published import PUBLISHED, read_published
from bench.grid.registry import DATASETS, METHODS, Registry
from bench.grid.spec import Grid, MethodChoice, RunSpec, choose_method, expanded, parse_call, split_calls
from bench.grid.toml_reader import Kinds, part, read_toml
from bench.grid.tuned import FOLDER, Tuned, read_tuned
from bench.types import FULL, KEPT_BYTES, SEED, SHOTS, WHOLE, Dataset, Memory, Range, Shots

RANGE, MOST_OF_A_RANGE = re.compile("([0-9]{1,10}):([0-9]{1,10})"), 10_000


@dataclass(frozen=True)
class Request:
    """A grid as a user writes it, on the command line or in `configs/suites/*.toml`: comma-separated text, "all" for every
    registered name. Among methods, "paper" stands for the rows of the published table and "@lora" for a family, whose members
    all get the values of "@lora(decoder=hq)". Methods and protocols may be sweeps, such as "lora(rank=4|8)". seeds "" means the
    protocol's own; of seeds and draws "0:20" is 0 to 19."""

    methods: str = "all"
    datasets: str = "whu,kvasir,sbu"
    shots: str = "1"
    seeds: str = ""
    draws: str = "0"
    backbone: str = "vit_l"
    protocol: str = "paper"

    def with_suite(self, path: Path) -> "Request":
        """The request with a suite file's values laid over it; RequestError for a wrong key or value."""
        return replace(self, **{key: text_of(value) for key, value in part(str(path), read_toml(path), REQUEST).items()})


REQUEST: Kinds = dict.fromkeys((f.name for f in fields(Request)), int | str | tuple[int | str, ...])  # as files have them


@dataclass(frozen=True)
class RunContext:
    """What a process needs to run cells: the backbone and where things lie. save_every: seconds between two resume files.
    memory: how a training step is cut to fit the device. kept_bytes: of prepared test images and embeddings that stay in memory.
    devices: processes that run each cell together, which a SLURM job starts by itself. compile: torch.compile's mode for the encoder,
    "" for none. steal: cells that another process computes are computed here too. spilled_bytes: of embeddings in a file.
    log: the loggers that follow training. embeddings: the folder where frozen ones stay, "" for none."""

    backbone: str
    checkpoint: Path
    data: Path
    out: Path
    device: str
    overwrite: str
    save_every: float
    memory: Memory = WHOLE
    kept_bytes: int = KEPT_BYTES
    devices: int = 1
    compile: str = ""
    steal: bool = False
    spilled_bytes: int = 0
    log: str = ""
    embeddings: str = ""


def choose_methods(text: str, backbone: str = "") -> list[MethodChoice]:
    """The methods that a user names, groups, families, calls and sweeps mixed: "paper,@prompt,lora(rank=4|8)"; loads torch with
    them. RequestError for what is not allowed, or not on the backbone."""
    calls = list(dict.fromkeys(call for word in split_calls(text) for call in _calls(word)))
    parsed: list[tuple[str, Mapping[str, Any]]] = [parse_call(call) for call in _not_empty("methods", calls)]
    choices = [choose_method(METHODS.get(name), parameters) for name, parameters in parsed]
    return list({choice.label: choice for choice in (_on(choice, backbone) if backbone else choice for choice in choices)}.values())


def _on(choice: MethodChoice, backbone: str) -> MethodChoice:
    """The choice as cells on a backbone have it."""
    cls = METHODS.get(choice.name)
    return choose_method(cls, vars(cls(**choice.arguments).on_backbone(backbone))) if hasattr(cls, "on_backbone") else choice


def _calls(word: str) -> list[str]:
    """The calls of a name, group, family, call or sweep."""
    if word in GROUPS:
        return GROUPS[word]()
    family, bracket, values = word.partition("(")
    names = members(family.strip(), families_by_method()) if word.startswith(SIGN) else [family]
    return [call for name in names for call in expanded(name + bracket + values)]


def families_by_method() -> dict[str, str]:
    """Every registered method with its family; loads torch."""
    return {name: str(getattr(METHODS.get(name), "family", "") or "") for name in METHODS.names()}


def paper_methods() -> list[str]:
    """The rows of the published one-shot table that are implemented here, in its order."""
    try:
        rows = read_published(PUBLISHED["1"]).titles
    except OSError as error:
        raise RequestError(f"The methods of the paper's table cannot be read from {PUBLISHED['1']}: {error.strerror}.") from None
    return [name for name in rows if name in METHODS.names()]


GROUPS: Mapping[str, Callable[[], list[str]]] = {"all": METHODS.names, "paper": paper_methods}


def groups_by_method() -> dict[str, tuple[str, ...]]:
    """Every registered method with the groups of parameters that it has as it is, without parameters given; loads torch."""
    return {name: _groups(METHODS.get(name)) for name in METHODS.names()}


def _groups(cls: type) -> tuple[str, ...]:
    try:
        return choose_method(cls, {}).groups
    except RequestError:  # it needs parameters
        return ()


def specs_of(
    request: Request,
    checkpoint_sha256: str,
    data: Path = Path("data"),
    choose: Callable[[str], list[MethodChoice]] | None = None,
    registered: Callable[[], Mapping[str, Iterable[str]]] = groups_by_method,
    out: Path = Path("results"),
) -> list[RunSpec]:
    """The cells of a request on what lies in the folder `data`, data sets outermost; RequestError for a name, parameter or
    number that is not allowed. choose, registered: how methods are found; `bench.grid.catalogue` does it without torch. out: the results'
    folder, whose tuned rates a protocol may name."""
    choose = choose or partial(choose_methods, backbone=request.backbone)
    protocols = protocols_of(request.protocol)
    DATASETS.find_in(data)
    methods = {choice.label: choice for choice in choose(request.methods)}
    known = registered()
    groups = {group for groups in (*known.values(), *(choice.groups for choice in methods.values())) for group in groups}
    datasets = {name: DATASETS.get(name) for name in names_of(request.datasets, DATASETS)}
    generated = {name: cls.is_generated(data) for name, cls in datasets.items()}  # type: ignore[attr-defined]
    revisions = {name: cls.revision_of(data) for name, cls in datasets.items()}  # type: ignore[attr-defined]
    specs = []
    for protocol in protocols:
        protocol.check_rows(known, DATASETS.names(), groups)
        cells, tuned = tuple(_cells(request, protocol, methods, tuple(datasets))), tuned_rates(protocol, out)
        found = {at: _trained(protocol, tuned, methods[at[1]], at[0], at[2], choose) for at in {cell[:3] for cell in cells}}
        for dataset, label, shots, draw, seed in cells:
            where = request.backbone, checkpoint_sha256, dataset, revisions[dataset], generated[dataset]
            method, settings = found[dataset, label, shots]
            specs.append(RunSpec(*where, method, shots, draw, seed, protocol.name, settings))
    return _with_draw_revisions(specs, data)


def _with_draw_revisions(specs: Sequence[RunSpec], data: Path) -> list[RunSpec]:
    """The cells with `Dataset.draw_revision` where images are drawn for them; a data set that is not there is told of by who opens it."""
    opened: dict[str, Dataset] = {}
    found: dict[tuple[str, Shots, int], int] = {}
    for spec in specs:
        which = spec.dataset, spec.shots, spec.draw
        official = DATASETS.get(spec.dataset).official  # type: ignore[attr-defined]
        if spec.method.trains and spec.shots != FULL and (spec.draw or spec.shots not in official) and which not in found:
            with suppress(DataError):
                opened[spec.dataset] = opened.get(spec.dataset) or open_dataset(spec.dataset, data)
                found[which] = opened[spec.dataset].draw_revision(spec.shots, spec.draw)
    return [
        replace(spec, draw_revision=1) if spec.method.trains and found.get((spec.dataset, spec.shots, spec.draw)) else spec
        for spec in specs
    ]


def protocols_of(text: str) -> list[Protocol]:
    """The protocols of a text with commas between them, each of whose sweeps is several."""
    return [protocol_of(call) for word in _not_empty("protocols", split_calls(text)) for call in expanded(word)]


def tuned_rates(protocol: Protocol, out: Path) -> Tuned | None:
    """The file of tuned rates that a protocol names, of a results folder or the repository's; None where it names none."""
    return read_tuned(protocol.tuned, [out / FOLDER]) if protocol.tuned else None


def _trained(
    protocol: Protocol, tuned: Tuned | None, asked: MethodChoice, dataset: str, shots: Shots, choose: Callable[[str], list[MethodChoice]]
) -> tuple[MethodChoice, Settings]:
    """The method and settings of a cell, where rates and parameters may be those that trials chose."""
    own = DATASETS.get(dataset).settings  # type: ignore[attr-defined]
    if tuned is None or not asked.trains:
        return asked, protocol.resolve(asked.name, dataset, shots, asked.groups, asked.trains, None, own, asked.prompt_free)
    best = tuned.of(asked.label, dataset)
    (method,) = [asked] if best.chosen == asked.label else choose(best.chosen)
    settings = protocol.resolve(method.name, dataset, shots, method.groups, method.trains, best.rates, own, method.prompt_free)
    return method, replace(settings, trials=tuned.trials, tuned_as="" if method == asked else asked.label)


def _cells(
    request: Request, protocol: Protocol, methods: Mapping[str, MethodChoice], datasets: tuple[str, ...]
) -> Iterable[tuple[str, str, Shots, int, int]]:
    """(data set, method, shots, draw, seed), data sets outermost. What trains nothing has one cell a data set, whatever is asked for."""
    shots, draws = _list("shots", request.shots, _shots), _list("draws", request.draws, _natural)
    seeds = _list("seeds", request.seeds, _natural) if request.seeds else protocol.seeds
    grid = Grid(tuple(methods), datasets, shots, draws, seeds)
    once: tuple[Shots, int, int] = (1, 0, protocol.seeds[0])  # always the same, so that no later request runs it again
    return dict.fromkeys(((*cell[:2], *once) if methods[cell[1]].is_zero_shot else cell) for cell in grid.cells())


def title(spec: RunSpec) -> str:
    """A cell in a few words."""
    draw = f" draw {spec.draw}" if spec.draw else ""
    run = "zero-shot" if spec.method.is_zero_shot else f"{spec.shots}-shot{draw} seed {spec.seed}"
    return ", ".join(filter(None, [f"{spec.dataset} {spec.method.label} {run}", spec.condition_in_words]))


def open_datasets(specs: Iterable[RunSpec], data: Path) -> dict[str, Dataset]:
    """The data sets that these cells need, opened and able to give every support set that is trained on; RequestError otherwise."""
    opened: dict[str, Dataset] = {}
    for spec in specs:
        if spec.dataset not in opened:
            opened[spec.dataset] = open_dataset(spec.dataset, data)
            if spec.dataset_revision != (now := type(opened[spec.dataset]).revision_of(data)):
                raise RequestError(
                    f"Data set {spec.dataset}: the cell is of revision {spec.dataset_revision}, but what lies in {data} is now of {now}."
                )
        dataset = opened[spec.dataset]
        if spec.reevaluation:  # it needs no images to train on
            continue
        if spec.method.trains:
            dataset.support(spec.shots, spec.draw, spec.settings.uses_val)
        held_out = len(dataset.names("val")) if spec.settings.uses_val else 0
        if spec.settings.uses_val and not held_out:
            raise RequestError(f"Data set {dataset.name} has no image to hold out, which the protocol needs: {_why_none(dataset)}.")
        if spec.settings.uses_val and held_out < spec.settings.val_images:
            asked = spec.settings.val_images
            raise RequestError(f"Data set {dataset.name} holds out {held_out} training images, fewer than the {asked} asked for.")
    return opened


def _why_none(dataset: Dataset) -> str:
    """Why `Dataset.hold_out` holds nothing out."""
    if not dataset.val_images:
        return "its val_images is 0, and 1 is the least"
    train = dataset.names("train")
    free = set(train).difference(*dataset.official.values())
    return (
        "a quarter of the training images that stand in no few-shot list is held out, so at least 4 of these are needed, and "
        f"{len(free)} of its {len(train)} training images are"
    )


def open_dataset(name: str, data: Path) -> Dataset:
    """The data set of a name that lies below `data`, or is described there; RequestError for an unknown name, DataError as of `open`."""
    DATASETS.find_in(data)
    opened: Dataset = DATASETS.get(name).open(data)  # type: ignore[attr-defined]
    return opened


def protocol_of(text: str) -> Protocol:
    """The protocol of a name as a user writes it, "demo(lr=1e-3)"; its own name has the changes in one canonical form."""
    name, changes = parse_call(text)
    return load_protocol(name, changes)


def names_of(text: str, registry: Registry) -> list[str]:
    """The registered names in a user's text, "all" or with commas between them; RequestError for others."""
    names = registry.names() if text == "all" else split_calls(text)
    for name in _not_empty(f"{registry.kind}s", names):
        registry.get(name)
    return names


def _list(what: str, text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        items = [number for item in _not_empty(what, split_calls(text)) for number in (_numbers(item) if read is _natural else [item])]
        return tuple(dict.fromkeys(map(read, items)))
    except ValueError:
        raise RequestError(f"{what} = {text!r} cannot be read: {read.__doc__}") from None


def _numbers(item: str) -> Iterable[str]:
    """An item as it is, or the numbers of a range: "0:20" is 0 to 19, as in Python."""
    if not (ends := RANGE.fullmatch(item)):
        return [item]
    first, end = map(int, ends.groups())
    if not 0 < end - first <= MOST_OF_A_RANGE:
        raise ValueError
    return map(str, range(first, end))


def _shots(text: str) -> Shots:
    """whole numbers from 1, or 'full', with commas between them, are allowed."""
    return FULL if text == FULL else _within(SHOTS, text)


def _natural(text: str) -> int:
    """whole numbers from 0 to 4294967295, or up to 10000 of them as first:end like 0:20 for 0 to 19, with commas between, are allowed."""
    return _within(SEED, text)


def _within(allowed: Range, text: str) -> int:
    number = int(text)
    if allowed(number) or not text.isascii():
        raise ValueError
    return number


def _not_empty(what: str, items: list[str]) -> list[str]:
    if not items:
        raise RequestError(f"No {what} were named: give at least one, or 'all'.")
    return items


def text_of(value: Any) -> str:
    """A TOML value as a user writes it on the command line: a list with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
