"""Levers that change how a cell is computed and not what: micro-batches and activation checkpointing."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import TOY, toy_backbone

import bench
from bench.errors import RequestError
from bench.training.train import Example, backward
from bench.types import Memory, Prompts


def examples():
    """Four images with 1, 3, 0 and 2 objects, of different sizes."""
    rng, made = np.random.default_rng(0), []
    for n, height in enumerate((48, 64, 40, 56)):
        count = (1, 3, 0, 2)[n]
        corner = torch.from_numpy(rng.uniform(2, 30, (count, 2))).float()
        boxes = torch.cat([corner, corner + 9], 1) if count else None
        target = torch.from_numpy(rng.integers(0, 2, (max(1, count), height, 64), dtype=np.uint8))
        made.append(Example(torch.from_numpy(rng.integers(0, 255, (3, height, 64), dtype=np.uint8)), Prompts(boxes=boxes), target))
    return made


def started(method, config=TOY):
    """A model whose branches are away from zero, where they would have no gradient."""
    model = bench.build(method, toy_backbone(config=config), seed=1).train()
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model


@cache
def gradients(method, memory):
    model = started(method)
    loss = backward(model, examples(), 7, memory)
    return loss, {name: p.grad for name, p in model.tuned().items()}


TRAINED = [name for name in bench.methods() if name != "sam"]


DRAWING = ["adaptformer(dropout=0.5)", "vpt_shallow(dropout=0.5)", "vpt_deep(dropout=0.5)"]
BOTH = Memory(3, True)  # checkpoints, in parts of which the last is of one image
ALONE = (Memory(1), Memory(3), Memory(0, True))


@pytest.mark.parametrize(
    ("memory", "method"),
    [
        *((BOTH, method) for method in (*TRAINED, *DRAWING)),
        *((memory, method) for memory in ALONE for method in ("cat_sam_t", "lora", *DRAWING)),
    ],
    ids=str,
)
def test_gradients_are_those_of_the_plain_step(method, memory):
    plain_loss, plain = gradients(method, Memory())
    loss, cut = gradients(method, memory)
    assert all(a.item() == pytest.approx(b.item(), rel=1e-5) for a, b in zip(loss, plain_loss, strict=True))
    assert cut.keys() == plain.keys() and any(g is not None and g.abs().max() > 0 for g in plain.values())
    for name, gradient in plain.items():
        assert (gradient is None) == (cut[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_checkpointing_alone_changes_no_bit():
    plain, again = gradients("adaptformer(dropout=0.5)", Memory())[1], gradients("adaptformer(dropout=0.5)", Memory(0, True))[1]
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_an_impossible_micro_batch_is_refused():
    with pytest.raises(RequestError, match="A micro-batch of -1 images"):
        Memory(-1)
