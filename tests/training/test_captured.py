"""What decides whether a training step may be one CUDA graph, and that such a step asks the host for nothing; tests/training/test_gpu.py
compares the bytes, where there is a GPU."""

import re
from dataclasses import replace

import pytest
import torch
from meta_operators import called
from test_fast_paths import TWO_BLOCKS
from test_levers import TRAINED, examples, started
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.model.method import build
from bench.model.sam import Sam
from bench.model.transfer import held_indices, indices
from bench.training.captured import CapturedStep, _computes_again, _placed, may_capture, shapes_of
from bench.training.targets import LabelledMasks
from bench.training.train import backward
from bench.types import Memory, Prompts


@pytest.mark.parametrize(
    ("memory", "images", "keeps", "may"),
    [
        (Memory(), 4, False, True),
        (Memory(4), 4, False, True),
        (Memory(2), 4, False, False),  # its parts are seeded one by one
        (Memory(0, True), 4, False, False),
        (Memory(), 4, True, False),
    ],
)
def test_steps_in_one_piece_may_be_captured(memory, images, keeps, may):
    assert may_capture(memory, images, keeps) == may


def test_a_step_is_replayed_for_the_same_shapes_alone():
    given = examples()
    known = shapes_of(given, True)
    brighter = [replace(given[0], image=given[0].image + 1), *given[1:]]
    assert shapes_of(brighter, True) == known
    labelled = replace(given[0], truth=LabelledMasks(given[0].truth[0], 1))
    more = replace(labelled, truth=replace(labelled.truth, count=2))
    boxes = torch.zeros(1, 4)
    others = [
        shapes_of(given, False),  # without dropout
        shapes_of(given[:3], True),
        shapes_of([given[1], given[0], *given[2:]], True),
        *(shapes_of([one, *given[1:]], True) for one in (labelled, more)),
        shapes_of([replace(given[0], prompts=Prompts(masks=boxes)), *given[1:]], True),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_more_prompts_than_a_device_holds_maps_of_are_not_captured(monkeypatch):
    model = started("lora")
    assert not _computes_again(model, examples())
    monkeypatch.setattr("bench.model.decoder.VALUES_AT_ONCE", {"cpu": 1})
    assert _computes_again(model, examples())


# What torch.use_deterministic_algorithms says that it makes an error of on a GPU, within `bench.model.precision.repeatable`.
UNREPEATABLE = re.compile(
    r"aten\.(histc|bincount|put_|median|kthvalue|nll_loss|_ctc_loss|max_unpool"
    r"|(upsample_\w*(linear|cubic)\w*|grid_sampler\w*|\w*adaptive\w*|reflection_pad\w*|fractional_max\w*|avg_pool3d)_backward)"
)


class FromHost(TorchDispatchMode):
    """Names what takes numbers from the host to where the model is, and what has no repeatable kernel; whatever would wait for the device
    fails on "meta" by itself."""

    def __init__(self):
        super().__init__()
        self.names, self.unrepeatable = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = called(func, args, kwargs or {}), str(func)
        given, made = ([x for x in tree_leaves(of) if isinstance(x, torch.Tensor)] for of in ((args, kwargs), out))
        if any(x.device.type == "cpu" for x in given) and any(x.device.type == "meta" for x in made):
            self.names.append(name)
        if any(x.device.type == "meta" for x in made):
            sums = name.startswith("aten.cumsum") and made[0].is_floating_point()
            self.unrepeatable += [name] * bool(sums or UNREPEATABLE.match(name))
        return out


@pytest.mark.parametrize("method", ["cat_sam_t", *(pytest.param(m, marks=pytest.mark.slow) for m in TRAINED if m != "cat_sam_t")])
def test_what_is_captured_reads_nothing_of_the_hosts(method, monkeypatch):
    """The memory that it would be copied from is another's when the graph is replayed. The first pass makes what is kept."""
    monkeypatch.setattr("bench.model.attention.choose", lambda device, places: "folded")
    with (meta := torch.device("meta")):
        model = build(method, Sam(TWO_BLOCKS), seed=1)
    model.sam.to(meta)
    model.to(meta).train()
    given = [_placed(model, replace(example.there(meta), prompts=example.prompts)) for example in examples()]
    with held_indices() as held:
        with FromHost() as first:
            backward(model, given, None)
        with FromHost() as asked:
            backward(model, given, None)
        assert indices([0, 0], meta) is indices([0, 0], meta) and held
    assert not asked.names and not first.unrepeatable


def test_steps_whose_images_the_host_resizes_are_not_recorded():
    model, asked = started("lora"), []
    model.resize = "longest_side"
    step = CapturedStep(model, lambda given, seed, place: asked.append(seed) or torch.zeros(3))
    for seed in range(3):
        step(examples(), seed, (0, len(examples())))
    assert asked == [0, 1, 2] and "host" in step.refused
