"""Convpass against its authors' code, and in SAM's windows against its formula."""

import pytest
import torch
import torch.nn.functional as F
from authors_toy import furthest_from_the_authors
from conftest import TOY, toy_backbone
from test_adapters import attention_half, moved

from bench.conformance.methods import parameters_on
from bench.model.backbones import CONFIGS
from bench.model.method import build


def test_it_is_the_authors_code():
    """Furthest of all: 2e-6. Their ViT's class token, which SAM lacks, passes the convolution by itself and changes nothing else."""
    assert max(furthest_from_the_authors("convpass", "convpass(scale=0.7)").values()) < 1e-5


def test_counts_on_vit_b_are_the_papers_formula():
    depth, width, hidden = 12, 768, 8
    one = 2 * width * hidden + hidden + width + 9 * hidden**2 + hidden
    assert parameters_on("convpass", "vit_b") == 2 * depth * one == 327_552
    assert parameters_on("convpass(targets=attention,blocks=last3)", "vit_b") == 3 * one


@pytest.mark.parametrize("xavier", [False, True])
def test_it_starts_as_the_authors_start_it(xavier):
    for bypasses in build(f"convpass(hidden=32,xavier={xavier})", toy_backbone()).tuner.bypasses.values():
        for bypass in bypasses:
            z = torch.randn(1, 32, 5, 6)
            assert torch.equal(F.conv2d(z, bypass.conv.weight, padding=1), z) != xavier
            drawn = {"down": (6 / (TOY.width + 32)) ** 0.5, **({"conv": (6 / (2 * 9 * 32)) ** 0.5} if xavier else {})}
            for name, bound in drawn.items():
                weight = getattr(bypass, name).weight
                assert 0.98 * bound < weight.abs().max() <= bound and abs(weight.std() / bound - 3**-0.5) < 0.05
            assert not any(part.any() for part in (bypass.down.bias, bypass.conv.bias, bypass.up.weight, bypass.up.bias))


def bypassed(bypass, x):
    """One place after the other: (B, h, w, before) -> (B, h, w, width)."""
    h, w = x.shape[1:3]
    z = x @ bypass.down.weight.T + bypass.down.bias
    z, out = F.pad(z / (1 + (-1.702 * z).exp()), (0, 0, 1, 1, 1, 1)), bypass.conv.bias.expand(*x.shape[:3], -1)
    for dy in range(3):
        for dx in range(3):
            out = out + z[:, dy : dy + h, dx : dx + w] @ bypass.conv.weight[:, :, dy, dx].T
    return out / (1 + (-1.702 * out).exp()) @ bypass.up.weight.T + bypass.up.bias


@pytest.mark.parametrize("halves", [("attention", "mlp"), ("attention",), ("mlp",)])
def test_the_convolution_crosses_windows(halves, sam):
    model, x = moved(f"convpass(targets={'+'.join(halves)},scale=0.5)", sam), torch.randn(2, 8, 8, TOY.width)
    block = sam.image_encoder.blocks[0]
    assert block.window_size == 3
    with torch.no_grad():
        y = attention_half(block, x)
        y = y + 0.5 * bypassed(model.tuner.bypasses["attention"][0], block.norm1(x)) if "attention" in halves else y
        out = y + block.mlp(block.norm2(y))
        out = out + 0.5 * bypassed(model.tuner.bypasses["mlp"][0], block.norm2(y)) if "mlp" in halves else out
        torch.testing.assert_close(model.tuner.walk(0, block, x, model.tuner.prepared(sam.image_encoder))[0], out, atol=1e-4, rtol=1e-4)


def test_a_block_that_pools_gets_the_mean_of_its_bypass():
    sam = toy_backbone(0, CONFIGS["tiny_sam2"])
    model, at = moved("convpass(targets=attention)", sam), 1
    block, size = sam.image_encoder.blocks[at], sam.config.blocks[at]
    assert size.grid_before == 2 * size.grid and size.width == 2 * size.before
    x = torch.randn(1, size.grid_before, size.grid_before, size.before)
    with torch.no_grad():
        nothing = torch.zeros(1, size.grid, size.grid, size.width)
        bypass = model.tuner.beside("attention", at, block.norm1(x), nothing, model.tuner.prepared(sam.image_encoder))
        expected = F.avg_pool2d(bypassed(model.tuner.bypasses["attention"][at], block.norm1(x)).permute(0, 3, 1, 2), 2)
    torch.testing.assert_close(bypass.permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
