"""The stored cells as tidy tables: a row a cell, and a row a selection, test image and cell."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from bench.errors import RequestError
from bench.grid.spreadsheet import spreadsheet
from bench.grid.store import ResultStore

COLUMNS = {
    "dataset": "the data set's name",
    "method": "the method's name",
    "label": "the method with its shown parameters",
    "decoder": "whose mask decoder a baseline has; empty where a method has no such choice",
    "shots": "labelled images, or 'full' (text)",
    "draw": "which few-shot images; 0 is the official list, where the data set has one",
    "seed": "the training's randomness",
    "backbone": "its name, of configs/backbones/",
    "protocol": "the protocol's name with its changed settings",
    "checkpoint_sha256": "of the backbone's weights",
    "released_sha256": "of the released checkpoint whose weights were evaluated; empty for weights that were trained here",
    "trains": "whether the method trains anything",
    "lr": "the learning rate in words, by group of parameters where they differ: `encoder 0.01, decoder 0.0001`",
    "evaluation_prompt": "what test images are asked with: box, point, or what `bench.reevaluate` asks with, as `box(jitter=0.25)`",
    "parent": "of a re-evaluation the key of the cell whose weights it has; empty for every other cell",
    "tuned_on": "the data set that the weights were tuned on; another than `dataset` in re-evaluations alone",
    "corruption": "how a re-evaluation damaged the test images, as `jpeg(3)`; else empty",
    "precision": "fp32, tf32 or bf16",
    "selection": "the selection rule whose weights are kept",
    "dataset_revision": "counts changes of the data set's meaning",
    "draw_revision": "1 where the draw passes over images without objects, which an earlier version had in it",
    "generated": "whether the images are generated stand-ins under a real name",
    "method_revision": "counts changes of the method's meaning",
    "augmentation_stream": "fresh, or reseeded_workers, whose samples repeat in every epoch",
    "stream_revision": "counts changes of the samples that a stream draws",
    "eval_mode_after_first_look": "whether dropout stops after the first evaluation",
    "trials": "that rates were chosen from, 0 where they are the protocol's own",
    "tuned_as": "the label as it was asked for, where trials chose the method's parameters too",
    "method_id": "equal where the method is the same",
    "recipe": "equal where only draw and seed differ",
    "key": "the cell's key, a hash of all that can change the number",
    "<selection>.miou_<rule>": "foreground IoU pooled over the test pixels, percent; also dice_ and mean_image_iou_",
    "cost.*": "counts, seconds, bytes and MB, as in the record",
    "provenance.*": "code, packages and machine, as in the record",
    "parameter.*": "the method's parameters, defaults included",
    "path": "the cell's folder",
}
ASKED = ("parent", "tuned_on", "evaluation_prompt", "corruption")  # what re-evaluations differ in
IDENTITY = ("key", "dataset", "label", "shots", "draw", "seed", "backbone", "protocol", *ASKED)


def results(out: str | Path = "results", *others: str | Path) -> pd.DataFrame:
    """One row a cell stored in the results folders, columns as COLUMNS says. A damaged record is warned of by path and left out."""
    scan = ResultStore(Path(out), *map(Path, others)).scan()
    for item in scan.damaged:
        warnings.warn(f"Left out: {item.path}: {item.reason}.", stacklevel=2)
    return scan.table.assign(shots=scan.table["shots"].astype(str)) if len(scan.table) else scan.table


def image_rows(out: str | Path = "results", *others: str | Path) -> pd.DataFrame:
    """One row a selection, test image and cell: the cell's identity, then what `bench.grid.metrics.ImageRow` has, IoU and Dice (percent).

    A cell whose rows cannot be read is warned of by path and left out.
    """
    store, parts = ResultStore(Path(out)), []
    for cell in results(out, *others).to_dict("records"):
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
            path.write_bytes(spreadsheet(table))
        written.append(path)
    return written
