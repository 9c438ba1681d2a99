"""What --dry-run says of hours, disk and memory: counts that a cell confirms, times costs that were measured."""

import json
import math
from dataclasses import replace

import pytest
from test_spec import SPEC

from bench.grid.plan import choose_methods
from bench.grid.protocol import load_protocol
from bench.grid.provenance import cpu_model
from bench.grid.store import ResultStore
from bench.run import main
from bench.running.estimate import Amount, hours, known_costs, nearest, operations

IMAGES = {"train": 4000, "test": 1036, "val": 64}
LORA, SAM = choose_methods("lora")[0], choose_methods("sam")[0]
COST = {"step_seconds": 2.0, "images_per_second": 4.0, "peak_memory_mb": 2500.0, "tuned_bytes": 1000}


@pytest.fixture
def out(tmp_path, tmp_path_factory):
    """A results folder; what the methods are is found out once for all of them."""
    (shared := tmp_path_factory.getbasetemp() / "known_methods").mkdir(exist_ok=True)
    (tmp_path / "cache").symlink_to(shared)
    return tmp_path


@pytest.mark.parametrize(
    ("protocol", "changes", "steps", "images"),
    [
        ("paper", {}, 2000, 100 * 1036),  # the last weights were just evaluated
        ("clean", {}, 2000, 1036),
        ("clean", {"selections": ["last", "val"]}, 2000, 20 * 64 + 2 * 1036),
        ("clean", {"selections": ["val"], "evaluation_split": "val"}, 2000, 20 * 64 + 64),
    ],
)
def test_steps_and_images_of_a_cell(protocol, changes, steps, images):
    settings = load_protocol(protocol, changes).resolve("lora", "whu", 1)
    assert Amount.of(settings, 1, IMAGES, True) == Amount(steps, 1, images)
    assert Amount.of(settings, 1, IMAGES, False) == Amount(0, 0, IMAGES[settings.evaluation_split])


def test_the_nearest_cost_is_of_the_machine_then_the_backbone_then_the_method(tmp_path):
    store = ResultStore(tmp_path)
    for method, backbone, machine, rate in (
        (LORA, "vit_l", "there", 1.0),
        (LORA, "vit_b", "here", 2.0),
        (SAM, "vit_b", "here", 3.0),
        (LORA, "tiny", "here", 4.0),
    ):
        store.keep_cost(method, backbone, machine, {**COST, "images_per_second": rate})
    costs = known_costs(tmp_path)
    assert {cost.machine for cost in costs} >= {"here", "there"}
    spec = replace(SPEC, method=LORA, backbone="vit_l")

    def rate(machine, **changes):
        return nearest(costs, replace(spec, **changes), machine).numbers["images_per_second"]

    assert (rate("here"), rate("there"), rate("there", method=SAM)) == (2.0, 1.0, 1.0)
    assert rate("here", backbone="tiny") == 4.0 and rate("here", method=SAM) == 3.0
    assert rate("here", method=choose_methods("lora(rank=32)")[0]) == 2.0  # the slowest of what is known
    assert 3 < operations("vit_l") / operations("vit_b") < 4 and nearest([], spec, "here") is None


@pytest.mark.parametrize(
    "damaged",
    [
        *("", '{"backb', "null", "[1, 2]", "[" * 100_000),
        *({"images_per_second": rate} for rate in (0, -5, math.nan, None, "fast")),
        *({"step_seconds": seconds} for seconds in (math.inf, -3, 10**400)),
        *({"peak_memory_mb": -1}, {"tuned_bytes": math.nan}, {"backbone": "tiny(image_size=77)"}, {"backbone": "gone"}),
    ],
    ids=lambda damaged: str(damaged)[:40],
)
def test_a_damaged_cost_is_passed_over(damaged, tmp_path):
    store = ResultStore(tmp_path)
    path = store.cost_file(LORA, "tiny", "here")
    store.keep_cost(LORA, "tiny", "here", COST)
    assert "here" in {cost.machine for cost in known_costs(tmp_path)} and store.costs()
    path.write_text(damaged if isinstance(damaged, str) else json.dumps({**json.loads(path.read_text()), **damaged}))
    assert "here" not in {cost.machine for cost in known_costs(tmp_path)}
    assert not store.costs() or "backbone" in damaged


@pytest.mark.xdist_group("estimate")
def test_a_dry_run_says_how_long_how_large_and_what_a_protocol_that_looks_once_takes(out, capsys):
    store = ResultStore(out)
    for method in (LORA, SAM):
        store.keep_cost(method, "tiny", str(cpu_model()), COST)
    words = ["--methods", "lora,sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--seeds", "1,2", "--out", str(out)]
    assert main([*words, "--protocol", "paper", "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    seconds = 2 * (2000 * 2.0 + 6400 / 4.0) + 64 / 4.0
    assert f"Estimate: {hours(seconds)}; " in said and "at most 2.5 GB of memory a cell" in said and "(this machine)" in said
    assert "6,400 images on tiny for each cell that is trained, of 64" in said
    assert f"Protocol clean, which evaluates each of them once, would take {hours(2 * (4000 + 16) + 16)} instead of 3.1 h." in said
    assert main([*words, "--protocol", "clean", "--device", "cpu", "--workers", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Estimate: 67 min, 2 cells at once; " in said and "again and again" not in said
    assert main([*words, "--protocol", "clean", "--device", "cpu", "--workers", "64", "--dry-run"]) == 0
    assert "Estimate: 67 min, 3 cells at once; " in capsys.readouterr().out
    assert not list(out.glob("grid.json"))


@pytest.mark.xdist_group("estimate")
def test_where_no_cost_is_known_the_command_that_measures_it_is_named(out, capsys, monkeypatch):
    monkeypatch.setattr("bench.running.estimate.SHIPPED", out)
    words = ["--methods", "lora,sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    assert "not known for 2 cells; `python -m bench.perf cost --backbone tiny` measures it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "said"), [(40, "40 s"), (1200, "20 min"), (9000, "2.5 h"), (864_000, "10 days"), (86_400_000, "1,000 days")]
)
def test_times_as_people_plan_them(seconds, said):
    assert hours(seconds) == said
