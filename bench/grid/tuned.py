"""Files of tuned learning rates, `results/tuned/<name>.toml`: what `bench.tune` chose, and what `--protocol "clean(tuned=<name>)"` takes.

A cell under such a protocol has in its key the file's name, the rates and parameters that were chosen for it and the number of trials that
they were chosen from: a file in which these change makes other cells of those methods, and of no others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from bench import ROOT
from bench.errors import RequestError, unknown
from bench.grid.protocol import Rate
from bench.grid.spec import split_calls
from bench.grid.toml_reader import NO_KEY, load, not_empty
from bench.types import Range

FOLDER = "tuned"  # of a results folder
NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
Count = Annotated[int, Range(0)]


@dataclass(frozen=True)
class Trial:
    """A trial of a method as it was asked for: the method with the parameters that were tried, the rates by group, and the mIoU on held-out
    training images by data set. failed: why it has no score on one; it counts in the budget all the same."""

    method: str
    number: Count
    tried: str
    epochs: Count
    rates: Mapping[str, Rate]
    scores: Mapping[str, float]
    failed: str = ""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a method, on a data set or, where that is "", on all; and what all its trials cost.

    method: as it was asked for; chosen: with the parameters of its best trial. score, untuned: mIoU on held-out training images, of the
    best trial and of trial 0, which has the protocol's own rates (None where halving left it behind). best_so_far: after each trial of
    full length. space: what was tried, by parameter. steps, images, seconds: of all trials; images that training showed (None in files
    of earlier versions), seconds of training and evaluation on `device`.
    """

    method: str
    chosen: str
    trial: Count
    rates: Annotated[Mapping[str, Rate], not_empty]
    score: float
    best_so_far: tuple[float, ...]
    cells: Count
    steps: Count
    seconds: float
    space: Mapping[str, str]
    dataset: str = ""
    untuned: float | None = None
    images: Count | None = None


@dataclass(frozen=True)
class Tuned:
    """A file of tuned rates: what was asked for, the budget that all methods had, the choices and every trial.

    request: of `bench.grid.plan.Request`. images: that were asked to be held out, 0 for all there are; held_out: that a trial was scored
    on, by data set.
    """

    name: str = field(metadata=NO_KEY)
    request: Mapping[str, str]
    trials: Annotated[int, Range(1)]
    per: Literal["grid", "dataset"]
    sampler: str
    seed: Count
    rates: str
    halving: bool
    only_rates: bool
    images: Count
    held_out: Mapping[str, int]
    checkpoint_sha256: str
    device: str
    choices: Annotated[tuple[Choice, ...], not_empty] = field(metadata={"key": "choice"})
    every_trial: tuple[Trial, ...] = field(default=(), metadata={"key": "trial"})

    def of(self, method: str, dataset: str) -> Choice:
        """The choice for a method as a grid names it; RequestError where there is none."""
        for choice in self.choices:
            if choice.method == method and choice.dataset in ("", dataset):
                return choice
        known = sorted({choice.method for choice in self.choices if choice.dataset in ("", dataset)})
        lacks, has = (method, known) if known else (f"the data set {dataset}", sorted({choice.dataset for choice in self.choices}))
        raise RequestError(
            f"tuned/{self.name}.toml has rates for {', '.join(has)}, and none for {lacks}: leave it out, or choose for all of them by "
            f"`python -m bench.tune … --name {self.name} --overwrite`, which keeps the trials that are stored."
        )

    def elsewhere(self, request: Mapping[str, str]) -> str:
        """A sentence for what the rates were chosen under and a request has otherwise; "" where it is the same."""
        other = {key: self.request[key] for key in ("backbone", "shots", "protocol") if self.request.get(key) not in (None, request[key])}
        if not {*split_calls(request.get("datasets", ""))} <= {"all", *self.held_out}:
            other["datasets"] = ",".join(self.held_out)
        said = ", ".join(f"{key} {value} (here {request[key]})" for key, value in other.items())
        return f"The rates of tuned/{self.name}.toml were chosen with {said}." if other else ""


def read_tuned(name: str, folders: Sequence[Path] = ()) -> Tuned:
    """The file of a name in the first of the folders that has it, the repository's own results last; RequestError otherwise."""
    searched = list(dict.fromkeys([*folders, ROOT / "results" / FOLDER]))
    for folder in searched:
        if NAME.fullmatch(name) and (path := folder / f"{name}.toml").is_file():
            return _read(path, path.stat().st_mtime_ns)
    known = {path.stem for folder in searched for path in folder.glob("*.toml")}
    raise unknown(f"tuned rates (looked for in {' and '.join(map(str, searched))}):", name, known)


@cache
def _read(path: Path, changed: int) -> Tuned:
    return load(path, Tuned, name=path.stem)


def untuned_name(protocol: str) -> str:
    """The name of a protocol without the tuned rates that it takes: "clean(tuned=mine)" is "clean" with others."""
    return re.sub(r",?tuned=[\w-]*,?", lambda found: "," if found[0][0] == found[0][-1] == "," else "", protocol).removesuffix("()")


def check_name(name: str) -> str:
    """A name for a file of tuned rates; RequestError for one that no file or protocol can have."""
    if not NAME.fullmatch(name):
        raise RequestError(f"{name[:100]!r} names no file of tuned rates: up to 60 letters, digits, - and _ are allowed.")
    return name


def as_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, without what is None: plain values first, tables in one line, then the lists of tables as `[[key]]`."""
    lists = {key: value for key, value in table.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)}
    lines = _lines({key: value for key, value in table.items() if key not in lists})
    for key, rows in lists.items():
        lines += [line for row in rows for line in ("", f"[[{_key(key)}]]", *_lines(row))]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]


def _key(text: str) -> str:
    return text if re.fullmatch(r"[\w-]+", text, re.ASCII) else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", plain) + '"'
    return repr(value)
