"""COCO's instance annotations as a data set, with pycocotools' own reading as the oracle."""

import contextlib
import io
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO

from bench.data.objects import sample_objects, tight_boxes
from bench.errors import DataError
from bench.grid.plan import open_dataset
from bench.training.prepared import evaluation_prompts
from bench.training.streams import FreshStream
from bench.training.train import training_sample
from bench.training.transforms import Augmentation, augmented
from bench.types import ObjectRule, Sample
from datasets import prepare
from datasets.coco import read_coco, run_lengths
from datasets.definition import Definition
from datasets.own import own_class

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own, of numpy 2
HEIGHT, WIDTH = 40, 60
TEXT = """
title = "Things"
min_area = 0
[splits.train]
images = "train"
annotations = "train.json"
[splits.test]
images = "test"
annotations = "test.json"
"""


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs(mask: np.ndarray, compressed: bool) -> dict:
    """COCO's run lengths, down the columns."""
    if compressed:
        found = rle.encode(np.asfortranarray(mask))
        return {"size": list(found["size"]), "counts": found["counts"].decode()}
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def annotation(number: int, image: int, segmentation, category: int = 1, crowd: int = 0) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": segmentation, "bbox": [0, 0, 1, 1]}


def content() -> dict:
    """Three images: touching, overlapping and two-part objects; a crowd and another category; nothing. Ids in no order."""
    disc = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(disc, (30, 20), 9, 1, -1)
    two_parts = np.zeros((HEIGHT, WIDTH), np.uint8)
    two_parts[2:6, 2:9] = two_parts[30:36, 50:58] = 1
    return {
        "images": [
            {"id": 70, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 5, "file_name": "sub/a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 12, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            annotation(44, 5, box(20, 5, 40, 25)),
            annotation(9, 5, box(10, 5, 20, 25)),
            annotation(21, 5, runs(disc, compressed=True)),
            annotation(20, 70, runs(two_parts, compressed=False), category=3),
            annotation(3, 70, box(1, 1, 50, 39), crowd=1),
            annotation(2, 70, box(12, 8, 30, 30), category=1),
        ],
    }


@pytest.fixture
def data(tmp_path):
    """Both splits with the same annotations and other pixels."""
    for number, split in enumerate(("train", "test")):
        rng = np.random.default_rng(number)
        (tmp_path / split / "sub").mkdir(parents=True)
        for image in content()["images"]:
            cv2.imwrite(str(tmp_path / split / image["file_name"]), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        (tmp_path / f"{split}.json").write_text(json.dumps(content()))
    return tmp_path


def opened(data: Path, name: str, text: str = TEXT):
    (data / f"{name}.toml").write_text(text)
    return open_dataset(name, data)


def oracle(path: Path) -> tuple[COCO, dict[str, dict]]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    return coco, {Path(image["file_name"]).with_suffix("").as_posix(): image for image in coco.dataset["images"]}


def test_every_annotation_is_an_object_as_pycocotools_draws_it(data):
    dataset = opened(data, "coco_all")
    coco, images = oracle(data / "train.json")
    assert dataset.names("train") == ("b", "c", "sub/a") == dataset.names("test")
    for name in dataset.names("train"):
        expected = [coco.annToMask(a) for a in sorted(coco.imgToAnns[images[name]["id"]], key=lambda a: a["id"]) if not a["iscrowd"]]
        sample = dataset.load("train", name)
        objects = sample_objects(sample, dataset.rule).masks()
        assert objects.shape == (len(expected), HEIGHT, WIDTH) and dataset.rule.count(sample) == len(expected)
        assert all((mask == other).all() for mask, other in zip(objects, expected, strict=True))
        assert (sample.mask == np.any([*expected, np.zeros((HEIGHT, WIDTH))], axis=0)).all() and sample.image.shape == (HEIGHT, WIDTH, 3)
    counts = {name: len(dataset.load("train", name).objects) for name in dataset.names("train")}
    assert counts == {"b": 2, "c": 0, "sub/a": 3}  # touching ones apart, two parts together, the crowd left out
    assert len(dataset.files()) == 2 * 3 + 2  # the annotations are part of the fingerprint


def test_prompts_are_the_boxes_of_the_annotations(data, smoke):
    dataset = opened(data, "coco_prompts")
    boxes = evaluation_prompts(dataset.load("test", "sub/a"), dataset, smoke).boxes
    assert boxes.tolist() == [[10, 5, 19, 24], [21, 11, 39, 29], [20, 5, 39, 24]]  # by id: 9, 21, 44
    assert evaluation_prompts(dataset.load("test", "c"), dataset, smoke).count == 0
    assert open_dataset("coco_prompts", data).load("test", "b").objects.flags.writeable is False


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), crop=st.booleans())
def test_objects_go_the_way_of_their_image(smoke, seed, crop):
    """An image whose grey value tells its objects is augmented like them."""
    rng = np.random.default_rng(seed)
    objects = np.stack([rng.random((HEIGHT, WIDTH)) < 0.4 for _ in range(3)])
    grey = (objects * np.array([1, 2, 4])[:, None, None]).sum(axis=0).astype(np.uint8)
    sample = Sample("x", np.dstack([grey] * 3), objects.any(axis=0).astype(np.uint8), objects)
    how = replace(smoke, flips=True, random_crop=crop)
    drawn = Augmentation.drawn(HEIGHT, WIDTH, FreshStream(np.random.default_rng(seed)), how)
    found = augmented(sample, drawn)
    assert all((found.objects[i] == ((found.image[..., 0] >> i) & 1)).all() for i in range(3))
    assert (found.mask == (found.image[..., 0] > 0)).all()
    plain = augmented(replace(sample, objects=None), drawn)
    assert (plain.image == found.image).all() and (plain.mask == found.mask).all() and plain.objects is None


def test_a_training_example_has_a_prompt_and_a_target_for_each_annotation(data, smoke):
    dataset = opened(data, "coco_train")
    how = replace(smoke, flips=False, random_crop=False, prompt_types=("box",))
    one, empty = (training_sample(dataset, name, how, FreshStream(np.random.default_rng(0)), 8).example for name in ("sub/a", "c"))
    objects = dataset.load("train", "sub/a").objects
    assert (one.target.numpy() == objects).all() and (one.prompts.boxes.numpy() == tight_boxes(objects)).all()
    assert empty.prompts.count == 0 and empty.target.shape == (1, HEIGHT, WIDTH) and not empty.target.any()


def test_small_annotations_get_no_prompt_and_stay_foreground():
    objects = np.zeros((2, 10, 10), bool)
    objects[0, :2, :2], objects[1, 4:, 4:] = True, True
    sample = Sample("x", np.zeros((10, 10, 3), np.uint8), objects.any(axis=0).astype(np.uint8), objects)
    assert (sample_objects(sample, ObjectRule(min_area=4)).masks() == objects[1:]).all() and sample.mask.sum() == 40
    assert len(sample_objects(sample, ObjectRule(min_area=0, relative_area=0.12))) == 1
    assert len(sample_objects(replace(sample, objects=objects[:0]), ObjectRule())) == 0


def test_categories_by_name_and_images_without_any_of_them(data):
    cats = opened(data, "coco_cats", f'categories = ["cat"]\n{TEXT}')
    assert cats.names("train") == ("b", "c", "sub/a") and [len(cats.load("train", n).objects) for n in cats.names("train")] == [1, 0, 0]
    only = opened(data, "coco_only", f'categories = ["cat"]\nempty_images = false\n{TEXT}')
    assert only.names("train") == ("b",) and cats.revision_of(data) != only.revision_of(data)
    with pytest.raises(DataError, match=r"Unknown category in .*train\.json 'cta'\. Did you mean cat\?|Did you mean cat"):
        opened(data, "coco_none", f'categories = ["cta"]\n{TEXT}')


def test_one_file_for_all_images_with_a_share_for_the_test_split(data):
    dataset = opened(data, "coco_share", 'images = "train"\nannotations = "train.json"\ntest_share = 0.3\n')
    assert len(dataset.names("train")) == 2 and len(dataset.names("test")) == 1


def change(data: Path, edit) -> None:
    broken = content()
    edit(broken)
    (data / "train.json").write_text(json.dumps(broken))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.pop("annotations"), "have no list 'annotations'; COCO's have images, annotations and categories"),
        (lambda c: c["images"][1].pop("height"), "Entry 1 of 'images' in {path} has no height of type int"),
        (lambda c: c["images"].append(dict(c["images"][0])), "The id 70 stands twice in 'images'"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "The image {folder}/gone.jpg of {path} does not exist"),
        (lambda c: c["images"].append({**c["images"][0], "id": 8}), "lists two images named b"),
        (lambda c: c["annotations"][0].update(image_id=99), "Annotation 44 in {path} is of image 99, which the file does not list"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "Annotation 44 in {path} has a polygon that is not a list"),
        (lambda c: c["annotations"][0].update(segmentation=[]), "Annotation 44 in {path} has no segmentation"),
        (lambda c: c["annotations"][3]["segmentation"].update(counts=[1, 2]), "Annotation 20 in {path} has run lengths that do not fill"),
        (lambda c: c["annotations"][3]["segmentation"].update(size=[9, 9]), "Annotation 20 in {path} has run lengths of the size [9, 9]"),
        (lambda c: c["annotations"][0].update(category_id=99), "Annotation 44 in {path} is of category 99, which the file does not list"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "Annotation 44 in {path} has iscrowd = 'no': 0 and 1 are allowed"),
        (lambda c: c["images"][0].update(height=0), "The image 70 in {path} has (0, 60) pixels (H, W): 1 to 2^30 are allowed"),
        (lambda c: c["images"][0].update(height=10**6, width=10**6), "The image 70 in {path} has (1000000, 1000000) pixels"),
        (lambda c: c["images"][0].update(file_name="b\udcff.jpg"), r"{path} lists the image 'b\udcff.jpg', whose name is not UTF-8"),
    ],
)
def test_what_is_wrong_with_the_annotations_is_one_sentence(edit, said, data):
    change(data, edit)
    with pytest.raises(DataError) as error:
        opened(data, "coco_wrong")
    text = str(error.value)
    assert said.format(path=data / "train.json", folder=data / "train") in text and "\n" not in text and text.endswith(".")


@pytest.mark.parametrize("coordinate", [1e9, -1e9, 10**400, 1e300, float("inf"), float("nan"), 601, -601])
def test_a_coordinate_far_outside_is_a_fault_of_its_annotation(coordinate, data):
    change(data, lambda c: c["annotations"][0].update(segmentation=[[0, 0, coordinate, 0, 20, 20]]))
    with pytest.raises(
        DataError, match=r"Annotation 44 in .*train\.json has a polygon with the coordinate .*, far outside its image of 60×40"
    ):
        opened(data, "coco_far")


@pytest.mark.parametrize("coordinate", [600, -600])
def test_a_polygon_that_leaves_its_image_is_cut_at_the_border(coordinate, data):
    change(data, lambda c: c["annotations"][0].update(segmentation=[[10, 10, coordinate, 10, coordinate, 20, 10, 20]]))
    found = opened(data, "coco_beyond").load("train", "sub/a").objects[2]
    assert (
        found[12, 12] == (coordinate > 0) and not found[30].any() and found.sum() == pytest.approx(500 if coordinate > 0 else 100, abs=40)
    )


@pytest.mark.parametrize("polygon", [[-50, -50, -20, -50, -20, -20], [5, 5, 5, 5, 5, 5]])
def test_an_annotation_without_any_pixel_is_noted(polygon, data, capsys):
    change(data, lambda c: c["annotations"][0].update(segmentation=[polygon]))
    opened(data, "coco_blank")
    assert prepare.main(["verify", "coco_blank", "--data", str(data), "--out", str(data / "out")]) == 0
    assert "train: annotations without any pixel in their image, which are no objects: 1, such as of sub/a." in capsys.readouterr().out


def test_bad_annotations_can_be_left_out_counted_and_named(data, capsys):
    def edit(c):
        c["annotations"][0].update(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]])
        c["annotations"][1].update(category_id=99)
        c["annotations"][2].update(segmentation=[])

    change(data, edit)
    with pytest.raises(DataError, match="2 more"):
        opened(data, "coco_bad")
    dataset = opened(data, "coco_skipping", f"skip_bad_annotations = true\n{TEXT}")
    assert [len(dataset.load("train", name).objects) for name in dataset.names("train")] == [2, 0, 0]
    assert prepare.main(["verify", "coco_skipping", "--data", str(data), "--out", str(data / "out")]) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 annotations in" in printed and all(f"Left out: Annotation {number} in" in printed for number in (44, 9, 21))
    assert prepare.main(["verify", "coco_bad", "--data", str(data), "--out", str(data / "out")]) == 1
    assert "coco_bad.toml the others are left out." in capsys.readouterr().out
    revisions = {own_class(data / f"coco_{name}.toml").revision_of(data) for name in ("bad", "skipping")}
    assert len(revisions) == 1  # without the key there is no number: cells of an earlier version stay what they are


def test_a_name_may_be_written_in_several_ways(data):
    accent = "caf\u00e9"
    (data / "train/sub/a.png").rename(data / f"train/sub/{unicodedata.normalize('NFD', accent)}.png")

    def edit(c):
        c["images"][0].update(file_name="./b.jpg")
        c["images"][1].update(file_name=f"sub\\{accent}.png")
        c["images"][2].update(file_name=".//c.jpg")

    change(data, edit)
    dataset = opened(data, "coco_names")
    assert dataset.names("train") == ("b", "c", f"sub/{accent}") and len(dataset.load("train", f"sub/{accent}").objects) == 3


def test_a_file_that_is_no_json_is_one_sentence(data):
    (data / "train.json").write_text('{"images": [}')
    with pytest.raises(DataError, match=r"The annotations .*train\.json are no JSON: Expecting value: line 1 column 13"):
        opened(data, "coco_text")
    (data / "train.json").unlink()
    with pytest.raises(DataError, match=r"The annotations .*train\.json cannot be read: No such file"):
        opened(data, "coco_text")


def test_the_check_names_everything_and_counts_annotations(data, capsys):
    opened(data, "coco_check")
    assert prepare.main(["verify", "coco_check", "--data", str(data), "--out", str(data / "out")]) == 0
    printed = capsys.readouterr().out
    assert "an object is an annotation larger than 0 pixels" in printed and "which are neither objects nor foreground: 1." in printed
    change(data, lambda c: (c["annotations"][0].update(segmentation=[]), c["images"][0].update(file_name="gone.jpg")))
    cv2.imwrite(str(data / "train/c.jpg"), np.zeros((9, 9, 3), np.uint8))
    (data / "test/b.jpg").write_bytes((data / "test/b.jpg").read_bytes()[:-20])
    assert prepare.main(["verify", "coco_check", "--data", str(data), "--out", str(data / "out")]) == 1
    printed = capsys.readouterr().out
    for words in ("Annotation 44", "gone.jpg of", "has (9, 9) pixels (H, W), but", "b.jpg is cut short", "4 problems:"):
        assert words in printed


def test_compressed_run_lengths_that_are_nonsense_are_named(data):
    change(data, lambda c: c["annotations"][2]["segmentation"].update(counts="zzz"))
    with pytest.raises(DataError, match=r"Annotation 21 in .*has run lengths that do not fill its image"):
        opened(data, "coco_nonsense")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1), height=st.integers(1, 70), width=st.integers(1, 70))
def test_packed_run_lengths_are_read_as_they_were_packed(seed, share, height, width):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    assert run_lengths(runs(mask, compressed=True)["counts"]) == runs(mask, compressed=False)["counts"]


def test_a_real_sized_file_is_read_in_seconds(tmp_path):
    """5,000 annotations of 500 images, in no order."""
    (tmp_path / "i").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(500)]
    for image in images:
        (tmp_path / "i" / image["file_name"]).touch()
    annotations = [annotation(5000 - i, i % 500, box(1, 1, 9, 9)) for i in range(5000)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}))
    found = read_coco(tmp_path / "a.json", tmp_path / "i", Definition())
    assert len(found.images) == 500 and not found.faults and [n for n, *_ in found.images["7"].objects][:2] == [493, 993]
