"""Learned keys and values in attention, with and without a gate, against attention written out window by window and head by head."""

import pytest
import torch
from conftest import TOY, toy_backbone

from bench.model.attention import ATTENTION, GPU_ONLY, KeyValues
from bench.model.implementation import use
from bench.model.plain_attention import PlainBlock, pooled, turned
from bench.model.sam import attend
from bench.model.sam_modules import add_decomposed_rel_pos, window_partition, window_unpartition
from bench.model.sizes import CONFIGS

CONFIG = {"sam": TOY, "tiny_sam2": CONFIGS["tiny_sam2"], "tiny_sam3": CONFIGS["tiny_sam3"]}
BLOCKS = [(name, i) for name, config in CONFIG.items() for i in range(config.depth)]
WAYS = {"fast": ("fast", False), "reference": ("reference", False), "by window": ("fast", True)}
KEYS, PROMPTS = 3, 2


def written_out(block, x, prompts, pairs, gate):
    """The image tokens after attention (B, h, w, C): one softmax over places, prompts and pairs, or the pairs' own behind the gate."""
    plain, attn = isinstance(block, PlainBlock), block.attn
    onto = block.residual(x) if plain else x
    onto = pooled(onto) if plain and block.halves else onto
    side, heads = block.window_size or x.shape[1], attn.num_heads
    cut, padded = window_partition(block.norm1(x), side)
    each = len(cut) // len(x)
    found = []
    for number, window in enumerate(cut):
        image = number // each
        q, k, v = attn.qkv(window)[None].chunk(3, -1)  # (1, side, side, C)
        q, k = (turned(part, heads, block.step) for part in (q, k)) if plain and block.step else (q, k)
        q = pooled(q) if plain and block.halves else q
        size, seen = q.shape[1:3], attn.qkv(prompts[image]).chunk(3, -1)[1:]
        joined = [] if gate is not None else [pairs[image]]
        keys, values = (torch.cat([part.flatten(1, 2)[0], seen[i], *(pair[i] for pair in joined)]) for i, part in enumerate((k, v)))
        q, parts = q.flatten(1, 2)[0], []
        for head, of in enumerate(slice(i, i + q.shape[-1] // heads) for i in range(0, q.shape[-1], q.shape[-1] // heads)):
            scale, places = (of.stop - of.start) ** -0.5, k.shape[1] * k.shape[2]
            logits = scale * q[:, of] @ keys[:, of].T
            if not plain:
                tables = attn.rel_pos_h, attn.rel_pos_w
                biased = add_decomposed_rel_pos(logits[None, :, :places].contiguous(), q[None, :, of], *tables, (side, side), (side, side))
                logits = torch.cat([biased[0], logits[:, places:]], -1)
            read = logits.softmax(-1) @ values[:, of]
            if gate is not None:
                own = pairs[image]
                read = read + gate[head] * ((scale * q[:, of] @ own[0][:, of].T).softmax(-1) @ own[1][:, of])
            parts.append(read)
        found.append(attn.proj(torch.cat(parts, -1)).unflatten(0, size))
    shrink = x.shape[1] // onto.shape[1]
    whole = window_unpartition(torch.stack(found), side // shrink, tuple(n // shrink for n in padded), onto.shape[1:3])
    return onto + whole


def drawn(name, i):
    """A block with an image, prompts, and keys and values with a gate, some of it with a gradient."""
    sam, config = toy_backbone(0, CONFIG[name]), CONFIG[name]
    own, generator = config.blocks[i], torch.Generator().manual_seed(i)
    shapes = (
        (2, own.grid, own.grid, own.before),
        (2, PROMPTS, own.before),
        (2, 2, KEYS, own.width),
        (sam.image_encoder.blocks[i].attn.num_heads,),
    )
    return sam.image_encoder.blocks[i], [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("gated", [False, True], ids=["joined", "gated"])
@pytest.mark.parametrize(("name", "i"), BLOCKS)
def test_every_path_computes_what_is_written_out(name, i, gated):
    block, (x, prompts, pairs, gate) = drawn(name, i)
    expected = written_out(block, x, prompts, pairs, gate if gated else None)
    inputs = [x, prompts, pairs, *([gate] if gated else [])]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    for way, (path, by_window) in WAYS.items():
        with use(path):
            besides = KeyValues(pairs, gate if gated else None)
            out, attended = attend(
                block, x, prompts, besides=besides, by_window=by_window, prompt_qkv=block.attn.qkv if by_window else None
            )
        assert attended.shape == (2, PROMPTS, expected.shape[-1])
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5, msg=lambda said, way=way: f"{way}: {said}")
        for found, told in zip(torch.autograd.grad((out * weights).sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(
                found, told, atol=1e-4 * float(told.abs().max()), rtol=1e-3, msg=lambda said, way=way: f"{way}: {said}"
            )


@pytest.mark.parametrize("gated", [False, True], ids=["joined", "gated"])
@pytest.mark.parametrize("kernel", [name for name in ATTENTION if name not in GPU_ONLY])
def test_every_kernel_sees_them(kernel, gated, monkeypatch):
    monkeypatch.setattr("bench.model.attention.choose", lambda device, places: kernel)
    for i in range(TOY.depth):
        block, (x, prompts, pairs, gate) = drawn("sam", i)
        out, _ = attend(block, x, prompts, besides=KeyValues(pairs, gate if gated else None))
        torch.testing.assert_close(out, written_out(block, x, prompts, pairs, gate if gated else None), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "i"), BLOCKS)
@torch.no_grad()
def test_a_gate_of_zero_is_the_stock_block(name, i):
    block, (x, _, pairs, gate) = drawn(name, i)
    for path in ("fast", "reference"):
        with use(path):
            assert torch.equal(attend(block, x, besides=KeyValues(pairs, 0 * gate))[0], attend(block, x)[0])


def test_what_is_seen_besides_costs_no_query():
    """The joined keys are attended to and ask nothing: the same as prompts whose queries and outputs nobody reads."""
    block, (x, _, pairs, _) = drawn("sam", 0)

    def of_prompts(zeros):
        return torch.cat([zeros, pairs[:, 0].repeat_interleave(len(zeros) // 2, 0), pairs[:, 1].repeat_interleave(len(zeros) // 2, 0)], -1)

    out, attended = attend(block, x, besides=KeyValues(pairs))
    as_prompts, _ = attend(block, x, x.new_zeros(2, KEYS, x.shape[-1]), prompt_qkv=of_prompts)
    torch.testing.assert_close(out, as_prompts, atol=1e-5, rtol=1e-5)
    assert attended.shape[1] == 0
