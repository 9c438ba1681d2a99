"""The published numbers: files of `results/paper`, and how their methods, and others beside them, are named and ordered."""

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench import ROOT
from bench.grid.families import place
from bench.grid.metrics import USUAL
from bench.grid.spec import ALWAYS_SHOWN, RELEASED, split_calls

if TYPE_CHECKING:
    import pandas as pd

PAPER = ROOT / "results" / "paper"
PROTOCOL = "paper"  # under which a number of ours is a repetition of theirs
PUBLISHED = {"1": PAPER / "one_shot.csv"}  # by shots: tables of methods
BY_TASK = PAPER / "by_task.csv"  # numbers of every task and number of shots, a row each, beside those


@dataclass(frozen=True)
class Number:
    """A published number. metric: of `bench.grid.metrics`, "" where it is not known. differs: in two words why no difference from ours
    means anything, "" where it does; caveat: what else is to be known."""

    value: float
    metric: str = "miou"
    differs: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class Published:
    """A published table: titles and numbers by method name; `source` is where they stand. averaged: the data sets of its average; others:
    numbers by task and method that stand beside it."""

    titles: Mapping[str, str]
    numbers: Mapping[tuple[str, str], float]  # (method, data set)
    averaged: tuple[str, ...]
    source: str
    others: Mapping[tuple[str, str], Number] = field(default_factory=dict)
    other_titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets with a number."""
        return tuple(dict.fromkeys((*self.averaged, *(name for _, name in self.others))))

    def of(self, label: str, column: str) -> Number | None:
        """The number for a row; None where parameters other than the decoder were changed, or nothing was published."""
        name, others = _parts(label)
        if others:
            return None
        value = self.numbers.get((name, column))
        return self.others.get((name, column)) if value is None else Number(value)

    def metric(self, dataset: str) -> str:
        """By which a data set's tuned methods are published, whose rows come last; the usual one where it is not known."""
        if any(name == dataset for _, name in self.numbers):
            return USUAL
        return [*(number.metric for (_, name), number in self.others.items() if name == dataset), ""][-2:][0] or USUAL

    def notes(self, datasets: Iterable[str], title: Callable[[str], str]) -> list[str]:
        """What is to be known of the numbers of these data sets, called by their titles, and those of systems that are not here."""
        told = {(name, number.caveat): None for (_, name), number in self.others.items() if name in datasets and number.caveat}
        absent = [
            f"{self.other_titles[method]} {number.value:g} on {title(name)} ({number.differs})"
            for (method, name), number in self.others.items()
            if name in datasets and method not in self.titles
        ]
        also = [f"Published beside these, by systems that are not here: {', '.join(absent)}."] if absent else []
        return [*(f"Published for {title(name)}: {caveat}." for name, caveat in told), *also]


@cache
def read_published(path: Path) -> Published:
    """A file of `results/paper`: method, label, a column a data set, average, source."""
    import pandas as pd  # planning must not wait for it

    frame = pd.read_csv(path, index_col="method")
    columns = [str(name) for name in frame.columns if name not in ("label", "source")]
    numbers = {(str(method), name): float(value) for name in columns for method, value in frame[name].dropna().items()}
    titles = {str(method): str(title) for method, title in frame["label"].items()}
    return Published(titles, numbers, tuple(name for name in columns if name != "average"), str(frame["source"].iloc[0]))


def has_numbers(shots: str) -> bool:
    """Whether anything was published for a number of shots."""
    return shots in set(_by_task()["shots"])


@cache
def published_for(shots: str) -> Published:
    """The published table of a number of shots, with all numbers by task; where there is no table, that of one shot names and orders
    methods and has no numbers."""
    table, frame = read_published(PUBLISHED["1"]), _by_task()
    here = frame[frame["shots"].isin([shots, "any"])] if has_numbers(shots) else frame.head(0)
    columns = ("method", "dataset", "value", "metric", "differs", "caveat")
    others = {(method, dataset): Number(*told) for method, dataset, *told in zip(*(here[name] for name in columns), strict=True)}
    numbers = table.numbers if shots in PUBLISHED else {}
    source = table.source if shots in PUBLISHED else str(frame["source"].iloc[0])
    return replace(table, numbers=numbers, others=others, source=source, other_titles=dict(zip(here["method"], here["label"], strict=True)))


@cache
def _by_task() -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(BY_TASK, dtype={"shots": str}, keep_default_na=False)


def ordered(labels: Iterable[str], published: Published) -> list[str]:
    """Rows in the paper's order where all are of its methods, else family by family, the variants of a method behind it."""
    labels, methods = list(labels), method_families()
    if not by_family(labels, published):
        return in_the_papers_order(labels, published)

    def rank(label: str) -> tuple[tuple[int, int], bool, str]:
        name, others = _parts(label)
        return place(name, methods), bool(others), label

    return sorted(labels, key=rank)


def by_family(labels: Iterable[str], published: Published) -> bool:
    """Whether rows stand family by family: not all are of the published table's methods."""
    return any(_parts(label)[0] not in published.titles for label in labels)


def in_the_papers_order(labels: Iterable[str], published: Published) -> list[str]:
    """Rows in the paper's order, then other methods, then variants with other parameters."""
    order = {name: i for i, name in enumerate(published.titles)}

    def rank(label: str) -> tuple[bool, int, str]:
        name, others = _parts(label)
        return bool(others), order.get(name, len(order)), label

    return sorted(labels, key=rank)


def family_of(label: str) -> str:
    """The family of a row's method; "" for those of none, and where the method is not one of this project's."""
    return method_families().get(_parts(label.partition("\t")[0])[0], "")


def _parts(label: str) -> tuple[str, list[str]]:
    """A label's method and its changed parameters, left aside the decoder, and that the weights are the released ones."""
    return label.partition("(")[0], [name for name in shown_values(label) if name not in (*ALWAYS_SHOWN, RELEASED)]


def shown_values(label: str) -> dict[str, str]:
    """The values that a label shows, by parameter: {"decoder": "sam", "rank": "8"}; "released" is one without a value."""
    parts = split_calls(label.partition("(")[2].removesuffix(")"))
    return {name: value for name, _, value in (part.partition("=") for part in parts)}


def heading(label: str, published: Published, shared: Iterable[tuple[str, str]] = ()) -> str:
    """A row's heading: the method's title, as it was published or as its file says it, and the shown parameters but those that are
    shared by all."""
    name, said = label.partition("(")[0], dict(shared)
    values = [f"{key}: {value}" if value else key for key, value in shown_values(label).items() if said.get(key) != value]
    return (published.titles.get(name) or titles().get(name, name)) + (f" ({', '.join(values)})" if values else "")


@cache
def titles(folder: Path = ROOT / "methods") -> Mapping[str, str]:
    """The titles of the methods (or data sets) that lie in the folder, by name."""
    return _written(folder, "title")


@cache
def method_families() -> Mapping[str, str]:
    """The families of this project's methods, by name in the registry's order, "" for those of none."""
    return {**dict.fromkeys(titles(), ""), **_written(ROOT / "methods", "family")}


@cache
def own_values(parameter: str) -> Mapping[str, str]:
    """The defaults of the methods whose own file gives the parameter one, by name: {"samed": "tuned"} of "decoder"."""
    return _written(ROOT / "methods", parameter)


def _written(folder: Path, variable: str) -> dict[str, str]:
    """The text of a variable of registered classes, by registered name, read off their files: importing those would load torch. A file that
    is no Python, or writes it otherwise than as text, is left to those who import it."""
    files = [{node.name: node for node in _classes(path)} for path in sorted(folder.glob("*.py"))]
    anywhere = {name: node for classes in files for name, node in classes.items()}
    found = {}
    for classes in files:
        for node in classes.values():
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("S.register")]
            text = _text_of(variable, node, {**anywhere, **classes})
            if calls and text is not None and isinstance(name := calls[0].args[0], ast.Constant):
                found[str(name.value)] = text
    return found


def _text_of(variable: str, node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> str | None:
    """What a class, or the first of its bases that does, gives a variable as text."""
    for line in node.body:
        if not isinstance(line, ast.AnnAssign | ast.Assign):
            continue
        if ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0]) == variable:
            return str(line.value.value) if isinstance(line.value, ast.Constant) else None
    bases = (classes[name] for base in node.bases if (name := ast.unparse(base)) in classes and name != node.name)
    return next((text for base in bases if (text := _text_of(variable, base, classes)) is not None), None)


@cache
def _classes(path: Path) -> list[ast.ClassDef]:
    try:
        return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    except SyntaxError:
        return []
