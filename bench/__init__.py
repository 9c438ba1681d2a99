"""sam-peft-bench: parameter-efficient tuning of the Segment Anything Model, compared few-shot and honestly."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m bench.…` loads its modules, before all others: there is nothing to clean up, and code that is half loaded may hold Ctrl-C
    # up. `one_sentence` takes it from here.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"Stopped.\n"), os._exit(130)))

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its numbers only if its first product sees this

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
_found = find_spec("datasets")
if _found is None or _found.origin is None or Path(_found.origin).resolve().parent.parent != ROOT:
    raise ImportError(f"Run from {ROOT}, or with it first in PYTHONPATH: another package named `datasets` is found before its own.")

if TYPE_CHECKING:
    from bench.exporting.cell_tables import image_rows as image_rows
    from bench.exporting.cell_tables import results as results
    from bench.figures import figure as figure
    from bench.model.checkpoints import load_sam as load_sam
    from bench.model.method import build as build
    from bench.model.released import load_cat_sam as load_cat_sam
    from bench.model.segmenter import PromptableSegmenter as PromptableSegmenter
    from bench.model.sizes import SamConfig as SamConfig
    from bench.run import run as run
    from bench.running.adapted import load_run as load_run
    from bench.tables import table as table
    from bench.training.losses import segmentation_loss as segmentation_loss
    from bench.training.samples import training_samples as training_samples
    from bench.types import Prompts as Prompts

_HOMES = {  # looked up on first use: planning and tables must not wait for torch
    "build": "bench.model.method",
    "figure": "bench.figures",
    "image_rows": "bench.exporting.cell_tables",
    "load_run": "bench.running.adapted",
    "load_cat_sam": "bench.model.released",
    "load_sam": "bench.model.checkpoints",
    "PromptableSegmenter": "bench.model.segmenter",
    "Prompts": "bench.types",
    "SamConfig": "bench.model.sizes",
    "results": "bench.exporting.cell_tables",
    "segmentation_loss": "bench.training.losses",
    "table": "bench.tables",
    "training_samples": "bench.training.samples",
}
__all__ = [*_HOMES, "datasets", "methods", "run"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "run":  # the command's module, which can be called
        return importlib.import_module("bench.run")
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def methods() -> list[str]:
    """The registered names of tuning methods."""
    from bench.grid.registry import METHODS

    return METHODS.names()


def datasets() -> list[str]:
    """The registered names of data sets."""
    from bench.grid.registry import DATASETS

    return DATASETS.names()
