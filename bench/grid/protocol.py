"""Protocols: how a cell is trained, evaluated and selected, read from `configs/protocols/*.toml`.

A protocol's file has the settings of every cell, a schedule (rows by number of shots) and overrides (rows by method, data set
or shots). The settings of one cell are what remains when its rows are laid over the common ones, later rows last.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from bench import ROOT
from bench.errors import RequestError, unknown
from bench.grid.checks import SEEDS, Range, fits, range_of
from bench.types import FULL, Shots

PROTOCOLS = ROOT / "configs" / "protocols"
SELECTORS = ("methods", "datasets", "shots")  # which cells a row of overrides is about
SELECTIONS = ("last", "best", "val")
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

    epochs: Annotated[int, Range(1, 1_000_000)]
    batch: Annotated[int, Range(1, 65_536)]  # images a step
    evaluate_every: Annotated[int, Range(1, 1_000_000)]  # epochs between two evaluations of the images that a selection is made on
    lr: Annotated[float, Range(0.0, 1000.0)]
    lr_min: Annotated[float, Range(0.0, 1000.0)]  # where the cosine ends
    weight_decay: Annotated[float, Range(0.0, 1000.0)]
    flips: bool  # vertical and horizontal, each with probability 0.5
    random_crop: bool  # a crop of area share U(crop_area_min, 1) at the image's aspect ratio
    crop_area_min: Annotated[float, Range(0.0, 1.0)]
    prompt_types: tuple[str, ...]  # one is drawn for each training image and step
    evaluation_prompt: str
    evaluation_split: str  # "val" for studies that choose a protocol: they must not look at test images
    selections: tuple[str, ...]  # the first one's weights are kept
    augmentation_stream: str  # "reseeded_workers": the reference's loader repeats its random recipes every epoch
    loader_workers: Annotated[int, Range(1, 1024)]  # of the reference, which shape that stream
    normalise_native_size: bool  # False: images of exactly the model's size are taken raw (reference behaviour)
    eval_mode_after_first_look: bool  # True: dropout stops after the first evaluation (reference behaviour)
    matmul_precision: str  # of float32 matrix products on a GPU, in torch's words
    precision: str = "fp32"  # "tf32": products in TF32 whatever matmul_precision says; "bf16": autocast, float32 weights and losses

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

    def resolve(self, method: str, dataset: str, shots: Shots) -> Settings:
        """The settings of one cell."""
        merged = {**self.settings, **_without(self._row(shots), "max_shots")}
        for row in self.overrides:
            if _applies(row, method, dataset, shots):
                merged |= _without(row, *SELECTORS)
        return _settings(self.name, merged)

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
        return tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"Cannot read {path}: {error}.") from None


@cache
def _parse(path: Path) -> Protocol:
    content = read_toml(path)
    _check_keys(str(path), content, FILE_TYPES)
    for key, value in content.items():
        rows = value if isinstance(value, list) else []
        if not isinstance(value, FILE_TYPES[key]) or not all(fits(row, Seed if key == "seeds" else dict) for row in rows):
            raise RequestError(f"{path}: {key} = {str(value)[:60]!r} has the wrong type.")
    schedule, overrides = content.get("schedule", []), content.get("override", [])
    _check_keys(f"{path} [settings]", content.get("settings", {}), SETTING_TYPES)
    for row in schedule:
        _check_keys(f"{path} [[schedule]]", row, ("max_shots", *SETTING_TYPES))
        if type(row.get("max_shots")) is not int and row.get("max_shots") != FULL:
            raise RequestError(f"{path}: every [[schedule]] needs max_shots, a number or 'full'.")
    for row in overrides:
        _check_keys(f"{path} [[override]]", row, (*SELECTORS, *SETTING_TYPES))
        if not all(isinstance(row.get(key, []), list) for key in SELECTORS):
            raise RequestError(f"{path} [[override]]: {', '.join(SELECTORS)} are lists.")
    seeds = tuple(content.get("seeds", [0]))
    return Protocol(path.stem, content.get("summary", ""), seeds, content.get("settings", {}), tuple(schedule), tuple(overrides))


def _check_keys(where: str, given: Mapping[str, Any], allowed: Any) -> None:
    for key in given:
        if key not in allowed:
            raise unknown(f"key in {where}", key, allowed)


def _settings(name: str, merged: Mapping[str, Any]) -> Settings:
    merged = {**LATER, **merged}
    missing = [key for key in SETTING_TYPES if key not in merged]
    if missing:
        raise RequestError(f"Protocol {name} lacks the settings {', '.join(missing)}.")
    settings = Settings(**{key: _typed(f"protocol {name}: {key}", merged[key], kind) for key, kind in SETTING_TYPES.items()})
    _check_values(name, settings)
    return settings


def _check_values(name: str, settings: Settings) -> None:
    for key in SETTING_TYPES:
        allowed = range_of(Settings, key)
        if allowed and (fault := allowed.fault(getattr(settings, key))):
            raise RequestError(f"Protocol {name}: {key} = {getattr(settings, key)} {fault}.")
    for key, choices in CHOICES.items():
        given = getattr(settings, key)
        values = given if isinstance(given, tuple) else (given,)
        for value in values:
            if value not in choices:
                raise unknown(f"value of {key} in protocol {name}", str(value), choices)
        if not values:
            raise RequestError(f"Protocol {name}: {key} is empty: at least one of {', '.join(choices)} is needed.")


def _typed(where: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, get_args(kind)[0]) for item in items):
            return tuple(items)
    elif kind is float and (type(value) is float or fits(value, float)):
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
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Seed = Annotated[int, SEEDS]
FILE_TYPES: Mapping[str, type] = {"summary": str, "seeds": list, "settings": dict, "schedule": list, "override": list}
SETTING_TYPES: Mapping[str, Any] = {f.name: get_type_hints(Settings)[f.name] for f in fields(Settings)}
LATER: Mapping[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
