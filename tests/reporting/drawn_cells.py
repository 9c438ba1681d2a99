"""Cells of several draws, for tests of what is said of them."""

from dataclasses import replace

import numpy as np
from test_renderings import CAT, COST, SAM, UNTRAINED, put
from test_spec import LORA

from bench.grid.store import ResultStore, record_bytes


def fill(store: ResultStore, datasets: tuple[str, ...], draws: int, seeds: int) -> None:
    """SAM as it is, LoRA, and a CAT-SAM-T that is better by some points; draws move both together, and each a little by itself."""
    for k, dataset in enumerate(datasets):
        rng = np.random.default_rng(k)
        spec = put(store, 45.0 - 5 * k, noise=0.0, method=SAM, dataset=dataset)
        path = store.folder(spec) / "record.json"
        path.write_bytes(record_bytes(replace(store.read(spec), cost={**COST, **UNTRAINED})))
        common = rng.normal(0, 1.5, draws)
        for method, level in ((LORA, 66.0 - 5 * k), (CAT, 70.0 - 5 * k)):
            own = rng.normal(0, 0.8, draws)
            for draw in range(draws):
                for seed in range(seeds):
                    put(store, level + common[draw] + own[draw] + rng.normal(0, 0.4), method=method, dataset=dataset, draw=draw, seed=seed)
