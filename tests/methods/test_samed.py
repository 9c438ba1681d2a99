"""SAMed against its authors' code (github hitachinsk/SAMed, commit e351840), which was run once beside it on the toy SAM: embedding,
gradients and mask differed by at most 2.3e-6 where the values reach 3.3. What theirs gave is kept here."""

import pytest
import torch
from conftest import TOY, toy_backbone

import bench
from bench.conformance import methods
from bench.grid.plan import Request, choose_methods, specs_of
from bench.grid.store import spec_from_json, spec_to_json
from bench.types import Features, Prompts

EMBEDDING = [1.6064225, 0.0594749, 1.2501006, -0.9762707, -1.0477509, -0.1578132, 1.0249984, -0.3616738]
GRADIENTS = {"tuner.a": [1.6244558, 1.0075732, 1.0283639], "tuner.b": [2.1947091, 1.3039309, 1.4776903]}  # the mean size, by block
MASK = [-0.0499528, 0.0365316, 0.0185675, -0.0279479]


def near(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_it_computes_what_the_authors_code_does() -> None:
    model, drawn = bench.build("samed", toy_backbone(0), seed=3).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.tuned().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=drawn))
    image = torch.randn(2, 3, TOY.image_size, TOY.image_size, generator=drawn)
    embedding, first_global = model.encoder(image)
    (embedding * torch.randn(embedding.shape, generator=drawn)).sum().backward()
    near(embedding[0, ::8, ::4, 3].flatten()[:8], EMBEDDING)
    for name, sizes in GRADIENTS.items():
        near(model.tuned()[name].grad.abs().mean((1, 2, 3)), sizes)
    features = Features(embedding[:1], first_global[:1], ((TOY.image_size,) * 2,), (False,))
    near(model.decoder(model.sam, features, [Prompts()]).logits[0][0, ::9, 11], MASK)


def test_its_parameters_are_loras_the_decoders_and_one_embedding() -> None:
    assert [methods.parameters_on("samed", size) for size in methods.SIZES] == [
        lora + 3_506_304 + 256 for lora in (147_456, 393_216, 655_360)
    ]


@pytest.mark.parametrize("protocol", ["paper", "clean(evaluation_prompt=point)", "smoke"])
def test_its_cells_have_no_prompts_whatever_the_protocol_says(protocol: str) -> None:
    specs = specs_of(Request("samed,lora", "synth_polyps,mass_roads", protocol=protocol), "0" * 64)
    asked = {spec.method.name: (spec.settings.evaluation_prompt, spec.settings.prompt_types) for spec in specs}
    assert asked["samed"] == ("none", ("none",)) and "none" not in {asked["lora"][0], *asked["lora"][1]}
    assert all(spec_from_json(spec_to_json(spec)) == spec for spec in specs)
    assert [choice.prompt_free for choice in choose_methods("samed,lora")] == [True, False]
