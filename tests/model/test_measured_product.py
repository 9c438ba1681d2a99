"""Which product a host takes: measured once, the same for all of its processes, whatever lies in the cache."""

import json
import os
import subprocess
import sys

import pytest

from bench.model.measured_product import FASTER, chosen, fastest, measured
from bench.model.products import PRODUCTS, choose_product, keep_product

ASK = """import torch
from bench.model.measured_product import fastest
torch.set_num_threads(1)
print(fastest({"torch": torch.nn.functional.linear, "other": lambda *given: torch.nn.functional.linear(*given)}, 1))"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sam-peft-bench"


def test_processes_that_start_together_measure_once_and_take_the_same(cache):
    processes = [subprocess.Popen([sys.executable, "-c", ASK], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0].strip() for process in processes}
    (kept,) = (json.loads(path.read_text()) for path in cache.glob("*.json"))
    assert said == {kept["product"]} == {chosen(kept["milliseconds"])} and set(kept["milliseconds"]) == {"torch", "other"}


def test_what_was_measured_is_taken_again_and_damage_is_measured_anew(cache):
    first = fastest(PRODUCTS, 1)
    (path,) = cache.glob("*.json")
    other = next((name for name in PRODUCTS if name != first), first)
    path.write_text(json.dumps({**json.loads(path.read_text()), "product": other}))
    assert fastest(PRODUCTS, 1) == other
    for damage in ("[1]", '{"product": "none such"}', "\x00"):
        path.write_text(damage)
        assert fastest(PRODUCTS, 1) in PRODUCTS and json.loads(path.read_text())["product"] in PRODUCTS
    fastest(PRODUCTS, 2)
    assert len(list(cache.glob("*.json"))) == 2  # another number of threads is another question


def test_where_nothing_can_be_kept_all_processes_take_the_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest(PRODUCTS, 1) == "torch"


def test_chance_is_no_reason():
    assert chosen({"torch": 10.0, "onednn": 10.0 / FASTER}) == "torch"
    assert chosen({"torch": 10.0, "onednn": 9.0}) == "onednn" and chosen({"torch": 9.0, "onednn": 10.0}) == "torch"


def test_measuring_takes_no_random_number_and_little_time():
    import torch

    before, spent = torch.get_rng_state(), os.times().user
    assert all(milliseconds > 0 for milliseconds in measured(PRODUCTS, 1).values())
    assert torch.equal(torch.get_rng_state(), before) and os.times().user - spent < 3  # 0.2 s where nothing else runs


COLD = """import sys, time, torch
from bench.model.measured_product import measured
from bench.model.products import PRODUCTS
torch.set_num_threads(1)
before, began = set(sys.modules), time.process_time()
measured(PRODUCTS, 1)
print(time.process_time() - began, *sorted(set(sys.modules) - before))"""


def test_the_first_measurement_of_a_process_imports_nothing():
    """A second of imports, for products of a tenth, is what gradients that are given to PyTorch cost."""
    seconds, *imported = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True).stdout.split()
    assert len(imported) < 20 and "sympy" not in imported and float(seconds) < 1.5  # 0.2 s where nothing else runs


def test_training_that_goes_on_keeps_its_product():
    usual = choose_product("cpu")
    try:
        for name in PRODUCTS:
            keep_product(name)
            assert choose_product("cpu") == name and choose_product("cuda") == "torch"
        keep_product("none such")
        assert choose_product("cpu") == usual
    finally:
        keep_product("")
