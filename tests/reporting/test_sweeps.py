"""The best variant of a sweep is chosen by held-out images, over the runs that all variants have; without any, none is chosen."""

from pathlib import Path

import numpy as np
import pandas as pd

from bench.reporting.sweeps import HOW, best_in_words

CURVES = {  # the test images would choose otherwise, and so would the third seed, which one variant lacks
    "a/0": [50.0, np.nan, 60.0], "a/1": [50.0, np.nan, 62.0], "a/2": [99.0],
    "b/0": [80.0, np.nan, 50.0], "b/1": [81.0, np.nan, 51.0],
}  # fmt: skip


def history(path: Path) -> pd.DataFrame:
    return pd.DataFrame({"val_miou": CURVES[str(path)]}) if str(path) in CURVES else pd.DataFrame({"loss": [1.0]})


def variants(*names: str) -> dict[str, dict[tuple[int, int], Path]]:
    return {name: {(0, seed): Path(f"{name}/{seed}") for seed in range(3) if (name, seed) != ("b", 2)} for name in names}


def test_the_best_variant_is_that_of_the_held_out_images() -> None:
    assert best_in_words({"LoRA on x": variants("a", "b")}, "last", history) == (
        "Best on held-out training images (mIoU there): LoRA on x: a (61.0).",
    )
    assert "b (80.5)" in best_in_words({"LoRA on x": variants("a", "b")}, "val", history)[0]  # that selection keeps the best of a run


def test_without_held_out_images_nothing_is_chosen() -> None:
    assert best_in_words({"LoRA on x": variants("a", "c")}, "last", history) == (HOW,)
    assert best_in_words({"LoRA on x": variants("a")}, "last", history) == best_in_words({}, "last", history) == ()
