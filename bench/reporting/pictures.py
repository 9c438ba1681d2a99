"""Pictures of predictions: a sheet a data set, with the ground truth and every method's mask on the same test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np

matplotlib.use("Agg")
import cv2
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.grid.metrics import count, image_iou
from bench.grid.store import ResultStore, read_record
from bench.model.sam import Sam
from bench.running.adapted import load_run
from bench.training.evaluation import predict_masks
from bench.training.prepared import evaluation_prompts
from bench.types import Dataset, Prompts

TRUTH, PREDICTED, BOX = (0.0, 0.62, 0.45), (0.90, 0.35, 0.0), (0.94, 0.89, 0.26)  # colour-blind safe (Okabe and Ito)
NAME_WIDTH = 20  # letters of a line of an image's name
PER_LINE, DPI = 6, 180  # panels of 1.2 inches: 7.2, the width of a page


def prediction_sheet(cells: Mapping[str, Path], dataset: Dataset, sam: Sam, path: Path, names: Mapping[str, str] | None = None) -> None:
    """Writes a picture as wide as a page: for each test image its prompts, the truth and each cell's mask with its IoU, and below all
    what the colours mean.

    cells: title -> a cell's folder; names: title of an image -> image. Without names there are three images, at evenly spaced ranks of
    the first cell's IoU, each with its name.
    """
    names = names or {name: name for name in typical_images(next(iter(cells.values())), 3)}
    samples, columns = [dataset.load("test", name) for name in names.values()], min(PER_LINE, 2 + len(cells))
    lines = -(-(2 + len(cells)) // columns)  # of each image
    settings = read_record(next(iter(cells.values()))).spec.settings
    prompts = [evaluation_prompts(sample, dataset, settings, 4 * sam.config.grid) for sample in samples]
    height = 1.45 * lines * len(samples) + 0.25
    figure, axes = plt.subplots(lines * len(samples), columns, figsize=(1.2 * columns, height), squeeze=False)
    places = axes.reshape(len(samples), lines * columns)
    for spare in places[:, 2 + len(cells) :].ravel():
        spare.set_axis_off()
    for row, sample, given in zip(places, samples, prompts, strict=True):
        show(row[0], sample.image, "image, prompts")
        draw_prompts(row[0], given)
        show(row[1], overlay(sample.image, sample.mask, TRUTH), "ground truth")
    for column, (title, folder) in enumerate(cells.items(), 2):
        masks = predict_masks(load_run(folder, sam), samples, prompts)
        for row, sample, given, mask in zip(places, samples, prompts, masks, strict=True):
            iou = image_iou(count(sample.name, given.count, mask, sample.mask))
            show(row[column], overlay(sample.image, mask, PREDICTED, sample.mask), _captioned(title, iou))
    for ax, title in zip(places[:, 0], names, strict=True):
        ax.set_ylabel("\n".join(fill(line, NAME_WIDTH) for line in title.split("\n")), fontsize=6.5)
    meanings = {"prompts": BOX, "ground truth": TRUTH, "prediction": PREDICTED}
    patches = [Patch(facecolor=(*paint, 0.45), edgecolor=paint, label=name) for name, paint in meanings.items()]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), fontsize=6.5, frameon=False)
    write_sheet(figure, path, below=0.25 / height)


def write_sheet(figure: Figure, path: Path, below: float = 0.0) -> None:
    """Writes a figure of panels as a picture, with a share of its height left free below them, and closes it."""
    figure.tight_layout(pad=0.3, w_pad=0.4, h_pad=0.5, rect=(0, below, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def typical_images(folder: Path, images: int) -> list[str]:
    """The names of test images with objects at evenly spaced ranks of a cell's IoU, low to high."""
    table = ResultStore(folder).images(folder)
    table = table[(table["selection"] == table["selection"].iloc[0]) & (table["objects"] > 0)].sort_values(["iou", "name"])
    ranks = (np.arange(images) + 0.5) / images * len(table)
    return [str(name) for name in table["name"].iloc[ranks.astype(int)]]


def overlay(image: np.ndarray, mask: np.ndarray, colour: Sequence[float], truth: np.ndarray | None = None) -> np.ndarray:
    """An RGB image (H, W, 3) uint8 with `mask` tinted and outlined in `colour` (0–1), and the outline of `truth`."""
    shown = image.astype(np.float32)
    inside = mask.astype(bool)
    shown[inside] = 0.55 * shown[inside] + 0.45 * 255 * np.array(colour, np.float32)
    shown = np.ascontiguousarray(shown.astype(np.uint8))
    for outlined, paint in ((truth, TRUTH), (mask, colour)):
        if outlined is not None:
            contours, _ = cv2.findContours(outlined.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(shown, contours, -1, [int(255 * c) for c in paint], 1)
    return shown


def show(ax: Axes, image: np.ndarray, below: str) -> None:
    ax.imshow(image, interpolation="nearest")
    ax.set_xlabel(below, fontsize=6.5, labelpad=2)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def _captioned(title: str, iou: float) -> str:
    """A cell's title with the IoU (percent) after its first line."""
    name, *rest = title.split("\n")
    return "\n".join([f"{name}: IoU {iou:.0f}", *rest])


def draw_prompts(ax: Axes, prompts: Prompts) -> None:
    """Boxes as frames; points as dots, those of the background crossed out; masks tinted over the image that `ax` shows."""
    if prompts.masks is not None:
        tint = np.ma.masked_equal(prompts.masks.amax((0, 1)).numpy(), 0)
        ax.imshow(tint, ListedColormap([BOX]), alpha=0.6, extent=ax.images[0].get_extent(), interpolation="nearest")
    boxes = torch.zeros(0, 4) if prompts.boxes is None else prompts.boxes
    for x0, y0, x1, y1 in boxes.tolist():
        ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BOX, linewidth=0.9))
    if prompts.points is not None and prompts.labels is not None:
        for (x, y), label in zip(prompts.points.flatten(0, 1).tolist(), prompts.labels.flatten().tolist(), strict=True):
            if label >= 0:
                ax.plot(x, y, "o" if label else "X", color=BOX, markeredgecolor="black", markeredgewidth=0.5, markersize=4)
