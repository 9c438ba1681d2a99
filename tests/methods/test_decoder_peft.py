"""Tuning methods for SAM's mask decoder, `decoder="lora(rank=8)"`: against Hugging Face peft, and how they are written and shown."""

import copy
import re

import pytest
import torch
from conftest import TOY

import bench
from bench.errors import RequestError
from bench.exporting.merged import merged_tensors
from bench.grid.plan import choose_methods
from bench.model.decoder_choice import DECODERS, layers_of

BOXES = bench.Prompts(boxes=torch.tensor([[3.0, 5, 30, 40], [10, 10, 60, 33]]))
WANTED = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(4))
OF_LAYERS = {"q_proj": 7, "k_proj": 7, "v_proj": 7, "out_proj": 7, "lin1": 2, "lin2": 2}  # in a transformer of two layers


def moved(call, sam):
    """A model whose tuned weights are away from where they start."""
    model, generator = bench.build(call, sam, seed=2), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def features(sam):
    return bench.build("sam", sam).encode([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) * 255])


def stock_masks(sam, decoder, features):
    sparse, dense = sam.prompt_encoder(points=None, boxes=BOXES.boxes, masks=None)
    return decoder(features.embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)[0][:, 0]


@pytest.mark.parametrize("targets", ["q+v", "qkv+proj+mlp", "k+lin1"])
def test_lora_in_the_decoder_is_pefts(targets, sam, features):
    """Masks and gradients, on the stock mask decoder whose linear layers peft replaced: to 1e-5."""
    peft = pytest.importorskip("peft")
    model = moved(f"decoder(how=lora(rank=3,alpha=6,targets={targets}))", sam)
    names = sorted(layers_of(targets))
    how = peft.LoraConfig(r=3, lora_alpha=6, target_modules=rf"transformer\..*\.({'|'.join(names)})")
    theirs = peft.inject_adapter_in_model(how, copy.deepcopy(sam.mask_decoder))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if layer := re.fullmatch(r"(.*)\.lora_([AB])\.default\.weight", name):
                p.copy_(model.tuned()[f"decoder.own.{layer[1]}.{layer[2].lower()}"])
    masks, expected = model.decode_low(features, [BOXES]).logits[0], stock_masks(sam, theirs, features)
    assert (expected - stock_masks(sam, sam.mask_decoder, features)).abs().max() > 0.01
    torch.testing.assert_close(masks, expected, atol=1e-5, rtol=1e-5)
    for logits in (masks, expected):
        (logits - WANTED).square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) == len(model.tuned()) == 2 * sum(OF_LAYERS[name] for name in names)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, p in model.tuned().items():
        layer, _, part = name.removeprefix("decoder.own.").rpartition(".")
        expected = gradients[f"{layer}.lora_{part.upper()}.default.weight"]
        torch.testing.assert_close(
            p.grad / largest, expected / largest, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("word", [word for word in DECODERS if word not in ("sam", "hq")])
def test_beside_any_encoder_method_it_merges_and_leaves_the_frozen_decoder(word, sam, features):
    before = copy.deepcopy(sam.state_dict())
    model = moved(f"bitfit(decoder={word})", sam)
    assert {model.group_of(name) for name in model.tuned()} == {"encoder", "decoder" if word == "tuned" else "decoder_peft"}
    plain = bench.load_sam(TOY, merged_tensors(model))
    own = model.encode([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) * 255])
    with torch.no_grad():
        torch.testing.assert_close(
            model.decode_low(own, [BOXES]).logits[0], stock_masks(plain, plain.mask_decoder, own), atol=1e-5, rtol=1e-5
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in sam.state_dict().items())


def test_which_tensors_of_the_decoder_a_word_trains(sam):
    """The biases and norms that the single mask is made with, whichever modules hold them."""
    everything = {name: p for name, p in bench.build("decoder", sam).tuned().items()}
    modules = dict(sam.mask_decoder.named_modules())
    norms = {name for name in everything if "Norm" in type(modules[name.removeprefix("decoder.own.").rpartition(".")[0]]).__name__}
    assert set(bench.build("decoder(how=layernorm)", sam).tuned()) == norms and len(norms) == 2 * (4 + 4 + 1 + 1)
    assert set(bench.build("decoder(how=bitfit)", sam).tuned()) == {name for name in everything if name.endswith(".bias")}


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("adaptformer(decoder='lora(rank=8)')", "adaptformer(decoder=lora(rank=8))"),
        ("lora(decoder=lora(rank=8, targets=qkv + mlp), rank=2)", "lora(decoder=lora(rank=8,targets=qkv+mlp),rank=2)"),
        ("lora(decoder='lora(targets=q+v,rank=4)')", "lora(decoder=lora)"),
        ("lora(decoder=lora(targets=mlp,alpha=8,rank=2))", "lora(decoder=lora(rank=2,alpha=8.0,targets=mlp))"),
        ("decoder(how=tuned)", "decoder"),
        ("decoder(how=lora(alpha=1e-5))", "decoder(how=lora(alpha=1e-05))"),
    ],
)
def test_it_has_one_form_in_keys_and_labels(asked, label):
    (choice,) = choose_methods(asked)
    assert choice.label == label and choose_methods(label) == [choice] and choose_methods(f"sam,{label},ssf")[1] == choice


def test_a_sweep_may_be_inside_of_it():
    assert [choice.label for choice in choose_methods("ssf(decoder=hq|lora(rank=2|8))")] == [
        f"ssf(decoder={word})" for word in ("hq", "lora(rank=2)", "lora(rank=8)")
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("ssf(decoder=lorra)", "Unknown decoder 'lorra'. Did you mean lora?"),
        ("ssf(decoder=lora(rnk=2))", "Did you mean rank? Known: alpha, rank, targets."),
        ("ssf(decoder=lora(rank=0))", "lora(rank=0): rank = 0 is too small: at least 1 is needed."),
        ("ssf(decoder='lora(rank=two)')", "rank = 'two' has the wrong type: int is needed."),
        ("ssf(decoder=lora(targets=q+x))", "'q+x' is no list of layers: q, k, v, proj, lin1, lin2, qkv, mlp, joined by +, are allowed."),
        ("ssf(decoder=lora(rank=))", "write a name"),
        ("ssf(decoder='lora(rank=2|4)')", "is a sweep"),
        ("ssf(decoder=lora(rank=2,rank=3))", "gives rank twice"),
        ("ssf(decoder=hq(rank=2))", "Known: none."),
        ("decoder(how=hq)", "decoder(how=hq): a word that tunes SAM's own decoder is needed"),
    ],
)  # fmt: skip
def test_a_wrong_word_or_value_is_one_sentence(asked, says):
    with pytest.raises(RequestError) as error:
        choose_methods(asked)
    assert says in str(error.value) and "\n" not in str(error.value)
