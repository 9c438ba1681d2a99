"""Tuning: equal budgets that depend on nothing else, no look at a test image, and a choice that a protocol can name."""

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import Rectangles
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from bench import ROOT
from bench.errors import RequestError
from bench.grid.plan import Request, choose_methods, specs_of
from bench.grid.protocol import load_protocol
from bench.grid.registry import DATASETS, METHODS
from bench.grid.space import LogUniform, OneOf, read_range
from bench.grid.store import ResultStore
from bench.grid.tuned import as_toml, read_tuned, untuned_name
from bench.model.method import EncoderMethod
from bench.run import main as run
from bench.tune import main
from bench.tuning.draws import SAMPLERS, draws, space_of

RATES = LogUniform(3e-5, 1e-1)


def choose(text):
    (choice,) = choose_methods(text)
    return choice


def drawn(text, trials=8, seed=0, sampler="halton", only_rates=False):
    method = choose(text)
    return draws(method, space_of(method, RATES, only_rates), trials, seed, sampler)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_depends_on_seed_method_and_number_alone(sampler):
    found = drawn("lora", 8, sampler=sampler)
    assert drawn("lora", 5, sampler=sampler) == found[:5] and [draw.number for draw in found] == list(range(8))
    assert drawn("lora", 8, seed=1, sampler=sampler)[1:] != found[1:]
    assert {draw.rates["encoder"] for draw in found[1:]}.isdisjoint(draw.rates["encoder"] for draw in drawn("dora", sampler=sampler)[1:])
    assert found[0].rates == {} and found[0].method == choose("lora")  # the protocol's own rates


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rates_are_log_uniform_by_group_and_in_their_range(sampler):
    rates = [draw.rates for seed in range(40) for draw in drawn("cat_sam_t", 6, seed, sampler)[1:]]
    for group in ("encoder", "hq"):
        shares = np.log([of[group] / RATES.low for of in rates]) / np.log(RATES.high / RATES.low)
        assert shares.min() > -0.01 and shares.max() < 1.01 and kstest(shares, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(np.log([[of["encoder"], of["hq"]] for of in rates]).T)[0, 1]) < 0.25


def test_a_methods_own_dimensions_are_in_its_file_and_what_the_user_gave_is_left():
    assert {dict(draw.method.parameters)["rank"] for draw in drawn("lora", 30)} == {2, 4, 8, 16}
    assert {draw.method.label for draw in drawn("lora", 30, only_rates=True)} == {"lora(decoder=sam)"}
    assert {draw.method.label for draw in drawn("lora(rank=8)", 30)} == {"lora(decoder=sam,rank=8)"}
    scales = [dict(draw.method.parameters)["scale"] for draw in drawn("adaptformer", 30)[1:]]
    assert 0.01 <= min(scales) < 0.05 and 0.4 < max(scales) <= 1.0
    for name in METHODS.names():
        assert drawn(name, 30)  # every value is one that the method takes


@pytest.mark.parametrize(
    "wrong", [lambda: LogUniform(1e-1, 1e-5), lambda: LogUniform(0.0, 1.0), lambda: read_range("1e-3:inf"), lambda: read_range("nan:1"),
              lambda: read_range("1e-3"), lambda: OneOf(())]
)  # fmt: skip
def test_a_space_that_is_empty_or_infinite_is_refused(wrong):
    with pytest.raises(RequestError, match="needed"):
        wrong()


def test_a_dimension_that_is_no_parameter_is_refused(plugins_leave):
    @METHODS.register("odd_space")
    @dataclass(frozen=True)
    class OddSpace(EncoderMethod):
        space: ClassVar = {"ranc": OneOf((1, 2))}
        title: ClassVar[str] = "Odd"
        source: ClassVar[str] = "this test"

    with pytest.raises(RequestError, match="odd_space would tune ranc, which is none of its parameters: decoder"):
        space_of(choose("odd_space"), RATES, False)


WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
PLAIN = st.one_of(WORDS, st.integers(-(10**9), 10**9), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
ROW = st.dictionaries(
    WORDS.filter(bool), st.one_of(PLAIN, st.lists(PLAIN, max_size=3), st.dictionaries(WORDS, PLAIN, max_size=3)), max_size=4
)


@settings(max_examples=40, deadline=None)
@given(ROW, st.lists(ROW, min_size=1, max_size=3))
def test_what_is_written_as_toml_is_read_back(table, rows):
    written = {**{key: value for key, value in table.items() if key != "row"}, "row": rows}
    assert tomllib.loads(as_toml(written)) == written


class Closed(Rectangles):
    """Rectangles whose test split raises when it is touched."""

    name, title = "closed", "Closed"

    def names(self, split):
        if split == "test":
            raise AssertionError("the test split was touched")
        return super().names(split)

    def load(self, split, name):
        if split == "test":
            raise AssertionError("a test image was read")
        return super().load(split, name)


class OpenAgain(Rectangles):
    """The same images, tested on."""


SMALL = ["--datasets", "closed", "--backbone", "tiny", "--protocol", "smoke", "--name", "mine"]


@pytest.fixture
def closed(plugins_leave):
    DATASETS.names()
    DATASETS.register("closed")(Closed)


def tune(out, *more, methods="sam,lora,cat_sam_a", trials=3):
    return main([*SMALL, "--methods", methods, "--trials", str(trials), "--out", str(out), *more])


def chosen(out):
    return tomllib.loads((out / "tuned" / "mine.toml").read_text())


def test_no_test_image_is_read_before_the_choice_and_a_protocol_takes_it(closed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Closed, "metric", "ap")
    assert tune(tmp_path, "--only-rates") == 0, capsys.readouterr()
    assert "mIoU (%) on held-out training images" in (said := capsys.readouterr().out) and "a metric of its own: closed (ap)." in said
    found = chosen(tmp_path)
    assert found["held_out"] == {"closed": 2} and found["trials"] == 3 and found["checkpoint_sha256"] and found["device"]
    assert {choice["method"]: choice["cells"] for choice in found["choice"]} == {"lora(decoder=sam)": 3, "cat_sam_a": 3}  # not sam
    for choice in found["choice"]:
        trials = [trial for trial in found["trial"] if trial["method"] == choice["method"]]
        scores = [trial["scores"]["closed"] for trial in trials]
        best = trials[int(np.argmax(scores))]
        assert (choice["trial"], choice["rates"], choice["score"]) == (best["number"], best["rates"], max(scores))
        assert choice["untuned"] == scores[0] and choice["best_so_far"] == list(np.maximum.accumulate(scores))
        assert (
            choice["steps"] == choice["images"] == 12
            and choice["seconds"] > 0
            and trials[0]["rates"] == dict.fromkeys(choice["rates"], 1e-3)
        )
    records = [json.loads(path.read_text()) for path in (tmp_path / "tuned" / "mine").rglob("record.json")]
    assert len(records) == 6 and not (tmp_path / "runs").exists()  # apart from all tables
    assert {record["spec"]["settings"]["evaluation_split"] for record in records} == {"val"}

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    written = tmp_path / "tuned" / "mine.toml"
    written.write_text(written.read_text().replace("images = 12\n", ""))  # as earlier versions wrote it
    assert read_tuned("mine", [written.parent]).choices[0].images is None
    assert tune(tmp_path, "--only-rates") == 0 and stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert chosen(tmp_path) == found

    file, request = tmp_path / "tuned" / "mine.toml", Request("sam,lora,cat_sam_a", "closed", backbone="tiny", protocol="smoke(tuned=mine)")
    before = {spec.method.name: spec for spec in specs_of(request, "0" * 64, out=tmp_path)}
    rates = {choice["method"]: choice["rates"] for choice in found["choice"]}
    assert before["lora"].settings.lr == rates["lora(decoder=sam)"]["encoder"] and before["lora"].settings.trials == 3
    assert before["cat_sam_a"].settings.rates == tuple(rates["cat_sam_a"].values()) and before["sam"].settings.trials == 0
    file.write_text(file.read_text().replace(f"rates = {{encoder = {before['lora'].settings.lr}}}", "rates = {encoder = 0.0123}"))
    after = {spec.method.name: spec for spec in specs_of(request, "0" * 64, out=tmp_path)}
    assert after["lora"].settings.lr == 0.0123 and after["lora"].key != before["lora"].key  # its content is part of the key
    assert after["cat_sam_a"].key == before["cat_sam_a"].key  # of what it says of this method alone

    edited = file.read_bytes()
    assert tune(tmp_path, "--only-rates") == 2 and "has another content" in capsys.readouterr().err and file.read_bytes() == edited
    assert tune(tmp_path, "--only-rates", trials=4) == 2 and "was chosen with other trials" in capsys.readouterr().err
    assert tune(tmp_path, "--only-rates", "--draws", "1") == 2 and "was chosen with other draws:" in capsys.readouterr().err
    assert tune(tmp_path, "--only-rates", "--overwrite") == 0 and chosen(tmp_path) == found


def test_trials_that_diverge_count_and_a_method_without_any_other_gets_no_choice(closed, tmp_path, capsys):
    @METHODS.register("diverging")
    @dataclass(frozen=True)
    class Diverging(EncoderMethod):
        title: ClassVar[str] = "Diverging"
        source: ClassVar[str] = "this test"

        def tuner(self, sam):
            tuner = METHODS.get("lora")().tuner(sam)
            tuner.a.data.fill_(float("nan"))
            return tuner

    assert tune(tmp_path, methods="diverging", trials=2) == 1
    said = capsys.readouterr()
    assert "No choice was written: all trials of diverging(decoder=sam) on closed failed: The " in said.err
    assert not (tmp_path / "tuned" / "mine.toml").exists() and "Traceback" not in said.err


@pytest.mark.slow
def test_halving_gives_every_method_the_same_steps(closed, tmp_path):
    assert tune(tmp_path, "--halving", "--per", "dataset", methods="bitfit,cat_sam_a", trials=4) == 0
    found = chosen(tmp_path)
    assert [(trial["epochs"], trial["number"] in (0, 1, 2, 3)) for trial in found["trial"]] == [(2, True)] * 4 + [(4, True)] * 2 + [
        (2, True)
    ] * 4 + [(4, True)] * 2
    assert {choice["steps"] for choice in found["choice"]} == {4 * 2 + 2 * 4} and {c["dataset"] for c in found["choice"]} == {"closed"}
    for choice in found["choice"]:
        mine = [trial for trial in found["trial"] if trial["method"] == choice["method"]]
        first, last = mine[:4], mine[4:]
        kept = sorted(first, key=lambda trial: (-trial["scores"]["closed"], trial["number"]))[:2]
        assert {trial["number"] for trial in last} == {trial["number"] for trial in kept}
        assert choice["score"] == max(trial["scores"]["closed"] for trial in last)
        assert (choice.get("untuned") is None) == (0 not in {trial["number"] for trial in last})


@pytest.mark.slow
def test_parameters_that_trials_chose_are_seen_in_name_and_key(closed, tmp_path, monkeypatch):
    assert tune(tmp_path, methods="lora", trials=2) == 0
    (choice,) = chosen(tmp_path)["choice"]
    file = tmp_path / "tuned" / "mine.toml"
    file.write_text(file.read_text().replace(f'chosen = "{choice["chosen"]}"', 'chosen = "lora(decoder=sam,rank=16)"'))
    monkeypatch.setattr(Closed, "names", Rectangles.names)
    monkeypatch.setattr(Closed, "load", Rectangles.load)
    request = ["--methods", "lora", "--datasets", "closed", "--backbone", "tiny", "--out", str(tmp_path), "--protocol"]
    assert run([*request, "smoke(tuned=mine)"]) == 0
    row = ResultStore(tmp_path).records().iloc[0]
    assert (row["label"], row["tuned_as"], row["trials"]) == ("lora(decoder=sam,rank=16)", "lora(decoder=sam)", 2)
    assert run([*request, "smoke(tuned=mine)", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trials", "0"], "--trials 0 is too small: at least 1 is needed"),
        (["--halving", "--trials=3"], "--halving with --trials 3: at least 4 are needed"),
        (["--rates", "1e-1:1e-3"], "0 < low < high, both finite, is needed"),
        (["--rates", "1e-3:inf"], "0 < low < high, both finite, is needed"),
        (["--rates", "all"], "cannot be read: two numbers with a colon"),
        (["--images", "65"], "Data set synth_polyps holds out 32 training images, fewer than the 65 asked for."),
        (["--shots", "1,16"], "rates are tuned for one number of shots at a time"),
        (["--methods", "sam"], "None of the methods sam trains anything"),
        (["--protocol", "smoke(epochs=1|2)"], "'smoke(epochs=1|2)' is a sweep, which stands for several: one is needed here."),
        (["--protocol", "smoke(lr=1e-3)"], "--protocol smoke(lr=1e-3) has an lr, which trials choose: --rates LOW:HIGH"),
        (["--protocol", "smoke(tuned=other)"], "is tuned already: name the one that it comes from"),
        (["--name", "../mine"], "names no file of tuned rates"),
        (["--protocol", "smoke(epochs=0)"], "epochs"),
        (["--datasets", "whu"], "whu"),
    ],
)
def test_a_wrong_request_is_one_sentence_before_anything_runs(tmp_path, capsys, words, says):
    asked = {"--methods": "lora", "--datasets": "synth_polyps", "--backbone": "tiny", "--protocol": "smoke", "--data": str(tmp_path)}
    asked |= {"--trials": "2", "--out": str(tmp_path / "out"), **dict([words])}
    assert main([word for pair in asked.items() for word in pair]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and says in said.err and len(said.err.splitlines()) == 1
    assert not list(tmp_path.rglob("state.json")) and not list(tmp_path.rglob("*.toml"))


@pytest.mark.parametrize(
    ("protocol", "methods", "says"),
    [
        ("clean(tuned=none_of_these)", "lora", r"Unknown tuned rates \(looked for in .*\): 'none_of_these'"),
        ("clean(tuned='../mine')", "lora", "Unknown tuned rates"),
        ("clean(tuned=mine,lr=1e-3)", "lora", "has both lr and tuned"),
        ("clean(tuned=mine)", "dora", r"tuned/mine.toml has rates for lora\(decoder=sam\), and none for dora\(decoder=sam\): leave it out"),
        ("clean(tuned=mine)", "lora(rank=8)", r"none for lora\(decoder=sam,rank=8\)"),
        ("clean(tuned=damaged)", "lora", "lacks"),
    ],
)
def test_wrong_tuned_rates_are_one_sentence(tmp_path, protocol, methods, says):
    write(tmp_path, "mine", LORA)
    (tmp_path / "tuned" / "damaged.toml").write_text("trials = 3\n")
    with pytest.raises(RequestError, match=says):
        specs_of(Request(methods, "synth_polyps", backbone="tiny", protocol=protocol), "0" * 64, out=tmp_path)


LORA = {"method": "lora(decoder=sam)", "chosen": "lora(decoder=sam)", "trial": 1, "rates": {"encoder": 0.02}, "score": 60.0}
COST = {"best_so_far": [50.0, 60.0], "cells": 2, "steps": 80, "seconds": 1.0, "space": {"lr.encoder": "3e-05 to 0.1, log-uniform"}}


def write(out, name, *choices, **changes):
    table = {"request": {"backbone": "tiny", "shots": "1", "protocol": "clean"}, "trials": 2, "per": "grid", "sampler": "halton", "seed": 0}
    table |= {"rates": "3e-05 to 0.1, log-uniform", "halving": False, "only_rates": True, "images": 0, "held_out": {"synth_polyps": 32}}
    table |= {"checkpoint_sha256": "", "device": "a CPU", **changes, "choice": [{**COST, **choice} for choice in choices]}
    (out / "tuned").mkdir(parents=True, exist_ok=True)
    (out / "tuned" / f"{name}.toml").write_text(as_toml(table))


def planned(out, dataset="synth_polyps", protocol="clean(tuned=mine)", methods="lora"):
    (spec,) = specs_of(Request(methods, dataset, backbone="tiny", protocol=protocol), "0" * 64, out=out)
    return spec


def test_the_files_content_is_part_of_the_key_where_it_concerns_the_cell(tmp_path):
    write(tmp_path, "mine", LORA)
    first = planned(tmp_path)
    assert (first.settings.lr, first.settings.trials, first.protocol) == (0.02, 2, "clean(tuned=mine)")
    write(tmp_path, "other", LORA)
    assert planned(tmp_path, protocol="clean(tuned=other)").key != first.key  # the name is part of it
    write(tmp_path, "mine", {**LORA, "score": 61.0})
    assert planned(tmp_path).key == first.key
    for change in ({"trials": 3}, {}):
        write(tmp_path, "mine", {**LORA, "rates": {"encoder": 0.02 if change else 0.03}}, **change)
        assert planned(tmp_path).key != first.key
    plain = load_protocol("clean").resolve("lora", "synth_polyps", 1)
    assert not {"trials", "tuned_as", "val_images"} & set(plain.keyed())  # and of no other cell's
    assert {"trials"} == {"trials", "tuned_as", "val_images"} & set(first.settings.keyed())


def test_a_choice_for_each_data_set_is_for_those_alone(tmp_path):
    of = {name: {**LORA, "dataset": name, "rates": {"encoder": rate}} for name, rate in (("synth_polyps", 0.01), ("synth_shadows", 0.05))}
    write(tmp_path, "mine", *of.values(), per="dataset")
    assert [planned(tmp_path, name).settings.lr for name in of] == [0.01, 0.05]
    with pytest.raises(RequestError, match="has rates for synth_polyps, synth_shadows, and none for the data set synth_buildings"):
        planned(tmp_path, "synth_buildings")


def test_the_results_folder_comes_before_the_repository_and_elsewhere_is_said(tmp_path, capsys):
    write(tmp_path / "a", "mine", LORA)
    write(tmp_path / "b", "mine", {**LORA, "rates": {"encoder": 0.05}})
    assert [planned(tmp_path / folder).settings.lr for folder in "ab"] == [0.02, 0.05]
    tuned = read_tuned("mine", [tmp_path / "a" / "tuned"])
    assert tuned.elsewhere({"backbone": "tiny", "shots": "1", "protocol": "clean"}) == ""
    words = ["--methods", "lora", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke(tuned=mine)", "--dry-run"]
    assert run([*words, "--out", str(tmp_path / "a")]) == 0
    assert "The rates of tuned/mine.toml were chosen with protocol clean (here smoke)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "untuned"),
    [
        ("clean(tuned=mine)", "clean"),
        ("clean(epochs=3,tuned=mine)", "clean(epochs=3)"),
        ("clean(tuned=mine,val_images=3)", "clean(val_images=3)"),
        ("clean(epochs=3,tuned=mine,val_images=3)", "clean(epochs=3,val_images=3)"),
        ("clean", "clean"),
    ],
)
def test_the_name_of_a_protocol_without_its_tuning(name, untuned):
    assert untuned_name(name) == untuned


def test_fewer_held_out_images_are_the_same_ones_whoever_asks(closed):
    from bench.model.checkpoints import load_sam
    from bench.running.cell import Cell

    spec = replace(planned(Path("results"), "closed", "smoke(val_images=1,evaluation_split=val)"))
    cell = Cell(spec, load_sam("tiny", ROOT / "pretrained" / "tiny.safetensors", "cpu"), Closed(), Path("nowhere"), lambda *_: None)
    assert len(cell._names("val")) == 1 and set(cell._names("val")) < set(Closed().names("val"))
