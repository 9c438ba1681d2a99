"""The reference's random streams: its golden draws, and whole samples against its steps written out on the global generators."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Rectangles

from bench.data.objects import mask_objects, tight_boxes
from bench.grid.protocol import load_protocol
from bench.training.streams import FreshStream, ReferenceStream
from bench.training.train import batch_of, samples_of
from bench.training.transforms import Augmentation
from bench.types import TrainingPrompts

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "recipe.json").read_text())
PAPER = load_protocol("paper")
KINDS = ("point", "box", "mask")


class Scattered(Rectangles):
    """Squares of different sizes, up to 64 of them an image, most images with more than `max_objects`."""

    training_prompts = TrainingPrompts(max_objects=25, noise_scale=2, noise_threshold=0.0)

    def names(self, split):
        return tuple(f"{split}{i}" for i in range(16)) if split == "train" else super().names(split)

    def support(self, shots, draw=0, hold_out_val=False):
        return self.names("train")[:shots]

    def load(self, split, name):
        sample = Rectangles.load(self, split, name)
        rng = np.random.default_rng(int(name.removeprefix(split)))
        mask = np.zeros((70, 90), np.uint8)
        for y, x in np.ndindex(8, 8):
            side = rng.integers(0, 8)
            mask[8 * y : 8 * y + side, 11 * x : 11 * x + side] = 1
        return replace(sample, image=rng.integers(0, 256, (70, 90, 3), dtype=np.uint8), mask=mask)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['case']}-{len(case['areas_after_the_crop'])}")
def test_the_golden_draws_of_the_reference(case):
    stream = ReferenceStream(case["seed"])
    how = replace(PAPER.resolve("lora", "whu", 1), random_crop=case["crop"])
    areas = case["areas_after_the_crop"]
    objects = np.zeros((len(areas), 1, max(areas)), bool)
    for which, area in zip(objects, areas, strict=True):
        which[0, :area] = True
    for drawn in case["samples"]:
        found = Augmentation.drawn(case["height"], case["width"], stream, how)
        assert [found.vertical, found.horizontal] == [drawn["vertical_flip"], drawn["horizontal_flip"]]
        rows, columns = found.rows, found.columns
        expected = drawn.get("crop_top_left_height_width", [0, 0, case["height"], case["width"]])
        assert [rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start] == expected
        kind, kept = stream.kind_and_objects(KINDS, objects, case["max_objects"])
        assert (kind, [areas.index(int(mask.sum())) for mask in kept]) == (drawn["prompt"], drawn["objects_kept_in_order"])
        if kind == "point":
            assert [stream.pixel(int(mask.sum())) for mask in kept] == drawn["point_is_the_nth_foreground_pixel_in_row_order"]
        elif kind == "mask":
            stream.noise(len(kept), 1, 256, 256)


def written_out(sample, rule, how, crop, side):
    """One sample as the reference makes it, drawing from the global generators."""
    image, mask = sample.image, sample.mask
    for axis in (0, 1):
        if random.random() < 0.5:
            image, mask = np.flip(image, axis), np.flip(mask, axis)
    height, width = mask.shape
    if crop:
        random.random()
        while True:
            area = random.uniform(0.1, 1.0) * height * width
            h, w = round(math.sqrt(area / (width / height))), round(math.sqrt(area * (width / height)))
            if 0 < h <= height and 0 < w <= width:
                break
        top, left = random.randint(0, height - h), random.randint(0, width - w)
        image, mask = image[top : top + h, left : left + w], mask[top : top + h, left : left + w]
    kind = random.choice(list(KINDS))
    objects = mask_objects(np.ascontiguousarray(mask), rule).masks()
    if how.max_objects is not None and len(objects) > how.max_objects:
        objects = objects[np.random.permutation(len(objects))[: how.max_objects]]
    prompts = []
    for one in objects:
        if kind == "point":
            random.randint(1, 1)
            pixels = np.argwhere(one)
            prompts.append([pixels[np.random.permutation(len(pixels))[0]][::-1]])
        elif kind == "mask":
            whole = F.interpolate(torch.from_numpy(one.astype(np.float32))[None, None], (side, side), mode="bilinear")
            noise = torch.randn(1, 1, side, side)
            small = F.interpolate(whole, (side // how.noise_scale,) * 2, mode="bilinear")
            again = F.interpolate(small, (side, side), mode="bilinear")
            prompts.append(((whole + noise * ((whole - again).abs() >= 0.01).float()) > how.noise_threshold).float()[0].numpy())
    return image, objects, kind, tight_boxes(objects) if kind == "box" else np.array(prompts)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("method", "dataset", "shots"), [("lora", "whu", 1), ("cat_sam_t", "kvasir", 1), ("cat_sam_a", "whu", 16)])
def test_every_sample_is_the_references_bit_for_bit(method, dataset, shots, seed):
    """One worker makes each batch, its samples in turn from one stream that starts anew, whatever batch and epoch."""
    data, settings = Scattered(), PAPER.resolve(method, dataset, shots)
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for epoch, batch in ((0, 0), (1, 0)) if shots == 1 else ((0, 0), (0, 3), (7, 1)):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        for found in samples_of(data, data.support(shots), settings, seed, epoch, batch, 8):
            image, objects, kind, prompts = written_out(
                data.load("train", found.name), data.rule, data.training_prompts, settings.random_crop, 32
            )
            assert found.kind == (kind if len(objects) else "none")
            assert np.array_equal(found.image, image) and np.array_equal(found.masks, objects)
            ours = {"point": found.prompts.points, "box": found.prompts.boxes, "mask": found.prompts.masks}.get(found.kind)
            assert ours is None if found.kind == "none" else np.array_equal(ours.numpy(), prompts)
    random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])


def test_a_process_that_shares_a_batch_sees_its_part_of_it(rectangles, smoke):
    """A batch's samples share a stream, so those before a part count."""
    for settings in (PAPER.resolve("lora", "whu", 16), replace(smoke, batch=4)):
        support = Scattered().support(16)
        whole = batch_of(Scattered(), support, settings, 3, 1, 2, 8)
        parts = [
            example
            for part in (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 4))
            for example in batch_of(Scattered(), support, settings, 3, 1, 2, 8, part)
        ]
        assert len(whole) == len(parts) == 4
        for a, b in zip(whole, parts, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.target, b.target)


def test_a_crop_that_does_not_fit_is_drawn_again():
    for seed in range(50):
        rows, columns = ReferenceStream(seed).crop(1, 1, 0.1)
        assert (rows, columns) == (slice(0, 1), slice(0, 1))


def test_our_own_stream_draws_what_it_always_drew(rectangles):
    """Pinned: cells of `clean`, `demo` and `smoke` keep their keys, so they must keep their samples."""
    stream = FreshStream(np.random.default_rng(0))
    found = Augmentation.drawn(100, 200, stream, PAPER.resolve("lora", "whu", 1))
    assert (found.vertical, found.horizontal, found.rows, found.columns) == (False, True, slice(4, 41), slice(2, 76))
    kind, kept = stream.kind_and_objects(KINDS, np.eye(30, dtype=bool)[:, None], 5)
    assert (kind, [int(mask.argmax()) for mask in kept], stream.pixel(1000)) == ("box", [4, 15, 18, 21, 26], 559)
    assert stream.noise(2, 1, 4, 4).flatten()[:2].tolist() == pytest.approx([0.4335317, -0.32812062])
