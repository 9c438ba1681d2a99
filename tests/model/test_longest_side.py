"""`resize = "longest_side"`: images and prompts as SAM's own predictor takes them, and a square as ever without it."""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.exporting.merged import merged_tensors
from bench.grid.protocol import load_protocol
from bench.training.losses import upsampled_loss

SHAPES = [(37, 53), (200, 301), (128, 128), (300, 90), (128, 50)]
PROTOCOL = "clean(resize=longest_side)"


@pytest.fixture
def predictor_class(monkeypatch):
    """segment-anything's SamPredictor. It needs two functions of torchvision, which is not among the requirements: they are Pillow's."""
    functional = ModuleType("torchvision.transforms.functional")
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda picture, size: picture.resize(size[::-1], Image.Resampling.BILINEAR)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    for name in names[:2]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, names[2], functional)
    parent = ModuleType("segment_anything")  # whose own top level imports more of torchvision
    parent.__path__ = list(importlib.util.find_spec("segment_anything").submodule_search_locations)
    monkeypatch.setitem(sys.modules, "segment_anything", parent)
    yield importlib.import_module("segment_anything.predictor").SamPredictor
    for name in [name for name in sys.modules if name.startswith(("segment_anything.predictor", "segment_anything.utils"))]:
        del sys.modules[name]


def test_the_exported_model_agrees_with_sams_predictor(predictor_class):
    sam = bench.load_sam("tiny")
    model = bench.build("lora", sam, seed=1, protocol=PROTOCOL)
    with torch.no_grad():
        model.tuner.b.normal_(std=0.05)
    predictor, rng = predictor_class(bench.load_sam(sam.config, merged_tensors(model))), np.random.default_rng(0)
    squashed = bench.build("lora", sam, seed=1)
    squashed.load_tuned(model.tuned())
    for height, width in SHAPES:
        picture = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height))
        image, box = np.asarray(picture), np.array([0.2 * width, 0.1 * height, 0.8 * width, 0.7 * height])
        predictor.set_image(image)
        for given, asked in (({"box": box}, {"box": box}), _point(width, height)):
            logits, _, _ = predictor.predict(**given, multimask_output=False, return_logits=True)
            found = model.predict(image, **asked, return_each=True).logits
            assert np.abs(found - logits).max() < 1e-4 and np.abs(logits).max() > 1
        apart = np.abs(squashed.predict(image, **asked, return_each=True).logits - logits).max()
        assert (apart > 0.01) or height == width == sam.config.image_size


def _point(width, height):
    point = np.array([[0.5 * width, 0.4 * height]])
    return {"point_coords": point, "point_labels": np.array([1])}, {"point": point[0]}


def test_training_reads_the_same_maps(sam):
    """A loss at the image's size, of the maps that `decode` brings there, and gradients that reach what is trained."""
    model = bench.build("lora", sam, protocol=PROTOCOL)
    image, target = torch.randint(0, 256, (3, 40, 61), dtype=torch.uint8), torch.zeros(1, 40, 61)
    target[:, 10:30, 20:50] = 1
    prompts = bench.Prompts(masks=torch.ones(1, 1, 4 * sam.config.grid, 4 * sam.config.grid))
    features = model.encode([image])
    low = model.decode_low(features, [prompts]).logits
    loss = upsampled_loss(low, [target]).total
    whole = bench.segmentation_loss(model.decode(features, [prompts]), [target]).total
    torch.testing.assert_close(loss, whole)
    loss.backward()
    assert model.tuner.b.grad.abs().sum() > 0
    placed = model.placed(prompts, (40, 61)).masks
    assert placed[..., : round(4 * sam.config.grid * 40 / 61), :].min() > 0.99 and placed[..., -1, :].max() == 0


def test_the_key_holds_it_only_where_it_is_not_the_default():
    settings = load_protocol("clean").resolve("lora", "whu", 1)
    assert "resize" not in settings.keyed()
    assert replace(settings, resize="longest_side").keyed()["resize"] == "longest_side"
