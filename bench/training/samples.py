"""What training sees, to be looked at: the samples of a cell, in the order in which they come."""

from collections.abc import Iterator
from pathlib import Path

from bench.errors import RequestError
from bench.grid.plan import Request, open_datasets, specs_of, title
from bench.grid.spec import RunSpec
from bench.model.backbones import read_backbone
from bench.training.train import TrainingSample, epoch_steps, samples_of
from bench.types import Dataset, Shots


def training_samples(
    method: str,
    dataset: str,
    shots: Shots = 1,
    draw: int = 0,
    seed: int = 3407,
    protocol: str = "paper",
    data: str | Path = "data",
    backbone: str = "vit_l",
    epochs: int = 1,
) -> Iterator[TrainingSample]:
    """What a method is shown in its first epochs, in order; neither its model nor the backbone's checkpoint is needed.

    The names are written as for `bench.run`: "lora(rank=8)", "paper(batch=2)". data: the folder of the data sets. A sample has `.name`,
    `.image` (H, W, 3) uint8, `.masks` of its objects (n, H, W) bool, `.kind` of its prompts ("point", "box", "mask" or "none") and
    `.prompts`. RequestError or DataError, in one sentence, for what is not allowed or not there.
    """
    request = Request(method, dataset, str(shots), str(seed), str(draw), read_backbone(backbone).name, protocol)
    specs = specs_of(request, "", Path(data))
    if len(specs) != 1:
        raise RequestError(f"{method} on {dataset} are {len(specs)} cells: one method and one data set are needed.")
    return samples_of_cell(specs[0], open_datasets(specs, Path(data))[specs[0].dataset], epochs)


def samples_of_cell(spec: RunSpec, dataset: Dataset, epochs: int = 1) -> Iterator[TrainingSample]:
    """The training samples of a cell on its opened data set."""
    settings, most = spec.settings, spec.settings.epochs
    if not spec.method.trains:
        raise RequestError(f"{title(spec)} trains nothing, so it sees no training image.")
    if not 1 <= epochs <= most:
        raise RequestError(f"epochs = {epochs}: protocol {spec.protocol} trains for {most} here; 1 to {most} are allowed.")
    support, grid = dataset.support(spec.shots, spec.draw, settings.uses_val), read_backbone(spec.backbone).config.grid
    steps = epoch_steps(support, settings)
    places = ((epoch, batch) for epoch in range(epochs) for batch in range(steps))
    return (sample for place in places for sample in samples_of(dataset, support, settings, spec.seed, *place, grid))
