"""Protocols: how a cell is trained, evaluated and selected, read from `configs/protocols/*.toml`.

A protocol's file has the settings of every cell, a schedule (rows by number of shots) and overrides (rows by method, data set
or shots). The settings of one cell are what remains when its rows are laid over the common ones, later rows last. The learning
rate is a number, for all that a method trains, or a table with one for each group of parameters: `lr = { decoder = 1e-4 }`.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from bench import ROOT
from bench.errors import RequestError, unknown
from bench.grid.files import read_text
from bench.types import FULL, Shots

PROTOCOLS = ROOT / "configs" / "protocols"
SELECTIONS = ("last", "best", "val")
MATCHED = {"methods": "names", "datasets": "names", "shots": f"whole numbers from 1, or '{FULL}',"}  # what an override names cells by
ONE_GROUP = ("encoder",)  # of a method that does not part its parameters
LEAST = {"epochs": 1, "batch": 1, "evaluate_every": 1, "loader_workers": 1, "lr_min": 0.0, "weight_decay": 0.0, "crop_area_min": 0.0}
MOST = {"crop_area_min": 1.0}
SEEDS = 2**32  # that the generators of "reseeded_workers" take
STREAM_REVISIONS = {"fresh": 1, "reseeded_workers": 2}  # raised when a stream's samples become others, so that their cells' keys do too
CHOICES: Mapping[str, tuple[str, ...]] = {
    "prompt_types": ("point", "box", "mask"),
    "evaluation_prompt": ("box", "point"),
    "selections": SELECTIONS,
    "evaluation_split": ("test", "val"),
    "augmentation_stream": ("fresh", "reseeded_workers"),
    "matmul_precision": ("highest", "high", "medium"),
    "precision": ("fp32", "tf32", "bf16"),
}


@dataclass(frozen=True)
class Settings:
    """Everything about a cell's training and evaluation that is not its method, data or seed.

    A setting with a default came later: while it has it, it is no part of a cell's key, so that the older cells stay what they are.
    """

    epochs: int
    batch: int  # images a step
    evaluate_every: int  # epochs between two evaluations of the images that a selection is made on
    lr: float  # of the method's first group of parameters
    lr_min: float  # where the cosine ends
    weight_decay: float
    flips: bool  # vertical and horizontal, each with probability 0.5
    random_crop: bool  # a crop of area share U(crop_area_min, 1) at the image's aspect ratio
    crop_area_min: float
    prompt_types: tuple[str, ...]  # one is drawn for each training image and step
    evaluation_prompt: str
    evaluation_split: str  # "val" for studies that choose a protocol: they must not look at test images
    selections: tuple[str, ...]  # the first one's weights are kept
    augmentation_stream: str  # "reseeded_workers": the reference's own numbers, which its loader repeats every epoch
    loader_workers: int  # of the reference, which shape that stream
    normalise_native_size: bool  # False: images of exactly the model's size are taken raw (reference behaviour)
    eval_mode_after_first_look: bool  # True: dropout stops after the first evaluation (reference behaviour)
    matmul_precision: str  # of float32 matrix products on a GPU, in torch's words
    precision: str = "fp32"  # "tf32": products in TF32 whatever matmul_precision says; "bf16": autocast, float32 weights and losses
    # Of STREAM_REVISIONS; no setting that a protocol has. 1 where nothing is trained, and in records from before there was another.
    stream_revision: int = field(default=1, repr=False)
    lr_by_group: tuple[tuple[str, float], ...] = field(default=(), repr=False)  # of every group, where they are not all the same

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the optimizer's groups of parameters, in their order."""
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


@dataclass(frozen=True)
class Protocol:
    """A protocol's file: `settings` for all cells, `schedule` by shots, `overrides` by method, data set and shots."""

    name: str
    summary: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    schedule: tuple[Mapping[str, Any], ...]
    overrides: tuple[Mapping[str, Any], ...]

    def resolve(self, method: str, dataset: str, shots: Shots, groups: Sequence[str] = ONE_GROUP, trains: bool = True) -> Settings:
        """The settings of one cell, whose method has these groups of parameters. trains: False where training samples change nothing, so
        that they are no part of its key."""
        merged = _laid({}, self.settings)
        for row in (self._row(shots), *self.overrides):
            if _applies(row, method, dataset, shots):
                merged = _laid(merged, _without(row, "max_shots", *MATCHED))
        return _settings(self.name, merged, groups, trains)

    def check_rows(self, methods: Collection[str], datasets: Collection[str], groups: Collection[str]) -> None:
        """RequestError for a row that matches nothing: one of a method, data set or group of parameters that there is not."""
        for row in (self.settings, *self.schedule, *self.overrides):
            named = {"method": row.get("methods", ()), "data set": row.get("datasets", ()), "group of parameters": _by_group(row.get("lr"))}
            for (kind, names), known in zip(named.items(), (methods, datasets, groups), strict=True):
                for name in names:
                    if name and name not in known:
                        raise unknown(f"{kind} in a row of protocol {self.name}, which therefore matches nothing:", name, known)

    def _row(self, shots: Shots) -> Mapping[str, Any]:
        for row in self.schedule:
            if row["max_shots"] == FULL or (shots != FULL and shots <= row["max_shots"]):
                return row
        raise RequestError(f"Protocol {self.name} has no schedule for {shots} shots.")


def load_protocol(name: str, changes: Mapping[str, Any] | None = None, folder: Path = PROTOCOLS) -> Protocol:
    """The protocol of `configs/protocols/<name>.toml`, with `changes` laid over every cell's settings.

    RequestError for an unknown name, an unknown key or a value of the wrong type.
    """
    known = protocol_names(folder)
    if name not in known:
        raise unknown("protocol", name, known)
    protocol = _parse(folder / f"{name}.toml")
    if not changes:
        return protocol
    _check_keys(f"protocol {name}", changes, SETTING_TYPES)
    label = f"{name}({','.join(f'{k}={_plain(v)}' for k, v in sorted(changes.items()))})"
    return replace(protocol, name=label, overrides=(*protocol.overrides, dict(changes)))


def protocol_names(folder: Path = PROTOCOLS) -> list[str]:
    """The names of the protocols that lie in the folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; RequestError, with the file and the parser's word, where it cannot be read."""
    try:
        return tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"Cannot read {path}: {error}.") from None


@cache
def _parse(path: Path) -> Protocol:
    content = read_toml(path)
    _check_keys(str(path), content, ("summary", "seeds", "settings", "schedule", "override"))
    schedule, overrides = content.get("schedule", []), content.get("override", [])
    _check_keys(f"{path} [settings]", content.get("settings", {}), SETTING_TYPES)
    for row in schedule:
        _check_keys(f"{path} [[schedule]]", row, ("max_shots", *SETTING_TYPES))
        if "max_shots" not in row:
            raise RequestError(f"{path}: every [[schedule]] needs max_shots, a number or 'full'.")
    for row in overrides:
        _check_keys(f"{path} [[override]]", row, (*MATCHED, *SETTING_TYPES))
        _check_matched(path, row)
    seeds = tuple(content.get("seeds", [0]))
    return Protocol(path.stem, content.get("summary", ""), seeds, content.get("settings", {}), tuple(schedule), tuple(overrides))


def _check_keys(where: str, given: Mapping[str, Any], allowed: Any) -> None:
    for key in given:
        if key not in allowed:
            raise unknown(f"key in {where}", key, allowed)


def _check_matched(path: Path, row: Mapping[str, Any]) -> None:
    """RequestError for what an override matches cells by, where no cell could have it."""
    for key, what in MATCHED.items():
        given = row.get(key, [FULL])
        if not isinstance(given, list) or not given or not all(_may_match(key, value) for value in given):
            raise RequestError(f"{path} [[override]]: {key} = {given!r} matches nothing: a list of {what} is needed.")


def _may_match(key: str, value: Any) -> bool:
    return value == FULL or (type(value) is int and value >= 1) if key == "shots" else isinstance(value, str)


def _laid(merged: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a row's laid over them. A table of learning rates changes those of its groups, a number all of them."""
    if not isinstance(row.get("lr"), Mapping):
        return {**merged, **row}
    return {**merged, **row, "lr": {**_by_group(merged.get("lr")), **row["lr"]}}


def _by_group(lr: Any) -> dict[str, Any]:
    """Learning rates by group; that of the groups which have none of their own is under ""."""
    return dict(lr) if isinstance(lr, Mapping) else {} if lr is None else {"": lr}


def _settings(name: str, merged: Mapping[str, Any], groups: Sequence[str], trains: bool) -> Settings:
    merged = {**LATER, **merged}
    missing = [key for key in SETTING_TYPES if key not in merged]
    if missing:
        raise RequestError(f"Protocol {name} lacks the settings {', '.join(missing)}.")
    rates = {group: _rate(name, _by_group(merged["lr"]), group) for group in groups}
    merged["lr"] = rates[groups[0]]
    given = {key: _typed(f"protocol {name}: {key}", merged[key], kind) for key, kind in SETTING_TYPES.items()}
    settings = Settings(**given, lr_by_group=tuple(rates.items()) if len(set(rates.values())) > 1 else ())
    _check_values(name, settings)
    return replace(settings, stream_revision=STREAM_REVISIONS[settings.augmentation_stream]) if trains else settings


def _rate(protocol: str, rates: Mapping[str, Any], group: str) -> float:
    """A group's learning rate; RequestError where there is none, or it is no number from 0."""
    if group not in rates and "" not in rates:
        raise RequestError(f"Protocol {protocol} has no learning rate for the group {group}: give one, or a number for all groups.")
    where = f"protocol {protocol}: lr" + (f" of {group}" if group in rates else "")
    rate: float = _typed(where, rates.get(group, rates.get("")), float)
    if rate < 0:
        raise RequestError(f"{where[0].upper()}{where[1:]} = {rate} is too small: at least 0.0 is needed.")
    return rate


def _check_values(name: str, settings: Settings) -> None:
    for key, least in LEAST.items():
        if getattr(settings, key) < least:
            raise RequestError(f"Protocol {name}: {key} = {getattr(settings, key)} is too small: at least {least} is needed.")
    for key, most in MOST.items():
        if getattr(settings, key) > most:
            raise RequestError(f"Protocol {name}: {key} = {getattr(settings, key)} is too large: at most {most} is allowed.")
    for key, allowed in CHOICES.items():
        given = getattr(settings, key)
        values = given if isinstance(given, tuple) else (given,)
        for value in values:
            if value not in allowed:
                raise unknown(f"value of {key} in protocol {name}", str(value), allowed)
        if not values:
            raise RequestError(f"Protocol {name}: {key} is empty: at least one of {', '.join(allowed)} is needed.")


def _typed(where: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, get_args(kind)[0]) for item in items):
            return tuple(items)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise RequestError(f"{where} = {value!r} has the wrong type: {getattr(kind, '__name__', kind)} is needed.")


def _applies(row: Mapping[str, Any], method: str, dataset: str, shots: Shots) -> bool:
    cell = {"methods": method, "datasets": dataset, "shots": shots}
    return all(value in row[key] for key, value in cell.items() if key in row)


def _without(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{item}" for key, item in sorted(value.items()))
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


SETTING_TYPES: Mapping[str, Any] = {f.name: get_type_hints(Settings)[f.name] for f in fields(Settings) if f.repr}
LATER: Mapping[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
