"""What Hugging Face peft makes of the toy backbone: run by test_peft.py in a process of its own, outside the project's root, because
peft may look for a package named `datasets`.

Reads case.pt from the working folder, writes oracle.pt: by case, the neck's output, and what is trained as it starts and its gradients,
under this project's names.
"""

import importlib.util
import sys
import types
from functools import partial

import torch
from torch import nn

parent = types.ModuleType("segment_anything")  # its own top level needs torchvision
parent.__path__ = list(importlib.util.find_spec("segment_anything").submodule_search_locations)
sys.modules["segment_anything"] = parent

from peft import IA3Config, LoraConfig, get_peft_model  # noqa: E402
from segment_anything.modeling import ImageEncoderViT  # noqa: E402

ALL = ["q", "k", "v", "attn.proj", "lin1", "lin2"]
CONFIGS = {
    "lora": LoraConfig(r=3, lora_alpha=6, target_modules=["q", "v"]),
    "lora of all": LoraConfig(r=3, lora_alpha=6, target_modules=ALL, layers_to_transform=[0, 2], layers_pattern="blocks"),
    "rslora": LoraConfig(r=3, lora_alpha=6, target_modules=["k", "lin2"], use_rslora=True),
    "pissa": LoraConfig(r=3, lora_alpha=6, target_modules=["q", "v", "lin1"], init_lora_weights="pissa"),
    "dora": LoraConfig(r=3, lora_alpha=6, target_modules=["q", "v"], use_dora=True),
    "dora of all": LoraConfig(r=3, lora_alpha=6, target_modules=ALL, use_dora=True, layers_to_transform=[1], layers_pattern="blocks"),
    "ia3": IA3Config(target_modules=["k", "v", "lin2"], feedforward_modules=["lin2"]),
}


class Split(nn.Module):
    """The fused projection as three layers, so that peft can name them."""

    def __init__(self, qkv):
        super().__init__()
        c = qkv.in_features
        self.q, self.k, self.v = (nn.Linear(c, c) for _ in range(3))
        for layer, weight, bias in zip((self.q, self.k, self.v), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(bias)

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def encoder(tensors):
    vit = ImageEncoderViT(
        img_size=64,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=2,
        window_size=3,
        global_attn_indexes=(1, 2),
        out_chans=32,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    vit.load_state_dict({name.removeprefix("image_encoder."): t for name, t in tensors.items() if name.startswith("image_encoder.")})
    for block in vit.blocks:
        block.attn.qkv = Split(block.attn.qkv)
    return vit


def named(vit):
    """(this project's name, index in its tensor, peft's parameter) of whatever peft has added."""
    tuned = [block for block in vit.blocks if any(".lora_" in name or ".ia3_" in name for name, _ in block.named_parameters())]
    for i, block in enumerate(tuned):
        qkv, mlp = block.attn.qkv, block.mlp
        layers = {"": [qkv.q, qkv.k, qkv.v], "proj_": [block.attn.proj], "lin1_": [mlp.lin1], "lin2_": [mlp.lin2]}
        for prefix, parts in layers.items():
            for j, layer in enumerate(part for part in parts if hasattr(part, "lora_A")):
                yield f"{prefix}a", (i, j), layer.lora_A["default"].weight
                yield f"{prefix}b", (i, j), layer.lora_B["default"].weight
                if layer.lora_magnitude_vector:
                    yield f"{prefix}magnitude", (i, j), layer.lora_magnitude_vector["default"].weight
        for name, layer in (("keys", qkv.k), ("values", qkv.v), ("hidden", block.mlp.lin2)):
            if hasattr(layer, "ia3_l"):
                yield name, (i,), layer.ia3_l["default"]


case, found = torch.load("case.pt"), {}
for method, tuned in case["tuned"].items():
    vit = get_peft_model(encoder(case["sam"]), CONFIGS[method]).base_model.model
    gradients, starts = ({name: torch.full_like(tensor, torch.nan) for name, tensor in tuned.items()} for _ in range(2))
    for name, index, parameter in named(vit):
        starts[name][index] = parameter.detach().view_as(starts[name][index])
        parameter.data.copy_(tuned[name][index].view_as(parameter))
    out = vit(case["image"])
    (out * case["probe"]).sum().backward()
    for name, index, parameter in named(vit):
        gradients[name][index] = parameter.grad.view_as(gradients[name][index])
    found[method] = {"out": out.detach(), "gradients": gradients, "starts": starts}
torch.save(found, "oracle.pt")
