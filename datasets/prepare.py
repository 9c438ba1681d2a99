"""Puts downloaded data into place and checks it, before hours are spent on it.

    python -m datasets.prepare where [NAME]                            # where to download each archive by hand, and what it holds
    python -m datasets.prepare NAME --from ARCHIVE_OR_FOLDER … --data DIR    # unpacks zips, links an unpacked folder
    python -m datasets.prepare verify NAME --data DIR                  # what is missing or broken, and what a run would see

Nothing of the user's is changed or deleted. 0: fine; 1: problems were found; 2: the request was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import STOPPED, RequestError, one_sentence, unknown
from bench.grid.command_line import command_parser
from bench.grid.plugins import add_option

ACTIONS = ("prepare", "verify", "where")


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in ACTIONS and not words[0].startswith("-"):
        words.insert(0, "prepare")
    given = _parser().parse_args(words)
    from datasets.preparation.commands import prepare, verified, where

    try:
        if given.more:
            raise unknown("action", words[1], ACTIONS)
        if given.action == "where":
            return where(given.name, given.data)
        if given.name is None:
            raise RequestError(f"Which data set? `python -m datasets.prepare {given.action} whu`, for example.")
        if given.action == "verify":
            return verified(given.name, given.data, given.out / "cache", given.show)
        return prepare(given.name, given.data, given.sources)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("datasets.prepare", __doc__)
    parser.add_argument("action", choices=ACTIONS, help="prepare may be left out")
    parser.add_argument("name", nargs="?", help="a data set that `where` lists, or, to verify, one of your own")
    parser.add_argument("more", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument(
        "--from", dest="sources", nargs="+", action="extend", type=Path, default=[], metavar="PATH", help="zips or an unpacked folder"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="results folder, whose cache/ keeps the manifest")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="problems that are printed; 0: all")
    add_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
