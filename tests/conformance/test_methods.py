"""One conformance suite for every registered method, and each method against an independent oracle."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from bench.conformance import methods
from bench.conformance.checks import examined
from bench.conformance.methods import METHOD_CHECKS
from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.spec import MethodChoice, choose_method
from bench.model.decoder import Decoder, HQDecoder
from bench.model.implementation import use
from bench.model.method import build
from bench.model.sam import attend, feed_forward
from bench.training.train import batch_of
from bench.types import Prompts

ENCODER_METHODS = [name for name in METHODS.names() if "decoder" in METHODS.get(name).__dataclass_fields__]
IN_DECODER = ["decoder(how=lora)", "adaptformer(decoder=lora(rank=2,targets=qkv+proj+mlp))"]
ALL = [*METHODS.names(), *(f"{name}(decoder=hq)" for name in ENCODER_METHODS), *IN_DECODER]
TRAINED = [name for name in ALL if name != "sam"]


subject = cache(methods.MethodSubject)  # each method is trained once for all its checks
ALONE = [
    methods.describes_itself,
    methods.leaves_the_backbone_as_it_is,
    methods.every_parameter_learns,
    methods.same_seed_same_numbers,
    methods.saved_and_loaded_is_the_same_model,
]
REST = [check for check in METHOD_CHECKS if check not in ALONE]


def by_method(names):
    """One worker takes all tests of a method, which is trained once for them."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@pytest.mark.parametrize("name", by_method(ALL))
def test_describes_itself(name):
    methods.describes_itself(subject(name))


@pytest.mark.parametrize("name", by_method(TRAINED))
def test_training_touches_the_methods_own_parameters_only(name):
    methods.leaves_the_backbone_as_it_is(subject(name))
    methods.every_parameter_learns(subject(name))


@pytest.mark.parametrize("name", by_method(TRAINED))
def test_same_seed_same_numbers_other_seed_other_numbers(name):
    methods.same_seed_same_numbers(subject(name))
    losses = [log.loss for log in subject(name).train(subject(name).fresh(seed=1), seed=1)]
    assert losses != [log.loss for log in subject(name).trained[1]]


@pytest.mark.parametrize("name", by_method(TRAINED))
def test_saved_and_loaded_gives_the_same_logits(name):
    methods.saved_and_loaded_is_the_same_model(subject(name))


@pytest.mark.parametrize("name", by_method([*METHODS.names(), IN_DECODER[0]]))
def test_nothing_else_of_the_suite_is_broken(name):
    found = list(examined(REST, subject(name)))
    assert [finding for finding in found if finding.verdict == "broken"] == []


@pytest.mark.parametrize(
    "name", by_method(["vpt_deep(gated=True)", "lora", "adaptformer", "decoder", "full", "bitfit", "layernorm", "dora", "ia3", "conv_lora"])
)
def test_starts_as_the_frozen_model(name):
    methods.starts_as_the_frozen_model(subject(name))


# methods.md section 4: trainable parameters of vit_b, vit_l, vit_h; those of SAM's own weights from C, N and d
COUNTS = {
    "sam": (0, 0, 0),
    "hq_sam": (1_071_104, 1_333_248, 1_595_392),
    "cat_sam_t": (1_867_520, 3_325_440, 4_784_128),
    "cat_sam_a": (1_466_960, 1_848_128, 2_246_480),
    "lora": (147_456, 393_216, 655_360),
    "adaptformer": (1_189_632, 3_171_840, 5_285_888),
    "vpt_shallow(tokens=1)": (768, 1_024, 1_280),
    "vpt_deep(tokens=1)": (9_216, 24_576, 40_960),
    "dora": (165_888, 442_368, 737_280),  # 18·C·N
    "ia3": (55_296, 147_456, 245_760),  # 6·C·N
    "conv_lora": (119_232, 312_192, 514_560),  # (12·C + 720)·N
    "evp": (63_312, 116_544, 186_960),
    "sam_adapter": (63_312 + 3_506_304, 116_544 + 3_506_304, 186_960 + 3_506_304),
    "mona": (2_684_928, 7_004_160, 11_517_952),  # 2·(133·C + 9728)·N
    "decoder": (3_506_304,) * 3,  # of 4_058_340, without the IoU head's 132_612 and three hypernetworks of 139_808
    "full": (89_670_912 + 3_506_304, 308_278_272 + 3_506_304, 637_026_048 + 3_506_304),
    "bitfit": (102_656, 271_872, 452_352),  # C(1 + 11N) + 2d
    "layernorm": (37_888, 99_328, 164_864),  # 4CN + 4d
    "ssf": (205_312, 543_744, 904_704),  # C(2 + 22N) + 4d
    "lora(decoder=tuned)": (147_456 + 3_506_304, 393_216 + 3_506_304, 655_360 + 3_506_304),
    "decoder(how=lora)": (23_552,) * 3,  # r·2·(2·512 + 4·384 + 384): two self-attentions, four across, the last
    "lora(decoder=lora(rank=8))": (147_456 + 47_104, 393_216 + 47_104, 655_360 + 47_104),
    "lora(decoder=hq)": (147_456 + 1_071_104, 393_216 + 1_333_248, 655_360 + 1_595_392),
}


@pytest.mark.parametrize("backbone", range(3))
def test_trainable_parameters_are_the_published_numbers(backbone):
    for name, counts in COUNTS.items():
        assert methods.parameters_on(name, methods.SIZES[backbone]) == counts[backbone], name


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


def test_dropout_is_the_steps_own():
    """The dropout of a step depends on seed and step alone, not on what ran before in the process."""
    methods.same_seed_same_numbers(subject("adaptformer(dropout=0.5)"))


def test_a_batch_holds_what_its_settings_say(smoke, rectangles):
    examples = batch_of(rectangles, ("train0", "train1", "train2"), replace(smoke, batch=2), 0, 0, 1, grid=8)
    assert len(examples) == 1 and examples[0].image.shape[0] == 3 and len(examples[0].prompts) == len(examples[0].target)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lorra", "lora"),
        ("lora(rnk=3)", "rank"),
        ("lora(rank='big')", "int"),
        ("lora(decoder=sem)", "Unknown decoder 'sem'. Did you mean sam? Known: bitfit, hq, layernorm, lora, sam, tuned."),
        ("lora(rank=", "write a name"),
    ],
)
def test_a_wrong_name_or_parameter_gets_one_sentence(name, says, sam):
    with pytest.raises(RequestError) as error:
        build(name, sam)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_hq_sam_adds_sams_own_logits_only_where_it_is_asked_to_and_not_in_training(sam, path):
    """With one set of weights: HQ-SAM's output is the HQ mask's logits plus those of SAM's single-mask token in the same decoder."""
    alone, summed = build("hq_sam", sam), build("hq_sam(add_sam_logits=True)", sam)
    summed.load_tuned(alone.tuned())

    class OfSamsToken(HQDecoder):
        weights, masks, read, image_places = Decoder.weights, Decoder.masks, Decoder.read, Decoder.image_places

    theirs = OfSamsToken(sam)
    theirs.load_state_dict(alone.decoder.state_dict())
    prompts = [Prompts(boxes=torch.tensor([[3.0, 4, 30, 35], [20, 10, 60, 60]])), Prompts()]
    with use(path), torch.no_grad():
        features = alone.encode([torch.rand(3, 40, 50) * 255, torch.rand(3, 64, 64) * 255])
        found = [decoder.eval()(sam, features, prompts).logits for decoder in (alone.decoder, theirs, summed.decoder)]
        trained = summed.decoder.train()(sam, features, prompts).logits
    for hq, own, both, training in zip(*found, trained, strict=True):
        torch.testing.assert_close(both, hq + own, atol=1e-5, rtol=1e-4)
        assert own.abs().max() > 1e-2 and torch.equal(training, hq)


def test_a_parameter_that_came_later_is_in_a_key_only_where_it_is_used():
    hq = METHODS.get("hq_sam")
    assert choose_method(hq, {}) == choose_method(hq, {"add_sam_logits": False}) == MethodChoice("hq_sam", (), 1, "", ("hq",))
    assert choose_method(hq, {"add_sam_logits": True}).label == "hq_sam(add_sam_logits=True)"
    assert choose_method(hq, {"add_sam_logits": True}).parameters == (("add_sam_logits", True),)


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
def test_vpt_draws_dropout_for_each_image(sam, name):
    model, seen = build(f"{name}(dropout=0.5)", sam).train(), []
    sam.image_encoder.blocks[0].norm1.register_forward_hook(lambda layer, given, out: seen.append(given[0]))
    model.encode([torch.rand(3, 64, 64) * 255] * 3)
    (tokens,) = [x for x in seen if x.shape[:2] == (3, 5)]
    dropped = tokens == 0
    assert 0.3 < dropped.float().mean() < 0.7 and not torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[1], dropped[2])
    cls = METHODS.get(name)
    assert [choose_method(cls, {"dropout": p}).revision for p in (0.0, 0.1)] == [1, 2]  # without dropout nothing changed
