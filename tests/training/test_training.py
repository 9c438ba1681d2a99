"""Loss, schedule, augmentation, prompts and the loop, against formulas written out and torch's own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Rectangles
from hypothesis import given, settings
from hypothesis import strategies as st

import bench
from bench.data.objects import mask_objects, stacked_objects
from bench.errors import DivergedError
from bench.grid.protocol import load_protocol
from bench.training.prompts import box_prompts, mask_prompts, point_prompts
from bench.training.streams import FreshStream
from bench.training.train import AdamW, batch_of, cosine_lr, fit, optimizer_of, samples_of, training_sample, worker_stream
from bench.training.transforms import Augmentation
from bench.types import TrainingPrompts


def test_loss_is_averaged_over_objects_then_images():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, 5, 4 + n, generator=generator) for n in (1, 3)]
    targets = [(torch.rand(x.shape, generator=generator) > 0.5).float() for x in logits]
    bce, dice = [], []
    for x, t in zip(logits, targets, strict=True):
        p = 1 / (1 + torch.exp(-x))
        bce.append(-(t * p.log() + (1 - t) * (1 - p).log()).mean().item())
        one = [1 - (2 * (pi * ti).sum() + 1) / (pi.sum() + ti.sum() + 1) for pi, ti in zip(p, t, strict=True)]
        dice.append(sum(one).item() / len(one))
    loss = bench.segmentation_loss(logits, targets)
    assert loss.bce.item() == pytest.approx(sum(bce) / 2, rel=1e-5)
    assert loss.dice.item() == pytest.approx(sum(dice) / 2, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.bce.item() + loss.dice.item())


def test_learning_rate_equals_torchs_cosine(smoke):
    how = replace(smoke, epochs=30)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=how.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=how.lr_min)
    for epoch in range(30):
        assert cosine_lr(epoch, how, how.lr) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        schedule.step()


def test_the_optimizer_is_torchs_to_the_last_bit():
    found = []
    for kind in (AdamW, torch.optim.AdamW):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(size, generator=generator).requires_grad_() for size in (7, 5)]
        optimizer = kind([{"params": [tensors[0]], "weight_decay": 0.1}], lr=1e-2)
        optimizer.add_param_group({"params": [tensors[1]], "lr": 1e-3})
        for step in range(4):
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            optimizer.step()
            if step == 1:  # as a cell that goes on in another process
                kept, optimizer = optimizer.state_dict(), kind([{"params": [tensor]} for tensor in tensors])
                optimizer.load_state_dict(kept)
        optimizer.zero_grad()
        assert all(tensor.grad is None for tensor in tensors)
        state = optimizer.state_dict()
        found.append((state["param_groups"], [tensors, state["state"]]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_the_references_workers_repeat_their_recipes(rectangles):
    """16-shot with four workers and batches of four: four recipes, the same for every worker and epoch; one-shot: one."""
    support = tuple(rectangles.names("train")) * 4

    def recipes(settings, seed, batches):
        drawn = [samples_of(rectangles, support, settings, seed, epoch, batch, 8) for epoch in range(3) for batch in range(batches)]
        return {(a.vertical, a.horizontal, round(a.share, 1)) for samples in drawn for a in (sample.augmentation for sample in samples)}

    paper, fresh = (load_protocol(name).resolve("lora", "whu", 16) for name in ("paper", "clean"))
    assert len(recipes(paper, 3407, 4)) == 4
    assert len(recipes(replace(paper, batch=1), 3407, 4)) == 1
    assert len(recipes(fresh, 0, 4)) > 20


def test_a_worker_goes_on_with_other_numbers_after_its_first_batch():
    paper = load_protocol("paper").resolve("lora", "whu", 100)
    drawn = [worker_stream(paper, 3407, batch).python.random() for batch in range(12)]
    assert [drawn.index(number) for number in drawn] == [0] * 4 + [4] * 4 + [8] * 4


def test_one_shot_training_of_the_paper_sees_one_sample(rectangles):
    paper = load_protocol("paper").resolve("lora", "whu", 1)
    images = [batch_of(rectangles, ("train0",), paper, 3407, epoch, 0, 8)[0].image for epoch in range(4)]
    assert all(torch.equal(images[0], image) for image in images)


def test_every_image_of_an_epoch_is_seen_once(rectangles, smoke):
    support = rectangles.support("full")
    names = []
    seen = type("Seen", (Rectangles,), {"load": lambda self, split, name: names.append(name) or Rectangles.load(self, split, name)})()
    for epoch in range(2):
        for batch in range(2):
            batch_of(seen, support, replace(smoke, batch=2), 0, epoch, batch, 8)
    assert sorted(names[:4]) == sorted(names[4:]) == list(support)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_a_crop_keeps_its_share_and_aspect(height, width, seed):
    rows, columns = FreshStream(np.random.default_rng(seed)).crop(height, width, 0.1)
    h, w = rows.stop - rows.start, columns.stop - columns.start
    assert rows.start >= 0 and rows.stop <= height and columns.start >= 0 and columns.stop <= width
    assert abs(h / height - w / width) <= 0.5 / height + 0.5 / width + 1e-9 or min(h, w) == 1
    assert h * w >= 0.1 * height * width - 0.5 * (height + width)


def test_flips_come_half_the_time_and_image_and_mask_move_together(smoke):
    image = np.arange(3 * 4 * 5).reshape(4, 5, 3).astype(np.uint8)
    mask = image[..., 0] // 3
    how, seen = replace(smoke, random_crop=False), []
    for seed in range(400):
        drawn = Augmentation.drawn(4, 5, FreshStream(np.random.default_rng(seed)), how)
        flipped, same = drawn.of(image), drawn.of(mask)
        assert np.array_equal(flipped[..., 0] // 3, same)
        seen.append((same[0, 0] >= mask[2, 0], same[0, 0] % 5 == 4))
    assert all(0.4 < np.mean(axis) < 0.6 for axis in zip(*seen, strict=True))


def example(dataset, name, settings, seed):
    return training_sample(dataset, name, settings, FreshStream(np.random.default_rng(seed)), 8).example


def test_training_prompts_are_drawn_evenly_and_fit_their_objects(rectangles, smoke):
    kinds = {"boxes": 0, "points": 0, "masks": 0}
    for seed in range(150):
        got = example(rectangles, "train1", replace(smoke, random_crop=False), seed)
        given_kinds = [name for name in kinds if getattr(got.prompts, name) is not None]
        assert len(given_kinds) == 1 and len(got.prompts) == len(got.target) == 1
        kinds[given_kinds[0]] += 1
        if got.prompts.points is not None:
            x, y = got.prompts.points[0, 0].int().tolist()
            assert got.target[0, y, x] == 1
    assert all(30 <= times <= 70 for times in kinds.values())


def test_an_image_without_objects_has_no_prompt_and_one_empty_target(rectangles, smoke):
    how = type("Empty", (Rectangles,), {"load": lambda self, split, name: Rectangles.load(self, "test", "test4")})()
    got = example(how, "train0", smoke, 0)
    assert got.prompts.count == 0 and len(got.prompts) == 1 and not got.target.any() and len(got.target) == 1


def test_at_most_max_objects_are_trained_on(smoke):
    class Many(Rectangles):
        training_prompts = TrainingPrompts(max_objects=5)

        def load(self, split, name):
            sample = Rectangles.load(self, split, name)
            mask = np.zeros_like(sample.mask)
            mask[::4, ::4] = mask[1::4, ::4] = mask[::4, 1::4] = mask[1::4, 1::4] = mask[2::4, ::4] = 1
            return replace(sample, mask=mask)

    how = replace(smoke, random_crop=False)
    assert len(example(Many(), "train0", how, 0).target) == 5


def test_mask_prompts_are_noisy_at_the_border_only():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 16:48, 16:48] = True
    prompt = mask_prompts(stacked_objects(mask), FreshStream(np.random.default_rng(0)), TrainingPrompts(), 64).masks
    assert prompt.shape == (1, 1, 64, 64) and set(prompt.unique().tolist()) == {0.0, 1.0}
    wrong = np.argwhere(prompt[0, 0].numpy() != mask[0])
    assert len(wrong) and all(min(abs(i - e) for e in (15.5, 47.5) for i in at) < 9 for at in wrong)


def test_prompts_of_nothing_are_no_prompt(rectangles):
    nothing = mask_objects(rectangles.load("test", "test4").mask, rectangles.rule)
    for prompts in (box_prompts(nothing), point_prompts(nothing, FreshStream(np.random.default_rng(0)))):
        assert prompts.count == 0


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_finite_loss(sam, rectangles, smoke):
    model = bench.build("lora", sam)
    course = fit(model, optimizer_of(model, smoke), rectangles, ("train0",), smoke, 0)
    first = next(course)
    model.tuned()["tuner.b"].data.fill_(math.inf)
    with pytest.raises(DivergedError, match=rf"nan at step 2 of 4; the last finite one was {first.loss:.4g}"):
        next(course)


def test_dropout_stops_after_the_first_look_where_the_reference_is_followed(sam, rectangles, smoke):
    model = bench.build("adaptformer(dropout=0.5)", sam)
    for stays, modes in ((True, [True, True, False, False]), (False, [True] * 4)):
        how = replace(smoke, eval_mode_after_first_look=stays)
        assert [model.training for _ in fit(model, optimizer_of(model, how), rectangles, ("train0",), how, 0)] == modes
