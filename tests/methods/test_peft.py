"""LoRA, DoRA and (IA)³ against Hugging Face peft on the same layers: outputs and gradients."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import toy_backbone

from bench.conformance.methods import MethodSubject
from bench.conformance.toys import TOY, Rectangles
from bench.model.method import build
from bench.model.sizes import CONFIGS
from bench.training.train import fit, optimizer_of

pytestmark = pytest.mark.xdist_group("hugging_face")  # whose models take long to import

METHODS = {
    "lora": "lora(rank=3,alpha=6)",
    "lora of all": "lora(rank=3,alpha=6,targets=qkv+proj+mlp,blocks=0+2)",
    "rslora": "lora(rank=3,alpha=6,targets=k+lin2,scaling=rslora)",
    "pissa": "lora(rank=3,alpha=6,targets=q+v+lin1,init=pissa)",
    "dora": "dora(rank=3,alpha=6)",
    "dora of all": "dora(rank=3,alpha=6,targets=qkv+proj+mlp,blocks=1)",
    "ia3": "ia3",
}
CLOSE = 1e-5  # of the largest value; measured: 5e-6


def moved(name):
    """A model whose tuned weights are away from where they start."""
    model, generator = build(name, toy_backbone(), seed=2), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.tuned().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


def own(model):
    return {name.removeprefix("tuner."): weight for name, weight in model.tuned().items()}


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(1)
    return {
        "sam": toy_backbone().state_dict(),
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "probe": torch.randn(2, 32, 8, 8, generator=generator),
        "tuned": {method: {name: weight.detach() for name, weight in own(moved(call)).items()} for method, call in METHODS.items()},
    }


@pytest.fixture(scope="module")
def oracle(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    torch.save(case, folder / "case.pt")
    shutil.copy(Path(__file__).with_name("peft_oracle.py"), folder)
    done = subprocess.run([sys.executable, "peft_oracle.py"], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / "oracle.pt")


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_equal_pefts(method, case, oracle):
    model = moved(METHODS[method])
    out = model.encoder(case["image"])[0]
    expected = oracle[method]["out"]
    assert (out - expected).abs().max() <= CLOSE * expected.abs().max()
    (out * case["probe"]).sum().backward()
    for name, weight in own(model).items():
        expected = oracle[method]["gradients"][name]
        assert expected.abs().max() > 0
        assert (weight.grad - expected).abs().max() <= CLOSE * expected.abs().max(), name


def test_pissa_starts_as_pefts(oracle):
    """The singular vectors' signs are anybody's; the model starts as the frozen one."""
    model = build(METHODS["pissa"], toy_backbone())
    for name, weight in own(model).items():
        torch.testing.assert_close(weight.abs(), oracle["pissa"]["starts"][name].abs(), atol=1e-4, rtol=1e-4)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.encoder(image)[0], build("sam", toy_backbone()).encoder(image)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["toy", "tiny_sam2"])  # whose blocks have one tensor for all, and one each
def test_lora_plus_moves_b_by_so_many_times_its_rate(name):
    """Of AdamW's first step, whose length is the rate's: A moves as ever."""
    moved_by = {}
    for factor in (1, 16):
        subject = MethodSubject(f"lora(init=pissa,targets=q+lin1,b_rate={factor})", CONFIGS.get(name, TOY))
        model, data = subject.fresh(), Rectangles()
        before = {name: weight.detach().clone() for name, weight in model.tuned().items()}
        next(iter(fit(model, optimizer_of(model, subject.settings), data, data.support(1), subject.settings, 0)))
        moved_by[factor] = {name: weight.detach() - before[name] for name, weight in model.tuned().items()}
    for weight, step in moved_by[1].items():
        assert step.abs().max() > 0
        times = 16 if weight.removeprefix("tuner.").removeprefix("lin1_").startswith("b") else 1
        torch.testing.assert_close(moved_by[16][weight], times * step, atol=1e-6, rtol=1e-3)
