"""Masks of your own images, from the model of a stored cell.

    python -m bench.predict --run CELL --image a.png --box 10 20 200 240 --out mask.png
    python -m bench.predict --run CELL --image a.png --point 60 80 --point 90 20 0 --out mask.png
    python -m bench.predict --run CELL --images FOLDER --prompts prompts.csv --out FOLDER
    python -m bench.predict --checkpoint whu_cat-a_vit-l_1shot.pth --image a.png --box 10 20 200 240 --out mask.png

CELL is a cell's folder, its key or the start of one. Every --box gives a mask of its own; all points, and a --mask, belong to one
object, together with the box if there is one. Written are the union of the masks (0 and 255) and an overlay picture beside it; of a
folder `masks/`, `overlays/` and `predictions.csv`. `bench.data.prompt_table` says how the CSV is read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import STOPPED, counted, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.files import write_together
from bench.grid.plugins import add_option
from bench.grid.progress import Progress
from bench.grid.spreadsheet import spreadsheet

if TYPE_CHECKING:
    from bench.model.segmenter import PromptableSegmenter
    from bench.predicting.tasks import Task


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, 1 where some images failed, 2 for a wrong request, 130 after Ctrl-C."""
    given = _parse(arguments)
    from bench.model.released import load_cat_sam
    from bench.predicting.tasks import folder_tasks, prepared, single_task  # not before the words are read
    from bench.running.adapted import load_run
    from bench.running.workers import device_of

    tasks = folder_tasks(given) if given.images else [single_task(given)]
    device = device_of(given.device)
    if given.checkpoint:
        model = load_cat_sam(given.checkpoint).to(device).eval()
    else:
        model = load_run(given.run, None, given.pretrained, device, given.results)
    for task in tasks:  # all of them before the first is predicted
        prepared(task, model.sam.config.grid)
    return _run(model, tasks, given)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("bench.predict", __doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", metavar="CELL", help="a cell's folder, its key or the start of one")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="a released CAT-SAM checkpoint, T or A, which has its own SAM")
    parser.add_argument("--image", type=Path, help="one image")
    parser.add_argument("--box", type=float, nargs=4, action="append", metavar=("X0", "Y0", "X1", "Y1"), help="in pixels; may be repeated")
    parser.add_argument(
        "--point", type=float, nargs="+", action="append", metavar="X Y", help="X Y [LABEL]: 1 foreground, 0 background; may be repeated"
    )
    parser.add_argument("--mask", type=Path, help="a mask as a prompt: a grey image of the same size, above 127 is foreground")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="a folder of images")
    parser.add_argument("--prompts", type=Path, metavar="CSV", help="their prompts; without it every image is predicted without a prompt")
    parser.add_argument("--out", type=Path, required=True, help="the mask, a png file; with --images a folder")
    parser.add_argument("--overlay", type=Path, help="the overlay picture of --image; default: beside the mask, as NAME_overlay.png")
    parser.add_argument(
        "--bits", type=int, default=0, choices=range(8, 17), metavar="N", help="of images of 16 bits: how many are used, 8 to 16"
    )
    parser.add_argument("--no-overlay", action="store_true", help="masks only")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the cell of a key is looked for")
    add_common(parser, "pretrained", "device")
    add_option(parser)
    given = parser.parse_args(arguments)
    if (given.image is None) == (given.images is None):
        parser.error("give --image FILE or --images FOLDER")
    of_one = [f"--{name}" for name in ("box", "point", "mask", "overlay") if getattr(given, name)]
    if given.images and of_one:
        parser.error(f"{', '.join(of_one)} is of one --image; the prompts of --images stand in a CSV file, --prompts")
    if given.image and given.prompts:
        parser.error("--prompts is of --images; give --box, --point or --mask to one --image")
    return given


def _run(model: "PromptableSegmenter", tasks: "Sequence[Task]", given: argparse.Namespace) -> int:
    """Predicts and writes all tasks, each as soon as it is there; the exit code."""
    import pandas as pd

    from bench.predicting.masks import results
    from bench.predicting.tasks import TABLE

    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    stopped = False
    try:
        with Progress(what="images") as progress:
            for number, (task, row, error) in enumerate(results(model, tasks), 1):
                if len(tasks) > 1:
                    progress.cell(number, len(tasks), task.image.name)
                    progress.done(error or _in_words(row))
                if error:
                    failed.append(f"{task.image}: {error}")
                else:
                    rows.append(row)
    except KeyboardInterrupt:
        stopped = True
    except OSError as error:
        failed.append(f"{error.filename or given.out} cannot be written ({error.strerror}); {len(tasks) - len(rows)} images are left.")
    if given.images and rows:
        write_together(given.out, {TABLE: spreadsheet(pd.DataFrame(rows))}, durable=False)
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    written = (
        f"{len(rows)} of {len(tasks)} masks are in {given.out}{_emptiness(rows)}"
        if given.images
        else f"{given.out}: {_in_words(rows[0])}"
        if rows
        else "Nothing was written"
    )
    print(f"{'Stopped; ' if stopped else ''}{written}.")
    return STOPPED if stopped else int(bool(failed))


def _emptiness(rows: Sequence[dict[str, Any]]) -> str:
    """How many masks have no foreground, and how many of their images had no prompt, which is why."""
    empty = [row for row in rows if not row["foreground_pixels"]]
    bare = sum(not row["prompts"] for row in empty)
    why = f", {bare} of them without any prompt: --prompts FILE.csv gives each image its own" if bare else ""
    return f"; {len(empty) if len(empty) < len(rows) else 'all'} of them are empty{why}" if empty else ""


def _in_words(row: dict[str, Any]) -> str:
    share = 100 * row["foreground_pixels"] / (row["height"] * row["width"])
    prompts = counted(row["prompts"], "prompt") if row["prompts"] else "no prompt"
    return f"{prompts}, foreground {share:.1f} % of {row['width']}×{row['height']} pixels"


if __name__ == "__main__":
    sys.exit(main())
