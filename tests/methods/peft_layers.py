"""The toy backbone with Hugging Face peft's layers in it, and its encoder's outputs and gradients beside this project's."""

from copy import deepcopy

import pytest
import torch
from conftest import toy_backbone
from torch import nn

from bench.model.linear_layers import LAYERS, THIRDS
from bench.model.method import build

CLOSE = 1e-5  # of the largest value


class Thirds(nn.Module):
    """The fused projection as three layers, so that peft can name them."""

    def __init__(self, qkv):
        super().__init__()
        for name, weight, bias in zip(THIRDS, qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
            layer = nn.Linear(weight.shape[1], len(weight))
            layer.load_state_dict({"weight": weight, "bias": bias})
            setattr(self, name, layer)

    def forward(self, x):
        return torch.cat([getattr(self, name)(x) for name in THIRDS], -1)


class Flat(nn.Module):
    """A layer of one token after the other: peft's OFT takes (B, h, w, C), which SAM's layers get, for a convolution's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def moved(call, step=0.2):
    """A model whose tuned weights are away from where they start."""
    model, generator = build(call, toy_backbone(), seed=2), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += step * torch.randn(weight.shape, generator=generator)
    return model.eval()


def with_peft(model, config):
    """The same encoder with peft's layers, and those by block and name."""
    peft = pytest.importorskip("peft")
    vit, names = deepcopy(model.sam.image_encoder), list(model.tuner.layers)
    for block in vit.blocks:
        block.attn.qkv = Thirds(block.attn.qkv) if set(names) & set(THIRDS) else block.attn.qkv
    paths = {name: f"attn.qkv.{name}" if name in THIRDS else LAYERS[name] for name in names}
    config.target_modules = {f"blocks.{i}.{path}" for i in range(len(vit.blocks)) for path in paths.values()}
    theirs = peft.get_peft_model(vit, config).base_model.model
    layers = [(i, name, block.get_submodule(path)) for i, block in enumerate(theirs.blocks) for name, path in paths.items()]
    for i, name, layer in layers:
        theirs.blocks[i].set_submodule(paths[name], Flat(layer))
    return theirs, layers


def assert_same(model, theirs, pairs):
    """Outputs, and gradients: pairs of this project's parameter, its index, peft's and how its gradient becomes this project's."""
    generator = torch.Generator().manual_seed(1)
    image, probe = torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 32, 8, 8, generator=generator)
    out, expected = model.encoder(image)[0], theirs(image)
    assert_close(out, expected)
    for said in (out, expected):
        (said * probe).sum().backward()
    for own, index, parameter, back in pairs:
        assert_close(own.grad[index], back(parameter.grad))


def assert_close(found, expected):
    largest = expected.abs().max()
    assert largest > 0
    torch.testing.assert_close(found / largest, expected / largest, atol=CLOSE, rtol=0)
