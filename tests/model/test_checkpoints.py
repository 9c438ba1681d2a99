"""Checkpoints load in SAM's own layout, and every way in which one can be wrong gets one sentence."""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TOY, toy_backbone
from golden_files import CONFIG, official_state_dict
from safetensors.torch import save_file

import bench
from bench.errors import CheckpointError, RequestError
from bench.model.backbones import CONFIGS, checkpoint_path, read_backbone
from bench.model.checkpoints import WithoutNumbers, weights_sha256
from bench.model.hugging_face import to_hugging_face
from bench.model.sam import Sam


def save(path, tensors):
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_back_the_weights_it_was_made_of(tmp_path, suffix):
    original = toy_backbone(seed=3)
    loaded = bench.load_sam(TOY, save(tmp_path / f"sam{suffix}", original.state_dict()))
    assert weights_sha256(loaded) == weights_sha256(original) and len(loaded.sha256) == 64
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    model = bench.build("sam", loaded)
    assert model.predict(torch.zeros(3, 30, 40), point=[5, 5]).shape == (30, 40)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_key_layout_is_metas(name):
    """Against the builders of the package segment-anything, which write and read Meta's files."""
    folder = Path(importlib.util.find_spec("segment_anything").submodule_search_locations[0])
    source = (folder / "build_sam.py").read_text().replace("from .modeling import", "from segment_anything.modeling import")
    stock: dict = {}
    with torch.device("meta"):
        exec(compile(source, "build_sam.py", "exec"), stock)
        theirs = {k: v.shape for k, v in stock["sam_model_registry"][name]().state_dict().items()}
        ours = {k: v.shape for k, v in Sam(CONFIGS[name]).state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("file", [read_backbone("vit_b").file, "sam-vit-base/model.safetensors"])
def test_a_vit_b_file_of_its_name_and_size_loads(tmp_path, file):
    """Meta's, and Hugging Face's in the folder that `hf download` makes."""
    with torch.device("meta"):
        own = Sam(CONFIGS["vit_b"]).state_dict()
        shapes = {k: v.shape for k, v in (to_hugging_face(own) if "/" in file else own).items()}
    (tmp_path / file).parent.mkdir(exist_ok=True)
    tensors = {k: torch.full(shape, 0.01, dtype=torch.float16) for k, shape in shapes.items()}
    path = (save_file(tensors, tmp_path / file) or tmp_path / file) if "/" in file else save(tmp_path / file, tensors)
    assert checkpoint_path("vit_b", tmp_path) == path
    assert bench.load_sam("vit_b", path).image_encoder.pos_embed.shape == (1, 64, 64, 768)
    with pytest.raises(CheckpointError, match="looks like vit_b"):
        bench.load_sam("tiny", path)


def test_a_checkpoint_that_does_not_fit_is_described(tmp_path):
    tensors = toy_backbone().state_dict()
    tensors["extra.weight"] = tensors.pop("image_encoder.pos_embed")
    tensors["image_encoder.patch_embed.proj.weight"] = torch.zeros(64, 3, 16, 16)
    with pytest.raises(CheckpointError) as error:
        bench.load_sam(TOY, save(tmp_path / "x.pth", tensors))
    for part in ("missing keys (image_encoder.pos_embed)", "unexpected keys (extra.weight)", "is (64, 3, 16, 16), not (64, 3, 8, 8)"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors: {"model": tensors},
        lambda tensors: {"state_dict": {f"module.{name}": value for name, value in tensors.items()}, "epoch": 3},
        lambda tensors: {"model_state": {f"module._orig_mod.{name}": value for name, value in tensors.items()}},
        lambda tensors: {f"sam.{name}": value for name, value in tensors.items()},
    ],
)
def test_what_a_training_script_puts_around_the_weights_is_taken_off(tmp_path, wrapped):
    original = toy_backbone(seed=3)
    torch.save(wrapped(dict(original.state_dict())), tmp_path / "x.pth")
    assert weights_sha256(bench.load_sam(TOY, tmp_path / "x.pth")) == weights_sha256(original)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"optimizer": {}, "epoch": 3}, "but a mapping with 'optimizer', 'epoch'"),
        ([1.0], "but list"),
        ({"model": {}, "state_dict": {}}, "but a mapping with 'model', 'state_dict'"),
        ({"vision_encoder.pos_embed": torch.zeros(1)}, r"x.pth \(in Hugging Face's names\) does not fit"),
        ({"state_dict": {"module.pos_embed": torch.zeros(1)}}, r"x.pth \(its 'state_dict', without 'module.'\) does not fit"),
    ],
)
def test_a_file_of_something_else_says_what_was_found(tmp_path, content, said):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        bench.load_sam(TOY, tmp_path / "x.pth")


def damaged(path, how):
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>not found</html>"}[how])
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_damaged_file_is_named(tmp_path, suffix, how):
    path = damaged(save(tmp_path / f"sam{suffix}", toy_backbone().state_dict()), how)
    with pytest.raises(CheckpointError, match=r"sam\.(pth|safetensors)") as error:
        bench.load_sam(TOY, path)
    assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_pickled_code_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_encoder.pos_embed": Evil()}, "sam.pth")
    with pytest.raises(CheckpointError, match="pickled code"):
        bench.load_sam(TOY, "sam.pth")
    assert not Path("evil").exists()


class Calls:
    """What a pickle calls when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call", [(os.system, "touch evil"), (eval, "open('evil', 'w')"), (Path.touch, Path("evil"))], ids=["os", "builtins", "pathlib"]
)
@pytest.mark.parametrize("way", ["zip", "old", "bare", "zip without a version"])
def test_code_is_called_what_it_is(tmp_path, monkeypatch, call, way):
    """A module that torch refuses by name, such as os, was said to be a damaged file."""
    monkeypatch.chdir(tmp_path)
    content = {"image_encoder.pos_embed": Calls(*call)}
    if way == "bare":
        Path("sam.pth").write_bytes(pickle.dumps(content))
    elif way == "zip without a version":
        with zipfile.ZipFile("sam.pth", "w") as archive:
            archive.writestr("../../evil", b"x")
            archive.writestr("sam/data.pkl", pickle.dumps(content))
    else:
        torch.save(content, "sam.pth", _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(CheckpointError, match="holds pickled code, which is never run"):
        bench.load_sam(TOY, "sam.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda t: t * float("nan"), "holds NaN or infinite numbers"),
        (lambda t: t - float("inf"), "holds NaN or infinite numbers"),
        (lambda t: t.to(torch.int32), "is of int32, and float32, float16, bfloat16 is needed"),
        (lambda t: t.to(torch.complex64), "is of complex64"),
        (lambda t: t.double(), "is of float64"),
    ],
)
def test_numbers_that_no_checkpoint_has_are_named(tmp_path, odd, says):
    tensors = toy_backbone().state_dict()
    name = "image_encoder.blocks.1.attn.qkv.weight"
    path = save(tmp_path / "sam.pth", {**tensors, name: odd(tensors[name])})
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: {name} {says}"):
        bench.load_sam(TOY, path)
    bench.load_sam(TOY, save(tmp_path / "half.pth", {key: tensor.half() for key, tensor in tensors.items()}))


def test_absent_files_and_unknown_names(tmp_path):
    with pytest.raises(CheckpointError, match=r"sam_vit_l_0b3195\.pth"):
        checkpoint_path("vit_l", tmp_path)
    with pytest.raises(CheckpointError, match=r"not at .*none\.pth\. A file"):
        bench.load_sam("vit_l", tmp_path / "none.pth")
    with pytest.raises(RequestError, match=r"Unknown backbone 'vit_x'.*vit_b"):
        bench.load_sam("vit_x")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_released_file_is_told_apart_and_loaded(tmp_path, wrapped):
    for kind, own in (("T", "tuner.bridges.0.0.weight"), ("A", "tuner.bridge_out.weight")):
        tensors = official_state_dict(kind)
        torch.save({"model": tensors} if wrapped else tensors, tmp_path / "cat.pth")
        assert own in bench.load_cat_sam(tmp_path / "cat.pth", sam=CONFIG).tuned()


def test_a_released_file_with_other_keys_is_refused(tmp_path):
    tensors = {**official_state_dict("T"), "image_encoder.surprise": torch.zeros(1)}
    tensors.pop("mask_decoder.hf_mlp.layers.0.weight")
    with pytest.raises(
        CheckpointError, match=r"missing \['mask_decoder.hf_mlp.layers.0.weight'\], unexpected \['image_encoder.surprise'\]"
    ):
        bench.load_cat_sam(tensors, sam=CONFIG)
    with pytest.raises(CheckpointError, match="no CAT-SAM checkpoint"):
        bench.load_cat_sam(toy_backbone().state_dict(), sam=TOY)


def test_a_model_without_numbers_may_ask_for_them_in_any_way():
    with WithoutNumbers(), torch.device("meta"):
        drawn = torch.randn(3, 2, generator=torch.Generator("cpu")).mul(0.02)
        assert drawn.shape == (3, 2) and drawn.is_meta and drawn.mul(other=2.0).shape == (3, 2)
    with WithoutNumbers():
        assert torch.ones(2).mul(3.0).tolist() == [3.0, 3.0]


def test_neither_a_grids_plan_nor_loading_a_backbone_nor_training_it_loads_torchs_compiler():
    said = "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    adam = "from bench.training.train import AdamW; o = AdamW(model.tuned().values())"
    trains = f"{adam}; o.load_state_dict(o.state_dict()); o.zero_grad(); o.step()"
    plan = "from bench.grid.registry import METHODS; METHODS.get('lora')().frozen('vit_b')"
    code = f"import sys, bench; {plan}; sam = bench.load_sam('tiny'); model = bench.build('cat_sam_a', sam); {trains}; {said}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_project_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None; import bench; bench.load_sam; bench.build; print('segment_anything' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
