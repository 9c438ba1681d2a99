"""CAT-SAM-T and -A agree with the reference implementation: logits, losses, gradients and three steps of AdamW."""

import golden_files as golden
import numpy as np
import pytest
import torch

import bench
from bench.model.released import released_name

KINDS = ("T", "A")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return bench.load_cat_sam(golden.official_state_dict(kind), sam=golden.CONFIG, protocol="paper")


@pytest.fixture
def expected(kind):
    return {k.removeprefix(f"{kind}/"): torch.from_numpy(v) for k, v in golden.arrays("expected").items() if k.startswith(f"{kind}/")}


@pytest.mark.parametrize("case", golden.CASES)
def test_logits_losses_and_gradients(model, kind, expected, case):
    logits = model.decode(model.encode(golden.images()), golden.prompts(case))
    loss = bench.segmentation_loss(logits, golden.targets(case))
    loss.total.backward()

    every = 4 if case == "box" else 8
    for i, mine in enumerate(logits):
        torch.testing.assert_close(mine[:, None, ::every, ::every], expected[f"{case}/logits{i}_sub{every}"], atol=1e-4, rtol=0)
    reference = golden.meta()["kinds"][kind]["cases"][case]
    assert [x.item() for x in loss] == pytest.approx([reference[k] for k in ("loss", "bce", "dice")], abs=1e-5)
    norms = {released_name(name): p.grad.norm().item() for name, p in model.tuned().items()}
    assert norms == pytest.approx(reference["grad_norm"], rel=1e-3)


def test_trainable_parameters_are_the_references(model, kind):
    reference = golden.meta()["kinds"][kind]
    assert {released_name(name) for name in model.tuned()} == set(reference["trainable"])
    assert sum(p.numel() for p in model.tuned().values()) == reference["n_trainable"]


def test_encoder_outputs(model, expected):
    features = model.encode(golden.images())
    torch.testing.assert_close(features.embedding[:, ::16], expected["image_embeddings_sub16"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.first_global[..., ::4], expected["interm0_sub"], atol=1e-4, rtol=0)


def test_an_image_of_the_models_size_is_taken_raw_under_the_paper_protocol_only(model, kind, expected):
    for i, image in enumerate(golden.images()):
        torch.testing.assert_close(model._input(image)[:, ::8, ::8], expected[f"preprocessed{i}_sub"], atol=1e-4, rtol=0)
    clean = bench.load_cat_sam(golden.official_state_dict(kind), sam=golden.CONFIG, protocol="clean")
    native = golden.images()[1]
    torch.testing.assert_close(clean._input(native), (native.float() - clean.sam.pixel_mean) / clean.sam.pixel_std)


def test_predicted_union_of_both_boxes(model, expected):
    for i, (image, prompts) in enumerate(zip(golden.images(), golden.prompts("box"), strict=True)):
        mask = model.predict(image, boxes=prompts.boxes.numpy())
        reference = np.unpackbits(expected[f"infer_box_packed{i}"].numpy())[: mask.size].reshape(mask.shape)
        assert (mask == reference.astype(bool)).mean() > 0.9999  # a logit of 0 may fall on either side


def test_three_steps_of_adamw(model, kind):
    reference = golden.meta()["kinds"][kind]["adamw_losses_box"]
    optimizer = torch.optim.AdamW(model.tuned().values(), lr=1e-3, weight_decay=1e-4)
    losses = []
    for _ in range(4):
        logits = model.decode(model.encode(golden.images()), golden.prompts("box"))
        loss = bench.segmentation_loss(logits, golden.targets("box")).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(reference, abs=1e-4)


def test_a_zeroed_bridge_is_noticed(model, kind):
    """The tolerance is tight enough: a fault in one small weight moves the logits by more."""
    with torch.no_grad():
        before = model.decode(model.encode(golden.images()), golden.prompts("box"))[0]
        name = "tuner.bridges.0.2.weight" if kind == "T" else "tuner.bridge_out.weight"
        model.tuned()[name].zero_()
        after = model.decode(model.encode(golden.images()), golden.prompts("box"))[0]
    assert (before - after).abs().max() > 2e-4
