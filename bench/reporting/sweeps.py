"""Which variant of a sweep is best: chosen on held-out training images, never on those that a table shows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from bench.reporting.comparable import Run

if TYPE_CHECKING:
    from pandas import DataFrame

VALIDATION = "val_miou"  # of history.csv, where a protocol has the selection `val`
Variants = Mapping[str, Mapping[Run, Path]]  # a variant in words -> the folders of its cells, by draw and seed
HOW = "Which variant is best is not said, for it would be chosen on the images shown: with selections=['last','val'] in the protocol it is "
HOW += "chosen on held-out training images."


def best_in_words(sweeps: Mapping[str, Variants], selection: str, history: Callable[[Path], "DataFrame"]) -> tuple[str, ...]:
    """A note that names the best variant of each sweep (a method on a data set, in words), or says how it would be known; none where
    nothing was swept."""
    swept = {place: variants for place, variants in sweeps.items() if len(variants) > 1}
    found = {place: scores for place, variants in swept.items() if (scores := validation_scores(variants, selection, history))}
    said = [f"{place}: {(best := max(scores, key=lambda name: scores[name]))} ({scores[best]:.1f})" for place, scores in found.items()]
    return (f"Best on held-out training images (mIoU there): {'; '.join(said)}.",) if said else (HOW,) if swept else ()


def validation_scores(variants: Variants, selection: str, history: Callable[[Path], "DataFrame"]) -> dict[str, float]:
    """mIoU (%) on held-out training images by variant, the mean over the draws and seeds that all variants have; none where one has none.
    Of the weights that the selection keeps: the last ones', or the best's."""
    common = set.intersection(*(set(runs) for runs in variants.values()))
    found = {name: [_score(history(runs[run]), selection) for run in sorted(common)] for name, runs in variants.items()}
    scores = {name: mean(score for score in of if score is not None) for name, of in found.items() if of and None not in of}
    return scores if len(scores) == len(variants) else {}


def _score(curve: "DataFrame", selection: str) -> float | None:
    known = curve[VALIDATION].dropna() if VALIDATION in curve else None
    if known is None or known.empty:
        return None
    return float(known.iloc[-1] if selection == "last" else known.max())
