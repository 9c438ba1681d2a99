"""The stored cells as tidy tables, or one cell's model as a file for other tools.

    python -m bench.export [--out results] [--parquet]                  # `bench.results()` and `bench.image_rows()` in Python
    python -m bench.export CELL --format cat-sam|sam|onnx [--out FILE]

The first writes `<out>/tables/results.csv`, one row a cell, and `<out>/tables/images.csv`, one row a selection, test image and cell.
The second takes a cell's folder or key: `cat-sam` is the format of the released CAT-SAM checkpoints, `sam` plain SAM weights that any SAM
tool loads (of methods that can be merged into them), `onnx` a folder of encoder.onnx and decoder.onnx (see `bench.exporting.onnx_files`).
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from bench.errors import RequestError, one_sentence
from bench.grid.plugins import add_option
from bench.grid.store import ResultStore
from bench.model.backbones import PRETRAINED

COLUMNS = {
    "dataset": "the data set's name",
    "method": "the method's name",
    "label": "the method with its shown parameters",
    "decoder": "whose mask decoder a baseline has; empty where a method has no such choice",
    "shots": "labelled images, or 'full' (text)",
    "draw": "which few-shot images; 0 is the official list",
    "seed": "the training's randomness",
    "backbone": "vit_b, vit_l, vit_h or tiny",
    "protocol": "the protocol's name with its changed settings",
    "checkpoint_sha256": "of the backbone's weights",
    "released_sha256": "of the released checkpoint whose weights were evaluated; empty for weights that were trained here",
    "evaluation_prompt": "box or point",
    "selection": "the selection rule whose weights are kept",
    "dataset_revision": "counts changes of the data set's meaning",
    "generated": "whether the images are generated stand-ins under a real name",
    "method_revision": "counts changes of the method's meaning",
    "augmentation_stream": "fresh, or reseeded_workers, whose samples repeat in every epoch",
    "stream_revision": "counts changes of the samples that a stream draws",
    "eval_mode_after_first_look": "whether dropout stops after the first evaluation",
    "method_id": "equal where the method is the same",
    "recipe": "equal where only draw and seed differ",
    "key": "the cell's key, a hash of all that can change the number",
    "<selection>.miou_<rule>": "foreground IoU pooled over the test pixels, percent; also dice_ and mean_image_iou_",
    "cost.*": "counts, seconds, bytes and MB, as in the record",
    "provenance.*": "code, packages and machine, as in the record",
    "path": "the cell's folder",
}
MODEL_FORMATS = ("cat-sam", "sam", "onnx")
IDENTITY = ("key", "dataset", "label", "shots", "draw", "seed", "backbone", "protocol")


def results(out: str | Path = "results") -> pd.DataFrame:
    """One row a stored cell, columns as COLUMNS says. A damaged record is warned of by path and left out."""
    scan = ResultStore(Path(out)).scan()
    for item in scan.damaged:
        warnings.warn(f"Left out: {item.path}: {item.reason}.", stacklevel=2)
    return scan.table.assign(shots=scan.table["shots"].astype(str)) if len(scan.table) else scan.table


def image_rows(out: str | Path = "results") -> pd.DataFrame:
    """One row a selection, test image and cell: the cell's identity, then pixel counts, IoU and Dice (percent).

    A cell whose rows cannot be read is warned of by path and left out.
    """
    store, parts = ResultStore(Path(out)), []
    for cell in results(out).to_dict("records"):
        try:
            images = store.images(Path(str(cell["path"])))
        except (OSError, ValueError) as error:
            warnings.warn(f"Left out: the images of {cell['path']}: {error}.", stacklevel=2)
            continue
        parts.append(images.assign(**{name: cell[name] for name in IDENTITY})[[*IDENTITY, *images.columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def export(out: Path, parquet: bool) -> list[Path]:
    """Writes both tables and returns the paths; RequestError without cells, or where parquet is asked for without pyarrow."""
    if parquet and find_spec("pyarrow") is None:
        raise RequestError("--parquet needs the package pyarrow, which is not installed: pip install pyarrow, or leave it out.")
    tables = {"results": results(out), "images": image_rows(out)}
    if tables["results"].empty:
        raise RequestError(f"No cell is stored below {out / 'runs'}.")
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.{'parquet' if parquet else 'csv'}"
        if parquet:
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False, lineterminator="\n")
        written.append(path)
    return written


def _written(given: argparse.Namespace) -> list[Path]:
    """What the command line asks for is written; the paths."""
    if (given.cell is None) != (given.format is None) or (given.cell and given.parquet):
        allowed = f"name a cell's folder together with --format {'|'.join(MODEL_FORMATS)}, or neither of them for tables (--parquet)"
        raise RequestError(f"The request is not clear: {allowed}.")
    if given.cell is None:
        return export(given.out or Path("results"), given.parquet)
    from bench.exporting.model_files import export_cell  # tables must not wait for torch

    return export_cell(given.cell, given.format, given.out, given.pretrained)


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cell", nargs="?", help="a cell's folder or key, whose model is written; without it, tables are")
    parser.add_argument("--format", help=f"of the model: {', '.join(MODEL_FORMATS)}")
    parser.add_argument("--out", type=Path, help="with CELL the new file (onnx: folder); else the results folder, for its tables/")
    parser.add_argument("--pretrained", default=PRETRAINED, type=Path, help="folder of SAM's checkpoints")
    parser.add_argument("--parquet", action="store_true", help="tables in parquet instead of CSV; needs pyarrow")
    add_option(parser)
    given = parser.parse_args(arguments)
    print(*_written(given), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
