"""How tables and figures call methods, data sets and numbers of shots: by their titles, and what all methods share is said once."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from bench import ROOT
from bench.grid.published import Published, heading, own_values, shown_values, titles
from bench.grid.spec import ALWAYS_SHOWN
from bench.types import FULL

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Labels:
    """The names of one table or figure. shared: what a context says in place of every label, (("decoder", "sam"),); datasets: titles;
    unprompted: the methods that are asked without prompts where others are asked with some."""

    published: Published
    shared: Facts = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    titled: bool = True
    unprompted: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        methods: Iterable[str],
        datasets: Iterable[str],
        published: Published,
        stored: Mapping[str, str] | None,
        unprompted: frozenset[str] = frozenset(),
    ) -> Self:
        """The names of these methods (labels) and data sets; stored: titles that cells' records give data sets, None for names as commands
        take them. A title that two of the data sets have stands with the name."""
        if stored is None:
            return cls(published, titled=False, unprompted=unprompted)
        known = {**titles(ROOT / "datasets"), **stored}
        called = {name: known.get(name, name) for name in datasets}
        count = Counter(called.values())
        told_apart = {name: f"{of} ({name})" for name, of in called.items() if count[of] > 1}
        return cls(published, _shared(methods), {**known, **told_apart}, unprompted=unprompted)

    def method(self, label: str) -> str:
        """A method's title, with the parameters that it does not share with all others; what stands behind a tab follows it."""
        name, _, more = label.partition("\t")
        said = heading(name, self.published, self.shared) if self.titled else name
        return f"{said}{', no prompt' * (name in self.unprompted)} {more}".rstrip()

    def dataset(self, name: str) -> str:
        """A data set's title; any other name is itself."""
        return self.datasets.get(name, name)

    def place(self, label: str, dataset: str) -> str:
        """A method on a data set."""
        return f"{self.method(label)} on {self.dataset(dataset)}"

    def values(self, names: Iterable[str], key: Iterable[str]) -> list[str]:
        """What fields of a cell have, in words: its method, data set and number of shots, or the value itself."""
        said: Mapping[str, Callable[[str], str]] = {"label": self.method, "dataset": self.dataset, "shots": shots_in_words}
        return [said.get(name, str)(value) for name, value in zip(names, key, strict=True)]


def _shared(labels: Iterable[str]) -> Facts:
    """The parameters that labels always show, with the value that more than three quarters of those show that say one; methods
    whose own default it is do not count where others are there."""
    shown = [(label.partition("(")[0], shown_values(label)) for label in labels]
    found = []
    for name in ALWAYS_SHOWN:
        of = [(values[name], own_values(name).get(method)) for method, values in shown if name in values]
        counts = Counter(value for value, own in of if value != own) or Counter(value for value, _ in of)
        found += [(name, value) for value, count in counts.most_common(1) if 4 * count > 3 * counts.total()]
    return tuple(found)


def shots_in_words(shots: object) -> str:
    """A number of shots: "1 shot", "16 shots", and of "full" "all training images"."""
    return "all training images" if shots == FULL else f"{shots} shot{'' if str(shots) == '1' else 's'}"


def in_words(context: Facts) -> str:
    """What all numbers of a table or figure have in common, on one line."""
    said = {"shots": shots_in_words, "decoder": lambda name: f"decoder {name} (of methods without their own)"}
    return " · ".join(said[name](value) if name in said else f"{name} {value}" for name, value in context)
