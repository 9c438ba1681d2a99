"""Evaluation in batches, kept items and embeddings, and numbers in bfloat16: the same rows as one image at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Rectangles, toy_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_levers import examples, started

import bench
from bench.model.implementation import use
from bench.model.precision import computing
from bench.training.evaluation import calls, evaluate
from bench.training.prepared import Prepared, evaluation_prompts
from bench.training.train import backward
from bench.types import Memory


def one_by_one(model, how):
    """(intersection, union, truth, predicted) of each test image, plainly."""
    found, dataset = [], Rectangles()
    with torch.inference_mode(), use("reference"):
        for name in dataset.names("test"):
            sample = dataset.load("test", name)
            logits = model.decode(model.encode([torch.tensor(sample.image).permute(2, 0, 1)]), [evaluation_prompts(sample, dataset, how)])
            p, t = (logits[0] > 0).any(0).numpy(), sample.mask > 0
            found.append(tuple(int(np.count_nonzero(x)) for x in (p & t, p | t, t, p)))
    return found


OF_DECODER = ("sam", "decoder", "hq_sam", "cat_sam_t", "lora(decoder=tuned)")  # a prompt is of no account before it


@pytest.mark.parametrize(("kind", "method"), [*(("box", name) for name in bench.methods()), *(("point", name) for name in OF_DECODER)])
def test_rows_are_those_of_one_image_at_a_time(method, kind, smoke):
    how, model = replace(smoke, evaluation_prompt=kind), bench.build(method, toy_backbone(), seed=3).eval()
    prepared = Prepared(Rectangles())
    for _ in range(2):  # the second look takes what the first one kept
        rows = list(evaluate(model, prepared.dataset, "test", how, prepared))
        assert [row.name for row in rows] == list(prepared.dataset.names("test"))
        assert [(r.intersection, r.union, r.truth, r.predicted) for r in rows] == one_by_one(model, how)


def test_a_frozen_encoder_is_asked_once_for_all_methods_prompts_and_seeds(smoke):
    sam, prepared = toy_backbone(), Prepared(Rectangles())

    def used(method, seed, kind="box"):
        how = replace(smoke, evaluation_prompt=kind)
        rows = list(evaluate(bench.build(method, sam, seed=seed), prepared.dataset, "test", how, prepared))
        assert rows == list(evaluate(bench.build(method, sam, seed=seed), prepared.dataset, "test", how))
        return prepared.used_bytes

    alone = used("sam", 0)  # whose decoder reads the embedding only
    first = used("hq_sam", 0)
    assert used("sam", 1) == used("decoder", 0) == used("hq_sam", 1) == first > alone
    images = used("hq_sam", 2, "point") - first  # the items of another kind of prompt, no embeddings
    assert 0 < images < first / 2
    assert used("lora", 0) == first + images


def test_what_does_not_fit_is_made_again(smoke):
    dataset, model = Rectangles(), bench.build("hq_sam", toy_backbone())
    none = Prepared(dataset, limit_bytes=0)
    assert list(evaluate(model, dataset, "test", smoke, none)) == list(evaluate(model, dataset, "test", smoke))
    assert none.used_bytes == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 7))
def test_every_prompt_is_in_one_call(counts, limit):
    made = list(calls(counts, limit))
    assert [(i, n) for call in made for i, start, stop in call for n in range(start, stop)] == [
        (i, n) for i, c in enumerate(counts) for n in range(c)
    ]
    assert all(0 < sum(stop - start for _, start, stop in call) <= limit for call in made)


@pytest.mark.parametrize("method", [name for name in bench.methods() if name != "sam"])
def test_bfloat16_is_close(method):
    exact, rough = started(method), started(method)
    loss, near = backward(exact, examples(), 7), backward(rough, examples(), 7, Memory(), "bf16")
    assert torch.allclose(near, loss, rtol=0.05, atol=0.02)
    mine, theirs = (torch.cat([p.grad.flatten() for p in model.tuned().values() if p.grad is not None]) for model in (exact, rough))
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0) > 0.95 and theirs.dtype == torch.float32
    with torch.inference_mode(), computing("bf16", torch.device("cpu")):
        assert exact.eval().encode([examples()[0].image]).embedding.isfinite().all()
