"""Conv-LoRA, EVP, SAM-Adapter and Mona against their formulas written out on stock blocks; what can be merged; sizes of files."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import Rectangles, toy_backbone
from torch import nn

import bench
from bench.errors import RequestError
from bench.model.backbones import CONFIGS
from bench.model.implementation import use
from bench.model.method import build
from bench.model.sam import Sam
from bench.training.train import fit, optimizer_of


def moved(name, sam, by=0.2):
    """A model whose tuned weights are away from where they start."""
    model, generator = build(name, sam, seed=2), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += by * torch.randn(weight.shape, generator=generator)
    return model.eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def own(model):
    return {name.removeprefix("tuner."): weight.detach() for name, weight in model.tuned().items()}


def walked(vit, image, step):
    """The stock encoder with `step(i, block, x)` for its blocks."""
    x = vit.patch_embed(image) + vit.pos_embed
    for i, block in enumerate(vit.blocks):
        x = step(i, block, x)
    return vit.neck(x.permute(0, 3, 1, 2))


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def attention_half(block, x):
    block = copy.copy(block)
    block._modules = {**block._modules, "mlp": Nothing()}
    return block(x)


@pytest.mark.parametrize("name", ["evp(reduction=8)", "sam_adapter(reduction=8)"])
def test_explicit_prompts_are_the_formulas(name, sam):
    model, image = moved(name, sam), images()
    w, vit, patch = own(model), sam.image_encoder, sam.config.patch_size
    frequency = np.fft.fftfreq(64, 1 / 64)  # -32 … 31; a quarter of them are low: -16 … 15 in both directions
    low = (frequency >= -16) & (frequency < 16)
    components = np.abs(np.fft.ifft2(np.fft.fft2(image.double().numpy()) * ~np.outer(low, low)).real)
    patches = torch.from_numpy(components).float().unflatten(3, (8, patch)).unflatten(2, (8, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    handcrafted = patches @ w["handcrafted.weight"].flatten(1).T + w["handcrafted.bias"]
    feature = vit.patch_embed(image) @ w["embedding.weight"].T + w["embedding.bias"] + handcrafted

    def step(i, block, x):
        hidden = feature @ w[f"tune.{i}.weight"].T + w[f"tune.{i}.bias"]
        return block(x + (hidden * (1 + torch.erf(hidden / 2**0.5)) / 2) @ w["up.weight"].T + w["up.bias"])

    torch.testing.assert_close(model.encoder(image)[0], walked(vit, image, step), atol=1e-4, rtol=1e-4)


def test_sam_adapters_released_code_mixes_channels_and_places(sam):
    """What its docstring says: with the patch embedding read as the released code reads it, the encoder's output is another one."""
    model, image = moved("sam_adapter(reduction=8)", sam), images()
    mended = model.encoder(image)[0]
    begin = type(model.tuner).begin
    as_released = lambda x: x.reshape(len(x), x.shape[3], -1).mT.reshape(x.shape)  # noqa: E731
    released = lambda image, x: begin(model.tuner, image, as_released(x))  # noqa: E731
    model.tuner.begin = released
    assert (model.encoder(image)[0] - mended).abs().max() > 1e-3
    x = torch.arange(2 * 2 * 3, dtype=torch.float32).view(1, 2, 2, 3)
    assert as_released(x).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def filtered(z, weight, bias):
    """A convolution with zero padding, one offset at a time: z (B, i, h, w), weight (o, i, n, n)."""
    n = weight.shape[-1]
    padded = nn.functional.pad(z, (n // 2,) * 4)
    h, w = z.shape[-2:]
    parts = [torch.einsum("bihw,oi->bohw", padded[..., y : y + h, x : x + w], weight[..., y, x]) for y in range(n) for x in range(n)]
    return sum(parts) + bias[:, None, None]


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def test_mona_is_the_formula(sam):
    model, image = moved("mona(bottleneck=5)", sam), images()
    w = own(model)

    def adapter(name, x):
        p = {key.removeprefix(name): weight for key, weight in w.items() if key.startswith(name)}
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        normed = (x - mean) / (variance + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
        z = (p["norm_scale"] * normed + p["skip_scale"] * x) @ p["down.weight"].T + p["down.bias"]
        z = z.permute(0, 3, 1, 2)
        scales = [
            filtered(z, torch.einsum("oyx,oi->oiyx", p[f"filters.{j}.weight"][:, 0], torch.eye(5)), p[f"filters.{j}.bias"])
            for j in range(3)
        ]
        z = z + (scales[0] + scales[1] + scales[2]) / 3
        z = (z + filtered(z, p["mix.weight"], p["mix.bias"])).permute(0, 2, 3, 1)
        return x + gelu(z) @ p["up.weight"].T + p["up.bias"]

    def step(i, block, x):
        x = adapter(f"after_attention.{i}.", attention_half(block, x))
        return adapter(f"after_mlp.{i}.", x + block.mlp(block.norm2(x)))

    torch.testing.assert_close(model.encoder(image)[0], walked(sam.image_encoder, image, step), atol=1e-4, rtol=1e-4)


def resizing(n, m):
    """Bicubic interpolation of n places to m as a matrix (m, n): Keys' kernel with a = -0.75, the border repeated."""

    def kernel(t):
        t, a = abs(t), -0.75
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = torch.zeros(m, n)
    for out in range(m):
        at = (out + 0.5) * n / m - 0.5
        for place in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[out, min(max(place, 0), n - 1)] += kernel(at - place)
    return matrix


class ConvLoRALayer(nn.Module):
    """In the place of a stock block's qkv, as the original is: one map of tokens at a time, (B·windows, side, side, C)."""

    def __init__(self, qkv, i, w, scale, count):
        super().__init__()
        self.frozen, self.scale, self.count = qkv, scale, count
        self.w = {name: tensor[i] for name, tensor in w.items()}
        self.unbalanced = torch.zeros(count)

    def forward(self, x):
        maps = x @ self.w["a"].T
        drawn = torch.randn(len(x), self.w["gates"].shape[-1]) if self.training else None
        routes = [self.route(z.mean((0, 1)), None if drawn is None else drawn[n]) for n, z in enumerate(maps)]
        added = torch.stack([z + self.expert(z, chosen) for z, (chosen, _) in zip(maps, routes, strict=True)])
        if self.training:
            self.unbalanced = torch.stack(
                [self.spread(routes[n : n + len(x) // self.count]) for n in range(0, len(x), len(x) // self.count)]
            )
        return self.frozen(x) + self.scale * added @ self.w["b"].T

    def route(self, mean, drawn):
        clean = [sum(mean[c] * column[c] for c in range(len(mean))).item() for column in self.w["gates"].T]
        if drawn is None:
            return clean.index(max(clean)), None
        deviation = [math.log1p(math.exp(mean @ column)) + 0.01 for column in self.w["deviations"].T]
        noisy = [c + s * n for c, s, n in zip(clean, deviation, drawn.tolist(), strict=True)]
        chances = []
        for e, (c, s) in enumerate(zip(clean, deviation, strict=True)):
            rival = max(value for other, value in enumerate(noisy) if other != e)
            chances.append((1 + math.erf((c - rival) / s / 2**0.5)) / 2)
        return noisy.index(max(noisy)), tuple(chances)

    def expert(self, z, e):
        side = len(z)
        up, down = resizing(side, side * (e + 1)), resizing(side * (e + 1), side)
        large = torch.einsum("yh,xw,hwc->cyx", up, up, z)[None]
        out = gelu(filtered(large, self.w["filters"][e], self.w["biases"][e]))[0]
        return torch.einsum("yh,xw,chw->yxc", down, down, out)

    def spread(self, routes):
        experts = range(self.w["gates"].shape[-1])
        importance = torch.tensor([float(sum(chosen == e for chosen, _ in routes)) for e in experts])
        load = torch.tensor([sum(chances[e] for _, chances in routes) for e in experts])
        return sum(values.var() / values.mean() ** 2 for values in (importance, load))


@pytest.mark.parametrize("training", [False, True])
def test_conv_lora_is_a_layer_in_the_place_of_the_projection(sam, training):
    model, image = moved("conv_lora(rank=2,alpha=3.0,experts=3)", sam).train(training), images()
    stock = toy_backbone().image_encoder
    for i, block in enumerate(stock.blocks):
        block.attn.qkv = ConvLoRALayer(block.attn.qkv, i, own(model), 1.5, len(image)).train(training)
    torch.manual_seed(11)
    expected = stock(image)
    penalty = 0.01 * sum(block.attn.qkv.unbalanced for block in stock.blocks)
    assert training == bool(penalty.min() > 0)
    for path in ("fast", "reference"):
        torch.manual_seed(11)
        with use(path):
            out, _, own_penalty, _ = model.encoder.with_penalty(image)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
        assert training or own_penalty is None
        if training:
            torch.testing.assert_close(own_penalty, penalty, atol=1e-6, rtol=1e-4)


class Step(nn.Module):
    """Block 0, which is windowed, as a module."""

    def __init__(self, model):
        super().__init__()
        self.tuner, self.block = model.tuner, model.sam.image_encoder.blocks[0]

    def forward(self, x):
        return self.tuner.step(0, self.block, x, self.tuner.prepared())[0]


def test_conv_lora_has_a_graph_of_fixed_shapes(sam):
    """As an exporter wants it: which experts are asked must not follow from the image that it is shown."""
    step, x = Step(moved("conv_lora(rank=2,experts=3)", sam)).eval(), torch.randn(1, 8, 8, sam.config.width)
    with use("reference"), torch.no_grad():
        graph = torch.export.export(step, (torch.zeros_like(x),)).module()
        torch.testing.assert_close(graph(x), step(x), atol=1e-4, rtol=1e-4)


def test_the_penalty_is_trained(smoke):
    model, data = build("conv_lora", toy_backbone()), Rectangles()
    logs = list(fit(model, optimizer_of(model, smoke), data, data.support(1), smoke, 0))
    assert all(log.loss > log.bce + log.dice + 1e-4 for log in logs)
    assert model.tuned()["tuner.gates"].abs().max() > 0


@pytest.mark.parametrize("name", ["sam", "dora(rank=3,alpha=6)", "ia3"])
def test_merged_weights_are_the_tuned_model_for_a_stock_sam(name, sam):
    model, stock, image = moved(name, sam), toy_backbone().image_encoder, images()
    merged = model.tuner.merged(sam.image_encoder)
    assert not any(tensor.requires_grad for tensor in merged.values())
    stock.load_state_dict({**stock.state_dict(), **merged})
    torch.testing.assert_close(stock(image), model.encoder(image)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv_lora", "evp", "sam_adapter", "mona"])
def test_what_depends_on_the_image_is_not_merged(name, sam):
    assert build(name, sam).tuner.merged(sam.image_encoder) is None


def test_files_are_at_most_20_mb_on_vit_l_but_for_mona():
    """Mona at its authors' bottleneck of 64 is 28 MB there; at 45 it fits."""
    with torch.device("meta"):
        big = Sam(CONFIGS["vit_l"])
        size = {
            name: 4 * sum(p.numel() for p in build(name, big).tuned().values())
            for name in ("dora", "ia3", "conv_lora", "evp", "sam_adapter", "mona", "mona(bottleneck=45)")
        }
    assert size.pop("mona") == 28_016_640
    assert max(size.values()) < 20e6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dora(rank=0)", "at least 1"),
        ("conv_lora(experts=1)", "at least 2"),
        ("mona(bottleneck=0)", "at least 1"),
        ("evp(reduction=65)", "at most 64"),
        ("cat_sam_a(reduction=65)", "at most 64"),
        ("cat_sam_a(reduction=0)", "at least 1"),
        ("cat_sam_t(hidden=0)", "at least 1"),
        ("lora(rank=0)", "at least 1"),
        ("adaptformer(bottleneck=0)", "at least 1"),
        ("adaptformer(dropout=-0.1)", "at least 0"),
        ("mona(dropout=1.5)", "at most 1"),
        ("vpt_shallow(tokens=0)", "at least 1"),
        ("vpt_deep(dropout=2)", "at most 1"),
    ],
)
def test_an_impossible_parameter_gets_one_sentence(name, says, sam):
    with pytest.raises(RequestError, match=says):
        bench.build(name, sam)
