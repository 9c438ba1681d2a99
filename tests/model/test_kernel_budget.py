"""How many kernels a GPU would be sent: counted on "meta", where all of vit_l runs without its numbers."""

import pytest
import torch
import torch.nn.functional as F
from meta_operators import called
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bench
from bench.model.backbones import CONFIGS
from bench.model.method import build
from bench.model.sam import Sam
from bench.training.train import Example, backward
from bench.types import Prompts

META = torch.device("meta")
TRAINING, ENCODING = 2_500, 900  # of vit_l, one image with one box, in float32; before 10,800 and 5,400
NONE = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten._reshape_alias", "aten.detach", "aten.lift_fresh")  # memory, and views
SEVERAL = {  # what one operator sends on a GPU
    "aten.constant_pad_nd.default": 2,
    "aten.slice_backward.default": 2,
    "aten.select_backward.default": 2,
    "aten._scaled_dot_product_efficient_attention_backward.default": 3,
}


class Launches(TorchDispatchMode):
    """Counts kernels, and refuses what would make the host wait for the device, or send it something."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = called(func, args, kwargs or {}), str(func)
        if name == "aten.convolution.default" and args[0].is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)  # as on a GPU and a CPU; "meta" does not know
        tensors = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        launches = any(x.numel() and x.device == META for x in tensors) and not func.is_view and not name.startswith(NONE)
        self.count += SEVERAL.get(name, 1) if launches else 0
        return out


@pytest.fixture
def like_a_gpu(monkeypatch):
    def fused(q, k, v, attn_mask=None, scale=None):  # one operator, as on a GPU; "meta" would take it apart
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, q.requires_grad, scale=scale)[0]

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(F, "dropout", lambda x, p, training, inplace=False: torch.native_dropout(x, p, training)[0] if training else x)
    monkeypatch.setattr("bench.model.attention.choose", lambda device, places: "folded")


METHODS = [name for name in bench.methods() if name != "sam"]


@pytest.mark.parametrize("method", [m if m == "cat_sam_t" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_vit_l_takes_no_more_kernels_than_its_budget(method, like_a_gpu):
    with META:
        model = build(method, Sam(CONFIGS["vit_l"]), seed=0)
    model.sam.to(META)
    model.to(META).train()
    image = torch.zeros(3, 900, 1000, dtype=torch.uint8, device=META)
    example = Example(image, Prompts(boxes=torch.zeros(1, 4, device=META)), torch.zeros(1, 900, 1000, dtype=torch.uint8, device=META))
    optimizer = torch.optim.AdamW(model.tuned().values(), foreach=True)  # as it is on a GPU
    found = []
    for _ in range(2):  # the first step makes what is kept
        with Launches() as step:
            optimizer.zero_grad()
            backward(model, [example], 0)
            optimizer.step()
        found.append(step.count)
    with torch.no_grad(), Launches() as look:
        model.eval().encode([image])
    assert TRAINING / 3 < found[1] <= TRAINING and ENCODING / 3 < look.count <= ENCODING, (found, look.count)
    assert found[1] < found[0]
