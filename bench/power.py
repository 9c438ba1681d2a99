"""How many draws, seeds and images tell two methods apart.

    python -m bench.power lora cat_sam_a
    python -m bench.power lora cat_sam_a --difference 1    # one point

A and B are stored methods, as tables' CSV and `bench.status` name them, such as `lora(decoder=sam)`, with two draws or more
(`python -m bench.run --draws 0:10`). Printed is a table of power for each data set, and the fewest runs that reach 80 %.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import RequestError, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.metrics import RULES
from bench.grid.protocol import SELECTIONS


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.power", __doc__)
    parser.add_argument("a", metavar="A", help="a stored method")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--difference", type=float, metavar="POINTS", help="that is to be told apart; default: the one that was found")
    parser.add_argument("--out", default=[Path("results")], type=Path, nargs="+", help="results folders")
    parser.add_argument("--selection", choices=SELECTIONS, help="default: the one that the protocol puts first")
    parser.add_argument("--rule", default="all", choices=RULES, help="what images without any object count")
    parser.add_argument("--metric", help="of `python -m bench.list metrics`; default: the pooled foreground IoU")
    for name in ("shots", "protocol", "backbone"):
        parser.add_argument(f"--{name}", help=f"only cells of this {name}" if name != "shots" else "only cells of so many shots, or 'full'")
    given = parser.parse_args(arguments)
    if given.difference is not None and not 0 < given.difference <= 100:
        raise RequestError(f"--difference {given.difference:g}: points above 0 and up to 100 are allowed.")
    from bench.grid.progress import working  # not before the words are read
    from bench.grid.store import ResultStore
    from bench.reporting.comparable import CellQuery
    from bench.reporting.power import power_tables
    from bench.reporting.terminal import show

    query = CellQuery(given.selection, given.rule, given.shots, given.protocol, given.backbone, metric=given.metric)
    with working("Reading the cells"):
        made = power_tables(ResultStore(*given.out), query, given.a, given.b, given.difference)
    for table in made:
        show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
