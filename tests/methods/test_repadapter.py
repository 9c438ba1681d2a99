"""RepAdapter against its authors' code, and merged into plain weights."""

import pytest
import torch
from authors_toy import furthest_from_the_authors
from conftest import TOY, toy_backbone

from bench.conformance.methods import parameters_on
from bench.errors import RequestError
from bench.model.backbones import CONFIGS
from bench.model.checkpoints import load_sam
from bench.model.method import build


def test_it_is_the_authors_code():
    """Furthest of all: 3e-6."""
    assert max(furthest_from_the_authors("repadapter", "repadapter(scale=0.7)").values()) < 1e-5


def test_counts_on_vit_b_are_the_papers_formula():
    depth, width, hidden, groups = 12, 768, 8, 2
    one = width * hidden + hidden + width * hidden // groups + width
    assert parameters_on("repadapter", "vit_b") == 2 * depth * one == 239_808
    assert parameters_on("repadapter(targets=attention,blocks=last3)", "vit_b") == 3 * one


def test_it_starts_as_the_authors_start_it():
    for adapters in build("repadapter(hidden=32)", toy_backbone()).tuner.adapters.values():
        for adapter in adapters:
            bound, weight = (6 / (TOY.width + 32)) ** 0.5, adapter.down.weight
            assert 0.99 * bound < weight.abs().max() <= bound and abs(weight.std() / bound - 3**-0.5) < 0.05
            assert not any(part.any() for part in (adapter.down.bias, adapter.up, adapter.shift))


@pytest.mark.parametrize("targets", ["attention+mlp", "attention", "mlp"])
@pytest.mark.parametrize("name", ["toy", "tiny_sam2", "tiny_sam3"])
def test_merged_weights_are_the_tuned_model(name, targets):
    """Also in windows, whose padding passes the adapter, and on blocks that widen."""
    sam = toy_backbone(0, TOY if name == "toy" else CONFIGS[name])
    model, generator = build(f"repadapter(targets={targets},scale=0.5,blocks=1-)", sam).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
        merged = {f"image_encoder.{key}": weight for key, weight in model.tuner.merged(sam.image_encoder).items()}
        stock = build("sam", load_sam(sam.config, {**sam.state_dict(), **merged}))
        image = torch.randn(1, 3, *[sam.config.image_size] * 2, generator=generator)
        found, expected, frozen = (each.encoder(image)[0] for each in (model, stock, build("sam", sam)))
    largest = expected.abs().max()
    torch.testing.assert_close(found / largest, expected / largest, atol=1e-5, rtol=0)
    assert (found - frozen).abs().max() / largest > 0.01


@pytest.mark.parametrize(("call", "width"), [("hidden=9", 9), ("hidden=6,up_groups=3", 64)])
def test_groups_that_do_not_divide_are_one_sentence(call, width, sam):
    with pytest.raises(RequestError, match=f"a divisor of hidden and the blocks' widths is needed, so of {width}\\."):
        build(f"repadapter({call})", sam)
