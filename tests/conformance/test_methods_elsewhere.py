"""Every method keeps what it promises on a SAM 2 and on a SAM 3 too."""

from dataclasses import replace

import pytest

from bench import check
from bench.conformance import methods
from bench.conformance.checks import examined
from bench.grid.registry import METHODS
from bench.model.sizes import CONFIGS

SMALL = {"tiny_sam2": replace(CONFIGS["tiny_sam2"], image_size=64), "tiny_sam3": replace(CONFIGS["tiny_sam3"], image_size=56)}
CHECKS = [each for each in methods.METHOD_CHECKS if each not in (methods.has_a_size_on_every_backbone, methods.works_on_another_backbone)]
AT_ONCE = ("lora", "vpt_shallow", "cat_sam_a")  # of the others the slow tests ask


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in METHODS.names()])
def test_every_method_keeps_its_promises_there(name, backbone):
    found = examined(CHECKS, methods.MethodSubject(name, SMALL[backbone]))
    assert not [f"{one.check}: {one.said}" for one in found if one.verdict == "broken"]


@pytest.mark.slow
def test_the_command_takes_a_backbone(capsys):
    assert check.main(["ia3", "--backbone", "tiny_sam2"]) == 0
    assert "checks pass" in capsys.readouterr().out
    assert check.main(["ia3", "--backbone", "sam9"]) == 2
    assert "'sam9'" in capsys.readouterr().err
