"""Sheets of training samples: what methods saw, or will see, in the order in which it comes."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np

from bench.grid.plan import open_datasets
from bench.grid.protocol import STREAM_REVISIONS
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore
from bench.reporting.comparable import file_name, trained
from bench.reporting.pictures import NAME_WIDTH, PER_LINE, TRUTH, draw_prompts, overlay, show, write_sheet
from bench.training.samples import samples_of_cell
from bench.training.train import TrainingSample, repeats_one_sample

SAMPLING = ("batch", "flips", "random_crop", "crop_area_min", "prompt_types", "augmentation_stream", "loader_workers", "uses_val")


def training_sheets(store: ResultStore, specs: Sequence[RunSpec], data: Path) -> Iterator[Path]:
    """Writes a sheet for all cells that see the same samples, and yields its path."""
    identical: dict[tuple[object, ...], list[RunSpec]] = {}
    for spec in specs:
        how = [getattr(spec.settings, name) for name in SAMPLING]
        identical.setdefault((spec.dataset, spec.backbone, spec.shots, spec.draw, spec.seed, spec.protocol, *how), []).append(spec)
    for spec, *others in identical.values():
        dataset = open_datasets([spec], data)[spec.dataset]
        support = dataset.support(spec.shots, spec.draw, spec.settings.uses_val)
        epochs = min(spec.settings.epochs, -(-PER_LINE // len(support)))
        samples = list(islice(samples_of_cell(spec, dataset, epochs), 3 * PER_LINE))
        labels = sorted({one.method.label for one in (spec, *others)})
        run = f"{spec.backbone}_{spec.shots}shot_draw{spec.draw}_seed{spec.seed}_{spec.protocol}"
        same = f", one sample in all {spec.settings.epochs} epochs" if repeats_one_sample(support, spec.settings) else ""
        run_in_words = f"{spec.dataset}, {spec.backbone}, {spec.shots}-shot, draw {spec.draw}, seed {spec.seed}, {spec.protocol}"
        words = f"{run_in_words}: the first training samples of {', '.join(labels)}{same}"
        path = store.root / "figures" / f"{file_name(('training', spec.dataset, run, labels[0]))}.png"
        training_sheet(samples, "\n".join(wrap(words, 130)), path)
        yield path


def stored_specs(store: ResultStore) -> Iterator[RunSpec]:
    """The stored cells that were trained, but those whose samples an earlier version drew, which are named."""
    table = store.records()
    for path in table.loc[trained(table), "path"] if len(table) else ():
        spec = store.read(Path(path)).spec
        if spec.settings.stream_revision == STREAM_REVISIONS[spec.settings.augmentation_stream]:
            yield spec
        else:
            print(f"{path}: an earlier version drew its training samples, which this one cannot draw again.", file=sys.stderr)


def training_sheet(samples: Sequence[TrainingSample], title: str, path: Path) -> None:
    """Writes a picture as wide as a page of training samples in order: image, objects and prompts, and what was drawn for them."""
    columns = min(PER_LINE, len(samples))
    lines = -(-len(samples) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.2 * PER_LINE, 1.8 * lines + 0.3), squeeze=False)
    for spare in axes.ravel()[len(samples) :]:
        spare.set_axis_off()
    for ax, sample in zip(axes.ravel(), samples, strict=False):
        flips, _, crop = str(sample.augmentation).partition(", ")
        shown = overlay(sample.image, np.any(sample.masks, 0), TRUTH)
        name = "\n".join(wrap(sample.name, NAME_WIDTH))
        show(ax, shown, f"{name}\n{flips}\n{crop}\nprompt: {sample.kind}")
        draw_prompts(ax, sample.prompts)
    figure.suptitle(title, fontsize=7)
    write_sheet(figure, path)
