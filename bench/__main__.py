"""What there is to type, a line each.

    python -m bench
    python -m bench.run --help       # the same of every command

Every command ends with 0 where all is well, 2 where the request was wrong, and 130 after Ctrl-C.
"""

import argparse
import ast
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence

from bench import ROOT
from bench.errors import RequestError, one_sentence
from bench.grid.command_line import command_parser

COMMANDS = {
    "First": "bench.demo bench.list datasets.prepare datasets.synth",
    "Run": "bench.run bench.tune bench.study bench.evaluate bench.reevaluate",
    "Watch": "bench.status bench.logs bench.cancel bench.clean",
    "See": "bench.tables bench.figures bench.sheets bench.report bench.compare bench.power bench.merge",
    "Use": "bench.predict bench.export",
    "Develop": "bench.check bench.perf bench.pretrain",
}


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 where more was typed than `python -m bench`."""
    parser = command_parser("bench", __doc__)
    parser.add_argument(
        "command",
        nargs="?",
        metavar="",
        help=argparse.SUPPRESS,
        choices=[name.partition(".")[2] for name in " ".join(COMMANDS.values()).split()],
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.command:
        raise RequestError(f"A command is typed with a point: python -m bench.{shlex.join([given.command, *given.words])}")
    for what, names in COMMANDS.items():
        print(f"\n{what}")
        for name in names.split():
            text = ast.get_docstring(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())) or ""
            head = f"  python -m {name:18}"
            print(textwrap.fill(head + text.partition("\n")[0], shutil.get_terminal_size().columns, subsequent_indent=" " * len(head)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
