"""Cells from several places in one folder, each of them checked.

    python -m bench.merge mine colleague --into both

A and B are results folders, such as a colleague's and yours; C may hold cells already. Every record is checked (its key against its
content, its scores against its rows by image); what is there twice with the same result is copied once, and what does not agree is named
and not copied. To read several folders without copying, tables, figures and report take `--out A B`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import counted, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.merging import merge
from bench.grid.progress import working


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all copied, 1 some refused, 2 wrong request)."""
    parser = command_parser("bench.merge", __doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="A", help="results folders")
    parser.add_argument("--into", required=True, type=Path, metavar="C", help="the results folder that receives the cells")
    given = parser.parse_args(arguments)
    with working("Reading and checking the cells"):
        done = merge(given.sources, given.into)
    twice = f"{done.twice} {'was' if done.twice == 1 else 'were'} there twice with the same result"
    print(f"{counted(done.copied, 'cell')} copied into {given.into}; {twice}.")
    print(*done.notes, sep="\n", end="\n" if done.notes else "")
    for reason in done.refused:
        print(f"  not copied: {reason}")
    return 1 if done.refused else 0


if __name__ == "__main__":
    sys.exit(main())
