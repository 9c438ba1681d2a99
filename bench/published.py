"""The published numbers: files of `results/paper`, and how their methods are named and ordered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.boards import Place
from bench.spec import RELEASED, split_calls

PAPER = Path(__file__).parent.parent / "results" / "paper"
PUBLISHED = {"1": PAPER / "one_shot.csv"}  # by shots


@dataclass(frozen=True)
class Published:
    """A published table: titles and numbers by method name; `source` is where they stand."""

    titles: Mapping[str, str]
    numbers: Mapping[Place, float]
    datasets: tuple[str, ...]
    source: str

    def of(self, label: str, column: str) -> float | None:
        """The number for a row; None where parameters other than the decoder were changed, or nothing was published."""
        name, others = _parts(label)
        return None if others else self.numbers.get((name, column))


def read_published(path: Path) -> Published:
    """A file of `results/paper`: method, label, a column a data set, average, source."""
    frame = pd.read_csv(path, index_col="method")
    columns = [str(name) for name in frame.columns if name not in ("label", "source")]
    numbers = {(str(method), name): float(value) for name in columns for method, value in frame[name].dropna().items()}
    titles = {str(method): str(title) for method, title in frame["label"].items()}
    return Published(titles, numbers, tuple(name for name in columns if name != "average"), str(frame["source"].iloc[0]))


NOTHING_PUBLISHED = Published({}, {}, (), "")


def ordered(labels: Iterable[str], published: Published) -> list[str]:
    """Rows in the paper's order, then other methods, then variants with other parameters."""
    order = {name: i for i, name in enumerate(published.titles)}

    def rank(label: str) -> tuple[bool, int, str]:
        name, others = _parts(label)
        return bool(others), order.get(name, len(order)), label

    return sorted(labels, key=rank)


def _parts(label: str) -> tuple[str, list[str]]:
    """A label's method and its changed parameters, left aside the decoder, and that the weights are the released ones."""
    name, _, shown = label.partition("(")
    return name, [part for part in split_calls(shown.removesuffix(")")) if not part.startswith("decoder=") and part != RELEASED]


def heading(label: str, published: Published) -> str:
    name, _, shown = label.partition("(")
    values = ", ".join(split_calls(shown.removesuffix(")"))).replace("=", ": ")
    return published.titles.get(name, name) + (f" ({values})" if values else "")
