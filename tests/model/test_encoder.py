"""The walk through the ViT and the decoder are stock SAM's, for whom nothing is tuned."""

import golden_files as golden
import pytest
import torch
from conftest import toy_backbone

import bench
from bench.model.decoder import Decoder
from bench.model.implementation import use
from bench.model.sam import ImageEncoder, Tuner, attend, feed_forward, neck_in_few_kernels
from bench.model.segmenter import PromptableSegmenter


@pytest.fixture(scope="module", params=["toy", "golden"])
def backbone(request):
    return toy_backbone() if request.param == "toy" else bench.load_sam(golden.CONFIG, golden.weights("sam"))


def test_base_tuner_equals_stock_bit_for_bit(backbone):
    image = torch.randn(2, 3, backbone.config.image_size, backbone.config.image_size)
    with use("reference"):
        embedding, _ = ImageEncoder(backbone.image_encoder, Tuner())(image)
    assert torch.equal(embedding, backbone.image_encoder(image))


def test_the_two_halves_are_the_block(backbone):
    x = torch.randn(2, backbone.config.grid, backbone.config.grid, backbone.config.width)
    for block in backbone.image_encoder.blocks:
        halves = feed_forward(block, attend(block, x)[0])
        torch.testing.assert_close(halves, block(x), atol=1e-5, rtol=1e-5)


def test_a_gpus_neck_is_the_neck(backbone):
    neck, config = backbone.image_encoder.neck, backbone.config
    x = torch.randn(2, config.grid, config.grid, config.width, requires_grad=True)
    grad = torch.randn(2, config.decoder_width, config.grid, config.grid)
    (mine, theirs) = ((out, *torch.autograd.grad(out, x, grad)) for out in (neck_in_few_kernels(neck, x), neck(x.permute(0, 3, 1, 2))))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block_index", [0, 1])
def test_prompt_tokens_join_the_attention_without_positions(block_index):
    """Against attention written out for one window and one head at a time."""
    backbone = toy_backbone()
    block, generator = backbone.image_encoder.blocks[block_index], torch.Generator().manual_seed(1)
    side = block.window_size or backbone.config.grid
    x = torch.randn(1, side, side, backbone.config.width, generator=generator)
    tokens = torch.randn(1, 2, backbone.config.width, generator=generator)
    attn, heads = block.attn, block.attn.num_heads

    sequence = torch.cat([tokens, block.norm1(x).flatten(1, 2)], 1)[0]  # (P + n, C)
    q, k, v = attn.qkv(sequence).chunk(3, -1)
    outputs = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        logits = qh @ kh.T * attn.scale
        for i in range(side * side):
            for j in range(side * side):
                (iy, ix), (jy, jx) = divmod(i, side), divmod(j, side)
                logits[2 + i, 2 + j] += qh[2 + i] @ attn.rel_pos_h[iy - jy + side - 1] + qh[2 + i] @ attn.rel_pos_w[ix - jx + side - 1]
        outputs.append(logits.softmax(-1) @ vh)
    out = attn.proj(torch.cat(outputs, -1))

    mine, attended = attend(block, x, tokens)
    torch.testing.assert_close(mine[0], x[0] + out[2:].unflatten(0, (side, side)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(attended[0], out[:2], atol=1e-4, rtol=1e-4)


def test_attended_prompts_are_the_mean_over_windows(sam):
    block = sam.image_encoder.blocks[0]  # windowed
    tokens = torch.randn(2, 3, sam.config.width)
    uniform = torch.randn(1, 1, 1, sam.config.width).expand(2, 3, 3, -1)  # one window, without padding
    one = attend(block, uniform, tokens)[1]
    four = attend(block, uniform.repeat(1, 2, 2, 1), tokens)[1]  # four equal windows
    torch.testing.assert_close(one, four, atol=1e-5, rtol=1e-5)


CASES = {
    "boxes": bench.Prompts(boxes=torch.tensor([[3.0, 5, 30, 40], [10, 10, 60, 33]])),
    "points": bench.Prompts(points=torch.tensor([[[3.0, 5], [9, 9]], [[30, 40], [0, 0]]]), labels=torch.tensor([[1.0, 0], [1, -1]])),
    "masks": bench.Prompts(masks=(torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0).float()),
    "none": bench.Prompts(),
    "points and boxes": bench.Prompts(
        boxes=torch.tensor([[3.0, 5, 30, 40]]), points=torch.tensor([[[3.0, 5]]]), labels=torch.tensor([[1.0]])
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sam_method_equals_stock_decoder(sam, case):
    model = bench.build("sam", sam)
    features = model.encode([torch.rand(3, 64, 64) * 255])
    prompts = CASES[case]
    points = None if prompts.points is None else (prompts.points, prompts.labels)
    sparse, dense = sam.prompt_encoder(points, prompts.boxes, prompts.masks)
    stock, iou = sam.mask_decoder(features.embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    mine = model.decode_low(features, [prompts])
    torch.testing.assert_close(mine.logits[0], stock[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.iou[0], iou[:, 0], atol=1e-5, rtol=1e-5)


def test_many_images_and_prompts_in_one_call_equal_one_at_a_time(sam):
    for name in ("sam", "cat_sam_t", "cat_sam_a", "vpt_shallow"):
        model = bench.build(name, sam)
        images = [torch.rand(3, 50 + i, 70) * 255 for i in range(len(CASES))]
        features, prompts = model.encode(images), list(CASES.values())
        together = model.decode(features, prompts)
        assert [tuple(x.shape) for x in together] == [(len(p), *i.shape[-2:]) for p, i in zip(prompts, images, strict=True)]
        for image, prompt, logits in zip(images, prompts, together, strict=True):
            torch.testing.assert_close(model.decode(model.encode([image]), [prompt])[0], logits, atol=1e-4, rtol=1e-4)


def test_models_share_the_backbones_weights(sam):
    models = [bench.build(name, sam) for name in ("lora", "cat_sam_t")]
    assert all(model.sam is sam and model.encoder.vit is sam.image_encoder for model in models)
    assert not any(p.requires_grad for p in sam.parameters())


def test_prompt_coordinates_are_scaled_and_rounded(sam):
    model = PromptableSegmenter(sam, Tuner(), Decoder())
    scaled = model.placed(bench.Prompts(boxes=torch.tensor([[0.0, 10, 7, 99]])), (100, 30))
    assert scaled.boxes.tolist() == [[0, 6, 15, 63]]  # × 64/30 and × 64/100
