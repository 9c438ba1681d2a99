"""How every figure looks and is written: one palette (Okabe and Ito, colour-blind safe), one size of type, the same bytes twice."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # beside the colour, for print in grey
GREY = "#767676"
PER_LINE = 3  # panels
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "sam-peft-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name with a $ is a name
}
METADATA: Mapping[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def panels(count: int, width: float = 3.2, height: float = 2.7, per_line: int = PER_LINE) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with that many panels side by side, `per_line` a line; width and height of each in inches. Closed at the end."""
    columns = min(count, per_line)
    lines = -(-count // columns)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False, layout="constrained")
        shown = list(axes.ravel())
        for ax in shown[count:]:
            ax.set_axis_off()
        try:
            yield figure, shown[:count]
        finally:
            plt.close(figure)


def colour(i: int) -> str:
    """The colour of the i-th method."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of the i-th method; no two of 64 have both colour and marker in common."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, for what any of them has, in the order of the first that has all."""
    found: dict[str, Any] = {}
    for ax in sorted(axes, key=lambda ax: -len(ax.get_legend_handles_labels()[1])):
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        columns = min(len(found), max(2, int(figure.get_figwidth() / 1.9)))
        figure.legend(
            handles=list(found.values()), labels=list(found), loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2
        )


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as "pdf", "svg" or "png"; the same figure gives the same bytes."""
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        content = io.BytesIO()
        figure.savefig(content, format=form, dpi=200, metadata=METADATA[form])
    return content.getvalue()


def save(figure: Figure, folder: Path, name: str, forms: tuple[str, ...] = tuple(METADATA)) -> list[Path]:
    """Writes `<folder>/<name>.<form>` for each form and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in forms]
    for path, form in zip(paths, forms, strict=True):
        path.write_bytes(rendered(figure, form))
    return paths
