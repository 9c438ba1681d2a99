"""Where a method tunes: words for blocks and their parts, and the stand-ins for a block's layers."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from conftest import toy_backbone

import bench
from bench.conformance.methods import parameters_on
from bench.errors import RequestError
from bench.grid.catalogue import catalogue, main
from bench.grid.plan import choose_methods
from bench.model.implementation import use
from bench.model.sam import attend, feed_forward
from bench.run import main as run

WORDS = {  # of the 6 blocks of "tiny", of which 2 and 5 are global
    "all": (0, 1, 2, 3, 4, 5),
    "first2": (0, 1),
    "last1": (5,),
    "global": (2, 5),
    "windowed": (0, 1, 3, 4),
    "3": (3,),
    "1-3": (1, 2, 3),
    "4-": (4, 5),
    "0+2-3+5-": (0, 2, 3, 5),
    "global+last1+0": (0, 2, 5),
}


@pytest.fixture(scope="module")
def tiny():
    return bench.load_sam("tiny")


@pytest.mark.parametrize("word", WORDS)
def test_words_for_blocks(word, tiny):
    model = bench.build(f"adaptformer(blocks={word})", tiny)
    assert model.tuner.tuned_blocks == WORDS[word] and len(model.tuner.adapters) == len(WORDS[word])
    (choice,) = choose_methods(f"adaptformer(blocks={word})")
    assert choice.label == ("adaptformer(decoder=sam)" if word == "all" else f"adaptformer(decoder=sam,blocks={word})")
    assert ("blocks" in dict(choice.parameters)) == (word != "all") and choose_methods(choice.label) == [choice]


def test_lora_says_where_it_is():
    """By default it is what it was before there was a choice, and so is its key; an older spelling still reads its cells."""
    (default,) = choose_methods("lora")
    assert default.parameters == (("decoder", "sam"), ("rank", 4), ("alpha", 0.0)) and default.label == "lora(decoder=sam)"
    assert choose_methods("lora(targets=q+v,blocks=all,scaling=lora,init=zero,b_rate=1.0)") == [default]
    (older,) = choose_methods("lora(first_block=8)")
    assert older.parameters == (*default.parameters, ("first_block", 8)) and older.label == "lora(decoder=sam,first_block=8)"
    (placed,) = choose_methods("lora(targets=qkv+proj+mlp,blocks=last6,rank=8)")
    assert placed.label == "lora(decoder=sam,blocks=last6,rank=8,targets=qkv+proj+mlp)" and choose_methods(placed.label) == [placed]


def test_only_what_is_placed_has_parameters():
    """By the papers' formulas on vit_b: rank·(inputs + outputs) for each layer that is tuned."""
    c, rank = 768, 4
    per_block = rank * (4 * 2 * c + 2 * 5 * c)
    assert parameters_on("lora(targets=qkv+proj+mlp,blocks=last6)", "vit_b") == 6 * per_block
    assert parameters_on("dora(targets=qkv+proj+mlp,blocks=3)", "vit_b") == per_block + 4 * c + 5 * c
    assert parameters_on("lora(targets=k,blocks=global)", "vit_b") == 4 * rank * 2 * c
    assert parameters_on("mona(targets=mlp)", "vit_b") * 2 == parameters_on("mona", "vit_b")


@pytest.mark.parametrize("call", ["lora(targets=proj,blocks=last2)", "evp(blocks=4)", "adaptformer(targets=attention,blocks=4)"])
def test_blocks_before_the_first_tuned_one_have_no_graph(call, tiny):
    model, graphs = bench.build(call, tiny).train(), []
    seen = [block.norm2.register_forward_hook(lambda _, x, y: graphs.append(y.requires_grad)) for block in tiny.image_encoder.blocks]
    model.encoder(torch.randn(1, 3, 128, 128))
    for hook in seen:
        hook.remove()
    assert graphs == [False, False, False, False, True, True]


def test_a_sweep_over_placements():
    assert [choice.shown for choice in choose_methods("adaptformer(decoder=sam|hq,blocks=last2|4-)")] == [
        f"decoder={decoder},blocks={blocks}" for decoder in ("sam", "hq") for blocks in ("last2", "4-")
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("blocks=top3", r"adaptformer\(blocks=top3\): 'top3' is not known; all, first6, last6, global, windowed, 3, 3-5 and 8- are, "),
        ("blocks='first2+'", r"'' is not known"),
        ("targets=mlp+qkv", r"adaptformer\(targets=mlp\+qkv\): 'qkv' is not known; attention, mlp are, joined by \+"),
        ("blocks=last7", r"adaptformer\(blocks=last7\): last7 is none of this backbone's 6 blocks, 0 to 5."),
        ("blocks=1+4-6", r"4-6 is none of"),
        ("blocks=6", r"6 is none of"),
        ("blocks=6-", r"6- is none of"),
        ("blocks=4-2", r"4-2 is none of"),
        ("blocks=first0", r"first0 is none of"),
    ],
)
def test_a_wrong_placement_is_one_sentence(call, says, tiny):
    with pytest.raises(RequestError, match=says):
        bench.build(f"adaptformer({call})", tiny)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("first_block=2,blocks=3-", r"lora\(first_block=2,blocks=3-\): blocks says it all, without first_block."),
        ("first_block=6", r"lora\(first_block=6\): at most 5 is allowed."),
        ("targets=head", r"lora\(targets=head\): 'head' is not known; q, k, v, proj, lin1, lin2, qkv, mlp are, joined by \+."),
        ("init=pissa,rank=193", r"lora\(rank=193\): at most 192 is allowed."),
        ("init=pissa,alpha=-1", r"lora\(alpha=-1.0\): at least 0 is needed."),
        ("b_rate=0.5", r"at least 1 is needed"),
        ("scaling=rs", r"rslora"),
    ],
)
def test_a_wrong_lora_is_one_sentence(call, says, tiny):
    with pytest.raises(RequestError, match=says):
        bench.build(f"lora({call})", tiny)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("vera(rank=0)", "vera: rank = 0 is too small: at least 1 is needed."),
        ("vera(projection_seed=-1)", "vera: projection_seed = -1 is too small: at least 0 is needed."),
        ("oft(block_size=1)", "oft: block_size = 1 is too small: at least 2 is needed."),
        ("boft(factors=1.5)", "boft: factors = 1.5 has the wrong type: int is needed."),
        ("fact(form=tr)", "Unknown value of form in fact 'tr'. Did you mean tt or tk? Known: tk, tt."),
        ("fact(rank=10000000)", "fact: rank = 10000000 is too large: at most 65536 is allowed."),
        ("convpass(dropout=1.5)", "convpass: dropout = 1.5 is too large: at most 1 is allowed."),
        ("repadapter(scale=1e999)", "repadapter: scale = inf is not allowed: numbers from -9007199254740992 to 9007199254740992 are."),
        ("e2vpt(tokens=0)", "e2vpt: tokens = 0 is too small: at least 1 is needed."),
        ("samed(first_block=-1)", "samed: first_block = -1 is too small: at least 0 is needed."),
    ],
)
def test_a_value_that_a_method_does_not_allow_is_one_sentence(call, says):
    with pytest.raises(RequestError) as error:
        choose_methods(call, "tiny")
    assert str(error.value) == says


def test_zero_has_one_key():
    assert choose_methods("convpass(dropout=-0.0)") == choose_methods("convpass(dropout=0)")


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("name", ["toy", "tiny_sam2", "tiny_sam3"])
def test_stand_ins_for_a_blocks_layers(name, path):
    """The layer itself changes nothing, and another one does what it does in the layer's place; prompts are projected by it too."""
    sam = toy_backbone() if name == "toy" else bench.load_sam(name)
    for block, size in zip(sam.image_encoder.blocks, sam.config.blocks, strict=True):
        x, prompts = torch.randn(2, size.grid_before, size.grid_before, size.before), torch.randn(2, 3, size.before)
        other = deepcopy(block)
        with torch.no_grad():
            for layer in (other.attn.proj, other.mlp.lin1, other.mlp.lin2):
                layer.weight += 0.05 * torch.randn_like(layer.weight)
        own, others = ({"proj": b.attn.proj, "lin1": b.mlp.lin1, "lin2": b.mlp.lin2} for b in (block, other))
        by = {name: lambda t, layer=layer: F.linear(t, layer.weight, layer.bias) for name, layer in others.items()}

        def halves(block, stand_ins, **how):
            proj = {"proj": stand_ins["proj"]} if "proj" in stand_ins else {}
            y, attended = attend(block, x, prompts, prompt_qkv=block.attn.qkv, **how, **proj)  # noqa: B023
            alone = attend(block, x, **how, **proj)[0]  # noqa: B023
            return y, attended, alone, feed_forward(block, y, **{k: v for k, v in stand_ins.items() if k != "proj"})

        with use(path):
            for how in ({}, {"by_window": True}):
                stock = halves(block, {}, **how)
                for found, expected in zip(halves(block, own, **how), stock, strict=True):
                    torch.testing.assert_close(found, expected, atol=1e-5 if path == "fast" else 0, rtol=0)
                for found, expected, was in zip(halves(block, by, **how), halves(other, {}, **how), stock, strict=True):
                    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
                    assert (found - was).abs().max() > 1e-3
            for one in ("lin1", "lin2"):
                changed = deepcopy(block)
                setattr(changed.mlp, one, others[one])
                found = feed_forward(block, stock[0], **{one: by[one]})
                torch.testing.assert_close(found, feed_forward(changed, stock[0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "label"),
    [
        ("lora(targets=v+q)", "lora", "lora(decoder=sam)"),
        ("lora(targets=lin2+v+k+q+lin1)", "lora(targets=qkv+mlp)", "lora(decoder=sam,targets=qkv+mlp)"),
        ("vera(targets=q+k+v)", "vera(targets=v+qkv)", "vera(decoder=sam,targets=qkv)"),
        ("fact(targets=mlp+proj+qkv)", "fact", "fact(decoder=sam)"),
        ("adaptformer(targets=mlp+attention)", "adaptformer(targets=attention+mlp)", "adaptformer(decoder=sam,targets=attention+mlp)"),
        ("lora(blocks=10-+3+0-1+3)", "lora(blocks=0-1+3+10-)", "lora(decoder=sam,blocks=0-1+3+10-)"),
        ("vpt_deep(blocks=1+global)", "vpt_deep(blocks=global+1)", "vpt_deep(decoder=sam,blocks=global+1)"),
        ("lora(decoder=lora(targets=v+q))", "lora(decoder=lora())", "lora(decoder=lora)"),
        ("decoder(how=lora(targets=v+k+q))", "decoder(how=lora(targets=qkv))", "decoder(how=lora(targets=qkv))"),
    ],
)
def test_the_order_of_words_makes_no_other_cell(one, other, label):
    first, second, read_back = choose_methods(one) + choose_methods(other) + choose_methods(label)
    assert first == second == read_back
    assert first.label == label


def test_the_same_blocks_of_a_backbone_are_one_cell_however_they_are_named(tmp_path):
    named = {
        "4-|4+5|last2|4-5": "last2",
        "2+5|global": "global",
        "0-1+3-4|windowed|first2+3+4": "windowed",
        "0|first1|0-0": "first1",
        "1+2+4|4+1-2": "1-2+4",
    }
    calls = [f"vera(blocks={words})" for words in named]
    for call, label in zip(calls, named.values(), strict=True):
        assert [choice.label for choice in choose_methods(call, "tiny")] == [f"vera(decoder=sam,blocks={label})"]
    every = ",".join(calls)
    assert list(catalogue(every, tmp_path, "tiny").choices) == choose_methods(every, "tiny")  # one process for all


def test_all_blocks_are_the_method_as_it_is():
    assert choose_methods("lora(blocks=first6),lora(blocks=0-),lora,ssf", "tiny") == choose_methods("lora,ssf")
    assert choose_methods("lora(first_block=3)", "tiny") == choose_methods("lora(first_block=3)")  # the name of older cells


@pytest.mark.parametrize(
    "call", ["lora(init=pissa,rank=500)", "boft(factors=9)", "repadapter(up_groups=7)", "e2vpt(segments=7)", "lora(blocks=last9)"]
)
def test_what_the_backbones_widths_do_not_allow_is_told_before_the_first_cell(call, capsys):
    assert main([call, "tiny"]) == 2 and capsys.readouterr().err.startswith(f"{call.partition('(')[0]}(")


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_block_that_the_backbone_lacks_is_told_before_the_first_cell(how, tmp_path, capsys):
    words = ["--methods", "sam,lora(blocks=last9)", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke"]
    assert run([*words, "--out", str(tmp_path), *how]) == 2
    assert "error: lora(blocks=last9): last9 is none of this backbone's 6 blocks, 0 to 5." in capsys.readouterr().err
    assert not (tmp_path / "synth_polyps").exists()
