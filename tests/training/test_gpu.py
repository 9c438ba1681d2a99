"""What only a GPU can show; skipped, with the reason, where there is none."""

from dataclasses import replace

import pytest
import torch
from conftest import Rectangles, toy_backbone

import bench
from bench.grid.registry import METHODS
from bench.grid.spec import RunSpec, choose_method, parse_call
from bench.model.implementation import use
from bench.model.precision import repeatable
from bench.running.cell import Cell
from bench.types import STEP_GRAPH

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none here")
TRAINED = [name for name in bench.methods() if name != "sam"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", TRAINED)
def test_a_cell_trained_twice_has_the_same_bytes(method, precision, smoke, tmp_path):
    """Weights, losses and every image's counts; an operation without a repeatable kernel would be an error."""
    settings = replace(smoke, precision=precision, lr=0.03, batch=2, selections=("best", "last"))
    spec = RunSpec("toy", "", "rectangles", 1, False, choose_method(METHODS.get(method), {}), 2, 0, 0, "smoke", settings)
    found = []
    for attempt in ("first", "second"):
        cell = Cell(spec, toy_backbone().to("cuda"), Rectangles(), tmp_path / attempt, lambda share, doing: None)
        result = cell.run({})
        found.append((result.tuned, result.history.to_csv(), result.images.to_csv()))
    assert found[0] == found[1]
    assert not torch.are_deterministic_algorithms_enabled()  # outside of training steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [*TRAINED, "adaptformer(dropout=0.5)", "vpt_deep(dropout=0.5)"])
def test_a_cell_of_captured_steps_has_the_bytes_of_a_plain_one(method, precision, smoke, tmp_path, monkeypatch):
    """Weights, losses and every image's counts, of one example that all steps show; evaluated in between, after which dropout is off."""
    name, parameters = parse_call(method)
    once = {"augmentation_stream": "reseeded_workers", "eval_mode_after_first_look": True, "epochs": 8, "evaluate_every": 4}
    settings = replace(smoke, precision=precision, lr=0.03, selections=("best", "last"), **once)
    spec = RunSpec("toy", "", "rectangles", 1, False, choose_method(METHODS.get(name), parameters), 1, 0, 0, "smoke", settings)
    found, replayed, replay = [], [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph)))
    for mode in ("", STEP_GRAPH):
        cell = Cell(spec, toy_backbone().to("cuda"), Rectangles(), tmp_path / mode, lambda share, doing: None, compile=mode)
        result = cell.run({})
        found.append((result.tuned, result.history.to_csv(), result.images.to_csv()))
        assert bool(replayed) == (mode == STEP_GRAPH and not cell.model.encoder.frozen_parts)
    assert found[0] == found[1]


@pytest.mark.parametrize("method", TRAINED)
def test_an_image_on_a_gpu_is_an_image_on_a_cpu(method):
    image, found = torch.randint(0, 256, (3, 60, 64), generator=torch.Generator().manual_seed(0)), []
    for device, path in (("cpu", "reference"), ("cuda", "fast")):
        model = bench.build(method, toy_backbone().to(device), seed=1).eval()
        with torch.no_grad(), use(path):
            found.append(model.encode([image]).embedding.cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_repeated_is_an_error_that_names_it():
    maps = torch.ones(1, 1, 4, 4, device="cuda", requires_grad=True)
    with repeatable(maps.device), pytest.raises(RuntimeError, match="upsample_bicubic2d"):
        torch.nn.functional.interpolate(maps, (9, 9), mode="bicubic").sum().backward()
