"""The fast path computes what the plain one does: outputs and gradients of every method, and each kernel and product by itself."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TOY
from test_levers import TRAINED, examples, started

import bench
from bench.model.attention import ATTENTION, GPU_ONLY, _bias, _bias_of_whole, _distances, attention
from bench.model.decoder import Decoder
from bench.model.implementation import implementation, use
from bench.model.kernels import Bias, _ones, kept_ones
from bench.model.products import PRODUCTS, perceptron, product, project
from bench.model.sam import Tuner
from bench.model.sam_modules import Attention, MLPBlock
from bench.model.segmenter import PromptableSegmenter
from bench.training.train import backward
from bench.types import Prompts

METHODS = [*TRAINED, "lora(decoder=hq)"]
TWO_BLOCKS = replace(TOY, depth=2, global_blocks=(1,))  # of windows, and of the whole image: tracing costs seconds a block
CHEAP = ("cat_sam_t", "cat_sam_a", "lora", "vpt_shallow")  # of the kernel for GPUs; the other methods are in the slow tests
KERNELS = [(method, "whole") for method in METHODS]  # what the small backbone of these tests gets on a CPU
KERNELS += [
    pytest.param(method, kernel, marks=() if method in CHEAP else pytest.mark.slow)
    for method in METHODS
    for kernel in ("chunked", "folded")
]


def of_path(path, method, config=TOY, drops=True):
    with use(path):
        model = started(method, config)
        for layer in model.modules():
            if isinstance(layer, torch.nn.modules.dropout._DropoutNd) and not drops:
                layer.p = 0.0
        loss = backward(model, examples(), 7)
        gradients = {name: p.grad for name, p in model.tuned().items()}
        with torch.no_grad():
            features = model.eval().encode([e.image for e in examples()])
            return loss, gradients, [features.embedding, *model.decode(features, [e.prompts for e in examples()])]


@pytest.mark.parametrize(("method", "kernel"), KERNELS)
def test_outputs_and_gradients_are_those_of_the_plain_path(method, kernel, monkeypatch):
    """With a CPU's attention kernels, of small images and of others, and with a GPU's. Without dropout: what a layer of q, k and v draws
    follows from how tokens are cut, which is each path's own."""
    monkeypatch.setattr("bench.model.attention.choose", lambda device, places: kernel)
    (loss, gradients, outputs), (plain_loss, plain, plain_outputs) = (of_path(path, method, drops=False) for path in ("fast", "reference"))
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(outputs, plain_outputs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    for name, gradient in plain.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize("frozen_tables", [True, False])
def test_a_kernels_values_and_gradients_are_those_of_attention_written_out(kernel, frozen_tables, monkeypatch):
    """5×7 places and two more keys, of which the last has a logit of its own, and a query that is no place; in chunks of a few queries, and
    of several heads. Of FlexAttention the values only: on a CPU it has no gradient."""
    generator = torch.Generator().manual_seed(0)
    heads, h, w, c = 3, 5, 7, 8
    q, k, v = (torch.randn(heads, h * w + extra, c, generator=generator) for extra in (1, 2, 2))
    tables = torch.randn(h, c, generator=generator), torch.randn(w, c, generator=generator)
    grad, trains = torch.randn(heads, h * w + 1, c, generator=generator), kernel not in GPU_ONLY

    def bias_of(q, table_h, table_w):
        places = q[:, : h * w]
        return Bias(places @ table_h.T, places @ table_w.T, q.sum(-1, keepdim=True))

    def written_out(q, k, v, bias_of, tables, scale):
        bias = bias_of(q, *tables)
        logits = q @ k.mT * scale
        places = torch.nn.functional.pad((bias.rows[..., None] + bias.columns[..., None, :]).flatten(-2), (0, 0, 0, 1))
        return (logits + torch.cat([places, torch.zeros_like(bias.last), bias.last], -1)).softmax(-1) @ v

    def values(function):
        inputs = [x.clone().requires_grad_(trains and (i < 3 or not frozen_tables)) for i, x in enumerate((q, k, v, *tables))]
        out = function(*inputs[:3], bias_of, tuple(inputs[3:]), 0.3)
        return [out, *torch.autograd.grad(out, inputs[: 3 if frozen_tables else 5], grad)] if trains else [out]

    for logits_at_once in (60, 3000):
        monkeypatch.setattr("bench.model.kernels.LOGITS_AT_ONCE", logits_at_once)
        monkeypatch.setattr("bench.model.kernels.QUERIES_AT_ONCE", logits_at_once // 20)
        for mine, theirs in zip(values(ATTENTION[kernel]), values(written_out), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=PRODUCTS)
def way(request, monkeypatch):
    """Each way to make products, as if it were this device's."""
    monkeypatch.setattr("bench.model.products.choose_product", lambda device: request.param)


@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 0, 6), (6,)])
@pytest.mark.parametrize("learns", ["", "weight", "bias"])
def test_a_product_is_that_of_a_linear_layer(way, shape, learns):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in (shape, (4, 6), (4,)))
    inputs = [x.requires_grad_(), weight.requires_grad_(learns == "weight"), bias.requires_grad_(learns == "bias")]
    mine, theirs = product(*inputs), torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(mine, theirs)
    wanted = [one for one in inputs if one.requires_grad]
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_layers_onto_what_is_there_are_the_layers_and_a_sum(way, learns, trains, monkeypatch):
    """Of 2×5 tokens, 4 at a time in the MLP; nothing that is given is changed."""
    monkeypatch.setattr("bench.model.products.TOKENS_AT_ONCE", 4)
    generator = torch.Generator().manual_seed(0)
    layer, mlp = torch.nn.Linear(6, 6).requires_grad_(learns), MLPBlock(6, 24).requires_grad_(learns)
    x, onto, grad = (torch.randn(2, 5, 6, generator=generator) for _ in range(3))
    inputs = [x.requires_grad_(trains), onto.requires_grad_(trains)]
    before, wanted = [y.clone() for y in inputs], inputs * trains + [*layer.parameters(), *mlp.parameters()] * (trains and learns)
    for mine, theirs in ((project(layer, x, onto), onto + layer(x)), (perceptron(mlp, x, onto), onto + mlp(x))):
        torch.testing.assert_close(mine, theirs)
        gradients = [torch.autograd.grad(out, wanted, grad, allow_unused=True) if wanted else () for out in (mine, theirs)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_of_frozen_tokens_onto_trained_ones(way, bias):
    """As a side network beside a frozen encoder; of layers with and without a bias."""
    generator = torch.Generator().manual_seed(0)
    mlp, layer = MLPBlock(6, 24).requires_grad_(False), torch.nn.Linear(6, 6, bias=bias).requires_grad_(False)
    mlp.lin2 = torch.nn.Linear(24, 6, bias=bias).requires_grad_(False)
    x, onto = (torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    onto.requires_grad_()
    for mine, theirs in ((project(layer, x, onto), onto + layer(x)), (perceptron(mlp, x, onto), onto + mlp(x))):
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), onto)[0] for out in (mine, theirs)))


@pytest.mark.parametrize("side", [(5, 7), (6, 6)])
@pytest.mark.parametrize("prompts", [0, 2])
def test_positions_by_all_distances_are_those_of_each_pair(side, prompts):
    """Values and gradients, of trained tables too; of frozen ones the distances are kept until a table changes."""
    generator = torch.Generator().manual_seed(0)
    (h, w), c = side, 4
    q = torch.randn(3, h * w + prompts, c, generator=generator).requires_grad_()
    tables = [torch.randn(2 * n - 1, c, generator=generator) for n in side]
    for trains in (False, True):
        found = []
        for of in (partial(_bias_of_whole, side), partial(_bias, side, side, prompts)):
            inputs = [q, *(table.requires_grad_() for table in tables)] if trains else [q]
            bias = of(q, *tables)
            rows, columns = bias.rows[:, : h * w], bias.columns[:, : h * w]
            found.append((rows, columns, *torch.autograd.grad((rows.sin() + 0).sum() + columns.cos().sum(), inputs)))
            assert bias.last is None and not bias.rows[:, h * w :].any() and not bias.columns[:, h * w :].any()
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs)
    frozen = [table.detach() for table in tables]
    first = _distances(*frozen, side, torch.float32)
    assert _distances(*frozen, side, torch.float32) is first
    frozen[0].mul_(2)
    assert torch.equal(_distances(*frozen, side, torch.float32)[: 2 * h - 1], 2 * first[: 2 * h - 1])


@pytest.mark.parametrize("window", [0, 2, 4])
@pytest.mark.parametrize("prompts", [0, 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_in_few_kernels_is_that_of_chunks(window, prompts, kind, monkeypatch):
    """Of 6×7 places that windows of four do not fill, and with trained tables of positions; what an attention is given is not changed."""
    torch.manual_seed(0)
    attn = Attention(16, num_heads=2, use_rel_pos=True, input_size=(window, window) if window else (6, 7))
    for p in attn.parameters():
        torch.nn.init.normal_(p, std=0.3)
    inputs = [torch.randn(2, 6, 7, 16), torch.randn(2, prompts, 16)]
    found = []
    for kernel in ("folded", "chunked"):
        monkeypatch.setattr("bench.model.attention.choose", lambda device, places, kernel=kernel: kernel)
        y, p = (x.to(kind).requires_grad_() for x in (x.clone() for x in inputs))
        out = attention(attn.to(kind), y, window, p)
        asked = [y, *([p] * (prompts > 0)), *attn.parameters()]
        found.append([*out, *torch.autograd.grad((out[0] * 2).sin().sum() + out[1].cos().sum(), asked)])
    for mine, theirs in zip(*found, strict=True):
        error, size = (mine.float() - theirs.float()).norm(), theirs.float().norm()
        assert mine.dtype == kind and error <= (1e-5 if kind == torch.float32 else 3e-2) * size + 1e-6


def test_keys_that_are_kept_are_those_that_are_made():
    """As are those that an evaluation made and a training step takes."""
    given = ((3, 4), 14, True, 3, 0.25, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        kept = kept_ones(*given)
    assert kept is kept_ones(*given) and not kept.is_inference() and torch.equal(kept, _ones(*given))
    assert kept.shape == (14, 3 + 4 + 1 + 3) and kept.unique().tolist() == [0, 4]
    assert torch.equal(kept.sum(1), torch.tensor([8.0] * 12 + [0.0, 4.0]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cat_sam_t", "adaptformer(dropout=0.5)"])
def test_a_compiled_encoder_computes_the_same(method):
    """What a GPU's compiler would get, traced and run without generated code; evaluated in another size of batch."""
    (loss, plain, outputs), compiled = of_path("fast", method, TWO_BLOCKS), started(method, TWO_BLOCKS)
    compiled.encoder.compile_walk("default", "aot_eager")
    assert "encoder=compiled" in compiled.execution
    torch.testing.assert_close(backward(compiled, examples(), 7), loss, rtol=1e-5, atol=1e-6)
    for name, parameter in compiled.tuned().items():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        features = compiled.eval().encode([examples()[0].image])
    torch.testing.assert_close(features.embedding, outputs[0][:1], rtol=1e-4, atol=1e-4)


def test_a_decoder_that_draws_numbers_draws_them_again_in_backward(monkeypatch, sam):
    """Its wide maps are computed again there; other numbers than in forward would be the gradient of something else."""
    monkeypatch.setattr("bench.model.decoder.VALUES_AT_ONCE", {"cpu": 1})
    drawn = []

    class Noisy(Decoder):
        def read(self, weights, upscaled):
            drawn.append((float(torch.rand(1)), implementation()))
            return super().read(weights, upscaled)

    model = PromptableSegmenter(sam, Tuner(), Noisy())
    features = model.encode([torch.ones(3, 64, 64)])
    features.embedding.requires_grad_()
    logits = model.decode_low(features, [Prompts(boxes=torch.ones(3, 4))]).logits[0]
    forward = list(drawn)
    torch.manual_seed(7)
    logits.sum().backward()
    assert len(forward) == 3 and sorted(drawn[3:]) == sorted(forward)


def test_a_trained_bias_of_a_frozen_layer_learns(sam):
    """The fast products are for what is frozen; a method that tunes a part of the backbone itself gets that part's gradient."""
    layer = sam.image_encoder.blocks[0].mlp.lin1
    found = []
    for path in ("fast", "reference"):
        layer.bias.requires_grad_().grad = None
        with use(path):
            bench.build("sam", sam).encode([torch.ones(3, 64, 64)]).embedding.square().sum().backward()
        found.append(layer.bias.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*TRAINED, "vpt_deep(dropout=0.5)"])  # AdaptFormer has dropout by itself
def test_the_whole_encoder_compiles_without_a_break(method):
    """Training, and evaluating where a method does so otherwise, with the kernel that a GPU gets; on two images, which are a variant that
    compiles without a break too."""
    model = started(method, TWO_BLOCKS)
    batch = torch.stack([model._input(example.image) for example in examples()[:2]])
    torch._dynamo.reset()  # it allows few variants of a function, of which other methods' are some
    walk = torch.compile(model.encoder._walk, dynamic=False, fullgraph=True, backend="eager")
    parts = [x.square().mean() for x in walk(batch) if isinstance(x, torch.Tensor)]  # SAM's has no finer maps
    if trained := list(model.encoder.tuner.parameters()):
        assert any(g is not None for g in torch.autograd.grad(sum(parts), trained, allow_unused=True))
    draws = any(layer.p for layer in model.modules() if isinstance(layer, torch.nn.modules.dropout._DropoutNd))
    if draws or method in (*CHEAP, "conv_lora"):  # which takes other experts then
        model.eval()
        with torch.no_grad():
            walk(batch)


@pytest.mark.parametrize("method", ["lora", pytest.param("vpt_shallow(dropout=0.5)", marks=pytest.mark.slow)])
def test_a_model_of_the_same_kind_and_a_last_shorter_batch_compile_nothing_more(method):
    """The shorter batch's gradients are those without padding, where nothing is drawn at random."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for k in range(2):
        model, plain = started(method, TWO_BLOCKS), started(method, TWO_BLOCKS)
        model.encoder.compile_walk("default", backend)
        backward(model, examples()[:2], 7)
        model.zero_grad()
        for one in (model, plain):
            backward(one, examples()[:1], 7)
        with torch.no_grad():
            both, one = (model.eval().encode([e.image for e in examples()[:n]]).embedding for n in (2, 1))
        assert len(compiled) == 2, f"model {k + 1}"  # with gradients, and without
        torch.testing.assert_close(both[:1], one)
        for name, parameter in plain.tuned().items():
            assert model.tuned()[name].grad.isfinite().all()
            if "dropout" not in method:
                torch.testing.assert_close(model.tuned()[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)
