"""The fast path computes what the plain one does: outputs and gradients of every method, and each kernel and product by itself."""

import pytest
import torch
from test_levers import TRAINED, examples, started

import bench
from bench.attention import ATTENTION
from bench.kernels import Bias
from bench.paths import use
from bench.products import product
from bench.train import backward

METHODS = [*TRAINED, "lora(decoder=hq)"]


def of_path(path, method):
    with use(path):
        model = started(method)
        loss = backward(model, examples(), 7)
        gradients = {name: p.grad for name, p in model.tuned().items()}
        with torch.no_grad():
            features = model.eval().encode([e.image for e in examples()])
            return loss, gradients, [features.embedding, *model.decode(features, [e.prompts for e in examples()])]


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_those_of_the_plain_path(method):
    (loss, gradients, outputs), (plain_loss, plain, plain_outputs) = of_path("fast", method), of_path("plain", method)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(outputs, plain_outputs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    for name, gradient in plain.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize("frozen_tables", [True, False])
def test_a_kernels_values_and_gradients_are_those_of_attention_written_out(kernel, frozen_tables, monkeypatch):
    """5×7 places and two more keys, of which the last has a logit of its own; in chunks of a few queries, and of several heads."""
    generator = torch.Generator().manual_seed(0)
    heads, h, w, extra, c = 3, 5, 7, 2, 8
    q, k, v = (torch.randn(heads, h * w + (0 if i == 0 else extra), c, generator=generator) for i in range(3))
    tables = torch.randn(h, c, generator=generator), torch.randn(w, c, generator=generator)
    grad = torch.randn(heads, h * w, c, generator=generator)

    def bias_of(q, table_h, table_w):
        return Bias(q @ table_h.T, q @ table_w.T, q.sum(-1, keepdim=True))

    def written_out(q, k, v, bias_of, tables, scale):
        bias = bias_of(q, *tables)
        logits = q @ k.mT * scale
        places = (bias.rows[..., None] + bias.columns[..., None, :]).flatten(-2)
        return (logits + torch.cat([places, torch.zeros_like(bias.last), bias.last], -1)).softmax(-1) @ v

    def values(function):
        inputs = [x.clone().requires_grad_(i < 3 or not frozen_tables) for i, x in enumerate((q, k, v, *tables))]
        out = function(*inputs[:3], bias_of, tuple(inputs[3:]), 0.3)
        return [out, *torch.autograd.grad(out, inputs[: 3 if frozen_tables else 5], grad)]

    for logits_at_once in (60, 3000):
        monkeypatch.setattr("bench.kernels.LOGITS_AT_ONCE", logits_at_once)
        for mine, theirs in zip(values(ATTENTION[kernel]), values(written_out), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 0, 6), (6,)])
@pytest.mark.parametrize("learns", ["", "weight", "bias"])
def test_a_product_is_that_of_a_linear_layer(shape, learns):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in (shape, (4, 6), (4,)))
    inputs = [x.requires_grad_(), weight.requires_grad_(learns == "weight"), bias.requires_grad_(learns == "bias")]
    mine, theirs = product(*inputs), torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(mine, theirs)
    wanted = [one for one in inputs if one.requires_grad]
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_trained_bias_of_a_frozen_layer_learns(sam):
    """The fast products are for what is frozen; a method that tunes a part of the backbone itself gets that part's gradient."""
    layer = sam.image_encoder.blocks[0].mlp.lin1
    found = []
    for path in ("fast", "plain"):
        layer.bias.requires_grad_().grad = None
        with use(path):
            bench.build("sam", sam).encode([torch.ones(3, 64, 64)]).embedding.square().sum().backward()
        found.append(layer.bias.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
