"""Pictures of predictions: a sheet a data set, with the ground truth and every method's mask on the same test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import cv2
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from bench.adapted import load_run
from bench.evaluation import predict_masks
from bench.metrics import count, image_iou
from bench.prepared import evaluation_prompts
from bench.sam import Sam
from bench.store import ResultStore, read_record
from bench.types import Dataset, Prompts

TRUTH, PREDICTED, BOX = (0.0, 0.62, 0.45), (0.90, 0.35, 0.0), (0.94, 0.89, 0.26)  # colour-blind safe (Okabe and Ito)


def prediction_sheet(cells: Mapping[str, Path], dataset: Dataset, sam: Sam, path: Path, names: Mapping[str, str] | None = None) -> None:
    """Writes a picture: a row for each test image, a column for the image, the truth and each cell's mask with its IoU.

    cells: column title -> a cell's folder; names: row title -> image. Without names there are three images without titles, at
    evenly spaced ranks of the first cell's IoU.
    """
    chosen = typical_images(next(iter(cells.values())), 3) if names is None else list(names.values())
    samples, images = [dataset.load("test", name) for name in chosen], len(chosen)
    settings = read_record(next(iter(cells.values()))).spec.settings
    prompts = [evaluation_prompts(sample, dataset, settings) for sample in samples]
    figure, axes = plt.subplots(images, 2 + len(cells), figsize=(1.45 * (2 + len(cells)), 1.62 * images), squeeze=False)
    for row, sample, given in zip(axes, samples, prompts, strict=True):
        _show(row[0], sample.image, "image, box prompts")
        _draw_boxes(row[0], given)
        _show(row[1], overlay(sample.image, sample.mask, TRUTH), "ground truth")
    for column, (title, folder) in enumerate(cells.items(), 2):
        masks = predict_masks(load_run(folder, sam), samples, prompts)
        for row, sample, given, mask in zip(axes, samples, prompts, masks, strict=True):
            iou = image_iou(count(sample.name, given.count, mask, sample.mask))
            _show(row[column], overlay(sample.image, mask, PREDICTED, sample.mask), title)
            row[column].set_xlabel(f"IoU {iou:.0f}", fontsize=7, labelpad=2)
    for ax, title in zip(axes[:, 0], names or (), strict=False):
        ax.set_ylabel(title, fontsize=7)
    for ax in axes[1:].ravel():
        ax.set_title("")
    figure.tight_layout(pad=0.3, h_pad=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
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


def _show(ax: Axes, image: np.ndarray, title: str) -> None:
    ax.imshow(image, interpolation="nearest")
    ax.set_title(title, fontsize=7, pad=3)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def _draw_boxes(ax: Axes, prompts: Prompts) -> None:
    boxes = torch.zeros(0, 4) if prompts.boxes is None else prompts.boxes
    for x0, y0, x1, y1 in boxes.tolist():
        ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BOX, linewidth=0.9))
