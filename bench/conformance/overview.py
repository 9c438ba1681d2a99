"""What all registered methods are, in four tables that also stand in methods/README.md: `python -m bench.check --all`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

from bench.conformance.methods import SIZES, parameters_on
from bench.errors import RequestError
from bench.grid.families import place
from bench.grid.plan import families_by_method
from bench.grid.registry import METHODS
from bench.model.backbones import read_backbone

EACH = {"tiny": "SAM", "tiny_sam2": "SAM 2", "tiny_sam3": "SAM 3"}  # a small backbone of each kind
NEWER = ("sam2_tiny", "sam2_small", "sam2_base_plus", "sam2_large", "sam3")
DECODERS = {"hq": "HQ's parts", "decoder": "SAM's, tuned"}  # by the group of parameters that is trained in it
BLOCK = re.compile(r"(<!-- table: (\w+) -->).*?(?=\n<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Overview:
    """A table of words, a row a method. numbers: the heads of columns that have numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...]

    def markdown(self) -> str:
        """As GitHub shows it."""
        rule = ["--:" if head in self.numbers else "---" for head in self.heads]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (self.heads, rule, *self.rows))


def overview(kind: str) -> Overview:
    """A table of OVERVIEWS, of every registered method, family by family."""
    heads, cells, numbers = OVERVIEWS[kind]
    methods = families_by_method()
    rows = ((f"`{name}`", *cells(METHODS.get(name), name)) for name in sorted(methods, key=lambda name: place(name, methods)))
    return Overview(("name", *heads), tuple(row for row in rows if any(row[1:])), numbers)


def renewed(text: str, kinds: Iterable[str]) -> str:
    """A README's text with these tables as they are now, each between `<!-- table: KIND -->` and `<!-- end -->`."""
    made = {kind: overview(kind).markdown() for kind in kinds}
    return BLOCK.sub(lambda block: f"{block[1]}\n{made[block[2]]}" if block[2] in made else block[0], text)


def _facts(cls: type, name: str) -> tuple[str, ...]:
    counts = zip(EACH.values(), _counts(EACH, name), strict=True)
    built = [kind for kind, count in counts if count != "-"]
    backbones = "all" if len(built) == len(EACH) else ", ".join(built)
    return _said(cls, "title"), _said(cls, "source"), _decoder(cls), backbones, _said(cls, "rates"), _said(cls, "oracle")


def _said(cls: type, what: str) -> str:
    return str(getattr(cls, what, ""))


def _counts(backbones: Iterable[str], name: str) -> tuple[str, ...]:
    """The parameters that are trained on each of the backbones."""
    sizes = [read_backbone(backbone).architecture for backbone in backbones]
    return tuple(_or_dash(lambda size=size: f"{parameters_on(name, size):,}") for size in sizes)  # type: ignore[misc]


def _decoder(cls: type) -> str:
    """Which decoder a method has: "any" where `decoder` says it."""
    chosen = {f.name: f.default for f in fields(cls)}.get("decoder")
    if chosen is not None:
        return f"any ({chosen})"
    return _or_dash(lambda: next((DECODERS[group] for group in cls().groups().values() if group in DECODERS), "SAM's"))


def _or_dash(of: Callable[[], str]) -> str:
    """A dash where a method that needs parameters, or this backbone cannot have, is asked without."""
    try:
        return of()
    except RequestError:
        return "-"


Cells = Callable[[type, str], tuple[str, ...]]
OVERVIEWS: Mapping[str, tuple[tuple[str, ...], Cells, tuple[str, ...]]] = {
    "sam": (
        ("family", "what is trained", *SIZES),
        lambda cls, name: (_said(cls, "family"), _said(cls, "trained"), *_counts(SIZES, name)),
        SIZES,
    ),
    "facts": (("title", "source", "decoder", "backbones", "authors' rates", "compared with, to"), _facts, ()),
    "newer": (NEWER, lambda cls, name: _counts(NEWER, name), NEWER),
    "pyramid": (("on a block that widens or pools",), lambda cls, name: (_said(cls, "pyramid"),), ()),
}
