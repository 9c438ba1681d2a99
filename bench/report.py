"""One page of everything: warnings, tables, figures, every cell.

    python -m bench.report                                 # to results/report/index.html
    python -m bench.report --out mine colleague

Writes `<out>/report/index.html`: a summary with warnings, the tables, every cell (sortable, filterable), figures, sheets, failures,
provenance and the commands that make it again. One file without a server or network; from the stored cells alone, no torch, no GPU.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import one_sentence
from bench.grid.command_line import command_parser
from bench.grid.files import write_together
from bench.grid.store import ResultStore


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.report", __doc__)
    parser.add_argument(
        "--out", default=[Path("results")], type=Path, nargs="+", help="results folders; the page goes to the first's report/index.html"
    )
    parser.add_argument("--metric", help="of `python -m bench.list metrics`; default: the pooled foreground IoU")
    given = parser.parse_args(arguments)
    gc.set_threshold(500_000)  # what is made here is needed to the end: a seventh of the time went into looking for what is not
    import matplotlib.artist  # this and the next not before the words are read

    matplotlib.artist.kwdoc = lambda artist: ""  # the help of every artist's properties: a fifth of what matplotlib takes to load
    from bench.grid.progress import working
    from bench.reporting.report import report

    with working("Making the report"):
        page = report(ResultStore(*given.out), given.metric).encode()
    folder = given.out[0] / "report"
    write_together(folder, {"index.html": page})
    print(f"{folder / 'index.html'} ({len(page) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # what was made is not looked through once more at the end, which takes a tenth of all
    sys.exit(code)
