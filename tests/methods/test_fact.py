"""FacT against its authors' code, its formulas and plain weights."""

import pytest
import torch
from authors_toy import furthest_from_the_authors
from conftest import TOY, toy_backbone

from bench.conformance.methods import parameters_on
from bench.model.backbones import CONFIGS
from bench.model.checkpoints import load_sam
from bench.model.method import build

FORMS = ("tt", "tk")


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_authors_code(form):
    """Furthest of all: 4e-7 in the tensor train, 2e-6 in Tucker's form."""
    assert max(furthest_from_the_authors(form, f"fact(form={form},rank=3,scale=0.7)").values()) < 1e-5


def test_counts_on_vit_b_are_the_papers_formulas():
    depth, width, rank = 12, 768, 16
    assert parameters_on("fact(rank=16)", "vit_b") == 2 * width * rank + 12 * depth * rank**2
    assert parameters_on("fact(form=tk,rank=16)", "vit_b") == 2 * width * rank + 12 * depth * rank + rank**3
    assert parameters_on("fact(rank=16,targets=q+v,blocks=last3)", "vit_b") == 2 * width * rank + 2 * 3 * rank**2
    assert parameters_on("fact(rank=16,targets=lin2)", "vit_b") == 2 * width * rank + 4 * depth * rank**2


def test_it_starts_as_the_authors_start_it():
    rank, width = 48, TOY.width
    for form in FORMS:
        start = dict(build(f"fact(form={form},rank={rank})", toy_backbone()).tuner.named_parameters())
        bounds = {f"u.{width}": width**-0.5}
        if form == "tt":
            bounds |= {f"layers.{name}": (4 * rank if name == "lin2" else rank) ** -0.5 for name in ("qkv", "proj", "lin1", "lin2")}
        else:
            bounds |= {f"c.{width}": 3**0.5 / rank}
            bounds |= {f"layers.{name}": (6 / (rank + 12 * TOY.depth)) ** 0.5 for name in ("qkv", "proj", "lin1", "lin2")}
        assert not start.pop(f"v.{width}").any() and start.keys() == bounds.keys()
        for name, weight in start.items():
            assert 0.9 * bounds[name] < weight.abs().max() <= bounds[name], name
            assert abs(weight.std() / bounds[name] - 3**-0.5) < 0.06, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", ["qkv+proj+mlp", "q+v+lin2", "k+proj"])
@pytest.mark.parametrize("name", ["toy", "tiny_sam2", "tiny_sam3"])
def test_merged_weights_are_the_tuned_model(name, targets, form):
    """Also in windows, whose padding it does not change, on blocks that widen, and where an MLP is no whole number of slices."""
    sam = toy_backbone(0, TOY if name == "toy" else CONFIGS[name])
    model, generator = build(f"fact(form={form},targets={targets},blocks=1-)", sam).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
        merged = model.tuner.merged(sam.image_encoder)
        state = sam.state_dict()
        stock = build("sam", load_sam(sam.config, {**state, **{f"image_encoder.{key}": weight for key, weight in merged.items()}}))
        image = torch.randn(1, 3, *[sam.config.image_size] * 2, generator=generator)
        found, expected, frozen = (each.encoder(image)[0] for each in (model, stock, build("sam", sam)))
    largest = expected.abs().max()
    torch.testing.assert_close(found / largest, expected / largest, atol=1e-5, rtol=0)
    assert (found - frozen).abs().max() / largest > 0.01
    for key, weight in merged.items():
        for third, part, was in zip("qkv", weight.chunk(3), state[f"image_encoder.{key}"].chunk(3), strict=True):
            assert torch.equal(part, was) == (key.endswith("qkv.weight") and "qkv" not in targets and third not in targets.split("+"))
