"""Backbones by name: their files, other sizes of images, the names of Hugging Face, and SAM-HQ's decoder."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from conftest import TOY, toy_backbone
from safetensors.torch import save_file

import bench
from bench.errors import CheckpointError, RequestError
from bench.grid.store import read_record
from bench.model.backbones import CONFIGS, backbone_names, checkpoint_files, checkpoint_path, read_backbone
from bench.model.checkpoints import weights_sha256
from bench.model.decoder import HQDecoder
from bench.model.hugging_face import SHARED, sam_model_config, to_hugging_face
from bench.model.sam_modules import StockSam
from bench.reevaluate import main as reevaluate
from bench.run import main as run


def test_every_file_names_a_backbone():
    names = backbone_names()
    assert {"vit_b", "vit_l", "vit_h", "tiny", "medsam", "hq_vit_l", "vit_b_lm"} <= set(names)
    for name in names:
        spec = read_backbone(name)
        assert spec.name == name and spec.config == CONFIGS[spec.architecture] and spec.source and spec.licence
        assert len(spec.sha256) in (0, 64)
    assert read_backbone("medsam").normalisation == "min_max" and read_backbone("vit_b").normalisation == "mean_std"


def test_a_name_has_one_form_and_a_size_that_its_patches_fill():
    assert read_backbone("vit_b(image_size=1024)").name == "vit_b"
    small = read_backbone(" vit_b( image_size = 512 )")
    assert small.name == "vit_b(image_size=512)" and small.config.grid == 32
    with pytest.raises(RequestError, match=r"vit_b\(image_size=500\): a multiple of 16 pixels is needed"):
        read_backbone("vit_b(image_size=500)")
    with pytest.raises(RequestError, match="Unknown parameter of vit_b 'size'"):
        read_backbone("vit_b(size=512)")


def test_another_size_has_the_tables_that_sams_users_resize():
    """Against the modules of segment-anything with tables that are resized here, one by one."""
    tensors = bench.load_sam("tiny").state_dict()
    ours = bench.load_sam("tiny(image_size=64)")
    assert ours.config.image_size == 64
    with torch.random.fork_rng(devices=[]):
        stock = bench.load_sam(ours.config).image_encoder
    own = {name.removeprefix("image_encoder."): value for name, value in tensors.items() if name.startswith("image_encoder.")}
    for name, wanted in stock.state_dict().items():
        if own[name].shape != wanted.shape:
            assert name == "pos_embed" or ("rel_pos" in name and name.split(".")[1] in "25")
            table = own[name].permute(0, 3, 1, 2) if name == "pos_embed" else own[name][None, None]
            resized = F.interpolate(table, (8, 8) if name == "pos_embed" else (15, 32), mode="bilinear", align_corners=False)
            own[name] = resized.permute(0, 2, 3, 1) if name == "pos_embed" else resized[0, 0]
    stock.load_state_dict(own)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bench.build("sam", ours).encoder(image)[0], stock(image), atol=2e-5, rtol=0)
    assert isinstance(ours, StockSam)


def test_a_file_of_another_image_size_says_so(tmp_path):
    save_file(bench.load_sam("tiny(image_size=64)").state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"it looks like tiny\(image_size=64\)"):
        bench.load_sam("tiny", tmp_path / "small.safetensors")
    assert bench.load_sam("tiny(image_size=64)", tmp_path / "small.safetensors").config.grid == 8


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_from_hugging_face_is_a_checkpoint(tmp_path, name):
    sam = bench.load_sam("tiny")
    tensors = {key: value.contiguous() for key, value in to_hugging_face(sam.state_dict()).items()}
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]  # tied: safetensors keep it once, under SHARED
    assert SHARED in tensors
    save_file(tensors, tmp_path / name) if name.endswith("safetensors") else torch.save(tensors, tmp_path / name)
    path = checkpoint_path("tiny", tmp_path / "elsewhere", tmp_path)
    assert path == tmp_path / name and weights_sha256(bench.load_sam("tiny", path)) == weights_sha256(sam)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("vit_b", ("sam-vit-base/model.safetensors", "facebook/sam-vit-base/pytorch_model.bin")),
        ("vit_h", ("sam-vit-huge/model.safetensors", "models--facebook--sam-vit-huge/snapshots/1a2b/model.safetensors")),
        ("medsam", ("medsam-vit-base/pytorch_model.bin", "flaviagiammarino/medsam-vit-base/model.safetensors")),
        ("hq_vit_l", ("sam-hq-vit-large/model.safetensors", "hq-sam/sam_hq_vit_l.pth")),
        ("sam2_tiny", ("sam2.1-hiera-tiny/model.safetensors", "sam2.1-hiera-tiny/sam2.1_hiera_tiny.pt")),
        ("sam3(image_size=504)", ("sam3/model.safetensors", "sam3/sam3.pt")),
    ],
)
def test_what_is_downloaded_from_hugging_face_is_found_by_the_backbones_name(tmp_path, name, places):
    spec, own = read_backbone(name), tmp_path / read_backbone(name).file
    with pytest.raises(CheckpointError, match=rf"is not at {own}.*hf download \S+/\S+ --local-dir {tmp_path}/\S+`, or give another by"):
        checkpoint_path(name, tmp_path)
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert checkpoint_path(name, tmp_path) == path
        path.unlink()
    (tmp_path / places[0]).touch()
    own.touch()
    assert checkpoint_path(name, tmp_path) == own and list(checkpoint_files(spec, tmp_path)) == [own, tmp_path / places[0]]


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_the_hq_decoder_of_hugging_faces_files():
    """Part by part: what transformers computes behind them upscales the image as it was before the decoder's transformer."""
    from transformers import SamHQConfig, SamHQModel

    torch.manual_seed(0)
    config = sam_model_config(TOY)
    config["mask_decoder_config"]["vit_dim"] = TOY.width
    theirs = SamHQModel(SamHQConfig(**{name: value for name, value in config.items() if name.endswith("_config")})).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    sam = bench.load_sam(TOY, theirs.state_dict())
    ours, part = HQDecoder(sam, "released"), theirs.mask_decoder
    features = bench.build("sam", sam).encode([torch.rand(3, 64, 64) * 255])

    def upscaled(name, x):
        first, norm, second = (getattr(part, f"{name}_{layer}") for layer in ("conv1", "norm", "conv2"))
        return second(part.activation(norm(first(x))))

    x, token = torch.randn(2, TOY.decoder_width // 8, 8, 8), torch.randn(2, TOY.decoder_width)
    with torch.no_grad():
        maps = upscaled("encoder", features.embedding) + upscaled("compress_vit", features.first_global.permute(0, 3, 1, 2))
        torch.testing.assert_close(ours.image_maps(features), maps, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.embedding_maskfeature(x), upscaled("mask", x), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.hf_mlp(token), part.hq_mask_mlp(token), atol=1e-5, rtol=0)
    assert torch.equal(ours.hf_token.weight, part.hq_token.weight)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_hugging_faces_model_has_these_names_and_says_the_same():
    """SamModel of random weights: its own state dict loads here, and its masks are ours."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    theirs = SamModel(SamConfig(**sam_model_config(TOY))).eval()
    sam = bench.load_sam(TOY, theirs.state_dict())
    image, box = torch.randint(0, 256, (3, TOY.image_size, TOY.image_size)).float(), torch.tensor([[10.0, 12.0, 50.0, 40.0]])
    model = bench.build("sam", sam)
    with torch.no_grad():
        ours = model.decode_low(model.encode([image]), [bench.Prompts(boxes=box)]).logits[0]
        output = theirs(pixel_values=sam.normalised(image)[None], input_boxes=box[None], multimask_output=False)
    torch.testing.assert_close(ours, output.pred_masks[0, :, 0], atol=1e-4, rtol=0)


def test_medsam_sees_every_image_from_0_to_1():
    sam = toy_backbone()
    image = torch.randint(3, 200, (3, 8, 8)).float()
    assert sam.normalised(image).min() < 0
    sam.normalise_by(read_backbone("medsam"))
    found = sam.normalised(image)
    assert found.min() == 0 and found.max() == 1
    torch.testing.assert_close(found, (image - image.min()) / (image.max() - image.min()))


def hq_file(path):
    """A checkpoint in the layout of SAM-HQ's: SAM's tensors and those of its decoder in one mapping."""
    sam = toy_backbone()
    torch.manual_seed(5)
    decoder = HQDecoder(sam)
    torch.save({**sam.state_dict(), **{f"mask_decoder.{name}": value for name, value in decoder.state_dict().items()}}, path)
    return sam, decoder


@pytest.mark.parametrize("method", ["hq_sam", "cat_sam_t", "cat_sam_a"])
def test_sam_hqs_decoder_is_where_a_method_starts_if_asked(tmp_path, method):
    plain, decoder = hq_file(tmp_path / "sam_hq.pth")
    sam = bench.load_sam(TOY, tmp_path / "sam_hq.pth")
    assert weights_sha256(sam) == weights_sha256(plain)
    model = bench.build(f"{method}(init=released)", sam, seed=3)
    assert weights_sha256(model.decoder) == weights_sha256(decoder)
    assert weights_sha256(bench.build(method, sam, seed=3).decoder) == weights_sha256(bench.build(method, plain, seed=3).decoder)
    with pytest.raises(CheckpointError, match=r"init=released: this backbone's checkpoint has no weights of SAM-HQ's decoder; hq_vit_b"):
        bench.build(f"{method}(init=released)", plain)


@pytest.mark.slow
def test_another_file_at_another_size_is_a_cell_of_its_own_and_found_again(tmp_path, polyps, capsys):
    """Trained, evaluated once more and loaded, on a file that is not the backbone's own."""
    tensors = bench.load_sam("tiny").state_dict()
    tensors["image_encoder.neck.3.bias"] = tensors["image_encoder.neck.3.bias"] + 0.01
    save_file(
        {name: tensor.contiguous() for name, tensor in to_hugging_face(tensors).items() if name != SHARED}, tmp_path / "mine.safetensors"
    )
    place = ["--data", str(polyps), "--out", str(tmp_path / "out")]
    words = ["--datasets", "kvasir", *place, "--protocol", "smoke(resize=longest_side)", "--seeds", "0"]
    words += ["--backbone", "tiny( image_size=64 )", "--checkpoint", str(tmp_path / "mine.safetensors")]
    assert run(["--methods", "lora", *words]) == 0
    (cell,) = (path.parent for path in tmp_path.rglob("record.json"))
    record = read_record(cell)
    assert cell.name.startswith("tiny,image_size=64_1shot") and record.spec.backbone == "tiny(image_size=64)"
    assert record.spec.settings.resize == "longest_side" and record.provenance["checkpoint"]["name"] == "mine.safetensors"
    model = bench.load_run(cell, pretrained=tmp_path)
    assert model.resize == "longest_side" and model.sam.config.image_size == 64
    with pytest.raises(CheckpointError, match=r"was tuned on the tiny\(image_size=64\) checkpoint of sha256"):
        bench.load_run(cell)
    assert reevaluate([str(cell), "--prompt", "none", "--pretrained", str(tmp_path), *place]) == 0
    capsys.readouterr()
    assert run(["--methods", "lora", *words, "--dry-run"]) == 0
    assert "1 cell, 0 to run" in capsys.readouterr().out
    assert run(["--methods", "lora", *words[:-2], "--dry-run"]) == 0  # the backbone's own file
    assert "1 cell, 1 to run" in capsys.readouterr().out
