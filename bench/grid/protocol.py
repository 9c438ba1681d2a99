"""Protocols: how a cell is trained, evaluated and selected, read from `configs/protocols/*.toml`.

A protocol's file has the settings of every cell, a schedule (rows by number of shots) and overrides (rows by method, data set
or shots). The settings of one cell are what remains when its rows are laid over the common ones, later rows last. The learning
rate and the weight decay are a number each, for all that a method trains, or a table with one for each group of parameters:
`lr = { decoder = 1e-4 }`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from bench import ROOT
from bench.errors import RequestError, need_known
from bench.grid.prompts import canonical_prompt, is_prompt
from bench.grid.toml_reader import NO_KEY, Kinds, build, kinds, load, not_empty, part
from bench.types import FULL, SEED, SHOTS, Range, Shots

PROTOCOLS = ROOT / "configs" / "protocols"
UNPROMPTED: Mapping[str, Any] = {"prompt_types": ("none",), "evaluation_prompt": "none"}
ONE_GROUP = ("encoder",)  # of a method that does not part its parameters
STREAM_REVISIONS = {"fresh": 1, "reseeded_workers": 2}  # raised when a stream's samples become others, so that their cells' keys do too
Count = Annotated[int, Range(1, 1_000_000)]
Rate = Annotated[float, Range(0.0, 1000.0)]
BY_GROUP: Mapping[str, str] = {"lr": "learning rate", "weight_decay": "weight decay"}  # settings that groups may have of their own
Prompt = Annotated[str, is_prompt]
Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)
Resize = Literal["square", "longest_side"]
Selection = Literal["last", "best", "val"]
SELECTIONS = get_args(Selection)
CellShots = Annotated[int, SHOTS] | Literal["full"]
Words = Annotated[tuple[str, ...], not_empty]


@dataclass(frozen=True)
class Settings:
    """Everything about a cell's training and evaluation that is not its method, data or seed.

    A setting with a default came later: while it has it, it is no part of a cell's key, so that the older cells stay what they are.
    """

    epochs: Count
    batch: Annotated[int, Range(1, 65_536)]  # images a step
    evaluate_every: Count  # epochs between two evaluations of the images that a selection is made on
    lr: Rate  # of the method's first group of parameters
    lr_min: Rate  # where the cosine ends
    weight_decay: Rate  # of the same
    flips: bool  # vertical and horizontal, each with probability 0.5
    random_crop: bool  # a crop of area share U(crop_area_min, 1) at the image's aspect ratio
    crop_area_min: Annotated[float, Range(0.0, 1.0)]
    prompt_types: Annotated[tuple[Prompt, ...], not_empty]  # one is drawn for each training image and step
    evaluation_prompt: Prompt
    evaluation_split: Literal["test", "val"]  # "val" for studies that choose a protocol: they must not look at test images
    selections: Annotated[tuple[Selection, ...], not_empty]  # the first one's weights are kept
    # "reseeded_workers": the reference's own numbers, which its loader repeats every epoch
    augmentation_stream: Literal["fresh", "reseeded_workers"]
    loader_workers: Annotated[int, Range(1, 1024)]  # of the reference, which shape that stream
    normalise_native_size: bool  # False: images of exactly the model's size are taken raw (reference behaviour)
    eval_mode_after_first_look: bool  # True: dropout stops after the first evaluation (reference behaviour)
    matmul_precision: Literal["highest", "high", "medium"]  # of float32 matrix products on a GPU, in torch's words
    # "tf32": products in TF32 whatever matmul_precision says; "bf16": autocast, float32 weights and losses
    precision: Precision = "fp32"
    val_images: Annotated[int, Range(0)] = field(default=0, repr=False)  # held-out training images that are evaluated; 0: all there are
    # "square": squashed, as the reference does; "longest_side": scaled by the longer side and padded, as SAM's own predictor does
    resize: Resize = field(default="square", repr=False)
    # Of STREAM_REVISIONS; no setting that a protocol has. 1 where nothing is trained, and in records from before there was another.
    stream_revision: int = field(default=1, repr=False, metadata=NO_KEY)
    # Of every group, where they are not all the same.
    lr_by_group: tuple[tuple[str, float], ...] = field(default=(), repr=False, metadata=NO_KEY)
    weight_decay_by_group: tuple[tuple[str, float], ...] = field(default=(), repr=False, metadata=NO_KEY)
    # That the rates were chosen from (`bench.grid.tuned`), 0 where they are the protocol's own; and the method as it was asked for, where
    # the trials chose parameters of it as well.
    trials: int = field(default=0, repr=False, metadata=NO_KEY)
    tuned_as: str = field(default="", repr=False, metadata=NO_KEY)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of a method's groups of parameters, in their order."""
        return tuple(rate for _, rate in self.lr_by_group) or (self.lr,)

    @property
    def rates_in_words(self) -> str:
        """The learning rates as tables say them: "0.001", or "encoder 0.01, decoder 0.0001"."""
        return ", ".join(f"{group} {rate:g}" for group, rate in self.lr_by_group) or f"{self.lr:g}"

    def keyed(self) -> dict[str, Any]:
        """What a cell's key is made of."""
        return {name: value for name, value in vars(self).items() if name not in LATER or value != LATER[name]}

    @property
    def uses_val(self) -> bool:
        """Whether images are held out of the training split."""
        return "val" in (*self.selections, self.evaluation_split)


def _has_max_shots(row: Mapping[str, Any]) -> str:
    return "" if "max_shots" in row else "has no max_shots: a number or 'full' is needed"


LATER: Mapping[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
SELECTORS: Kinds = {"methods": Words, "datasets": Words, "shots": Annotated[tuple[CellShots, ...], not_empty]}
# What files and `name(key=value)` may say of settings.
CHANGES: Kinds = {**kinds(Settings), **dict.fromkeys(BY_GROUP, Rate | Mapping[str, Rate])}
CALL: Kinds = {**CHANGES, "tuned": str}  # `name(tuned=file)` besides: rates that were chosen by trials, see `bench.grid.tuned`
Changes = Annotated[Mapping[str, Any], CHANGES]
ScheduleRow = Annotated[Mapping[str, Any], {"max_shots": CellShots, **CHANGES}, _has_max_shots]
OverrideRow = Annotated[Mapping[str, Any], {**SELECTORS, **CHANGES}]


@dataclass(frozen=True)
class Protocol:
    """A protocol's file: `settings` for all cells, `schedule` by shots, `overrides` by method, data set and shots."""

    name: str = field(metadata=NO_KEY)
    summary: str = ""
    seeds: Annotated[tuple[Annotated[int, SEED], ...], not_empty] = (0,)
    settings: Changes = field(default_factory=dict)
    schedule: tuple[ScheduleRow, ...] = ()
    overrides: tuple[OverrideRow, ...] = field(default=(), metadata={"key": "override"})
    tuned: str = field(default="", metadata=NO_KEY)  # the name of a file of tuned rates, which are laid over all rows

    def resolve(
        self,
        method: str,
        dataset: str,
        shots: Shots,
        groups: Sequence[str] = ONE_GROUP,
        trains: bool = True,
        rates: Mapping[str, float] | None = None,
        of_dataset: Mapping[str, Any] | None = None,
        prompt_free: bool = False,
    ) -> Settings:
        """The settings of one cell, whose method has these groups of parameters. trains: False where training samples change nothing, so
        that they are no part of its key. rates: by group, laid over those of the protocol. of_dataset: what the data set has in place of
        the common settings. prompt_free: whether the method is trained and evaluated without prompts, whatever is said of them."""
        merged = _laid(_laid({}, self.settings), of_dataset or {})
        for row in (self._row(shots), *self.overrides):
            if _applies(row, method, dataset, shots):
                merged = _laid(merged, _without(row, "max_shots", *SELECTORS))
        merged = _laid(merged, {"lr": rates}) if rates else merged
        merged |= UNPROMPTED if prompt_free else {}
        return _settings(self.name, merged, groups, trains)

    def check_rows(self, methods: Collection[str], datasets: Collection[str], groups: Collection[str]) -> None:
        """RequestError for a row that matches nothing: one of a method, data set or group of parameters that there is not."""
        for row in (self.settings, *self.schedule, *self.overrides):
            of_groups = [group for key in BY_GROUP for group in _by_group(row.get(key))]
            named = {"method": row.get("methods", ()), "data set": row.get("datasets", ()), "group of parameters": of_groups}
            for (kind, names), known in zip(named.items(), (methods, datasets, groups), strict=True):
                need_known(f"{kind} in a row of protocol {self.name}, which therefore matches nothing:", known, *filter(None, names))

    def _row(self, shots: Shots) -> Mapping[str, Any]:
        for row in self.schedule:
            if row["max_shots"] == FULL or (shots != FULL and shots <= row["max_shots"]):
                return row
        raise RequestError(f"Protocol {self.name} has no schedule for {shots} shots.")


def load_protocol(name: str, changes: Mapping[str, Any] | None = None, folder: Path = PROTOCOLS) -> Protocol:
    """The protocol of `configs/protocols/<name>.toml`, with `changes` laid over every cell's settings.

    RequestError for an unknown name, an unknown key or a value that is not allowed.
    """
    need_known("protocol", protocol_names(folder), name)
    protocol = _read(folder / f"{name}.toml")
    if not changes:
        return protocol
    row = part(f"protocol {name}", changes, CALL)
    if "tuned" in row and "lr" in row:
        raise RequestError(f"Protocol {name} has both lr and tuned, which chooses the learning rates: give one of them.")
    label = f"{name}({','.join(f'{k}={_plain(v)}' for k, v in sorted(changes.items()))})"
    tuned = row.pop("tuned", "")
    return replace(protocol, name=label, overrides=(*protocol.overrides, row), tuned=tuned)


def protocol_names(folder: Path = PROTOCOLS) -> list[str]:
    """The names of the protocols that lie in the folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


@cache
def _read(path: Path) -> Protocol:
    return load(path, Protocol, name=path.stem)


def _laid(merged: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a row's laid over them. A table by group changes what its groups have, a number that of all."""
    tables = {key: {**_by_group(merged.get(key)), **row[key]} for key in BY_GROUP if isinstance(row.get(key), Mapping)}
    return {**merged, **row, **tables}


def _by_group(value: Any) -> dict[str, Any]:
    """Learning rates or weight decays by group; that of the groups which have none of their own is under ""."""
    return dict(value) if isinstance(value, Mapping) else {} if value is None else {"": value}


def _of_groups(name: str, key: str, value: Any, groups: Sequence[str]) -> dict[str, float]:
    """What each of a method's groups has of a setting of BY_GROUP."""
    given = _by_group(value)
    if lacking := [group for group in groups if group not in given and "" not in given]:
        raise RequestError(f"Protocol {name} has no {BY_GROUP[key]} for the group {lacking[0]}: give one, or a number for all groups.")
    return {group: given[group if group in given else ""] for group in groups}


def _settings(name: str, merged: Mapping[str, Any], groups: Sequence[str], trains: bool) -> Settings:
    of_groups = {key: _of_groups(name, key, merged[key], groups) for key in BY_GROUP if merged.get(key) is not None}
    settings = build(f"Protocol {name}", {**merged, **{key: of[groups[0]] for key, of in of_groups.items()}}, Settings)
    asked, shown = canonical_prompt(settings.evaluation_prompt), tuple(map(canonical_prompt, settings.prompt_types))
    settings = replace(settings, evaluation_prompt=asked, prompt_types=shown)
    apart: dict[str, Any] = {f"{key}_by_group": tuple(of.items()) if len(set(of.values())) > 1 else () for key, of in of_groups.items()}
    settings = replace(settings, **apart)
    return replace(settings, stream_revision=STREAM_REVISIONS[settings.augmentation_stream]) if trains else settings


def _applies(row: Mapping[str, Any], method: str, dataset: str, shots: Shots) -> bool:
    cell = {"methods": method, "datasets": dataset, "shots": shots}
    return all(value in row[key] for key, value in cell.items() if key in row)


def _without(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{item}" for key, item in sorted(value.items()))
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
