"""A cell from spec to record, on toys: selections, and stopping at every moment that there is."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import Rectangles, toy_backbone
from safetensors.torch import load

from bench.errors import DivergedError
from bench.grid.registry import METHODS
from bench.grid.spec import RunSpec, choose_method
from bench.running.cell import Cell, Stopped, build_model


def spec_of(settings, method="lora", **changes):
    choice = choose_method(METHODS.get(method), changes)
    return RunSpec("toy", "", "rectangles", 1, False, choice, 2, 0, 0, "smoke", settings)


def run(spec, folder, watch=lambda share, doing: None, **options):
    return Cell(spec, toy_backbone(), Rectangles(), folder, watch, **options).run({})


class StopAt:
    """A watch that asks to stop at its n-th call."""

    def __init__(self, n):
        self.n, self.calls, self.shares = n, 0, []

    def __call__(self, share, doing):
        self.calls += 1
        self.shares.append(share)
        if self.calls == self.n:
            raise Stopped


def outcome(result):
    return result.record.scores, result.images.to_csv(), result.tuned, result.history.to_csv(), result.record.cost["looks"]


def test_stopping_at_any_moment_changes_nothing(smoke, tmp_path):
    spec = spec_of(replace(smoke, epochs=2, evaluate_every=1, lr=0.03, selections=("val", "last", "best")))
    counter = StopAt(0)
    whole = run(spec, tmp_path / "whole", counter)
    assert counter.shares == sorted(counter.shares) and counter.shares[-1] <= 1.0 and counter.calls > 10
    for n in range(1, counter.calls + 1):
        with pytest.raises(Stopped):
            run(spec, tmp_path / str(n), StopAt(n))
        assert outcome(run(spec, tmp_path / str(n))) == outcome(whole), f"stopped at {n} of {counter.calls}"


@pytest.mark.parametrize("still", ["encoder", "decoder"])
def test_each_group_learns_at_its_own_rate_also_after_a_stop(still, smoke, tmp_path):
    """A rate of 0 moves nothing, weight decay included, and the other group's tensors all move."""
    rates = tuple((group, 0.0 if group == still else 0.03) for group in ("encoder", "decoder"))
    spec = spec_of(replace(smoke, lr=rates[0][1], lr_by_group=rates, lr_min=0.0, selections=("last",)), decoder="tuned")
    whole = run(spec, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(spec, tmp_path / "stopped", StopAt(3))
    assert outcome(run(spec, tmp_path / "stopped")) == outcome(whole)
    assert all(
        f"lr {rate:g}, weight decay" in said for (_, rate), said in zip(rates, whole.record.cost["optimizer"].split("; "), strict=True)
    )
    tuned, start = load(whole.tuned), build_model(spec, toy_backbone()).tuned()
    assert {name.startswith("decoder.") for name in tuned} == {True, False}
    for name, tensor in tuned.items():
        assert torch.equal(tensor, start[name]) == (name.startswith("decoder.") == (still == "decoder")), name


def test_a_stop_twice_in_one_place_still_ends(smoke, tmp_path):
    spec, whole = spec_of(smoke), None
    whole = run(spec, tmp_path / "whole")
    for _ in range(3):
        with pytest.raises(Stopped):
            run(spec, tmp_path / "again", StopAt(3))
    assert outcome(run(spec, tmp_path / "again")) == outcome(whole)


def test_best_is_the_best_look_and_last_the_last(smoke, tmp_path):
    result = run(spec_of(replace(smoke, epochs=6, evaluate_every=1, lr=0.1, selections=("best", "last"))), tmp_path)
    looks = result.history.query("ends_epoch")["best_miou"]
    scores = result.record.scores
    assert scores["best"]["miou_all"] == looks.max() and scores["last"]["miou_all"] == looks.iloc[-1]
    assert result.record.cost["looks"] == 6 and result.record.cost["steps"] == 12


def test_the_kept_weights_are_the_first_selections(smoke, tmp_path):
    settings = replace(smoke, epochs=6, evaluate_every=1, lr=0.3)
    best, last = (run(spec_of(replace(settings, selections=s)), tmp_path / s[0]) for s in (("best", "last"), ("last", "best")))
    assert best.record.scores == last.record.scores
    if best.history["best_miou"].idxmax() != 5:
        assert any(not torch.equal(a, b) for a, b in zip(load(best.tuned).values(), load(last.tuned).values(), strict=True))


def test_zero_shot_is_evaluated_once(smoke, tmp_path):
    counter = StopAt(0)
    result = run(spec_of(smoke, "sam"), tmp_path, counter)
    assert counter.calls == 5 and result.record.cost["steps"] == 0 and result.record.cost["trainable_parameters"] == 0
    assert result.record.scores["best"] == result.record.scores["last"] == result.record.scores["val"]


def test_an_empty_image_is_counted_under_the_three_rules(smoke, tmp_path):
    result = run(spec_of(smoke, "sam"), tmp_path)
    empty = result.images.query("objects == 0")
    assert set(empty["name"]) == {"test4"} and (empty["truth"] == 0).all()
    scores = result.record.scores["last"]
    assert scores["miou_empty_as_empty"] == scores["miou_with_objects"]
    assert scores["miou_all"] <= scores["miou_with_objects"]
    assert not any(math.isnan(value) for value in scores.values())


def test_weights_that_end_up_infinite_fail_the_cell(smoke, tmp_path):
    with pytest.raises(DivergedError):
        run(spec_of(replace(smoke, epochs=3, lr=1e30, lr_min=1e30)), tmp_path)
