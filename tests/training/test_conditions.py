"""The prompts of re-evaluations, one kind after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Rectangles

from bench.data.objects import sample_objects
from bench.errors import DataError, InputError, RequestError
from bench.training.conditions import Condition, canonical_corruption, canonical_prompt, read_boxes
from bench.training.evaluation import evaluate
from bench.training.prepared import Prepared, evaluation_prompts
from bench.training.train import samples_of
from bench.types import Sample

DATA = Rectangles()
SAMPLE = DATA.load("test", "test1")
TWO = Sample("two", np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8))
TWO.mask[5:25, 10:40] = TWO.mask[30:59, 50:79] = 1


class Two(Rectangles):
    """Rectangles, and TWO."""

    def load(self, split, name):
        return TWO if name == "two" else super().load(split, name)


def prompts(text, sample=TWO, **options):
    return Condition(canonical_prompt(text), side=32, **options).prompts(sample, sample_objects(sample, DATA.rule), DATA)


def test_what_is_the_same_is_written_the_same():
    said = ["box", "box(jitter=0)", "box(jitter=0.0)", "box(jitter=.25)", "box(0.25)", "point", "points(1)", "points", " points(count=3)"]
    assert [canonical_prompt(text) for text in said] == [*["box"] * 3, *["box(jitter=0.25)"] * 2, *["point"] * 2, *["points(3)"] * 2]
    assert [canonical_corruption(text) for text in ("none", "jpeg", "jpeg(level=2)")] == ["", "jpeg(3)", "jpeg(2)"]


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (canonical_prompt, "boxes", "Unknown prompt 'boxes'. Did you mean box"),
        (canonical_prompt, "box(jitter=0.7)", "jitter = 0.7 is too large: at most 0.5 is allowed"),
        (canonical_prompt, "box(jitter=a)", "jitter = 'a' has the wrong type: float is needed"),
        (canonical_prompt, "points(0)", "count = 0 is too small: at least 1 is needed"),
        (canonical_prompt, "mask(2)", "mask(2)"),
        (canonical_prompt, "boxes_from=none.csv", "none.csv cannot be read"),
        (canonical_prompt, "boxes_from", "Did you mean boxes_from=FILE.csv"),
        (canonical_prompt, "polygon(3)", "Known: box, boxes_from=FILE.csv, mask"),
        (canonical_corruption, "jpeg(6)", "level = 6 is too large: at most 5 is allowed"),
        (canonical_corruption, "blur(-1)", "level = -1 is too small: at least 1 is needed"),
        (canonical_corruption, "blur(1.5)", "level = 1.5 has the wrong type: int is needed"),
        (canonical_corruption, "fog(1)", "Unknown corruption 'fog'"),
    ],
)
def test_what_there_is_not_is_one_sentence(read, text, says):
    with pytest.raises(RequestError) as error:
        read(text)
    assert says in str(error.value) and str(error.value).count("\n") == 0


def test_a_prompt_without_a_change_is_the_protocols(smoke):
    for kind in ("box", "point"):
        own = evaluation_prompts(TWO, DATA, replace(smoke, evaluation_prompt=kind))
        for name in ("boxes", "points", "labels"):
            a, b = getattr(prompts(kind), name), getattr(own, name)
            assert (a is None and b is None) or torch.equal(a, b)


def test_jitter_moves_each_side_by_at_most_its_share_and_stays_inside():
    tight, moved, less = (prompts(text).boxes for text in ("box", "box(jitter=0.5)", "box(jitter=0.1)"))
    sides = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    assert 0 < ((moved - tight).abs() / sides).max() <= 0.5
    inside = (moved > 0) & (moved < torch.tensor([79, 59] * 2))
    assert torch.allclose((moved - tight)[inside] / 5, (less - tight)[inside], atol=1e-4)  # the same numbers at any strength
    assert (moved >= 0).all() and (moved <= torch.tensor([79, 59] * 2)).all() and (moved[:, :2] <= moved[:, 2:]).all()
    assert torch.equal(moved, prompts("box(jitter=0.5)").boxes)
    first = replace(TWO, mask=TWO.mask.copy())
    first.mask[30:] = 0
    assert torch.equal(prompts("box(jitter=0.5)", first).boxes[0], moved[0])  # of the object's place alone
    other = replace(TWO, name="other")
    assert not torch.equal(prompts("box(jitter=0.5)", other).boxes, moved)


def test_points_are_of_their_objects_and_masks_are_at_the_decoders_size():
    objects = sample_objects(TWO, DATA.rule).masks()
    several = prompts("points(5)")
    assert several.points.shape == (2, 5, 2) and several.labels.eq(1).all()
    assert all(objects[i, int(y), int(x)] for i in range(2) for x, y in several.points[i].tolist())
    assert prompts("mask").masks.shape == (2, 1, 32, 32) and set(prompts("mask").masks.unique().tolist()) == {0.0, 1.0}
    assert len(prompts("none")) == 1 and prompts("none").count == 0


def test_boxes_of_a_file(tmp_path, sam, smoke):
    path = tmp_path / "boxes.csv"
    path.write_text("image,x0,y0,x1,y1\ntwo,1,2,30,40\ntwo,5,5,6,6\nbare,,,,\n")
    boxes = read_boxes(path)
    assert boxes["two"].tolist() == [[1, 2, 30, 40], [5, 5, 6, 6]] and boxes["bare"].shape == (0, 4)
    assert len(prompts("box", boxes=boxes)) == 2 and len(prompts("box", replace(TWO, name="other"), boxes=boxes)) == 0
    with pytest.raises(InputError, match="not inside the image of 80×60"):
        prompts("box", boxes={"two": np.array([[0, 0, 10, 61]], np.float32)})
    for row, why in (("a,5,5,1,9", "row 2"), ("a,-1,5,1,9", "row 2"), ("a,nan,5,1,9", "row 2"), ("a,0,0,inf,9", "row 2")):
        path.write_text(f"image,x0,y0,x1,y1\n{row}\n")
        with pytest.raises(DataError, match=why):
            read_boxes(path)
    path.write_text("image,x,y\na,1,1\n")
    with pytest.raises(DataError, match="row 2: a box"):
        read_boxes(path)
    import bench

    model = bench.build("lora", sam)
    rows = list(evaluate(model, DATA, "test", smoke, condition=Condition("file", boxes={"test0": np.array([[2, 2, 30, 30]], np.float32)})))
    assert [row.predicted > 0 for row in rows] == [True, False, False, False, False] and rows[1].predicted_iou is None
    assert [row.objects for row in rows] == [1, 1, 1, 1, 0]


def test_rows_have_what_other_metrics_need(sam, smoke):
    """Boundary pixels of the very masks that are counted, and SAM's estimates as the decoder gives them."""
    import bench
    from bench.data.boundary import boundary

    model = bench.build("cat_sam_a", sam)
    for row in evaluate(model, DATA, "test", smoke):
        sample = DATA.load("test", row.name)
        image = torch.tensor(sample.image).permute(2, 0, 1)
        asked = evaluation_prompts(sample, DATA, smoke)
        with torch.inference_mode():
            features = model.encode([image])
            low = model.decode_low(features, [asked])
            mask = (model.decode(features, [asked])[0] > 0).any(0).numpy()
        edges = boundary(mask), boundary(sample.mask > 0)
        assert row.pixels == mask.size and row.predicted == mask.sum()
        assert (row.boundary_intersection, row.boundary_union) == ((edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum())
        assert row.predicted_iou == pytest.approx(100 * float(low.iou[0].mean()), abs=1e-3)


def test_kept_embeddings_give_the_same_rows_and_leave_with_their_model(sam, smoke):
    import bench

    one, other = bench.build("lora", sam, seed=1), bench.build("lora", sam, seed=2)
    prepared = Prepared(DATA)
    for model in (one, other):
        prepared.reuse(model)
        for text in ("box", "point", "none"):
            for corruption in ("", "jpeg(3)"):
                how = Condition(text, corruption, 32)
                assert list(evaluate(model, DATA, "test", smoke, prepared, condition=how)) == list(
                    evaluate(model, DATA, "test", smoke, condition=how)
                )
        assert prepared._reused is model and prepared._features
    kept = sum(of.embedding.nbytes + of.first_global.nbytes for of in prepared._features.values())
    assert prepared.used_bytes == kept + sum(item.bytes for item in prepared._items.values()) + sum(
        x.nbytes for x in prepared._encoded.values()
    )


@pytest.mark.parametrize("stream", ["fresh", "reseeded_workers"])
def test_training_shows_every_kind_of_prompt(stream, smoke):
    def shown(kind):
        how = replace(smoke, prompt_types=(kind,), augmentation_stream=stream, random_crop=False, flips=False)
        (sample,) = samples_of(Two(), ("two",), how, 0, 0, 0, 8)
        return sample

    box, moved = shown("box").prompts.boxes, shown("box(jitter=0.2)").prompts.boxes
    sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    assert not torch.equal(moved, box) and bool(((moved - box).abs() <= 0.2 * sides + 1e-4).all())
    points = shown("points(3)").prompts
    assert points.points.shape == (2, 3, 2) and bool((points.labels == 1).all())
    for mask, of in zip(shown("box").masks, points.points.long(), strict=True):
        assert mask[of[:, 1], of[:, 0]].all()
    assert shown("mask").prompts.masks.shape == (2, 1, 32, 32)
    none = shown("none")
    assert none.prompts.count == 0 and none.masks.shape[0] == 1
    assert np.array_equal(none.masks[0], TWO.mask.astype(bool)) and none.example.target.shape[0] == 1
