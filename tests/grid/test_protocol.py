"""Protocols: the settings of a cell from its rows, and one sentence for every mistake in a file."""

import re
from pathlib import Path

import pytest

from bench.errors import RequestError
from bench.grid.plan import Request, choose_methods, specs_of
from bench.grid.protocol import PROTOCOLS, Settings, load_protocol, protocol_names
from bench.grid.published import PUBLISHED, heading, method_families, published_for, read_published, titles
from bench.grid.registry import METHODS
from bench.grid.toml_reader import read_toml

PAPER = ["sam", "vpt_shallow", "vpt_deep", "adaptformer", "lora", "hq_sam", "cat_sam_t", "cat_sam_a"]
SETTINGS = (PROTOCOLS / "smoke.toml").read_text()


def _refused(tmp_path: Path, text: str, name: str = "mine") -> str:
    """What is said of a protocol's file when a cell's settings are asked of it."""
    (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(RequestError) as error:
        load_protocol(name, folder=tmp_path).resolve("lora", "whu", 1)
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("shots", "epochs", "batch", "every"), [(1, 2000, 1, 20), (16, 200, 4, 2), (2, 200, 4, 2), ("full", 30, 4, 1), (17, 30, 4, 1)]
)
def test_the_paper_schedule(shots: int, epochs: int, batch: int, every: int) -> None:
    settings = load_protocol("paper").resolve("lora", "whu", shots)
    assert (settings.epochs, settings.batch, settings.evaluate_every) == (epochs, batch, every)


def test_the_paper_quirks_are_rows_of_its_file() -> None:
    paper = load_protocol("paper")
    assert paper.resolve("cat_sam_t", "whu", 1).random_crop
    assert (paper.resolve("lora", "whu", 1).lr, paper.resolve("full", "whu", 1).lr) == (1e-3, 1e-4)
    assert not paper.resolve("cat_sam_t", "kvasir", 16).random_crop
    assert paper.resolve("cat_sam_t", "sbu", 1).prompt_types == ("point", "box", "mask")  # its stream draws a point
    trained_so = {name for name in METHODS.names() if paper.resolve(name, "whu", 1).eval_mode_after_first_look}
    assert trained_so == {"cat_sam_t", "cat_sam_a", "sam"}
    assert paper.resolve("cat_sam_a", "sbu", 1).selections == ("best", "last")
    assert load_protocol("clean").resolve("cat_sam_a", "sbu", 1).selections == ("last",)


def rates(protocol: str, call: str, **changes: object) -> dict[str, float] | float:
    """The learning rates of a method: one, or those by group."""
    (choice,) = choose_methods(call)
    settings = load_protocol(protocol, changes).resolve(choice.name, "synth_polyps", 1, choice.groups)
    assert settings.lr == settings.rates[0]
    return dict(settings.lr_by_group) or settings.lr


def test_a_tuned_decoder_has_its_own_rate() -> None:
    assert rates("demo", "lora(decoder=tuned)") == {"encoder": 3e-3, "decoder": 1e-4}
    assert rates("demo", "lora(decoder=hq)") == 3e-3
    assert rates("demo", "adaptformer(decoder=hq)") == 3e-3
    for protocol in ("paper", "clean"):
        assert rates(protocol, "lora(decoder=tuned)") == {"encoder": 1e-3, "decoder": 1e-4}
        assert rates(protocol, "lora(decoder=hq)") == rates(protocol, "cat_sam_t") == 1e-3
    assert rates("smoke", "lora(decoder=tuned)") == 1e-3


def test_a_number_is_for_all_groups_and_a_table_for_its_own() -> None:
    assert rates("demo", "lora(decoder=tuned)", lr=1e-3) == 1e-3
    assert rates("demo", "lora(decoder=tuned)", lr={"decoder": 1e-3}) == {"encoder": 3e-3, "decoder": 1e-3}
    assert rates("demo", "lora(decoder=tuned)", lr={"decoder": 3e-3}) == 3e-3
    assert load_protocol("demo", {"lr": {"hq": 1e-3, "decoder": 0.1}}).name == "demo(lr=decoder:0.1+hq:0.001)"
    for wrong, said in (
        ("fast", r"protocol demo \[lr\]: decoder = 'fast' has the wrong type: float"),
        (-1.0, r"\[lr\]: decoder = -1.0 is too small"),
    ):
        with pytest.raises(RequestError, match=said):
            rates("demo", "lora(decoder=tuned)", lr={"decoder": wrong})


def test_weight_decay_is_a_number_or_by_group_as_rates_are() -> None:
    def decays(call: str, **changes: object) -> tuple[float, dict[str, float]]:
        (choice,) = choose_methods(call)
        settings = load_protocol("demo", changes).resolve(choice.name, "synth_polyps", 1, choice.groups)
        return settings.weight_decay, dict(settings.weight_decay_by_group)

    assert decays("lora(decoder=tuned)") == (1e-4, {})
    assert decays("lora(decoder=tuned)", weight_decay=0.1) == decays("lora", weight_decay={"decoder": 0, "encoder": 0.1}) == (0.1, {})
    assert decays("lora(decoder=tuned)", weight_decay={"encoder": 0}) == (0, {"encoder": 0, "decoder": 1e-4})
    with pytest.raises(RequestError, match=r"Unknown group of parameters in a row of protocol demo.*'decodr'"):
        specs_of(Request("lora", "synth_polyps", protocol="demo(weight_decay={'decodr': 0.1})"), "0" * 64)


# By protocol, what was learned with before there were groups, but for the demo, whose rates are tuned; each method in it as it is,
# without parameters given.
PARTED = {"encoder": 3e-3, "decoder": 1e-4}
OF_SAMED = {"encoder": 1e-3, "decoder": 1e-4}
RATES = {
    "paper": (1e-3, {"decoder": 1e-4, "full": 1e-4, "sam_adapter": 2e-4, "samed": OF_SAMED}),
    "clean": (1e-3, {"decoder": 1e-4, "full": 1e-4, "sam_adapter": 2e-4, "samed": OF_SAMED}),
    "smoke": (1e-3, {}),
    "demo": (3e-3, {"decoder": 1e-4, "sam_adapter": PARTED, "full": PARTED, "samed": PARTED}),
}


@pytest.mark.parametrize("protocol", RATES)
def test_the_methods_as_they_are_learn_as_before_and_keep_their_keys(protocol: str) -> None:
    common, others = RATES[protocol]
    assert {name: rates(protocol, name) for name in METHODS.names()} == {name: others.get(name, common) for name in METHODS.names()}
    for spec in specs_of(Request("all", "synth_polyps", protocol=protocol), "0" * 64):
        assert ("lr_by_group" in spec.canonical()["settings"]) == isinstance(others.get(spec.method.name), dict)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "methods = ['lorra']\nflips = false",
            "Unknown method in a row of protocol mine, which therefore matches nothing: 'lorra'.",
        ),
        (
            "datasets = ['whu', 'kvasirr']\nflips = false",
            "Unknown data set in a row of protocol mine, .* 'kvasirr'. Did you mean kvasir",
        ),
        ("lr = { decodr = 1e-4 }", "Unknown group of parameters in a row of protocol mine, .* 'decodr'. Did you mean decoder or encoder"),
    ],
)
def test_a_row_that_matches_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(f"{SETTINGS}\n[[override]]\n{row}\n")
    monkeypatch.setattr("bench.grid.plan.load_protocol", lambda name, changes: load_protocol(name, changes, tmp_path))
    with pytest.raises(RequestError, match=said):
        specs_of(Request("lora", "whu", protocol="mine"), "0" * 64)


@pytest.mark.parametrize("name", protocol_names())
@pytest.mark.parametrize("shots", [1, 16, 100, "full"])
def test_every_protocol_resolves(name: str, shots: int) -> None:
    assert load_protocol(name).resolve("lora", "whu", shots).epochs > 0


def test_changes_are_part_of_the_name() -> None:
    changed = load_protocol("clean", {"selections": ["last", "val"], "lr": 1})
    assert changed.name == "clean(lr=1,selections=last+val)"
    settings = changed.resolve("lora", "whu", 1)
    assert (settings.lr, settings.selections) == (1.0, ("last", "val"))


def test_unknown_protocol() -> None:
    with pytest.raises(RequestError, match=r"Unknown protocol 'papr'\. Did you mean paper\? Known: clean, .*paper, smoke\."):
        load_protocol("papr")


def test_unknown_setting_in_a_change() -> None:
    with pytest.raises(RequestError, match=r"Unknown key in protocol paper 'epoch'\. Did you mean epochs\?"):
        load_protocol("paper", {"epoch": 3})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (SETTINGS.replace("lr = 1e-3", "learning_rate = 1e-3"), "'learning_rate'"),
        (SETTINGS.replace("epochs = 4", "epoch = 4"), "'epoch'. Did you mean epochs?"),
        (SETTINGS.replace("[settings]", "[setting]"), "'setting'. Did you mean settings?"),
        (SETTINGS.replace("lr = 1e-3\n", ""), "Protocol mine lacks lr."),
        (SETTINGS.replace("lr = 1e-3", 'lr = "fast"'), "lr = 'fast' has the wrong type: float or a table is needed."),
        (SETTINGS.replace("epochs = 4", "epochs = 4.5"), "epochs = 4.5 has the wrong type: int is needed."),
        (SETTINGS.replace("flips = true", "flips = 1"), "flips = 1 has the wrong type: bool is needed."),
        (SETTINGS.replace('["point", "box", "mask"]', '["point", 3]'), "has the wrong type"),
        (SETTINGS.replace('evaluation_prompt = "box"', 'evaluation_prompt = "boxes"'), "'boxes'. Did you mean box?"),
        (SETTINGS.replace('["last", "best", "val"]', "[]"), "[settings]: selections = [] is empty: at least one is needed."),
        (SETTINGS.replace("batch = 1", "batch = 0"), "batch = 0 is too small"),
        (SETTINGS.replace("crop_area_min = 0.1", "crop_area_min = 1.5"), "crop_area_min = 1.5 is too large: at most 1 is allowed."),
        (SETTINGS.replace("lr = 1e-3", "stream_revision = 1"), "'stream_revision'"),
        (SETTINGS.replace("max_shots = 1\n", ""), "has no max_shots: a number or 'full' is needed."),
        (SETTINGS.replace("max_shots = 1\n", "max_shots = 0\n"), "[schedule 1]: max_shots = 0 is too small: at least 1 is needed."),
        (SETTINGS.partition("[[schedule]]")[0], "no schedule for 1 shots"),
        (SETTINGS + "\n[[override]]\nmethod = ['lora']\n", "'method'. Did you mean methods"),
        (SETTINGS + "\n[[override]]\nmethods = 3\n", "[override 1]: methods = 3 has the wrong type: string is needed."),
        (SETTINGS + "\n[[override]]\ndatasets = []\n", "[override 1]: datasets = [] is empty: at least one is needed."),
        (
            SETTINGS + "\n[[override]]\nshots = ['1']\n",
            "[override 1]: shots = '1' has the wrong type: int or full is needed.",
        ),
        (
            SETTINGS.replace("lr = 1e-3", "lr = { decoder = 1e-4 }"),
            "Protocol mine has no learning rate for the group encoder: give",
        ),
        (SETTINGS.replace("lr = 1e-3", "lr = = 1"), "mine.toml: "),
        ("\ufeff\0", "mine.toml: "),
    ],
)
def test_a_mistake_in_a_file_gets_one_sentence(tmp_path: Path, broken: str, said: str) -> None:
    assert said in _refused(tmp_path, broken)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xff")
    with pytest.raises(RequestError, match=r"Cannot read .*x\.toml: "):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(RequestError, match=r"Cannot read .*absent\.toml: "):
        read_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(("suite", "cells"), [("paper_one_shot", 8 * 3), ("demo", 8 * 3)])
def test_every_suite_is_a_grid(suite: str, cells: int) -> None:
    request = Request().with_suite(PROTOCOLS.parent / "suites" / f"{suite}.toml")
    assert len(specs_of(request, "0" * 64)) >= cells
    assert [choice.name for choice in choose_methods(request.methods)] == PAPER


def test_what_trains_nothing_is_run_once_whatever_is_asked_for() -> None:
    def keys(**asked: str) -> list[str]:
        return [spec.key for spec in specs_of(Request("sam", "synth_polyps", **asked), "0" * 64)]

    default = keys()
    assert len(default) == 1
    for asked in ({"shots": "1,16,full"}, {"seeds": "5,6"}, {"draws": "0,1,2"}, {"shots": "16", "seeds": "9", "draws": "4"}):
        assert keys(**asked) == default
    both = specs_of(Request("sam,lora", "synth_polyps", shots="1,16", seeds="0,1"), "0" * 64)
    assert [spec.method.name for spec in both] == ["sam", *["lora"] * 4]


def test_draws_and_seeds_may_be_ranges_whose_end_is_left_out_as_in_python() -> None:
    asked = Request("lora", "synth_polyps", draws="0:3,7", seeds="5, 0:2", protocol="smoke")
    assert [(spec.draw, spec.seed) for spec in specs_of(asked, "0" * 64)] == [(d, s) for d in (0, 1, 2, 7) for s in (5, 0, 1)]


@pytest.mark.parametrize("text", ["3:3", "5:2", "0:10001", "0:", ":4", "0:4:2", "4294967290:4294967300", "-1:3", "a:b"])
def test_a_range_that_is_none_is_one_sentence(text: str) -> None:
    for name in ("draws", "seeds"):
        with pytest.raises(RequestError, match=f"{name} = '{text}' cannot be read: whole numbers .* 0:20 for 0 to 19") as error:
            specs_of(Request("lora", "synth_polyps", **{name: text}), "0" * 64)
        assert str(error.value).count(".") == 1


def test_groups_of_methods_may_be_mixed_with_names() -> None:
    def chosen(text: str) -> list[str]:
        return [choice.label for choice in choose_methods(text)]

    assert [label.partition("(")[0] for label in chosen("paper")] == PAPER
    assert chosen("paper,ssf,lora") == [*chosen("paper"), "ssf(decoder=sam)"]
    assert chosen("ssf(decoder=hq), paper")[0] == "ssf(decoder=hq)"
    assert set(chosen("paper,all")) == set(chosen("all")) > set(chosen("paper"))


def test_families_are_groups_whose_members_may_have_values() -> None:
    def chosen(text: str) -> list[str]:
        return [choice.label for choice in choose_methods(text)]

    assert {"conv_lora(decoder=sam)", "lora(decoder=sam)", "ssf(decoder=sam)"} <= set(chosen("@lora")) < set(chosen("all"))
    assert set(chosen("@lora,@adapter,@prompt,@decoder,@selective,sam")) == set(chosen("all"))
    assert chosen("@lora(decoder=tuned)") == [label.replace("=sam", "=tuned") for label in chosen("@lora")]
    assert chosen("hq_sam, @decoder")[0] == "hq_sam" and chosen("@selective,bitfit") == chosen("@selective")
    assert "lora(decoder=hq)" in chosen("@lora(decoder=sam|hq)")
    for wrong in ("@lor", "@", "@lor(decoder=hq)"):
        with pytest.raises(RequestError, match=r"^Unknown family of methods '@(lor)?'\..* Known: @adapter, @decoder, @lora, "):
            choose_methods(wrong)
    with pytest.raises(RequestError, match=r"Unknown parameter of \w+ 'rank'"):
        choose_methods("@lora(rank=2)")


def test_the_titles_and_families_of_all_methods_are_known_without_loading_them() -> None:
    known = [*METHODS.names(), "adapter"]  # which "all" does not name
    assert titles() == {name: METHODS.get(name).title for name in known}  # type: ignore[attr-defined]
    assert method_families() == {name: METHODS.get(name).family for name in known}  # type: ignore[attr-defined]
    published = read_published(PUBLISHED["1"])
    assert heading("ssf(decoder=sam)", published) == "SSF (decoder: sam)"
    assert heading("lora(decoder=sam)", published) == "LoRA (decoder: sam)" and heading("elsewhere", published) == "elsewhere"


SUITES = PROTOCOLS.parent / "suites"


@pytest.mark.parametrize("path", sorted(SUITES.glob("paper_*.toml")), ids=lambda path: path.stem)
def test_a_suite_of_the_paper_lists_the_published_numbers(path: Path) -> None:
    """Every number in its comments is one of results/paper, and those of CAT-SAM on its data sets are all there."""
    said = set(re.findall(r"\d+\.\d+", "".join(re.findall(r"#.*", path.read_text()))))
    request = Request().with_suite(path)
    published = published_for(request.shots)
    known = {*published.numbers.values(), *(number.value for number in published.others.values())}
    assert {float(number) for number in said} - {2402.03631} <= known
    datasets = request.datasets.split(",")
    wanted = [published.of(method, name) for method in ("cat_sam_t", "cat_sam_a") for name in datasets]
    assert {number.value for number in wanted if number} <= set(map(float, said)) and sum(map(bool, wanted)) >= 6
    assert specs_of(request, "0" * 64)


def test_prompts_of_a_protocol_are_the_words_of_reevaluation() -> None:
    def settings(text: str) -> Settings:
        return specs_of(Request("lora", "synth_polyps", protocol=text), "0" * 64)[0].settings

    asked = settings("smoke(evaluation_prompt=points(3),prompt_types=['none','box(jitter=0.1)','points(count=2)'])")
    assert (asked.evaluation_prompt, asked.prompt_types) == ("points(3)", ("none", "box(jitter=0.1)", "points(2)"))
    specs = specs_of(Request("lora", "synth_polyps", protocol="smoke(evaluation_prompt=box|box(jitter=0)|points(1)|mask)"), "0" * 64)
    plain = specs_of(Request("lora", "synth_polyps", protocol="smoke"), "0" * 64)[0]
    assert [spec.settings.evaluation_prompt for spec in specs] == ["box", "box", "point", "mask"]
    assert specs[0].settings == plain.settings and specs[2].settings.evaluation_prompt == "point"
    for wrong, why in (("boxes", "Did you mean box"), ("points(0)", "too small"), ("boxes_from='a.csv'", "is no prompt")):
        with pytest.raises(RequestError, match=why):
            settings(f'smoke(evaluation_prompt="{wrong}")')


def test_a_data_sets_own_settings_are_below_rows_and_words() -> None:
    paper = load_protocol("paper")
    own = {"evaluation_prompt": "points(5)"}
    assert paper.resolve("lora", "x", 1, of_dataset=own).evaluation_prompt == "points(5)"
    asked = load_protocol("paper", {"evaluation_prompt": "box"}).resolve("lora", "x", 1, of_dataset=own)
    assert asked.evaluation_prompt == "box"
