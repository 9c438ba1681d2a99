"""What is prepared ahead, kept and sent: the same bits as without, nothing made twice, and nobody waiting on the host."""

import io
import itertools
import resource
import threading
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Rectangles, toy_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.profiler import ProfilerActivity, profile

import bench
from bench.data.objects import mask_objects, stacked_objects
from bench.errors import DivergedError
from bench.grid.kept import in_words, needs
from bench.grid.plan import Request, specs_of
from bench.grid.protocol import load_protocol
from bench.model.products import PRODUCTS, keep_product
from bench.model.sizes import frozen_bytes
from bench.training.ahead import made_ahead
from bench.training.conditions import Condition
from bench.training.embedding_files import EmbeddingFiles
from bench.training.evaluation import evaluate
from bench.training.losses import upsampled_loss
from bench.training.prepared import CPU, Prepared, Spill
from bench.training.prompts import box_prompts, mask_prompts, point_prompts
from bench.training.streams import FreshStream, ReferenceStream
from bench.training.targets import stacked, target_of
from bench.training.train import fit, optimizer_of, shown_images, steps_of
from bench.types import Memory, ObjectRule, TrainingPrompts

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24), elements=st.integers(0, 1))
HOST_READS = {f"aten::{name}" for name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2")}
KEEPING = ("hq_sam", "decoder", "lora(first_block=1)", "lora(decoder=hq,first_block=1)")
COURSES = {
    "one_shot": ("paper", 1, {"epochs": 5}, 1),
    "no_augmentation": ("clean", 3, {"epochs": 6, "flips": False, "random_crop": False, "batch": 1}, 3),
    "crops": ("clean", 2, {"epochs": 3, "batch": 1}, 6),  # which never come again
}
QUICK = [("hq_sam", "one_shot", "bf16"), ("lora(decoder=hq,first_block=1)", "no_augmentation", "fp32")]
ALL = [  # each method with two of the courses, and each precision with all of them
    *zip(KEEPING, itertools.cycle(COURSES), itertools.repeat("bf16")),
    *zip(KEEPING, [*list(COURSES)[1:], *COURSES], itertools.repeat("fp32")),
]


def streams(seed):
    return (FreshStream(np.random.default_rng(seed)), FreshStream(np.random.default_rng(seed))), (
        ReferenceStream(seed),
        ReferenceStream(seed),
    )


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(0, 1000))
def test_prompts_are_those_of_whole_masks(mask, seed):
    objects = mask_objects(mask, ObjectRule(min_area=0))
    masks = objects.masks()
    for mine, theirs in streams(seed):
        if len(objects) == 0:
            assert point_prompts(objects, mine).count == mask_prompts(objects, mine, TrainingPrompts(), 32).count == 0
            continue
        pixels = [np.argwhere(one) for one in masks]
        chosen = np.stack([yx[theirs.pixel(len(yx))][::-1] for yx in pixels]).astype(np.float32)
        assert np.array_equal(point_prompts(objects, mine).points[:, 0].numpy(), chosen)
        at_once = F.interpolate(torch.from_numpy(masks).float()[:, None], (32, 32), mode="bilinear", align_corners=False)
        small = F.interpolate(at_once, (4, 4), mode="bilinear", align_corners=False)
        again = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
        noisy = at_once + theirs.noise(*at_once.shape) * ((at_once - again).abs() >= 0.01).float() > 0.5
        assert torch.equal(mask_prompts(objects, mine, TrainingPrompts(), 32).masks, noisy.float())
    assert len(objects) == 0 or torch.equal(box_prompts(objects).boxes, box_prompts(stacked_objects(masks)).boxes)


@settings(max_examples=30, deadline=None)
@given(MASKS)
def test_a_map_of_labels_has_the_loss_of_its_masks(mask):
    objects = mask_objects(mask, ObjectRule(min_area=0))
    truth = target_of(objects)
    whole = torch.from_numpy(objects.masks() if len(objects) else np.zeros((1, *mask.shape), bool)).to(torch.uint8)
    assert all(torch.equal(one, whole) for one in stacked([truth, target_of(stacked_objects(objects.masks()))]))
    found = []
    for target in (truth, whole):
        low = torch.randn(len(whole), 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = upsampled_loss([low], [target])
        loss.total.backward()
        found.append((*loss, low.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_thread_makes_the_next_step_meanwhile_and_its_errors_come_in_turn():
    made, ready = [], threading.Event()

    def make(step):
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        if step == 2:
            ready.set()
        if step == 3:
            raise OSError("the third")
        return step

    steps = made_ahead(make, range(1, 9), False, lambda x: 10 * x)
    assert next(steps) == 10 and ready.wait(10)  # while the caller does nothing
    assert next(steps) == 20
    with pytest.raises(OSError, match="the third"):
        next(steps)
    assert made == [1, 2, 3]
    steps = made_ahead(make, range(4, 900), False, lambda x: x)
    next(steps)
    steps.close()
    assert len(made) < 10 and not [thread for thread in threading.enumerate() if thread.name.startswith("next-step")]


def test_what_is_alike_is_made_once():
    made = []
    assert list(made_ahead(lambda step: made.append(step) or "x", range(5, 9), True, lambda x: x)) == ["x"] * 4 and made == [5]
    assert list(made_ahead(made.append, range(4, 4), True, lambda x: x)) == [] and made == [5]


class Counted(Rectangles):
    """Counts what is read."""

    def __init__(self):
        self.loads = Counter()

    def load(self, split, name):
        self.loads[split, name] += 1
        return super().load(split, name)


def course(method, protocol, shots, seed=3407, prepared=None, **changes):
    """Logs, weights and how many images the encoder saw of a short training, and the rows of two evaluations after it."""
    data = Counted() if prepared is None else prepared.dataset
    how = replace(load_protocol(protocol).resolve(method.partition("(")[0], "whu", shots), evaluate_every=1, **changes)
    model, seen = bench.build(method, toy_backbone(), seed=1), []
    model.sam.image_encoder.patch_embed.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    logs = list(fit(model, optimizer_of(model, how), data, data.support(shots), how, seed, prepared=prepared))
    trained = sum(seen)
    rows = [list(evaluate(model, data, "test", how, prepared or Prepared(data, 0))) for _ in range(2)]
    weights = [p.detach().clone() for p in model.tuned().values()]
    return logs, weights, rows, trained, sum(seen) - trained, data.loads


@pytest.mark.parametrize(
    ("method", "which", "precision"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]
)
def test_what_is_kept_changes_no_bit_and_is_encoded_once(method, which, precision, tmp_path):
    protocol, shots, changes, encoded = COURSES[which]
    plain = course(method, protocol, shots, precision=precision, **changes)
    kept = course(method, protocol, shots, prepared=Prepared(Counted()), precision=precision, **changes)
    spilled = course(method, protocol, shots, prepared=Prepared(Counted(), 0, 2**30), precision=precision, **changes)
    in_files = [Prepared(Counted(), limit, files=EmbeddingFiles(tmp_path, "toy", CPU)) for limit in (2**30, 2**30, 0)]
    first, later, without_memory = (course(method, protocol, shots, prepared=each, precision=precision, **changes) for each in in_files)
    for found in (kept, spilled, first, later, without_memory):
        assert found[0] == plain[0] and found[2] == plain[2]
        assert all(torch.equal(a, b) for a, b in zip(found[1], plain[1], strict=True))
    assert plain[3] == len(plain[0]) and kept[3] == encoded
    assert plain[4] == 2 * kept[4] == 2 * spilled[4] == 2 * len(Rectangles().names("test"))
    assert first[3:5] == kept[3:5]
    for again in (later, without_memory):  # crops never come again
        assert again[3:5] == (kept[3] if which == "crops" else 0, 0)


def test_a_file_of_an_embedding_is_of_its_pixels_weights_and_ways(tmp_path):
    model, files = bench.build("sam", toy_backbone()), EmbeddingFiles(tmp_path, "toy", CPU)
    images = [torch.zeros(3, 40, 50, dtype=torch.uint8) + value for value in (0, 9)]

    def prefix(images, precision="fp32", files=files):
        return Prepared(Counted(), files=files).prefix(model, images, [("test", "same name")] * len(images), precision)

    def count():
        return len(list(tmp_path.rglob("*.pt")))

    made = prefix(images[:1])
    assert count() == 1 and torch.equal(prefix(images[:1]).x, made.x) and count() == 1
    assert not torch.equal(prefix(images[1:]).x, made.x) and count() == 2  # of the same name, as after other images took its place
    prefix(images[:1], "bf16"), prefix(images[:1], files=EmbeddingFiles(tmp_path, "other weights", CPU))
    assert count() == 4
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(prefix(images[:1]).x, made.x)  # made again


def test_a_file_of_an_embedding_is_of_the_processor_that_made_it(tmp_path, monkeypatch):
    """Two with the same instructions may sum in another order, as their vendors' kernels do."""
    paths = []
    for name in ("one vendor's", "another's"):
        monkeypatch.setattr("bench.training.embedding_files.cpu_model", lambda name=name: name)
        paths.append(EmbeddingFiles(tmp_path, "toy", CPU).path(torch.zeros(3, 4, 4), ()))
    assert len(set(paths)) == 2


def test_a_damaged_file_is_not_read_but_made_again(tmp_path):
    files, value, other = EmbeddingFiles(tmp_path, "toy", CPU), torch.arange(4096.0).view(64, 64), io.BytesIO()
    files.write(path := files.path(torch.zeros(3, 4, 4), ()), value)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(torch.tensor([100.0]).numpy().tobytes()) + 2] ^= 255
    torch.save({"a": 1}, other)
    for damaged in (flipped, whole[:500], b"", other.getvalue()):
        path.write_bytes(damaged)
        assert files.read(path) is None
        files.write(path, value)
        assert torch.equal(files.read(path), value)


def test_a_folder_that_takes_nothing_is_said_once(tmp_path, capsys):
    (tmp_path / "toy").write_text("a file")
    model, files = bench.build("sam", toy_backbone()), EmbeddingFiles(tmp_path, "toy", CPU)
    prepared = Prepared(Counted(), files=files)
    for value in (0, 9):
        assert prepared.prefix(model, [torch.zeros(3, 40, 50) + value], [value], "fp32") is not None
    assert capsys.readouterr().err == f"No more embeddings are written to {tmp_path / 'toy'}: Not a directory.\n"


@pytest.mark.slow
def test_compiled_training_that_goes_on_with_a_shorter_batch_draws_the_same():
    data, how = Rectangles(), replace(load_protocol("clean").resolve("mona", "whu", 3), batch=2, epochs=1)
    logs = []
    for resumes in (False, True):
        model, found = bench.build("mona", toy_backbone(), seed=1), []
        optimizer = optimizer_of(model, how)
        model.encoder.compile_walk("default", "eager")
        found.append(next(steps := fit(model, optimizer, data, data.support(3), how, 7)))
        if resumes:
            weights = {name: tensor.detach().clone() for name, tensor in model.tuned().items()}
            model = bench.build("mona", toy_backbone(), seed=1)
            model.load_tuned(weights)
            model.encoder.compile_walk("default", "eager")
            again = optimizer_of(model, how)
            again.load_state_dict(optimizer.state_dict())
            steps = fit(model, again, data, data.support(3), how, 7, first_step=1)
        logs.append([*found, *steps])
    assert logs[0] == logs[1] and len(logs[0]) == 2


@pytest.mark.skipif(len(PRODUCTS) == 1, reason="here all products are PyTorch's")
def test_what_one_product_made_is_not_kept_for_cells_of_another():
    model, prepared = bench.build("sam", toy_backbone()), Prepared(Counted())
    seen = []
    model.sam.image_encoder.patch_embed.register_forward_hook(lambda _, images, __: seen.append(images))
    try:
        for name in ("onednn", "torch", "onednn", "torch"):
            keep_product(name)
            prepared.prefix(model, [torch.zeros(3, 40, 50, dtype=torch.uint8)], ["an image"], "fp32")
    finally:
        keep_product("")
    assert len(seen) == 2


def test_after_a_full_disk_what_was_spilled_is_still_read(capsys):
    rows, spill, before = [torch.randn(1000) for _ in range(9)], Spill(2**30), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for i, row in enumerate(rows):
            spill.put(i, row)
        assert [i in spill for i in range(9)] == [True] * 2 + [False] * 7
        assert torch.equal(spill.get(0), rows[0]) and torch.equal(spill.get(1), rows[1]) and spill.get(2) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.count("No more embeddings are spilled") == 1


def test_the_memory_of_mask_prompts_counts():
    prepared, how = Prepared(Rectangles()), load_protocol("clean").resolve("lora", "whu", 1)
    item = prepared.item("test", Rectangles().names("test")[0], how, Condition("mask", side=256))
    assert item.prompts.masks is not None and prepared.used_bytes > item.prompts.masks.nbytes >= 4 * 256**2


def test_micro_batches_and_checkpoints_keep_their_own_bits():
    how = replace(load_protocol("clean").resolve("lora", "whu", 3), epochs=3, flips=False, random_crop=False, batch=3)
    for memory in (Memory(2), Memory(0, True)):
        found = []
        for prepared in (None, Prepared(Rectangles())):
            model = bench.build("lora(first_block=1)", toy_backbone(), seed=1)
            data, support = Rectangles(), ("train0", "train1", "train2")
            logs = list(fit(model, optimizer_of(model, how), data, support, how, 0, memory=memory, prepared=prepared))
            found.append((logs, [p.detach().clone() for p in model.tuned().values()]))
        assert found[0][0] == found[1][0] and all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_one_shot_example_is_read_once():
    assert course("lora", "paper", 1, epochs=6)[5]["train", "train0"] == 1
    assert course("lora", "clean", 1, epochs=6)[5]["train", "train0"] == 6


def test_how_many_images_training_shows():
    clean, paper = (load_protocol(name).resolve("lora", "whu", 16) for name in ("clean", "paper"))
    support = tuple(map(str, range(16)))
    assert shown_images(support[:1], paper) == 1 and shown_images(support, paper) == 16 * 4
    assert shown_images(support, clean) is None and shown_images(support, replace(clean, random_crop=False, batch=4)) == 16 * 4 * 4


def test_a_loss_that_is_not_finite_is_found_however_late_it_is_read(smoke):
    model = bench.build("lora", toy_backbone())
    steps = steps_of(model, optimizer_of(model, smoke), Rectangles(), ("train0",), smoke, 0)
    first = next(steps)
    model.tuned()["tuner.b"].data.fill_(np.inf)
    second, _ = next(steps), next(steps)
    loss = first.log(np.nan).loss
    with pytest.raises(DivergedError, match=rf"nan at step 2 of 4; the last finite one was {loss:.4g}"):
        second.log(loss)


def host_reads(trace):
    """The operators for whose result a GPU's host would wait, by name, but those of the optimizer, which counts its steps on the host."""

    def above(event):
        return [] if event is None else [event.name, *above(event.cpu_parent)]

    return [event.name for event in trace.events() if event.name in HOST_READS and not any("Optimizer.step" in n for n in above(event))]


@pytest.mark.parametrize("kind", ["point", "box", "mask"])
@pytest.mark.parametrize("method", ["cat_sam_t", pytest.param("lora", marks=pytest.mark.slow), "hq_sam"])
def test_no_step_waits_on_the_host(method, kind):
    how = replace(load_protocol("clean").resolve(method, "whu", 3), epochs=2, batch=3, prompt_types=(kind,))
    model = bench.build(method, toy_backbone())
    steps = steps_of(model, optimizer_of(model, how), Rectangles(), Rectangles().support(3), how, 0, prepared=Prepared(Rectangles()))
    next(steps)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        next(steps)
    assert host_reads(trace) == []
    with profile(activities=[ProfilerActivity.CPU]) as trace:  # that it would be seen
        torch.zeros(3).sum().item()
    assert host_reads(trace) == ["aten::_local_scalar_dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here, whose waiting is what is counted")
@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_at_most_one_synchronisation_a_step_on_a_gpu(kind):
    how = replace(load_protocol("clean").resolve("cat_sam_t", "whu", 3), epochs=6, batch=3, prompt_types=(kind,))
    model = bench.build("cat_sam_t", toy_backbone().to("cuda"))
    steps = steps_of(model, optimizer_of(model, how), Rectangles(), Rectangles().support(3), how, 0, prepared=Prepared(Rectangles()))
    earlier, last = next(steps), float("nan")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for step in steps:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                last = earlier.log(last).loss
            earlier = step
            assert sum("synchroniz" in str(warning.message) for warning in said) <= 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_plan_says_what_would_be_kept():
    specs = specs_of(Request("sam,hq_sam,cat_sam_a,lora(first_block=2)", "whu", "1", backbone="tiny", protocol="smoke"), "0" * 64)
    sizes = {"sam": (7, {"fp32": 10}), "hq_sam": (7, {"fp32": 30}), "cat_sam_a": (0, {"fp32": 0}), specs[-1].method.label: (2, {"fp32": 5})}
    images = sum(len(Rectangles().names(split)) for split in ("test", "val"))  # one is evaluated, and one selected on
    (need,) = needs(specs, {"whu": Rectangles()}, sizes)
    assert (need.images, need.bytes) == (images, images * 35)  # sam's is part of hq_sam's
    assert needs([spec for spec in specs if spec.method.name == "cat_sam_a"], {"whu": Rectangles()}, sizes) == []
    assert "which fits" in in_words([need], 1, 0) and in_words([], 1, 0) == ""
    assert "of which 50 % fit" in in_words([replace(need, bytes=8 * 2**30)], 3, 1)


@pytest.mark.parametrize("method", ["sam", "hq_sam", "decoder", "lora", "lora(first_block=3)", "lora(decoder=hq,first_block=3)", "full"])
def test_what_the_plan_says_is_what_is_kept(method, smoke):
    sam, prepared = bench.load_sam("tiny"), Prepared(Rectangles())
    model = bench.build(method, sam)
    list(evaluate(model, prepared.dataset, "test", smoke, prepared))
    items = sum(item.bytes for item in prepared._items.values())
    parts, reads = model.encoder.frozen_parts, model.decoder.reads_first_global
    assert prepared.used_bytes - items == len(Rectangles().names("test")) * frozen_bytes(sam.config, parts, reads, "fp32")
