"""OFT and BOFT against Hugging Face peft on the same layers: outputs, gradients, counts; and what their rotations are."""

import pytest
import torch
from conftest import toy_backbone
from peft_layers import assert_same, moved, with_peft

from bench.conformance.methods import parameters_on
from bench.errors import RequestError
from bench.model.method import build
from bench.model.rotations import Cayley, above_diagonal

pytestmark = pytest.mark.xdist_group("hugging_face")  # whose models take long to import


@pytest.mark.parametrize("call", ["oft", "oft(block_size=16,targets=q+v+proj+mlp)"])
def test_oft_is_pefts(call):
    peft, model = pytest.importorskip("peft"), moved(call)
    size = model.tuner.block_size
    theirs, layers = with_peft(model, peft.OFTConfig(oft_block_size=size, use_cayley_neumann=False, target_modules=["qkv"]))
    pairs = []
    for i, name, layer in layers:
        own, parameter = model.tuner.layers[name].turns, layer.oft_R["default"].weight
        assert not parameter.any()  # the same start
        parameter.data.copy_(own[i][0])
        pairs.append((own, (i, 0), parameter, lambda gradient: gradient))
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == sum(p.numel() for p in model.tuned().values())
    assert_same(model, theirs, pairs)


@pytest.mark.parametrize("call", ["boft(factors=1)", "boft", "boft(block_size=4,factors=4,targets=k+v+mlp)"])
def test_boft_is_pefts(call, any_butterfly):
    peft, model = pytest.importorskip("peft"), moved(call)
    size, factors = model.tuner.block_size, model.tuner.factors
    theirs, layers = with_peft(model, peft.BOFTConfig(boft_block_size=size, boft_n_butterfly_factor=factors, target_modules=["qkv"]))
    pairs = []
    for i, name, layer in layers:
        own, rotations, scale = model.tuner.layers[name], layer.boft_R["default"], layer.boft_s["default"]
        assert not rotations.any() and (scale == 1).all()  # the same start
        rotations.data.copy_(Cayley(size).skew(own.turns[i]))
        scale.data.copy_(own.scale[i][:, None])
        pairs.append((own.turns, i, rotations, lambda gradient: 2 * above_diagonal(gradient)))  # of half the difference from its transpose
        pairs.append((own.scale, i, scale, lambda gradient: gradient[:, 0]))
    assert_same(model, theirs, pairs)


def test_counts_are_the_papers():
    assert parameters_on("oft", "vit_b") == 12 * 768 * 31 // 2
    assert parameters_on("oft(targets=q+v)", "vit_b") == 2 * parameters_on("oft", "vit_b")
    assert parameters_on("oft(block_size=16,targets=lin2)", "vit_l") == 24 * 4096 * 15 // 2
    assert parameters_on("boft", "vit_b") == 12 * (2 * 768 * 7 // 2 + 3 * 768)
    assert parameters_on("boft(block_size=4,factors=4)", "vit_h") == 32 * (4 * 1280 * 3 // 2 + 3 * 1280)


def test_a_rotation_keeps_lengths_and_has_more_channels_mix_with_every_factor():
    cayley, above = Cayley(8), torch.randn(3, 28, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    turns, q = cayley(above), cayley.skew(above)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(8, dtype=torch.double).expand(3, 8, 8))
    assert torch.equal(q, -q.mT) and torch.equal(above_diagonal(q), above)
    for factors, mixed in ((1, 8), (2, 16), (3, 32)):
        layer = moved(f"boft(factors={factors})").tuner.layers["qkv"]
        layer.scale = None
        turned = layer.merged(0, torch.eye(64, dtype=torch.double))  # of the first block
        torch.testing.assert_close(turned @ turned.T, torch.eye(64, dtype=torch.double))
        assert ((turned != 0).sum(1) == mixed).all()


def test_what_does_not_fit_is_said_and_a_block_of_another_size_is_pefts():
    with pytest.raises(RequestError, match=r"boft\(block_size=8,factors=5\) mixes runs of 128 channels, and qkv of block 0 reads 64, no"):
        build("boft(factors=5)", toy_backbone())
    with pytest.raises(RequestError, match="an even block_size is needed"):
        build("boft(block_size=3)", toy_backbone())
    peft, sizes = pytest.importorskip("peft.tuners.oft.layer"), build("oft(block_size=20)", toy_backbone()).tuner.layers["qkv"].sizes
    assert sizes[0] == peft.OFTLayer.adjust_oft_parameters(None, 64, 20) == 16
