"""What the optimizer does with which tensor: rates and weight decays by group, a method's factors, and tensors without decay."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import toy_backbone

import bench
from bench.conformance.toys import Rectangles
from bench.grid.registry import METHODS
from bench.model.method import build_parts
from bench.training.train import fit, optimizer_of, parameter_groups

RATES = (("encoder", 3e-2), ("decoder", 1e-3))


@dataclass(frozen=True)
class Parted(METHODS.get("lora")):
    """LoRA whose B learns faster, as LoRA+ has it, and whose decoder has no decay in vectors."""

    def rate_factor(self, name):
        return 4.0 if name == "tuner.b" else 1.0

    def decays(self, name):
        return not name.endswith(".bias")


def model_of(method):
    return build_parts(method, toy_backbone(), 0)


def steps(model, optimizer, settings, first=0):
    data = Rectangles()
    return list(fit(model, optimizer, data, data.support(1), settings, 0, first))


def test_groups_are_stepped_as_torch_steps_them_one_by_one(smoke):
    """Each tensor by an optimizer of its own, with the gradients that the training found."""
    decays = (("encoder", 0.5), ("decoder", 0.2))
    settings = replace(smoke, epochs=3, lr=3e-2, lr_by_group=RATES, weight_decay=0.5, weight_decay_by_group=decays, lr_min=1e-4)
    model, twin = model_of(Parted(decoder="tuned")), model_of(Parted(decoder="tuned"))
    factors = {"tuner.a": 1.0, "tuner.b": 4.0}
    alone = {}
    for name, tensor in twin.tuned().items():
        of_encoder = name.startswith("tuner.")
        decay = 0.5 if of_encoder else 0.0 if name.endswith(".bias") else 0.2
        alone[name] = torch.optim.AdamW([tensor], lr=1.0, weight_decay=decay)
    data, optimizer = Rectangles(), optimizer_of(model, settings)
    for step in fit(model, optimizer, data, data.support(1), settings, 0):
        share = (1 + torch.tensor(torch.pi * (step.epoch - 1) / 3).double().cos()) / 2
        for name, own in alone.items():
            rate = dict(RATES)["encoder" if name in factors else "decoder"]
            own.param_groups[0]["lr"] = factors.get(name, 1.0) * float(1e-4 + (rate - 1e-4) * share)
            twin.tuned()[name].grad = model.tuned()[name].grad
            own.step()
    for name, tensor in model.tuned().items():
        torch.testing.assert_close(tensor, twin.tuned()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_the_record_of_what_is_stepped_how(smoke):
    settings = replace(smoke, lr=3e-2, lr_by_group=RATES, weight_decay=0.5)
    groups = parameter_groups(model_of(Parted(decoder="tuned")), settings)
    assert [names for names, *_ in groups[:2]] == [("tuner.a",), ("tuner.b",)]
    assert [str(group).partition(": ")[2] for group in groups] == [
        "lr 0.03, weight decay 0.5",
        "lr 0.12, weight decay 0.5",
        "lr 0.001, weight decay 0.5",
        "lr 0.001, weight decay 0",
    ]


@pytest.mark.parametrize("by_group", [(), RATES])
def test_an_optimizer_that_an_earlier_version_stored_is_taken_over(smoke, by_group):
    """It had the tensors of a rate together in one group, and all in one where there is one rate."""
    settings = replace(smoke, epochs=4, lr=3e-2, lr_by_group=by_group)
    whole, half = (bench.build("lora(decoder=tuned)", toy_backbone()) for _ in range(2))
    steps(whole, optimizer_of(whole, settings), settings)
    tuned = half.tuned()
    parted = [[p for name, p in tuned.items() if half.group_of(name) == group] for group, _ in by_group] or [list(tuned.values())]
    earlier = torch.optim.AdamW([{"params": part} for part in parted], lr=settings.lr, weight_decay=settings.weight_decay)
    data = Rectangles()
    for step in fit(half, earlier, data, data.support(1), settings, 0):
        if step.step == 2:
            break
    now = optimizer_of(half, settings)
    now.load_state_dict(earlier.state_dict())
    steps(half, now, settings, 2)
    assert all(torch.equal(tensor, whole.tuned()[name]) for name, tensor in half.tuned().items())


@pytest.mark.parametrize(
    ("call", "without"),
    [
        ("ssf(decay=False,decoder=tuned)", lambda name: name.startswith("tuner.")),
        ("mona(norm_decay=False)", lambda name: name.endswith((".norm.weight", ".norm.bias"))),
        ("ssf", lambda name: False),
        ("mona", lambda name: False),
    ],
)
def test_norms_and_shifts_have_no_decay_where_it_is_asked_as_in_their_authors_code(smoke, call, without):
    model = bench.build(call, toy_backbone())
    groups = parameter_groups(model, replace(smoke, weight_decay=0.5))
    decays = {name: group.decay for group in groups for name in group.names}
    assert decays == {name: 0.0 if without(name) else 0.5 for name in model.tuned()}
    assert len(groups) == len(set(decays.values())) == (2 if "(" in call else 1)
