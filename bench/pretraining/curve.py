"""The learning curve of a pre-training: a CSV with a line for each evaluation, and its picture."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.grid.files import write_together


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation after `step` steps. seconds: of training so far. IoU in percent, pooled over the held-out objects;
    `averaged`: of the moving average of the weights. loss: mean since the last point."""

    step: int
    images: int
    seconds: float
    loss: float
    box_iou: float
    point_iou: float
    averaged_box_iou: float
    averaged_point_iou: float


def read_curve(path: Path) -> list[CurvePoint]:
    """The points that a file holds, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [CurvePoint(int(row.pop("step")), int(row.pop("images")), *map(float, row.values())) for row in rows]


def write_curve(path: Path, points: list[CurvePoint]) -> None:
    """Writes all points, as a whole or not at all."""
    names = [f.name for f in fields(CurvePoint)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4g}" if k == "loss" else round(v, 2) for k, v in asdict(p).items()} for p in points)
    write_together(path.parent, {path.name: text.getvalue().encode()}, durable=False)


def append_point(path: Path, point: CurvePoint) -> None:
    """Adds a point; later ones, of a run that was set back to an older step, go."""
    write_curve(path, [p for p in read_curve(path) if p.step < point.step] + [point])


def draw_curve(path: Path, points: list[CurvePoint], title: str) -> None:
    """The curve as a PNG: IoU of box and point prompts over the images seen, thin for the weights as they were."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    images = [p.images / 1000 for p in points]
    for kind, colour in (("box", "#1f5fa8"), ("point", "#c8641b")):
        averaged = [getattr(p, f"averaged_{kind}_iou") for p in points]
        axes.plot(images, averaged, color=colour, lw=2, label=f"{kind} prompts, averaged weights")
        axes.plot(images, [getattr(p, f"{kind}_iou") for p in points], color=colour, lw=1, alpha=0.5, label=f"{kind} prompts")
        if points:
            axes.annotate(f"{averaged[-1]:.1f}", (images[-1], averaged[-1]), (4, 0), textcoords="offset points", color=colour, va="center")
    axes.set(xlabel="images seen (thousands)", ylabel="held-out foreground IoU (%)", title=title, ylim=(0, 100))
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=140, metadata={"Software": None})
    plt.close(figure)
