"""What names there are, a line each.

    python -m bench.list methods
    python -m bench.list datasets --data DIR               # the archives, and your own

`datasets` also lists the user's own, which are described below --data.
"""

import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import ROOT
from bench.errors import one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.families import FAMILIES, SIGN, families, members
from bench.grid.metrics import METRICS
from bench.grid.plan import Request, families_by_method
from bench.grid.plugins import add_option
from bench.grid.progress import working
from bench.grid.protocol import load_protocol, protocol_names
from bench.grid.registry import DATASETS, METHODS, Registry
from bench.model.backbones import backbone_names, read_backbone

SUITES = ROOT / "configs" / "suites"
Lines = Iterator[tuple[str, str]]


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.list", __doc__)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    add_common(parser, "data")
    add_option(parser)
    given = parser.parse_args(arguments)
    with working(f"Loading the {given.kind}"):
        lines = dict(KINDS[given.kind](given.data))
    names = max(map(len, lines), default=0)
    room = shutil.get_terminal_size().columns - names - 2 if sys.stdout.isatty() else 10**6
    for name, words in lines.items():
        print(f"{name:{names}}  {words if len(words) <= room else f'{words[: max(room, 20) - 1].rstrip()}…'}")
    return 0


def _registered(registry: Registry) -> Lines:
    for name in registry.names():
        cls = registry.get(name)
        file = sys.modules.get(cls.__module__) if cls.__module__.rpartition(".")[2] == name else None
        title = f"{getattr(cls, 'title', name)}: "
        yield name, first_sentence(file) if file else title + first_sentence(cls).removeprefix(title)


def _families(_: Path) -> Lines:
    methods = families_by_method()
    for family in families(methods):
        named = ", ".join(members(SIGN + family, methods))
        yield SIGN + family, f"{named}: {FAMILIES[family]}" if family in FAMILIES else named


def _datasets(data: Path) -> Lines:
    DATASETS.find_in(data)
    return _registered(DATASETS)


def _backbones(_: Path) -> Lines:
    for name in backbone_names():
        spec = read_backbone(name)
        sizes = (
            f"{spec.config.depth} blocks, {spec.config.width} wide, images of {spec.config.image_size} × {spec.config.image_size} pixels"
        )
        files = " or Hugging Face's ".join((spec.file, *spec.names_there[:1]))
        yield name, f"{spec.title}: {sizes}; {files}; licence {spec.licence}"


def _suites(_: Path) -> Lines:
    for path in sorted(SUITES.glob("*.toml")):
        asked = Request().with_suite(path)
        shots = f"{asked.shots} shot" + ("s" if asked.shots != "1" else "")
        yield str(path.relative_to(ROOT)), f"{asked.methods} on {asked.datasets}; {shots}, {asked.backbone}, {asked.protocol}"


def first_sentence(thing: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


KINDS: Mapping[str, Callable[[Path], Lines]] = {
    "methods": lambda _: _registered(METHODS),
    "families": _families,
    "datasets": _datasets,
    "protocols": lambda _: ((name, load_protocol(name).summary) for name in protocol_names()),
    "backbones": _backbones,
    "suites": _suites,
    "metrics": lambda _: ((name, metric.in_words) for name, metric in METRICS.items()),
}


if __name__ == "__main__":
    sys.exit(main())
