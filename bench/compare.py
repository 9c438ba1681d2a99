"""Why is mine lower? What differs between two results, and by how much.

    python -m bench.compare results colleague
    python -m bench.compare 4e07408 c2e8f3a                # cells of two commits, both in results/

A and B are each a cell's folder, a results folder, or a commit whose cells lie below --out. Cells are paired by what they are;
printed are the settings and origins in which the pairs differ, and by how much their results do, with the paired test.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import counted, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.metrics import RULES, USUAL, metric_of


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.compare", __doc__)
    parser.add_argument("a", help="a cell's folder, a results folder, or a commit")
    parser.add_argument("b", help="the same")
    parser.add_argument("--out", default="results", type=Path, help="where the cells of a commit lie")
    parser.add_argument("--selection", help="default: the one that each protocol puts first")
    parser.add_argument("--rule", default="all", choices=RULES, help="what images without any object count")
    parser.add_argument("--metric", default=USUAL, help="by what they are compared, of `python -m bench.list metrics`")
    given = parser.parse_args(arguments)
    metric_of(given.metric)
    from bench.grid.progress import working
    from bench.reporting.differences import differing, paired, results, side
    from bench.reporting.terminal import show

    with working("Reading the cells"):
        a, b = side(given.a, given.out), side(given.b, given.out)
        pairs = paired(a, b)
    print(f"A: {a.name} ({counted(len(a.cells), 'cell')})\nB: {b.name} ({counted(len(b.cells), 'cell')})\n")
    show(differing(pairs))
    show(results(pairs, given.selection, given.rule, given.metric))
    print(*a.notes, *b.notes, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
