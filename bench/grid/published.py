"""The published numbers: files of `results/paper`, and how their methods, and others beside them, are named and ordered."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench import ROOT
from bench.grid.spec import RELEASED, split_calls

PAPER = ROOT / "results" / "paper"
PUBLISHED = {"1": PAPER / "one_shot.csv"}  # by shots


@dataclass(frozen=True)
class Published:
    """A published table: titles and numbers by method name; `source` is where they stand."""

    titles: Mapping[str, str]
    numbers: Mapping[tuple[str, str], float]  # (method, data set)
    datasets: tuple[str, ...]
    source: str

    def of(self, label: str, column: str) -> float | None:
        """The number for a row; None where parameters other than the decoder were changed, or nothing was published."""
        name, others = _parts(label)
        return None if others else self.numbers.get((name, column))


def read_published(path: Path) -> Published:
    """A file of `results/paper`: method, label, a column a data set, average, source."""
    import pandas as pd  # planning must not wait for it

    frame = pd.read_csv(path, index_col="method")
    columns = [str(name) for name in frame.columns if name not in ("label", "source")]
    numbers = {(str(method), name): float(value) for name in columns for method, value in frame[name].dropna().items()}
    titles = {str(method): str(title) for method, title in frame["label"].items()}
    return Published(titles, numbers, tuple(name for name in columns if name != "average"), str(frame["source"].iloc[0]))


def published_for(shots: str) -> Published:
    """The published table of a number of shots; where there is none, that of one shot, which names and orders methods."""
    return read_published(PUBLISHED.get(shots, PUBLISHED["1"]))


def ordered(labels: Iterable[str], published: Published) -> list[str]:
    """Rows in the paper's order, then other methods, then variants with other parameters."""
    order = {name: i for i, name in enumerate(published.titles)}

    def rank(label: str) -> tuple[bool, int, str]:
        name, others = _parts(label)
        return bool(others), order.get(name, len(order)), label

    return sorted(labels, key=rank)


def _parts(label: str) -> tuple[str, list[str]]:
    """A label's method and its changed parameters, left aside the decoder, and that the weights are the released ones."""
    return label.partition("(")[0], [name for name in shown_values(label) if name not in ("decoder", RELEASED)]


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
    """The titles of the methods (or data sets) that lie in the folder, by name, read off their files: importing those would load torch. A
    file that is no Python, or writes a title otherwise than as text, is left to those who import it."""
    found = {}
    for node in (node for path in sorted(folder.glob("*.py")) for node in _classes(path)):
        calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("S.register")]
        lines = [line.value for line in node.body if isinstance(line, ast.AnnAssign | ast.Assign) and _target(line) == "title"]
        written = [*(call.args[0] for call in calls), *lines]
        if len(texts := [value.value for value in written if isinstance(value, ast.Constant)]) == 2:
            found[str(texts[0])] = str(texts[1])
    return found


def _target(line: ast.AnnAssign | ast.Assign) -> str:
    """What a line of a class gives a value to."""
    return ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0])


def _classes(path: Path) -> list[ast.ClassDef]:
    try:
        return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    except SyntaxError:
        return []
