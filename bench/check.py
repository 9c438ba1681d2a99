"""What a method or a data set promises and what it breaks, for authors of new ones.

    python -m bench.check lora                                       # or "lora(rank=8)"; on toys, seconds on a CPU
    python -m bench.check lora --backbone tiny_sam2                  # on a SAM 2, or tiny_sam3
    python -m bench.check --plugin mine.py my_method
    python -m bench.check synth_polyps --data DIR                    # a data set, on its own files
    python -m bench.check statistics                                 # what tables say of their numbers, by simulation; a minute or two
    python -m bench.check --all                                      # what all methods are: the tables of methods/README.md

A check passes, is broken, or is about something that is not promised. The exit code is 1 where one is broken.
"""

import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.conformance.checks import Finding, examined
from bench.errors import RequestError, one_sentence, unknown
from bench.grid.command_line import add_common, command_parser
from bench.grid.plugins import add_option
from bench.grid.registry import DATASETS, METHODS
from bench.grid.spec import parse_call
from bench.model.backbones import read_backbone

STATISTICS = "statistics"  # no method or data set is called so
VERDICT, CHECK = 14, 46  # columns
COLOURS = {"pass": "green", "broken": "bold red", "not promised": "yellow"}


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, 1 where a check is broken, 2 where nothing of that name can be checked."""
    parser = command_parser("bench.check", __doc__)
    parser.add_argument("name", nargs="?", help=f"a method, also with parameters, a data set, or {STATISTICS!r}")
    parser.add_argument("--all", action="store_true", help="instead of a name: prints what all methods are")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="with --all: writes its tables between the marks of that file instead")
    parser.add_argument("--backbone", metavar="NAME", help="of a method: that backbone's sizes, with random weights; default: a toy SAM")
    add_common(parser, "data")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="of a data set: images read of each split; 0: all")
    add_option(parser)
    given = parser.parse_args(arguments)
    if given.all == bool(given.name) or (given.readme and not given.all):
        raise RequestError("Either a name or --all is needed, and --readme goes with --all.")
    if given.all:
        return everything(given.readme)
    if given.name == STATISTICS:
        return simulated()
    found = findings(given.name, given.data, given.images, given.backbone)
    return show(given.name, found)


def everything(readme: Path | None) -> int:
    """Prints what all methods are, as wide as the terminal or as markdown; or writes it into a README."""
    from bench.conformance.overview import OVERVIEWS, overview, renewed

    if readme:
        readme.write_text(renewed(readme.read_text(), OVERVIEWS))
        return 0
    console = Console(highlight=False)
    for made in map(overview, OVERVIEWS):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for head in made.heads:
            number = head in made.numbers
            table.add_column(head, justify="right" if number else "left", overflow="fold", no_wrap=number or head == "name")
        for row in made.rows:
            table.add_row(*(Text(cell.strip("`")) for cell in row))
        console.print(table if console.is_terminal else made.markdown(), "", sep="\n", soft_wrap=not console.is_terminal)
    return 0


def simulated() -> int:
    """Prints how often simulated intervals hold and equal methods differ; 1 where that is not as it should be."""
    from bench.reporting.coverage import tables
    from bench.reporting.table import markdown

    made = tables()
    print(*map(markdown, made), sep="\n")
    return int(any(cell.notes for table in made for row in table.rows for cell in row.cells))


def findings(name: str, data: Path, images: int = 16, backbone: str | None = None) -> Iterator[Finding]:
    """What the suite finds of a method or a data set; RequestError for a name that is neither, and data that cannot be opened."""
    called = parse_call(name)[0]
    DATASETS.find_in(data)
    if called in METHODS.names():
        from bench.conformance.methods import METHOD_CHECKS, MethodSubject
        from bench.conformance.toys import TOY

        return examined(METHOD_CHECKS, MethodSubject(name, read_backbone(backbone).config if backbone else TOY))
    if called in DATASETS.names():
        from bench.conformance.datasets import DATASET_CHECKS, DatasetSubject

        return examined(DATASET_CHECKS, DatasetSubject(called, data, images))
    raise unknown("method or data set", called, [*METHODS.names(), *DATASETS.names()])


def show(name: str, found: Iterator[Finding]) -> int:
    """Prints the findings as they come; 1 where one is broken."""
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 10**6
    counts: Counter[str] = Counter()
    console.print(Text(name, "bold"))
    started = time.process_time()
    for finding in found:
        counts[finding.verdict] += 1
        verdict = f"{finding.verdict:{VERDICT}}", COLOURS[finding.verdict]
        console.print(Text.assemble(verdict, _lines(finding, width)), soft_wrap=True)
    rest = "".join(f", {counts[verdict]} {verdict}" for verdict in ("broken", "not promised") if counts[verdict])
    console.print(f"{counts['pass']} of {counts.total()} checks pass{rest}, in {time.process_time() - started:.1f} s of CPU.")
    return int(counts["broken"] > 0)


def _lines(finding: Finding, width: int) -> str:
    """The check and what it found: beside it where the terminal is wide enough, below it where it is not."""
    if width < 2 * (VERDICT + CHECK):
        below = textwrap.fill(finding.said, max(20, width), initial_indent=" " * VERDICT, subsequent_indent=" " * VERDICT)
        return f"{finding.check}\n{below}"
    return textwrap.fill(f"{finding.check:{CHECK}}{finding.said}", width - VERDICT, subsequent_indent=" " * (VERDICT + CHECK))


if __name__ == "__main__":
    sys.exit(main())
