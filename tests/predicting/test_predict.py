"""Adapted models: rebuilt from cells, given pictures and prompts of every kind, from Python and from the command line."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import toy_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch.nn import functional as F

import bench
from bench import ROOT
from bench.data.prompt_table import TablePrompt, read_prompts
from bench.errors import CheckpointError, DataError, InputError, RequestError
from bench.grid.plan import Request, specs_of
from bench.grid.store import Record, ResultStore
from bench.model.inputs import check_prompts, image_files, read_picture
from bench.predict import main
from bench.predicting.masks import results
from bench.predicting.tasks import Task
from bench.running.adapted import cell_folder, load_run

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return bench.build("cat_sam_t", toy_backbone())


def same(first, second):
    return np.array_equal(first, second)


# --- pictures and prompts


def test_predict_takes_every_kind_of_picture_and_prompt(model, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE[..., ::-1])
    pictures = [PICTURE, torch.from_numpy(PICTURE).permute(2, 0, 1), Image.fromarray(PICTURE), tmp_path / "a.png", str(tmp_path / "a.png")]
    masks = [model.predict(picture, box=[5, 5, 30, 30]) for picture in [*pictures, PICTURE.astype(np.float64)]]
    assert all(m.shape == (40, 60) and m.dtype == bool and same(m, masks[0]) for m in masks)
    both = model.predict(PICTURE, boxes=[[5, 5, 30, 30], [20, 10, 59, 39]])
    assert same(both, masks[0] | model.predict(PICTURE, box=[20, 10, 59, 39]))
    assert same(model.predict(PICTURE, point=[3, 4]), model.predict(PICTURE, points=[[[3, 4]]], labels=[[1]]))
    for prompt in (
        {"points": [[[3, 4], [9, 9]]], "labels": [[1, 0]]},
        {"mask": np.ones((40, 60))},
        {"masks": np.ones((2, 40, 60), bool)},
        {},
    ):
        assert model.predict(PICTURE, **prompt).shape == (40, 60)
    assert not model.predict(PICTURE, boxes=np.zeros((0, 4))).any()  # nothing to look for, nothing found
    assert model.predict(PICTURE, boxes=torch.zeros(0, 4), return_each=True).logits.shape == (0, 40, 60)


def test_each_prompt_has_a_mask_of_its_own(model):
    boxes = [[5 + i / 4, 5, 30 + i / 2, 30] for i in range(40)]  # more than are decoded at once
    each = model.predict(PICTURE, boxes=boxes, return_each=True)
    assert each.masks.shape == each.logits.shape == (40, 40, 60) and each.masks.dtype == bool and each.logits.dtype == np.float32
    assert same(each.masks, each.logits > 0) and same(each.masks.any(0), model.predict(PICTURE, boxes=boxes))
    alone = model.predict(PICTURE, box=boxes[37], return_each=True)
    np.testing.assert_allclose(each.logits[37], alone.logits[0], atol=1e-4)


def test_box_points_and_mask_of_an_object_are_one_prompt_as_in_stock_sam(sam):
    """SAM's own prompt encoder and decoder, from its own encoder's embedding."""
    mask = np.zeros((2, 64, 64), np.uint8)
    mask[:, 10:30, 8:40] = 1
    image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    boxes, points, labels = [[4, 6, 30, 40], [10, 12, 60, 50]], [[[9, 9], [50, 20]], [[30, 30], [1, 2]]], [[1, 0], [1, -1]]
    each = bench.build("sam", sam).predict(image, boxes=boxes, points=points, labels=labels, masks=mask, return_each=True)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    embedding = sam.image_encoder((pixels - sam.pixel_mean) / sam.pixel_std)
    low = F.interpolate(torch.from_numpy(mask).float()[:, None], (32, 32), mode="bilinear")
    sparse, dense = sam.prompt_encoder((torch.tensor(points).float(), torch.tensor(labels)), torch.tensor(boxes).float(), low)
    logits, _ = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    full = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(each.logits, full.numpy(), atol=1e-4)


def test_encode_once_and_decode_many_is_predict(model):
    features = model.eval().encode([torch.from_numpy(PICTURE).permute(2, 0, 1)])
    with torch.inference_mode():
        for box in ([5.0, 5, 30, 30], [1.0, 2, 50, 39], [0.0, 0, 60, 40]):
            logits = model.decode(features, [bench.Prompts(boxes=torch.tensor([box]))])[0]
            assert same((logits > 0).any(0).numpy(), model.predict(PICTURE, box=box))


def test_many_images_are_predicted_as_one_by_one(model, tmp_path):
    pictures = [RNG.integers(0, 256, (20 + i, 64 - 5 * i, 3), np.uint8) for i in range(6)]
    prompts = [{"box": [1, 1, 9, 9]}, None, {"points": [[3, 4], [8, 8]]}, {}, {"boxes": [[0, 0, 9, 9], [2, 2, 5, 5]]}, {"point": [0, 0]}]
    expected = [model.predict(picture, **(given or {})) for picture, given in zip(pictures, prompts, strict=True)]
    assert [same(*pair) for pair in zip(model.predict_many(iter(pictures), prompts), expected, strict=True)] == [True] * 6
    assert [same(*pair) for pair in zip(model.predict_many(pictures, prompts, batch=5), expected, strict=True)] == [True] * 6
    each = list(model.predict_many(pictures, prompts, return_each=True))
    assert [len(one.masks) for one in each] == [1, 1, 2, 1, 2, 1]
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    (tmp_path / "notes.txt").touch()
    assert [mask.shape for mask in model.predict_many(tmp_path)] == [picture.shape[:2] for picture in pictures]


def test_what_comes_before_an_error_is_not_lost(model):
    found = model.predict_many([PICTURE] * 3, [None, {"box": [0, 0, 9, 9]}, {"box": [0, 0, 99, 9]}])
    assert next(found).shape == next(found).shape == (40, 60)
    with pytest.raises(InputError, match="not inside"):
        next(found)
    with pytest.raises(InputError, match="There are 2 prompts and more images"):
        list(model.predict_many([PICTURE] * 3, [None, None]))
    with pytest.raises(RequestError, match="Did you mean boxes or box"):
        list(model.predict_many([PICTURE], [{"boxs": []}]))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2)])
def test_tiny_and_long_images_are_predicted(model, size):
    assert model.predict(np.zeros((*size, 3), np.uint8), box=[0, 0, size[1], size[0]]).shape == size


def file_cases(folder):
    """name -> what its file must be read as."""
    cases = {}

    def put(name, content, expected):
        (folder / name).write_bytes(content)
        cases[name] = expected

    def png(pixels):
        return cv2.imencode(".png", pixels)[1].tobytes()

    grey = PICTURE[..., 0]
    put("grey.png", png(grey), np.dstack([grey] * 3))
    put("alpha.png", png(np.dstack([PICTURE[..., ::-1], grey])), PICTURE)
    put("deep.png", png(PICTURE[..., ::-1].astype(np.uint16) * 256 + 255), PICTURE)
    put("deep_grey.png", png(grey.astype(np.uint16) * 256 + 255), np.dstack([grey] * 3))
    palette = Image.fromarray(PICTURE).quantize(16)
    palette.save(folder / "palette.png")
    cases["palette.png"] = np.asarray(palette.convert("RGB"))
    turned = Image.fromarray(np.kron(PICTURE[:4, :4], np.ones((16, 16, 1), np.uint8)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    cases["turned.png"] = np.rot90(np.asarray(turned), -1)
    return cases


def test_files_and_pil_images_of_any_mode_become_rgb(tmp_path):
    for name, expected in file_cases(tmp_path).items():
        found = read_picture(tmp_path / name).permute(1, 2, 0).numpy()
        assert found.dtype == np.uint8 and same(found, expected), name
        if name != "turned.png":  # a PIL image is taken as its pixels are
            assert same(read_picture(Image.open(tmp_path / name)).permute(1, 2, 0).numpy(), expected), name
    smooth = Image.fromarray(np.full((8, 8, 3), (200, 120, 40), np.uint8))
    smooth.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "cmyk.jpg").permute(1, 2, 0).numpy().astype(int) - np.asarray(smooth)).max() < 4


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_grey_picture_is_three_times_its_values(shape, kind):
    grey = np.arange(20, dtype=np.uint8).reshape(shape)
    assert np.array_equal(read_picture(kind(grey)).numpy(), np.repeat(grey.reshape(1, 4, 5), 3, 0))


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros(4), r"array of shape \(4,\)"),
        (np.zeros((0, 4, 3)), r"array of shape \(0, 4, 3\)"),
        (np.zeros((0, 4)), r"array of shape \(0, 4, 3\)"),
        (torch.zeros(2, 4, 4), r"tensor of shape \(2, 4, 4\)"),
        (np.full((4, 4, 3), 300), "from 300 to 300: RGB in 0–255"),
        (np.full((4, 4, 3), np.nan), "from nan to nan"),
        (np.full((4, 4, 3), -1.0), "from -1 to -1"),
        (np.full((4, 4, 3), 0.5), "as if scaled to 0–1"),
        (Image.new("F", (4, 4)), "mode F"),
        (7, "A int is no image"),
    ],
)
def test_what_is_no_picture_is_refused(picture, says):
    with pytest.raises(InputError, match=says) as error:
        read_picture(picture)
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    content = cv2.imencode(".png", PICTURE)[1].tobytes()
    (tmp_path / "cut.png").write_bytes(content[:-30])
    (tmp_path / "text.png").write_bytes(b"hello")
    for name, says in (("cut.png", "cut short"), ("text.png", "not an image"), ("absent.png", "No such file"), ("", "Is a directory")):
        with pytest.raises(DataError, match=says):
            read_picture(tmp_path / name)
    for folder, says in ((tmp_path / "absent", "is no folder"), (tmp_path / "empty", "holds no image")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=says):
            image_files(folder)


WRONG_PROMPTS = [
    ({"box": [30, 5, 5, 30]}, r"The box \[30, 5, 5, 30\] is not ordered"),
    ({"box": [5, 5, 70, 30]}, r"The box \[5, 5, 70, 30\] is not inside the image of 60×40 pixels: 0 ≤ x ≤ 60"),
    ({"box": [5, float("nan"), 9, 9]}, "is not inside"),
    ({"boxes": [[1, 1, 2, 2], [5, 5, float("inf"), 9]]}, r"The box \[5, 5, inf, 9\]"),
    ({"box": [1, 2, 3]}, r"The box of shape \(3,\) cannot be read: \[x0, y0, x1, y1\] is needed"),
    ({"boxes": [1, 2, 3, 4]}, r"The boxes of shape \(4,\) cannot be read: shape \(n, 4\)"),
    ({"box": [1, 2, 3, "x"]}, "cannot be read as numbers"),
    ({"box": [1, 1, 2, 2], "boxes": [[1, 1, 2, 2]]}, "box or boxes, not both"),
    ({"point": [-1, 5]}, r"The point \[-1, 5\] is not inside"),
    ({"point": [5, 41]}, "is not inside"),
    ({"points": [[[1, 1, 1]]]}, r"shape \(n, k, 2\) is needed"),
    ({"point": [1, 1], "labels": [2]}, "has the label 2"),
    ({"points": [[1, 1], [2, 2]], "labels": [1]}, "do not fit the points"),
    ({"labels": [1]}, "without points"),
    ({"mask": np.ones((4, 4))}, r"\(H, W\) = \(40, 60\), the image's"),
    ({"mask": np.full((40, 60), 255)}, "has the value 255"),
    ({"boxes": [[1, 1, 2, 2]] * 3, "points": [[1, 1]] * 2}, "3 boxes and 2 points were given together"),
]


@pytest.mark.parametrize(("prompt", "says"), WRONG_PROMPTS)
def test_an_impossible_prompt_is_refused(model, prompt, says):
    with pytest.raises(InputError, match=says) as error:
        model.predict(PICTURE, **prompt)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(-2, 66), st.just(float("nan")), st.floats(allow_nan=False, width=32)), min_size=4, max_size=4))
def test_a_box_is_taken_exactly_if_it_is_ordered_and_inside(box):
    fits = 0 <= box[0] <= box[2] <= 60 and 0 <= box[1] <= box[3] <= 40
    prompts = bench.Prompts(boxes=torch.tensor([box], dtype=torch.float32))
    if fits:
        check_prompts(prompts, 40, 60)
    else:
        with pytest.raises(InputError):
            check_prompts(prompts, 40, 60)


# --- models from cells


def stored_cell(out, method="lora(rank=2)", protocol="smoke", sam=None, seed=3, **changes):
    """A cell on a random model of this method: a folder as a run leaves it, without its training."""
    backbone = sam or bench.load_sam("tiny")
    spec = specs_of(Request(method, "synth_polyps", backbone="tiny", protocol=protocol), backbone.sha256)[0]
    spec = replace(spec, **changes)
    model = bench.build(spec.method.label, backbone, seed=seed, protocol=protocol)
    for parameter in model.tuned().values():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    tuned = save({name: p.detach().contiguous() for name, p in model.tuned().items()})
    table = pd.DataFrame([{"selection": "last", "name": "a", "objects": 1}])
    return ResultStore(out).save(Record(spec, {"last": {"miou_all": 50.0}}, {}, {}), table, pd.DataFrame(), tuned), model


@pytest.fixture(scope="module")
def tiny():
    return bench.load_sam("tiny")


@pytest.mark.parametrize("method", ["sam", "hq_sam", "vpt_deep(tokens=3,decoder=hq)", "cat_sam_a"])
def test_a_cell_gives_its_model_back_wherever_it_lies(method, tiny, tmp_path):
    folder, model = stored_cell(tmp_path, method, sam=tiny)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "any name")
    expected = model.predict(PICTURE, box=[5, 5, 40, 30], return_each=True).logits
    key = folder.name.rpartition("_")[2]
    for cell in (folder, str(moved), key, key[:4]):
        again = load_run(cell, tiny, results=tmp_path)
        assert not again.training and same(again.predict(PICTURE, box=[5, 5, 40, 30], return_each=True).logits, expected)


def test_the_protocol_says_how_images_of_the_models_size_are_taken(tiny, tmp_path):
    image = RNG.integers(0, 256, (128, 128, 3), np.uint8)
    for protocol in ("paper", "clean"):
        folder, model = stored_cell(tmp_path, protocol=protocol, sam=tiny)
        loaded = load_run(folder, tiny)
        assert loaded.normalise_native_size == (protocol == "clean")
        assert same(loaded.predict(image, box=[3, 3, 99, 99]), model.predict(image, box=[3, 3, 99, 99]))


def test_a_cell_that_cannot_be_rebuilt_is_one_sentence(tiny, tmp_path):
    folder, _ = stored_cell(tmp_path, sam=tiny)
    other, _ = stored_cell(tmp_path, "lora(rank=3)", sam=tiny)
    key = folder.name.rpartition("_")[2]

    def refused(kind, says, cell=folder, sam=tiny):
        with pytest.raises(kind, match=says) as error:
            load_run(cell, sam, results=tmp_path)
        assert "\n" not in str(error.value)

    refused(CheckpointError, "the same one is needed", sam=toy_backbone())
    refused(RequestError, "no stored cell", tmp_path)
    refused(RequestError, "no stored cell", "no/such/folder")
    refused(RequestError, "is the key of 0 stored cells", "00000")
    tuned = folder / "tuned.safetensors"
    content = tuned.read_bytes()
    tuned.write_bytes(content[: len(content) // 2])
    refused(CheckpointError, "tuned.safetensors cannot be read")
    tuned.write_bytes((other / "tuned.safetensors").read_bytes())
    refused(CheckpointError, "do not fit this model")
    save_file({**load_file(other / "tuned.safetensors"), "more": torch.zeros(1)}, tuned)
    refused(CheckpointError, r"tuned.safetensors: The tuned weights do not fit this model: .*more")
    tuned.unlink()
    refused(CheckpointError, "cannot be read")
    (folder / "record.json").write_text("{")
    refused(RequestError, "no stored cell", key)


def test_a_method_that_changed_since_is_refused(tiny, tmp_path):
    method = specs_of(Request("lora", "synth_polyps", backbone="tiny", protocol="smoke"), "")[0].method
    for changed, says in (
        (replace(method, revision=9), "was made with revision 9 of lora, and this code has revision 1"),
        (replace(method, parameters=(("rnk", 3),)), "cannot build: Unknown parameter of lora 'rnk'"),
        (replace(method, name="gone"), "cannot build: Unknown method 'gone'"),
    ):
        folder, _ = stored_cell(tmp_path / changed.name, sam=tiny)
        record = ResultStore(tmp_path).read(folder)
        moved = tmp_path / f"{changed.revision}{changed.name}{changed.parameters[0][0]}"
        (ResultStore(moved).save(replace(record, spec=replace(record.spec, method=changed)), pd.DataFrame([{"a": 1}]), pd.DataFrame(), b""))
        with pytest.raises(RequestError, match=says):
            load_run(next(moved.rglob("record.json")).parent, tiny)


def test_a_key_that_several_cells_begin_with_is_refused(tmp_path):
    for i, key in enumerate(("abc123456789", "abc987654321")):
        folder = tmp_path / "runs" / "d" / f"m{i}" / f"tiny_1shot_draw0_seed0_{key}"
        folder.mkdir(parents=True)
        (folder / "record.json").touch()
    with pytest.raises(RequestError, match="'abc' is the key of 2 stored cells"):
        cell_folder("abc", tmp_path)
    assert cell_folder("abc9", tmp_path).parent.name == "m1"


# --- prompts in a file


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_prompts_are_read_row_by_row_and_joined_by_name(tmp_path):
    lines = ["image,x0,y0,x1,y1,x,y,label,prompt", "a.png,1,2,3,4,,,,", "a.png,,,,,5,6,,cup", "a.png,1,1,9,9,7,8,0,cup", "b/c.png,,,,,,,,"]
    found = read_prompts(table(tmp_path / "p.csv", *lines))
    cup = TablePrompt(3, (1.0, 1.0, 9.0, 9.0), ((5.0, 6.0), (7.0, 8.0)), (1.0, 0.0))
    assert found == {"a.png": [TablePrompt(2, (1.0, 2.0, 3.0, 4.0)), cup], "b/c.png": []}
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "p.csv").write_bytes("\r\n".join(lines).encode(encoding))
        assert read_prompts(tmp_path / "p.csv") == found
    assert cup.keywords == {"boxes": [cup.box], "points": [cup.points], "labels": [cup.labels]}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["image,x0,y0,x1,y1", "a.png,1,2,x,4"], "p.csv, row 2: x1 = 'x' is no number."),
        (["image,x0,y0,x1,y1", "a.png,1,2,3,4", "a.png,1,,3,4"], "row 3: y0 = '' is no number."),
        (["image,x,y", "a.png,1,2,3"], "row 2: it has more cells than there are columns."),
        (["image,x,y", "a.png,1"], "row 2: it has fewer cells"),
        (["image,x,y", ",1,2"], "row 2: the column image is empty."),
        (["image,x,y,label", "a.png,,,1"], "row 2: the label 1 has no point"),
        (["image,x,y", "a.png,1,1", "a.png,,"], "row 3: it has no prompt, but its image has others."),
        (["image,x0,y0,x1,y1,prompt", "a.png,1,1,2,2,k", "a.png,1,1,2,2,k"], "row 3: its prompt has a box already, in row 2"),
        (["image,x0,y0,x1", "a.png,1,2,3"], "have no column y1; they have image, x0, y0, x1."),
        (["image,label", "a.png,1"], "have no column x or y"),
        (["x,y", "1,2"], "have no column image"),
        (["image,X0,y0,x1,y1", "a.png,1,2,3,4"], "Unknown column of .*p.csv 'X0'. Did you mean"),
        (["image,x,y"], "have no row"),
        ([""], "have no column image; they have none"),
    ],
)
def test_a_wrong_row_is_named(lines, says, tmp_path):
    with pytest.raises(DataError, match=says):
        read_prompts(table(tmp_path / "p.csv", *lines))


# --- the command


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    return stored_cell(tmp_path_factory.mktemp("cells"))[0]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.png", (40, 60)), ("b.jpg", (30, 30)), ("c.png", (1700, 20))):
        cv2.imwrite(str(folder / name), RNG.integers(0, 256, (*size, 3), np.uint8))
    return folder


def test_the_command_writes_mask_and_overlay(cell, folder, tmp_path):
    key, out = cell.name.rpartition("_")[2], tmp_path / "new" / "mask.png"
    cv2.imwrite(str(tmp_path / "given.png"), np.tile(np.uint8(255), (40, 60)))
    words = ["--run", key[:6], "--results", cell.parents[3], "--image", folder / "a.png", "--out", out, "--mask", tmp_path / "given.png"]
    words += ["--box", "10", "5", "50", "35", "--point", "20", "20", "--point", "12", "8", "0"]
    done = subprocess.run([sys.executable, "-m", "bench.predict", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load_run(cell).predict(
        folder / "a.png", box=[10, 5, 50, 35], points=[[[20, 20], [12, 8]]], labels=[[1, 0]], mask=np.ones((40, 60))
    )
    mask, overlay = cv2.imread(str(out), cv2.IMREAD_UNCHANGED), cv2.imread(str(out.with_name("mask_overlay.png")))
    assert same(mask, expected * np.uint8(255)) and overlay.shape == (440, 660, 3)
    share = f"foreground {100 * expected.mean():.1f} % of 60×40 pixels"
    assert done.stdout == f"{out}: 1 prompt, {share}.\n"


def test_a_folder_is_predicted_from_its_table(cell, folder, tmp_path, capsys):
    lines = ["image,x0,y0,x1,y1,x,y", "a.png,10,5,50,35,,", "a.png,1,1,20,20,,", "a.png,,,,,30,20", "b.jpg,,,,,,", "c.png,,,,,3,1600"]
    prompts = table(tmp_path / "p.csv", *lines)
    assert main(["--run", str(cell), "--images", str(folder), "--prompts", str(prompts), "--out", str(tmp_path / "o")]) == 0
    model = load_run(cell)
    expected = {
        "a.png": model.predict(folder / "a.png", boxes=[[10, 5, 50, 35], [1, 1, 20, 20]]) | model.predict(folder / "a.png", point=[30, 20]),
        "b.png": model.predict(folder / "b.jpg"),
        "c.png": model.predict(folder / "c.png", point=[3, 1600]),
    }
    for name, mask in expected.items():
        assert same(cv2.imread(str(tmp_path / "o" / "masks" / name), cv2.IMREAD_UNCHANGED), mask * np.uint8(255)), name
    sizes = {path.name: cv2.imread(str(path)).shape[:2] for path in (tmp_path / "o" / "overlays").iterdir()}
    assert sizes == {"a.png": (440, 660), "b.png": (660, 660), "c.png": (1600, 19)}
    rows = pd.read_csv(tmp_path / "o" / "predictions.csv")
    assert list(rows["prompts"]) == [3, 0, 1] and list(rows["foreground_pixels"]) == [mask.sum() for mask in expected.values()]
    said = capsys.readouterr()
    assert "3 of 3 masks are in" in said.out and "[2/3] b.jpg: no prompt" in said.err


def test_an_image_that_goes_away_costs_itself_alone(cell, folder, tmp_path):
    tasks = [Task(folder / name, (("", {}),), tmp_path / f"{name}.png", None) for name in ("a.png", "gone.png", "c.png")]
    found = {task.image.name: (task.mask.is_file(), error) for task, _, error in results(load_run(cell), tasks)}
    assert found.pop("gone.png") == (False, f"The file {folder / 'gone.png'} cannot be read: No such file or directory.")
    assert found == {"a.png": (True, ""), "c.png": (True, "")}


def test_a_disk_that_takes_nothing_is_one_sentence(cell, folder, tmp_path, capsys):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "masks").write_text("a file where the folder should be")
    assert main(["--run", str(cell), "--images", str(folder), "--out", str(tmp_path / "o")]) == 1
    said = capsys.readouterr()
    assert "0 of 3 masks" in said.out and "cannot be written (File exists); 3 images are left." in said.err


def test_a_wrong_command_starts_nothing(cell, folder, tmp_path, capsys):
    out = tmp_path / "o.png"
    image = ["--image", str(folder / "a.png"), "--out", str(out)]
    (tmp_path / "dark.png").write_bytes(cv2.imencode(".png", np.ones((40, 60), np.uint8))[1].tobytes())
    far, absent = table(tmp_path / "far.csv", "image,x,y", "a.png,9,9", "b.jpg,3,31"), table(tmp_path / "no.csv", "image,x,y", "z.png,9,9")
    shutil.copy(folder / "a.png", folder / "b.png")
    twice = table(tmp_path / "twice.csv", "image,image,x,y", "a.png,c.png,9,9")
    folder.with_name("x.png").mkdir()
    folder.with_name("y_overlay.png").touch()
    folder.with_name("loop").symlink_to("loop")
    images = ["--images", str(folder), "--out", str(tmp_path / "o")]
    for words, says in (
        ([*image, "--run", "nothing"], "nothing is no stored cell"),
        ([*image, "--box", "1", "1", "99", "9"], r"a.png: The box [1, 1, 99, 9] is not inside"),
        ([*image, "--point", "1"], "--point 1: X Y or X Y LABEL"),
        ([*image, "--point", "1", "2", "3"], "has the label 3"),
        ([*image, "--box", *"1122", "--box", *"1122", "--point", "1", "1"], "2 boxes were given with a point or a mask"),
        ([*image, "--mask", str(tmp_path / "dark.png")], "no value above 127"),
        ([*image[:2], "--out", str(folder / "a.png")], "is what the mask is made from"),
        ([*image[:2], "--out", "mask.jpg"], "ends in .png"),
        ([*image, "--overlay", str(out)], "the mask and the overlay"),
        ([*images, "--prompts", str(far)], "row 3: The point [3, 31] is not inside the image of 30×30"),
        ([*images, "--prompts", str(absent)], "row 2: the image z.png is not in"),
        (images, "b.jpg and b.png would both be written to"),
        ([*images[:2], "--out", str(folder / "a.png")], "a.png is no folder"),
        ([*image[:2], "--out", str(folder.with_name("x.png"))], "x.png cannot be written: it is a folder"),
        ([*image[:2], "--out", str(folder.with_name("y.png"))], "y_overlay.png is there already, and of no mask"),
        ([*images[:2], "--out", str(folder.with_name("loop"))], "Symlink loop from"),
        ([*images, "--prompts", str(twice)], "have the column image twice"),
    ):
        assert main(words if "--run" in words else [*words, "--run", str(cell)]) == 2, says
        said = capsys.readouterr().err
        assert says in said and said.startswith("error: ") and said.count("\n") == 1, said
    for words in (["--image", "a", "--images", "b", "--out", "c"], ["--images", "b", "--box", *"1122", "--out", "c"], ["--out", "c"]):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--run", str(cell)])
        assert stopped.value.code == 2
    assert not out.exists() and not (tmp_path / "o").exists()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["{data}/images/a.png", "../images/a.png", "../labels/a.png", "{data}/labels/a.png"])
def test_a_path_in_the_table_leads_nowhere_else(cell, folder, tmp_path, capsys, name):
    """A row with an absolute path overwrote the user's label with an overlay."""
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels/a.png"), np.zeros((40, 60), np.uint8))
    prompts = table(tmp_path / "p.csv", "image,x,y", f"{name.format(data=tmp_path)},3,4")
    before = contents(tmp_path)
    assert main(["--run", str(cell), "--images", str(folder), "--prompts", str(prompts), "--out", str(tmp_path / "o")]) == 2
    assert "row 2: " in (said := capsys.readouterr().err) and f"is not inside {folder}" in said and said.count("\n") == 1
    assert contents(tmp_path) == before


def test_masks_never_come_among_the_images_nor_over_the_table(cell, folder, tmp_path, capsys):
    images = folder.rename(tmp_path / "masks")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "masks").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "q").mkdir()
    prompts = table(tmp_path / "q" / "predictions.csv", "image,x,y", "b.jpg,3,4")
    before = contents(tmp_path)
    for words, says in (
        (["--out", str(tmp_path)], "would be written among the images"),
        (["--out", str(tmp_path / "o")], "leads out of"),
        (["--out", str(tmp_path / "q"), "--prompts", str(prompts)], "would be written over by the table"),
    ):
        assert main(["--run", str(cell), "--images", str(images), *words]) == 2
        assert says in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_labels_beside_the_images_are_not_written_over(cell, folder, tmp_path, capsys):
    """--out DATA of a data folder with images/ and masks/ would put the predictions where the labels are."""
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks/a.png"), np.zeros((40, 60), np.uint8))
    words = ["--run", str(cell), "--images", str(folder), "--out"]
    before = contents(tmp_path)
    assert main([*words, str(tmp_path)]) == 2 and "a.png is there already, and no prediction that" in capsys.readouterr().err
    (tmp_path / "o/masks").mkdir(parents=True)
    (tmp_path / "o/overlays").symlink_to("masks")
    assert main([*words, str(tmp_path / "o")]) == 2 and "by a link: give another --out" in capsys.readouterr().err
    (tmp_path / "p").mkdir()
    (tmp_path / "p/predictions.csv").write_text("mine\n1\n")
    assert main([*words, str(tmp_path / "p")]) == 2 and "no table of predictions" in capsys.readouterr().err
    assert contents(tmp_path) == {**before, tmp_path / "p/predictions.csv": b"mine\n1\n"}
    assert [main([*words, str(tmp_path / "again")]) for _ in range(2)] == [0, 0]  # its own are written anew


def test_empty_masks_and_why_are_said(cell, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.predicting.masks._masks", lambda model, ready: [np.zeros(image.shape[-2:], bool) for _, image, _ in ready])
    out = tmp_path / "o"
    assert main(["--run", str(cell), "--images", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"3 of 3 masks are in {out}; all of them are empty, 3 of them without any prompt: --prompts" in said
    prompts = table(tmp_path / "p.csv", "image,x,y", "b.jpg,3,4")
    assert main(["--run", str(cell), "--images", str(folder), "--prompts", str(prompts), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("; all of them are empty.\n")


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda t: t * float("nan"), "holds NaN or infinite numbers"),
        (lambda t: t + float("inf"), "holds NaN or infinite numbers"),
        (lambda t: t.half(), "is of float16, and float32 is needed"),
        (lambda t: t.double(), "is of float64, and float32 is needed"),
        (lambda t: t.to(torch.int64), "is of int64, and float32 is needed"),
    ],
)
def test_tuned_weights_that_no_training_leaves_are_named(cell, tmp_path, odd, says):
    copy = shutil.copytree(cell, tmp_path / cell.name)
    tensors = load_file(copy / "tuned.safetensors")
    name = max(tensors)
    save_file({**tensors, name: odd(tensors[name])}, copy / "tuned.safetensors")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} {says}"):
        load_run(copy)
