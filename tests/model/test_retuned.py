"""SAM's own weights, tuned: against stock modules whose parameters were made trainable, and what is shared with the frozen ones."""

import copy

import pytest
import torch
from conftest import TOY, Rectangles, toy_backbone
from torch import nn

import bench
from bench.model.checkpoints import weights_sha256
from bench.model.decoder import HQDecoder
from bench.model.retuned import retuned
from bench.training.evaluation import evaluate
from bench.training.prepared import Prepared

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")
NORMS = ["neck.1", "neck.3", *(f"blocks.{i}.{norm}" for i in range(3) for norm in ("norm1", "norm2"))]
SCALED = ["patch_embed.proj", "neck.1", "neck.3", *(f"blocks.{i}.{layer}" for i in range(3) for layer in BLOCK)]
# What the stock modules learn, told by their names alone.
LEARNS = {
    "bitfit": lambda name: name.startswith("image_encoder.") and name.split(".")[-1] == "bias",
    "layernorm": lambda name: name.startswith("image_encoder.") and name.removeprefix("image_encoder.").rpartition(".")[0] in NORMS,
    "decoder": lambda name: name.startswith("mask_decoder."),
    "full": lambda name: name.startswith(("image_encoder.", "mask_decoder.")),
}
OWN_WEIGHTS = [*LEARNS, "ssf"]
MERGED = [*OWN_WEIGHTS, "ssf(decoder=tuned)", "bitfit(decoder=tuned)"]
BOXES = bench.Prompts(boxes=torch.tensor([[3.0, 5, 30, 40], [10, 10, 60, 33]]))
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
WANTED = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(4))


def perturbed(name, sam, size=0.05):
    model, generator = bench.build(name, sam, seed=1), torch.Generator().manual_seed(2)
    for p in model.tuned().values():
        p.data += size * torch.randn(p.shape, generator=generator)
    return model


def masks(model, image=IMAGE):
    """The low-resolution logits (2, 32, 32) of two boxes in an image that is normalised already."""
    embedding, first_global = model.encoder(image)
    features = bench.types.Features(embedding, first_global, ((64, 64),), (True,))
    return model.decode_low(features, [BOXES]).logits[0]


def stock_masks(sam):
    sparse, dense = sam.prompt_encoder(points=None, boxes=BOXES.boxes, masks=None)
    embedding = sam.image_encoder(IMAGE)
    return sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)[0][:, 0]


def sams_name(ours):
    """tuner.own.blocks.0.norm1.bias -> image_encoder.blocks.0.norm1.bias"""
    return ours.replace("tuner.own.", "image_encoder.").replace("decoder.own.", "mask_decoder.")


@pytest.mark.parametrize("name", LEARNS)
def test_a_step_is_that_of_stock_modules_made_trainable(name, sam):
    stock, model = copy.deepcopy(sam), bench.build(name, sam)
    for parameter_name, p in stock.named_parameters():
        p.requires_grad_(LEARNS[name](parameter_name))
    for logits in (stock_masks(stock), masks(model)):
        (logits - WANTED).square().mean().backward()
    learnt = {
        n: p for n, p in stock.named_parameters() if p.grad is not None and p.grad.any()
    }  # the three masks that are cut off leave zeros
    tuned = {sams_name(n): p for n, p in model.tuned().items()}
    assert tuned.keys() == learnt.keys()
    for n, p in learnt.items():
        assert torch.equal(p, tuned[n])
        torch.testing.assert_close(tuned[n].grad, p.grad, rtol=1e-3, atol=1e-6, msg=lambda text, n=n: f"{n}: {text}")
    before = masks(model)
    for parameters in (learnt, tuned):
        torch.optim.AdamW(parameters.values(), lr=1e-3).step()
    moved, apart = (masks(model) - before).abs().max(), (masks(model) - stock_masks(stock)).abs().max()
    assert moved > 1e-3 and apart < 0.01 * moved


def test_ssf_equals_hooks_behind_the_layers_of_a_stock_vit(sam):
    model, vit = perturbed("ssf", sam), copy.deepcopy(sam.image_encoder)
    named = {n.removeprefix("tuner.own."): p for n, p in model.tuned().items()}
    assert named.keys() == {f"{layer}.{kind}" for layer in SCALED for kind in ("gamma", "beta")}
    leaves = {n: p.detach().clone().requires_grad_() for n, p in named.items()}

    def hook(layer):
        def change(module, given, out):
            channel = 1 if layer.startswith(("patch_embed", "neck")) else -1
            out = out.movedim(channel, -1) * leaves[f"{layer}.gamma"] + leaves[f"{layer}.beta"]
            return out.movedim(-1, channel)

        return change

    for layer in SCALED:
        vit.get_submodule(layer).register_forward_hook(hook(layer))
    expected, mine = vit(IMAGE), model.encoder(IMAGE)[0]
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    for embedding in (expected, mine):
        embedding.square().mean().backward()
    for n, leaf in leaves.items():
        torch.testing.assert_close(named[n].grad, leaf.grad, rtol=1e-3, atol=1e-7, msg=lambda text, n=n: f"{n}: {text}")


def test_ssf_starts_near_the_frozen_encoder_as_in_the_official_code(sam):
    tuned = bench.build("ssf", sam, seed=7).tuned()
    for kind, mean in (("gamma", 1.0), ("beta", 0.0)):
        values = torch.cat([p.detach() for n, p in tuned.items() if n.endswith(kind)])
        assert len(values) > 2000 and abs(values.mean() - mean) < 0.002 and abs(values.std() - 0.02) < 0.001


@pytest.mark.parametrize("name", MERGED)
def test_merged_into_a_stock_sam_it_computes_the_same(name, sam):
    """The toy's grid is padded by its windows, so a shift that reached the padding would show."""
    model, weights = perturbed(name, sam), sam.state_dict()
    parts = {"image_encoder": model.tuner.merged(sam.image_encoder), "mask_decoder": model.decoder.merged(sam)}
    merged = {f"{part}.{n}": tensor for part, tensors in parts.items() for n, tensor in tensors.items()}
    assert merged and merged.keys() <= weights.keys()
    plain = bench.load_sam(TOY, {**weights, **merged})
    with torch.no_grad():
        torch.testing.assert_close(stock_masks(plain), masks(model), atol=1e-5, rtol=1e-5)
        assert (masks(model) - stock_masks(sam)).abs().max() > 0.01


def test_what_no_stock_sam_computes_is_not_merged(sam):
    assert bench.build("bitfit(decoder=hq)", sam).decoder.merged(sam) is None


@pytest.mark.parametrize("name", OWN_WEIGHTS)
def test_frozen_tensors_are_shared_and_tuned_ones_are_not(name, sam):
    before, model = weights_sha256(sam), perturbed(name, sam)
    tuned = model.tuned()
    assert {id(p) for p in model.parameters()} == {id(p) for p in sam.parameters()} | {id(p) for p in tuned.values()}
    for own, frozen in ((model.tuner.walked(sam.image_encoder), sam.image_encoder), (model.decoder.mask_decoder(sam), sam.mask_decoder)):
        mine = {id(p) for p in own.parameters()}
        assert mine <= {id(p) for p in tuned.values()} or own is frozen
        assert own.__class__ is frozen.__class__ and not {p.data_ptr() for p in tuned.values()} & {
            p.data_ptr() for p in frozen.parameters()
        }
    assert weights_sha256(sam) == before and not any(p.requires_grad for p in sam.parameters())


def test_a_models_size_counts_what_it_computes_with(sam):
    frozen = sum(p.numel() for p in sam.parameters())
    for name in bench.methods():
        model = bench.build(name, sam)
        new = {n: p for n, p in model.tuned().items() if not n.startswith("decoder.own.")}  # those are copies
        added = 0 if name in LEARNS else sum(p.numel() for p in new.values())
        assert model.size == frozen + added, name


def test_models_on_one_backbone_do_not_see_each_other(sam):
    models = {name: bench.build(name, sam, seed=1) for name in ("sam", *OWN_WEIGHTS)}
    with torch.no_grad():
        before = {name: masks(model) for name, model in models.items()}
        for p in models["full"].tuned().values():
            p += 0.1
        for name in models:
            assert torch.equal(masks(models[name]), before[name]) == (name != "full")


@pytest.mark.parametrize("name", ["full", "ssf(decoder=tuned)"])
def test_a_model_that_is_moved_or_copied_stays_whole(name):
    sam = toy_backbone()
    model = perturbed(name, sam)
    with torch.no_grad():
        before, other = masks(model), copy.deepcopy(model)
        for p in other.parameters():
            p += 1.0
        assert torch.equal(masks(model), before)
        weights = list(sam.parameters())
        model.to(torch.float64)  # moves as another device does: each tensor in place
        assert all(a is b and a.dtype == torch.float64 for a, b in zip(weights, sam.parameters(), strict=True))
        assert all(p.dtype == torch.float64 for p in model.parameters())
        embedding, _ = model.encoder(IMAGE.double())
        assert embedding.dtype == torch.float64
        model.to(torch.float32)
        torch.testing.assert_close(masks(model), before, atol=1e-5, rtol=1e-5)


def test_only_the_decoder_keeps_the_encoder_frozen(sam, smoke):
    """Its training builds no graph of the encoder, and its evaluation takes the embeddings that another method's made."""
    frozen = {name: bench.build(name, sam).encoder.is_frozen for name in ("sam", *OWN_WEIGHTS)}
    assert frozen == {name: name in ("sam", "decoder") for name in frozen}
    embedding, first_global = bench.build("decoder", sam).encoder(IMAGE)
    assert embedding.grad_fn is None and first_global.grad_fn is None
    data = Rectangles()
    prepared, kept = Prepared(data), []
    for name in ("sam", "decoder"):
        list(evaluate(bench.build(name, sam), data, "test", smoke, prepared))
        kept.append(prepared.used_bytes)
    assert kept[0] == kept[1]
    list(evaluate(bench.build("full", sam), data, "test", smoke, prepared))
    assert prepared.used_bytes == kept[0]


def test_nothing_below_the_first_tuned_part_is_in_the_graph(sam):
    for name, reached in (("layernorm", False), ("bitfit", True), ("full", True), ("ssf", True)):
        assert bench.build(name, sam).tuner.walked(sam.image_encoder).patch_embed(IMAGE).requires_grad == reached


def test_a_module_is_retuned_without_a_trace_in_it():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.LayerNorm(3)))
    names = [n for n, _ in module.named_parameters()]
    twin = retuned(module, lambda name: name == "1.0.weight")
    assert [n for n, _ in twin.named_parameters()] == list(twin.state_dict()) == ["1.0.weight"]
    assert [n for n, _ in module.named_parameters()] == names and twin[0].weight is module[0].weight
    twin.append(nn.ReLU())
    twin[0].register_forward_hook(lambda *_: None)
    assert len(module) == 2 and not module[0]._forward_hooks


def test_a_baselines_decoder_may_be_tuned(sam):
    own, decoder = bench.build("lora(decoder=tuned)", sam).tuned(), bench.build("decoder", sam).tuned()
    assert own.keys() == {"tuner.a", "tuner.b", *decoder}
    assert not isinstance(bench.build("lora(decoder=tuned)", sam).decoder, HQDecoder)
