"""One conformance suite for every registered method, and each method against an independent oracle."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import toy_backbone
from torch import nn

from bench import conformance_methods
from bench.conformance import examined
from bench.conformance_methods import METHOD_CHECKS
from bench.errors import RequestError
from bench.method import build
from bench.registry import METHODS
from bench.sam import attend, feed_forward
from bench.train import batch_of

ENCODER_METHODS = [name for name in METHODS.names() if "decoder" in METHODS.get(name).__dataclass_fields__]
ALL = [*METHODS.names(), *(f"{name}(decoder=hq)" for name in ENCODER_METHODS)]
TRAINED = [name for name in ALL if name != "sam"]


subject = cache(conformance_methods.MethodSubject)  # each method is trained once for all its checks
ALONE = [
    conformance_methods.describes_itself,
    conformance_methods.leaves_the_backbone_as_it_is,
    conformance_methods.every_parameter_learns,
    conformance_methods.same_seed_same_numbers,
    conformance_methods.saved_and_loaded_is_the_same_model,
]
REST = [check for check in METHOD_CHECKS if check not in ALONE]


@pytest.mark.parametrize("name", ALL)
def test_describes_itself(name):
    conformance_methods.describes_itself(subject(name))


@pytest.mark.parametrize("name", TRAINED)
def test_training_touches_the_methods_own_parameters_only(name):
    conformance_methods.leaves_the_backbone_as_it_is(subject(name))
    conformance_methods.every_parameter_learns(subject(name))


@pytest.mark.parametrize("name", TRAINED)
def test_same_seed_same_numbers_other_seed_other_numbers(name):
    conformance_methods.same_seed_same_numbers(subject(name))
    losses = [log.loss for log in subject(name).train(subject(name).fresh(seed=1), seed=1)]
    assert losses != [log.loss for log in subject(name).trained[1]]


@pytest.mark.parametrize("name", TRAINED)
def test_saved_and_loaded_gives_the_same_logits(name):
    conformance_methods.saved_and_loaded_is_the_same_model(subject(name))


@pytest.mark.parametrize("name", METHODS.names())
def test_nothing_else_of_the_suite_is_broken(name):
    found = list(examined(REST, subject(name)))
    assert [finding for finding in found if finding.verdict == "broken"] == []


@pytest.mark.parametrize("name", ["lora", "adaptformer"])
def test_starts_as_the_frozen_model(name):
    conformance_methods.starts_as_the_frozen_model(subject(name))


# methods.md section 4: trainable parameters of vit_b, vit_l, vit_h
COUNTS = {
    "sam": (0, 0, 0),
    "hq_sam": (1_071_104, 1_333_248, 1_595_392),
    "cat_sam_t": (1_867_520, 3_325_440, 4_784_128),
    "cat_sam_a": (1_466_960, 1_848_128, 2_246_480),
    "lora": (147_456, 393_216, 655_360),
    "adaptformer": (1_189_632, 3_171_840, 5_285_888),
    "vpt_shallow(tokens=1)": (768, 1_024, 1_280),
    "vpt_deep(tokens=1)": (9_216, 24_576, 40_960),
    "lora(decoder=hq)": (147_456 + 1_071_104, 393_216 + 1_333_248, 655_360 + 1_595_392),
}


@pytest.mark.parametrize("backbone", range(3))
def test_trainable_parameters_are_the_published_numbers(backbone):
    for name, counts in COUNTS.items():
        assert conformance_methods.parameters_on(name, conformance_methods.SIZES[backbone]) == counts[backbone], name


def test_prompts_are_initialised_as_in_vpt(sam):
    tokens = build("vpt_deep(tokens=50)", sam).tuned()["tuner.tokens"]
    bound = (6 / (3 * sam.config.patch_size**2 + sam.config.width)) ** 0.5
    assert 0.98 * bound < tokens.abs().max() <= bound and abs(tokens.std() - bound / 3**0.5) < 0.01


def test_deep_prompts_are_normed_like_image_tokens_and_their_outputs_dropped(sam):
    model, x = build("vpt_deep(tokens=2)", sam, seed=4), torch.randn(2, 8, 8, sam.config.width)
    block = sam.image_encoder.blocks[1]
    out, carry = model.tuner.step(1, block, x, None)
    tokens = model.tuned()["tuner.tokens"][1].expand(2, -1, -1)
    assert carry is None
    torch.testing.assert_close(out, feed_forward(block, attend(block, x, block.norm1(tokens))[0]))


def test_shallow_prompts_travel_like_one_more_row_of_a_global_block(sam):
    """In a global block without relative positions, prompts and image tokens are one sequence: stock attention on both."""
    block = sam.image_encoder.blocks[1]
    nn.init.zeros_(block.attn.rel_pos_h)
    nn.init.zeros_(block.attn.rel_pos_w)
    model, x = build("vpt_shallow(tokens=8)", sam, seed=4), torch.randn(1, 8, 8, sam.config.width)
    tokens = model.tuner.begin(x, x)
    out, carry = model.tuner.step(1, block, x, tokens)
    block.attn.use_rel_pos = False
    both = block(torch.cat([tokens[:, None], x], 1))  # (1, 1 + 8, 8, C)
    torch.testing.assert_close(out, both[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(carry, both[:, 0], atol=1e-5, rtol=1e-5)


def test_adaptformer_reads_x_before_the_norm(sam):
    """Equation 5 of the paper, with stock's own halves written out."""
    model, x = build("adaptformer(bottleneck=7,scale=0.3,dropout=0.0)", sam), torch.randn(1, 8, 8, sam.config.width)
    adapter, block = model.tuner.adapters[1], sam.image_encoder.blocks[1]
    nn.init.normal_(adapter.up.weight)
    y = x + block.attn(block.norm1(x))
    expected = y + block.mlp(block.norm2(y)) + 0.3 * (torch.relu(y @ adapter.down.weight.T) @ adapter.up.weight.T)
    torch.testing.assert_close(model.tuner.step(1, block, x, None)[0], expected, atol=1e-5, rtol=1e-5)


def test_lora_equals_peft(tmp_path):
    """In a process of its own outside the project's root: peft may look for a package named `datasets`."""
    sam = toy_backbone()
    model = build("lora(rank=3,alpha=6)", sam, seed=2)
    for p in model.tuned().values():
        nn.init.normal_(p, std=0.2)
    image = torch.randn(1, 3, 64, 64)
    tuned = {n.removeprefix("tuner."): p.detach() for n, p in model.tuned().items()}
    torch.save({"sam": sam.state_dict(), "tuned": tuned, "image": image, "out": model.encoder(image)[0].detach()}, tmp_path / "case.pt")
    (tmp_path / "oracle.py").write_text(PEFT_ORACLE)
    done = subprocess.run([sys.executable, "oracle.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-4


PEFT_ORACLE = """
import importlib.util, sys, types
import torch
from torch import nn
parent = types.ModuleType("segment_anything")
parent.__path__ = list(importlib.util.find_spec("segment_anything").submodule_search_locations)
sys.modules["segment_anything"] = parent
from segment_anything.modeling import ImageEncoderViT
from functools import partial
from peft import LoraConfig, get_peft_model

class Split(nn.Module):  # the fused projection as three layers, so that peft can name q and v
    def __init__(self, qkv):
        super().__init__()
        c = qkv.in_features
        self.q, self.k, self.v = (nn.Linear(c, c) for _ in range(3))
        for layer, w, b in zip((self.q, self.k, self.v), qkv.weight.chunk(3), qkv.bias.chunk(3)):
            layer.weight.data.copy_(w); layer.bias.data.copy_(b)
    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

case = torch.load("case.pt")
vit = ImageEncoderViT(img_size=64, patch_size=8, embed_dim=64, depth=3, num_heads=2, window_size=3, global_attn_indexes=(1, 2),
                      out_chans=32, use_rel_pos=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
vit.load_state_dict({k[14:]: v for k, v in case["sam"].items() if k.startswith("image_encoder.")})
for block in vit.blocks:
    block.attn.qkv = Split(block.attn.qkv)
model = get_peft_model(vit, LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules=["q", "v"]))
for i, block in enumerate(model.base_model.model.blocks):
    for j, layer in enumerate((block.attn.qkv.q, block.attn.qkv.v)):
        layer.lora_A["default"].weight.data.copy_(case["tuned"]["a"][i, j])
        layer.lora_B["default"].weight.data.copy_(case["tuned"]["b"][i, j])
with torch.no_grad():
    print((model.base_model.model(case["image"]) - case["out"]).abs().max().item())
"""


def test_dropout_is_the_steps_own():
    """The dropout of a step depends on seed and step alone, not on what ran before in the process."""
    conformance_methods.same_seed_same_numbers(subject("adaptformer(dropout=0.5)"))


def test_a_batch_holds_what_its_settings_say(smoke, rectangles):
    examples = batch_of(rectangles, ("train0", "train1", "train2"), replace(smoke, batch=2), 0, 0, 1, grid=8)
    assert len(examples) == 1 and examples[0].image.shape[0] == 3 and len(examples[0].prompts) == len(examples[0].target)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lorra", "lora"),
        ("lora(rnk=3)", "rank"),
        ("lora(rank='big')", "int"),
        ("lora(decoder=sem)", "sam and hq"),
        ("lora(rank=", "write a name"),
    ],
)
def test_a_wrong_name_or_parameter_gets_one_sentence(name, says, sam):
    with pytest.raises(RequestError) as error:
        build(name, sam)
    assert says in str(error.value) and "\n" not in str(error.value)
