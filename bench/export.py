"""The stored cells as tidy tables, or one cell's model as a file for other tools.

    python -m bench.export [--out results] [--parquet]                  # `bench.results()` and `bench.image_rows()` in Python
    python -m bench.export CELL --format cat-sam|sam|peft|onnx [--out FILE]

The first writes `<out>/tables/results.csv`, one row a cell, and `<out>/tables/images.csv`, one row a selection, test image and cell.
The second takes a cell's folder or key: `cat-sam` is the format of the released CAT-SAM checkpoints, `sam` plain SAM weights that any SAM
tool loads (of methods that can be merged into them), and it says how that tool has to take images; `peft` a folder for Hugging Face with
its card, an adapter or a whole SamModel; `onnx` a folder of encoder.onnx and decoder.onnx (see `bench.exporting.onnx_files`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plugins import add_option
from bench.grid.progress import working

MODEL_FORMATS = ("cat-sam", "sam", "peft", "onnx")


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.export", __doc__)
    parser.add_argument("cell", nargs="?", help="a cell's folder or key, whose model is written; without it, tables are")
    parser.add_argument("--format", help=f"of the model: {', '.join(MODEL_FORMATS)}")
    parser.add_argument("--out", type=Path, help="with CELL the new file (peft, onnx: folder); else the results folder, for its tables/")
    add_common(parser, "pretrained")
    parser.add_argument("--parquet", action="store_true", help="tables in parquet instead of CSV; needs pyarrow")
    add_option(parser)
    given = parser.parse_args(arguments)
    print(*_written(given), sep="\n")
    return 0


def _written(given: argparse.Namespace) -> list[Path]:
    """What the command line asks for is written; the paths."""
    if (given.cell is None) != (given.format is None) or (given.cell and given.parquet):
        allowed = f"name a cell's folder together with --format {'|'.join(MODEL_FORMATS)}, or neither of them for tables (--parquet)"
        raise RequestError(f"The request is not clear: {allowed}.")
    if given.cell is None:
        from bench.exporting.cell_tables import export

        with working("Reading the cells"):
            return export(given.out or Path("results"), given.parquet)
    from bench.exporting.model_files import export_cell  # tables must not wait for torch

    with working(f"Writing {given.cell} as {given.format}"):
        return export_cell(given.cell, given.format, given.out, given.pretrained)


if __name__ == "__main__":
    sys.exit(main())
