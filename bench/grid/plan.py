"""From what a user asks for to the cells it means, every name, number and file checked before anything starts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.errors import RequestError
from bench.grid.protocol import Protocol, load_protocol
from bench.grid.published import PUBLISHED, read_published
from bench.grid.registry import DATASETS, METHODS, Registry
from bench.grid.spec import Grid, MethodChoice, RunSpec, choose_method, expanded, parse_call, split_calls
from bench.grid.toml_reader import Kinds, part, read_toml
from bench.types import FULL, KEPT_BYTES, SEED, SHOTS, WHOLE, Dataset, Memory, Range, Shots


@dataclass(frozen=True)
class Request:
    """A grid as a user writes it, on the command line or in `configs/suites/*.toml`: comma-separated text, "all" for every
    registered name. Among methods, "paper" stands for the rows of the published table. Methods and protocols may be sweeps, such as
    "lora(rank=4|8)". seeds "" means the protocol's own."""

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
    "" for none. steal: cells that another process computes are computed here too."""

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


def choose_methods(text: str) -> list[MethodChoice]:
    """The methods that a user names, groups, calls and sweeps mixed: "paper,ssf,lora(rank=4|8)"; loads torch with them. RequestError for
    what is not allowed."""
    calls = list(dict.fromkeys(call for word in split_calls(text) for call in (GROUPS[word]() if word in GROUPS else expanded(word))))
    parsed: list[tuple[str, Mapping[str, Any]]] = [parse_call(call) for call in _not_empty("methods", calls)]
    return [choose_method(METHODS.get(name), parameters) for name, parameters in parsed]


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
    choose: Callable[[str], list[MethodChoice]] = choose_methods,
    registered: Callable[[], Mapping[str, Iterable[str]]] = groups_by_method,
) -> list[RunSpec]:
    """The cells of a request on what lies in the folder `data`, data sets outermost; RequestError for a name, parameter or
    number that is not allowed. choose, registered: how methods are found; `bench.grid.catalogue` does it without torch."""
    protocols = [protocol_of(call) for word in _not_empty("protocols", split_calls(request.protocol)) for call in expanded(word)]
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
        specs += [
            RunSpec(
                request.backbone,
                checkpoint_sha256,
                dataset,
                revisions[dataset],
                generated[dataset],
                methods[method],
                shots,
                draw,
                seed,
                protocol.name,
                protocol.resolve(methods[method].name, dataset, shots, methods[method].groups, methods[method].trains),
            )
            for dataset, method, shots, draw, seed in _cells(request, protocol, methods, tuple(datasets))
        ]
    return specs


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
    """The data sets that these cells need, opened and able to give every support set; RequestError otherwise."""
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
        dataset.support(spec.shots, spec.draw, spec.settings.uses_val)
        if spec.settings.uses_val and not dataset.names("val"):
            listed = {name for names in dataset.official.values() for name in names}
            free = len(set(dataset.names("train")) - listed)
            raise RequestError(
                f"Data set {dataset.name} has no image to hold out, which the protocol needs: that is a quarter of the training images "
                f"which stand in no few-shot list, {free} here, at most its val_images, {dataset.val_images}; 4 and 1 are the least."
            )
    return opened


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
        return tuple(dict.fromkeys(read(item) for item in _not_empty(what, split_calls(text))))
    except ValueError:
        raise RequestError(f"{what} = {text!r} cannot be read: {read.__doc__}") from None


def _shots(text: str) -> Shots:
    """whole numbers from 1, or 'full', with commas between them, are allowed."""
    return FULL if text == FULL else _within(SHOTS, text)


def _natural(text: str) -> int:
    """whole numbers from 0 to 4294967295, with commas between them, are allowed."""
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
