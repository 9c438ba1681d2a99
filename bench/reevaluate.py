"""Asks stored cells once more, without training: other prompts, other data sets, damaged images.

    python -m bench.reevaluate CELL --prompt "box,box(jitter=0.25),point,points(3),none" --corruption "none,gaussian_noise(3),jpeg"
    python -m bench.reevaluate results/runs --datasets kvasir,sbu     # all stored cells on both: --like retention
    python -m bench.reevaluate CELL --prompt boxes_from=boxes.csv     # image,x0,y0,x1,y1 of a detector

CELL is a cell's folder, a folder of cells, or a key or the start of one. Prompts are explained in `bench.training.conditions`, corruptions
in `bench.data.corruptions`. Each result is a cell of its own that names its parent; `bench.tables --like robustness` and `--like
retention` show them, and no other table mixes them in. Running it again is the retry: what is stored stays.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from bench.errors import one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plugins import add_option
from bench.grid.protocol import PRECISIONS
from bench.running.grid import Options


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all stored, 1 some failed or unfinished, 2 wrong request, 130 stopped)."""
    given = vars(_parser().parse_args(arguments))
    from bench.running.reevaluation import Asked, reevaluate  # not before the words are read

    asked, options = ({f.name: given[f.name] for f in fields(cls) if f.name in given} for cls in (Asked, Options))
    return reevaluate(Asked(**asked), Options(**options))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.reevaluate", __doc__)
    parser.add_argument("cells", nargs="+", metavar="CELL", help="a cell's folder, a folder of cells, or a key or the start of one")
    parser.add_argument("--prompt", dest="prompts", default="", metavar="PROMPTS", help="default: each cell's own; box, box(jitter=0.25), "
                        "point, points(3), mask, none, boxes_from=FILE.csv, with commas between them")  # fmt: skip
    parser.add_argument("--datasets", default="", help="names with commas between them, or 'all'; default: each cell's own")
    kinds, precisions = "gaussian_noise, blur, jpeg, brightness, contrast", ", ".join(PRECISIONS)
    parser.add_argument("--corruption", dest="corruptions", default="none", metavar="CORRUPTIONS", help=f"none, {kinds}; jpeg(1) … jpeg(5)")
    parser.add_argument("--backbone-precision", dest="precisions", default="", help=f"of {precisions}; default: each cell's own")
    parser.add_argument("--methods", default="", help="of these cells only those of some methods, by name, label or family (@lora)")
    add_common(parser, "data", "pretrained", "out", "device", "workers")
    parser.add_argument("--overwrite", choices=["never", "failed", "always"], default="failed", help="default: failed")
    parser.add_argument("--keep-gb", type=float, default=Options.keep_gb, help="memory for images and embeddings that prompts share")
    parser.add_argument("--dry-run", action="store_true", help="list the cells with their state")
    add_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
