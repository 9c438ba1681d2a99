"""VeRA against Hugging Face peft on the same layers: outputs, gradients, counts, and the random matrices."""

import pytest
import torch
from conftest import toy_backbone
from peft_layers import assert_same, moved, with_peft

from bench.conformance.methods import parameters_on
from bench.model.method import build

pytestmark = pytest.mark.xdist_group("hugging_face")  # whose models take long to import


@pytest.mark.parametrize("call", ["vera(rank=24)", "vera(rank=8,projection_seed=3,targets=k+proj+mlp)"])
def test_vera_is_pefts(call):
    peft, model = pytest.importorskip("peft"), moved(call)
    tuner = model.tuner
    theirs, layers = with_peft(model, peft.VeraConfig(r=tuner.rank, projection_prng_key=tuner.seed, target_modules=["qkv"]))
    pairs = []
    for i, name, layer in layers:
        fresh = build(call, model.sam).tuner
        for parameter, mine, start in (
            (layer.vera_lambda_d, tuner.d[name], fresh.d[name]),
            (layer.vera_lambda_b, tuner.b[name], fresh.b[name]),
        ):
            assert torch.equal(parameter["default"], start[i])
            parameter["default"].data.copy_(mine[i])
            pairs.append((mine, i, parameter["default"], lambda gradient: gradient))
        assert torch.equal(layer.vera_A["default"], tuner.down) and torch.equal(layer.vera_B["default"], tuner.up)
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == sum(p.numel() for p in model.tuned().values())
    assert_same(model, theirs, pairs)


def test_counts_are_the_papers():
    assert parameters_on("vera", "vit_b") == 24 * (768 + 256)  # L_tuned·(d_model + r)
    assert parameters_on("vera", "vit_l") == 48 * (1024 + 256)


def test_the_random_matrices_follow_from_their_own_seed_and_are_not_stored():
    first, other = (build("vera(rank=8)", toy_backbone(), seed=seed) for seed in (0, 1))
    assert torch.equal(first.tuner.down, other.tuner.down) and torch.equal(first.tuner.up, other.tuner.up)
    assert not first.tuner.state_dict().keys() & {"down", "up"}
    assert not torch.equal(build("vera(rank=8,projection_seed=1)", toy_backbone()).tuner.up, first.tuner.up)
