"""E²VPT against its authors' code (github ChengHan111/E2VPT, commit 7a66e75), which was run once beside it, all blocks global and without
positions: outputs that reach 4.7 differed by 1.2e-6, gradients by 9e-7 of their largest. What theirs gave is kept here. Both start from the
same distributions."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TOY, toy_backbone

import bench
from bench.conformance import methods
from bench.errors import RequestError

OUT = [0.895557, -1.922422, 0.070186], [0.032121, -1.092079, 0.013583]
GRADIENTS = {"tuner.tokens": 0.160635, "tuner.mask": 0.150313, "tuner.pairs": 0.070681}  # the mean size


def test_it_computes_what_the_authors_code_does() -> None:
    sam = toy_backbone(0, replace(TOY, global_blocks=(0, 1, 2)))
    for name, weight in sam.named_parameters():
        if "rel_pos" in name:
            weight.data.zero_()
    model, drawn = bench.build("e2vpt(tokens=4,pairs=4)", sam, seed=3).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.tuned().values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=drawn))
    x = torch.randn(2, 8, 8, TOY.width, generator=drawn)
    for i, block in enumerate(sam.image_encoder.blocks):
        x, _ = model.tuner.step(i, block, x, model.tuner.prepared(model.sam.image_encoder))
    for found, expected in zip((x[0, ::3, 2, 5], x[1, 4, ::3, 60]), OUT, strict=True):
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    (x * torch.randn(x.shape, generator=drawn)).sum().backward()
    for name, size in GRADIENTS.items():
        assert float(model.tuned()[name].grad.abs().mean()) == pytest.approx(size, abs=1e-5), name


def test_it_starts_as_the_authors_code_does() -> None:
    tuned = bench.build("e2vpt(tokens=50,pairs=50)", toy_backbone()).tuned()
    for name, bound in (("tuner.tokens", math.sqrt(6 / (3 * 8 * 8 + 64))), ("tuner.pairs", math.sqrt(6 / (50 * 32)))):
        assert 0.98 * bound < tuned[name].abs().max() <= bound and abs(tuned[name].std() - bound / 3**0.5) < 0.01, name
    assert bool((tuned["tuner.mask"] == 1).all())


def test_its_parameters_are_the_papers() -> None:
    """Of tokens and pairs N·(P + K)·C, and P·R for the mask that all blocks share; the paper's other P are left out, see the method."""
    for size, (n, c) in zip(methods.SIZES, ((12, 768), (24, 1024), (32, 1280)), strict=True):
        assert methods.parameters_on("e2vpt(tokens=7,pairs=3)", size) == n * (7 + 3) * c + 7 * 16


def test_segments_that_do_not_cut_a_token_are_refused() -> None:
    with pytest.raises(RequestError, match=r"e2vpt\(segments=7\): tokens of 64 channels cannot be cut into so many alike."):
        bench.build("e2vpt(segments=7)", toy_backbone())
