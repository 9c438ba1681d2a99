"""Evaluates a released CAT-SAM checkpoint, or an adapter of Hugging Face's peft, as a cell is evaluated; nothing is trained.

    python -m bench.evaluate --checkpoint whu_cat-a_vit-l_1shot.pth --datasets whu --data data
    python -m bench.evaluate --checkpoint FILE --datasets whu --store --shots 1     # stored, it is a row of every table
    python -m bench.evaluate --adapter FOLDER --datasets whu --store                # on the backbone below --pretrained, or
    python -m bench.evaluate --adapter FOLDER --checkpoint sam_vit_b.safetensors --backbone vit_b --datasets whu

The method is told from the file's keys and the backbone from its shapes. Without --store the rows by image go to
`<out>/evaluated/`, in the columns of a cell's images.csv. With it the result is a cell like any other, under a name of its own
("CAT-SAM-A (released)"), so it is never averaged with cells that were trained here; its record says `source: released checkpoint`
with the file's name and sha256. There is one set of weights, so all selection rules have the same scores. A stored cell is the
checkpoint's trained part on a backbone, so the SAM inside the file must then be the one in --pretrained.

An adapter is made for a SamModel: its config names the backbone, or --backbone does, and its cell is that of
`bench.run --methods "adapter(file='FOLDER')"`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bench.errors import STOPPED, RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plugins import add_option


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all evaluated, 1 some failed, 2 wrong request, 130 stopped)."""
    given = _parser().parse_args(arguments)
    if not (given.checkpoint or given.adapter):
        raise RequestError("What is to be evaluated? --checkpoint FILE or --adapter FOLDER is needed.")
    from bench.running.released_cells import Evaluation, evaluate_adapter, evaluate_released  # not before the words are read

    evaluate = evaluate_adapter if given.adapter else evaluate_released
    try:
        return evaluate(Evaluation(**{field.name: getattr(given, field.name) for field in fields(Evaluation)}))
    except KeyboardInterrupt:
        print("Stopped; the data sets that were done are kept.", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.evaluate", __doc__)
    parser.add_argument("--checkpoint", type=Path, help="a released CAT-SAM checkpoint, T or A; with --adapter the backbone's own")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="of adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--datasets", required=True, help="names with commas between them, or 'all'")
    add_common(parser, "data", "out", "pretrained", "device")
    parser.add_argument("--protocol", default="paper", help="how images are taken and prompts are made; default: paper")
    parser.add_argument("--backbone", help="default: told from the checkpoint's shapes")
    parser.add_argument("--store", action="store_true", help="keep the results as cells, rows of their own in every table")
    parser.add_argument("--shots", help="labelled images that the checkpoint was trained with, or 'full'; --store needs it")
    add_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
