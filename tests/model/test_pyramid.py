"""SAM 2.1 and SAM 3 say what Hugging Face's do, from every layout of files, and keep what they promise beside SAM."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam_oracle import oracle

import bench
from bench.conformance.toys import toy_backbone
from bench.errors import CheckpointError, RequestError
from bench.grid.protocol import PRECISIONS
from bench.model.backbones import PRETRAINED, read_backbone
from bench.model.implementation import use
from bench.model.pyramid_files import LAYOUTS, name_in
from bench.model.sam import attend, feed_forward
from bench.model.sizes import CONFIGS, HieraConfig, frozen_bytes

pytestmark = pytest.mark.xdist_group("hugging_face")  # whose models take long to import

pytest.importorskip("transformers")
TINY = {"tiny_sam2": (128, 160), "tiny_sam3": (112, 140)}  # and the sides of images
NAMES = [(name, side) for name, sides in TINY.items() for side in sides]
BOXES = torch.tensor([[10.0, 10, 90, 60], [40, 20, 140, 99]])
POINTS, LABELS = torch.tensor([[[30.0, 40], [100, 20]], [[10, 10], [9, 9]]]), torch.tensor([[1.0, 0], [1, -1]])
CASES = {
    "boxes": bench.Prompts(boxes=BOXES),
    "points": bench.Prompts(points=POINTS, labels=LABELS),
    "boxes and points": bench.Prompts(boxes=BOXES, points=POINTS, labels=LABELS),
    "none": bench.Prompts(),
}


def said_by(library, model, image, prompts):
    """The library's logits, estimates and object scores for prompts in pixels of the image."""
    placed = model.placed(prompts, tuple(image.shape[1:]))
    given = {} if placed.boxes is None else {"input_boxes": placed.boxes[None]}
    if placed.points is not None:
        given |= {"input_points": placed.points[None], "input_labels": placed.labels[None].int()}
    said = library(pixel_values=model._inputs([image]), multimask_output=False, **given)
    return said.pred_masks[0, :, 0], said.iou_scores[0, :, 0], said.object_score_logits[0, :, 0]


@pytest.fixture(scope="module", params=NAMES, ids=lambda pair: f"{pair[0]} at {pair[1]}")
def pair(request):
    name, side = request.param
    config = dataclasses.replace(CONFIGS[name], image_size=side)
    library = oracle(config)
    return library, bench.build("sam", bench.load_sam(config, library.state_dict())).eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_zero_shot_is_the_librarys(pair, case):
    """On an image that is not of the model's size, along both paths. The logits reach 10 and more."""
    library, model = pair
    image = torch.rand(3, 100, 150, generator=torch.Generator().manual_seed(1)) * 255
    logits, iou, present = said_by(library, model, image, CASES[case])
    assert logits.abs().max() > 5
    for path in ("fast", "reference"):
        with use(path):
            mine = model.decode_low(model.encode([image]), [CASES[case]])
        torch.testing.assert_close(mine.logits[0], logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(mine.iou[0], iou, atol=1e-5, rtol=0)
        if path == "fast":
            torch.testing.assert_close(mine.present[0], present, atol=1e-4, rtol=0)


def test_the_single_mask_stays_where_it_is_stable(pair):
    """In evaluation; training sees the single one whatever it is."""
    _, model = pair
    decoder, masks = model.sam.mask_decoder, torch.full((3, 10, 10), -1.0)
    masks[0, :5], masks[1, :5], masks[1, 5] = 1.0, 1.0, 0.0  # clear; ten places on the verge; none
    assert decoder.is_stable(masks).tolist() == [True, False, True]
    features = model.encode([torch.rand(3, 50, 60) * 255])
    chosen = model.decode_low(features, [CASES["none"]]).logits[0]
    model.train()
    single = model.decode_low(features, [CASES["none"]]).logits[0]
    model.eval()
    assert torch.equal(chosen, single) == bool(decoder.is_stable(single))


@pytest.mark.parametrize("name", TINY)
def test_a_block_is_the_librarys_and_prompts_join_it(name):
    """Prompts that all heads ignore leave the image as it is."""
    sam, config = bench.load_sam(name), CONFIGS[name]
    for block, size in zip(sam.image_encoder.blocks, config.blocks, strict=True):
        x, prompts = torch.randn(2, size.grid_before, size.grid_before, size.before), torch.randn(2, 3, size.before)
        with use("reference"):
            alone = attend(block, x)[0]
        assert alone.shape == (2, size.grid, size.grid, size.width)
        torch.testing.assert_close(attend(block, x)[0], alone, atol=1e-5, rtol=1e-5)
        joined, attended = attend(block, x, prompts)
        assert attended.shape == (2, 3, size.width) and (joined - alone).abs().max() > 1e-4
        far = attend(block, x, prompts, prompt_qkv=lambda p, n=size.width: torch.full((*p.shape[:2], 3 * n), -1e4))[0]
        assert torch.isfinite(feed_forward(block, far)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TINY)
def test_every_layout_of_files_is_loaded(name, layout, tmp_path):
    """Files as Meta's and Hugging Face's are laid out, with what only videos, text or older sizes need."""
    if ("SAM 2" in layout) != (name == "tiny_sam2") and layout != "this project's":
        pytest.skip("of the other model")
    own = bench.load_sam(name).state_dict()
    tensors = in_layout(layout, own)
    tensors["memory_encoder.fuser.layers.0.weight"] = torch.zeros(3)
    if layout.startswith("Meta"):
        file = tmp_path / "own.pt"
        torch.save({"model": tensors}, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file(tensors, file)
    loaded = bench.load_sam(name, file).state_dict()
    assert all(torch.equal(loaded[key], own[key]) for key in own)


def in_layout(layout, own):
    """Tensors laid out so, written by hand where a file has another shape."""
    made = {}
    for key, tensor in own.items():
        theirs = name_in(layout, key)
        if key.endswith("no_memory"):
            tensor = tensor.reshape(1, 1, -1)
        if layout.startswith("Hugging") and ".point_embeddings." in key:
            tensor = torch.cat([own[f"prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)])
        if "SAM 3" in layout and key == "image_encoder.pos_embed":
            tensor = tensor.flatten(1, 2)
            tensor = torch.cat([tensor[:, :1] + 9, tensor], 1) if layout.startswith("Meta") else tensor
        if ".attention.qkv." in theirs:
            made |= {theirs.replace("qkv", f"{part}_proj"): third.clone() for part, third in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            made[theirs] = tensor.clone()
    return made


def test_the_names_are_those_of_the_real_files():
    """Some of each file, as its authors name them."""
    known = {
        "Meta's SAM 2": [
            "image_encoder.trunk.blocks.1.proj.weight",
            "image_encoder.trunk.pos_embed_window",
            "image_encoder.trunk.blocks.0.mlp.layers.1.bias",
            "image_encoder.neck.convs.3.conv.weight",
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            "sam_mask_decoder.transformer.layers.1.mlp.layers.0.weight",
            "sam_mask_decoder.conv_s1.bias",
            "sam_mask_decoder.pred_obj_score_head.layers.2.weight",
            "no_mem_embed",
        ],
        "Meta's SAM 3": [
            "detector.backbone.vision_backbone.trunk.blocks.3.mlp.fc2.weight",
            "detector.backbone.vision_backbone.trunk.ln_pre.bias",
            "detector.backbone.vision_backbone.sam2_convs.0.dconv_2x2_1.weight",
            "detector.backbone.vision_backbone.sam2_convs.1.dconv_2x2.weight",
            "detector.backbone.vision_backbone.sam2_convs.2.conv_3x3.bias",
            "tracker.sam_mask_decoder.transformer.layers.0.mlp.lin1.weight",
            "tracker.sam_mask_decoder.conv_s0.weight",
            "tracker.no_mem_embed",
        ],
        "Hugging Face's SAM 3 with its detector": [
            "detector_model.vision_encoder.backbone.layers.0.attention.o_proj.weight",
            "tracker_neck.fpn_layers.0.scale_layers.2.bias",
            "tracker_model.mask_decoder.transformer.layers.0.mlp.proj_in.weight",
            "tracker_model.no_memory_embedding",
        ],
    }
    for layout, names in known.items():
        sizes = "tiny_sam2" if "SAM 2" in layout else "tiny_sam3"
        found = {name_in(layout, own) for own in bench.load_sam(sizes).state_dict()}
        assert set(names) <= found, set(names) - found


def test_a_file_of_another_model_is_told_of(tmp_path):
    for of, asked, layout in (
        ("tiny_sam3", "tiny_sam2", "Meta's SAM 3"),
        ("tiny_sam2", "tiny", "Hugging Face's SAM 2"),
        ("tiny", "tiny_sam3", "this project's"),
    ):
        torch.save(in_layout(layout, bench.load_sam(of).state_dict()), tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=f"does not fit this architecture, it looks like {of}: "):
            bench.load_sam(asked, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="it looks like a file without an image encoder of SAM's names: "):
        bench.load_sam("tiny", {"a": torch.zeros(1)})
    with pytest.raises(RequestError, match=r"tiny_sam2\(image_size=144\): a multiple of 32 pixels is needed"):
        read_backbone("tiny_sam2(image_size=144)")


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_weights_are_those_of_a_seed(name):
    kept, drawn = load_file(PRETRAINED / f"{name}.safetensors"), toy_backbone(0, CONFIGS[name]).state_dict()
    assert kept.keys() == drawn.keys()
    assert all(torch.equal(kept[key], drawn[key].half()) for key in drawn)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_what_is_kept_of_frozen_parts_is_all_that_is_needed(name):
    """And takes the bytes that a plan counts."""
    sam, config, images = bench.load_sam(name), CONFIGS[name], [torch.rand(3, 40, 50) * 255]
    for call in ("hq_sam", "lora(first_block=2,decoder=hq)", f"lora(first_block={config.depth - 1},decoder=hq)"):
        model = bench.build(call, sam).eval()
        known, whole = model.prefix(images), model.encode(images)
        for mine, expected in zip((*model.encode(images, known=known)[:2], *known.maps), (*whole[:2], *known.maps), strict=True):
            assert torch.equal(mine, expected)
        assert len(known.maps) == model.encoder.maps_after(known.parts)
        kept = [known.x, *known.maps, *[known.first_global] * model.encoder.reaches_global(known.parts)]
        assert frozen_bytes(config, known.parts, True, PRECISIONS[0]) == 4 * sum(tensor.numel() for tensor in kept)


@pytest.mark.parametrize("name", ["hiera_t", "hiera_s", "hiera_b+", "hiera_l"])
def test_sam_2s_first_global_block_is_on_the_decoders_grid(name):
    config = CONFIGS[name]
    assert isinstance(config, HieraConfig)
    first = config.blocks[config.global_blocks[0]]
    assert (first.grid, first.width) == (config.grid, config.width) == (64, config.width)
    assert all(config.stage_of[block] == 2 for block in config.global_blocks)
