"""What a cell is called: keys, folders, and the words that a user names methods with."""

import json
import keyword
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ROOT
from bench.errors import RequestError
from bench.grid.plan import choose_methods
from bench.grid.protocol import Settings
from bench.grid.spec import Grid, MethodChoice, RunSpec, choose_method, expanded, parse_call, split_calls
from bench.grid.store import _identities, spec_from_json, spec_to_json

SETTINGS = Settings(
    epochs=2000,
    batch=1,
    evaluate_every=20,
    lr=1e-3,
    lr_min=1e-5,
    weight_decay=1e-4,
    flips=True,
    random_crop=True,
    crop_area_min=0.1,
    prompt_types=("point", "box", "mask"),
    evaluation_prompt="box",
    evaluation_split="test",
    selections=("best", "last"),
    augmentation_stream="reseeded_workers",
    loader_workers=4,
    normalise_native_size=False,
    eval_mode_after_first_look=True,
    matmul_precision="medium",
)
LORA = MethodChoice("lora", (("decoder", "sam"), ("rank", 4), ("alpha", 4.0)), 1, "decoder=sam")
SPEC = RunSpec("vit_l", "ab" * 32, "whu", 1, False, LORA, 1, 0, 3407, "paper", SETTINGS)


@dataclass(frozen=True)
class Toy:
    """A method's hyper-parameters."""

    name: ClassVar[str] = "toy"
    revision: ClassVar[int] = 2
    decoder: str = "sam"
    rank: int = 4
    scale: float = 0.5
    bias: bool = False


def test_the_pinned_key() -> None:
    """A changed key is a decision: every stored cell of the old key is run again."""
    assert SPEC.key == "d2d4a2bf0b0c"
    assert SPEC.folder.as_posix() == "whu/lora,decoder=sam/vit_l_1shot_draw0_seed3407_d2d4a2bf0b0c"


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "vit_b"},
        {"checkpoint_sha256": "cd" * 32},
        {"dataset": "sbu"},
        {"dataset_revision": 2},
        {"generated": True},
        {"shots": 16},
        {"shots": "full"},
        {"draw": 1},
        {"draw_revision": 1},
        {"seed": 0},
        {"protocol": "clean"},
        {"settings": replace(SETTINGS, lr=1e-4)},
        {"method": replace(LORA, revision=2)},
        {"method": replace(LORA, parameters=(("decoder", "sam"), ("rank", 8), ("alpha", 4.0)))},
    ],
)
def test_everything_that_can_change_the_number_changes_the_key(change: dict) -> None:
    assert replace(SPEC, **change).key != SPEC.key


def test_a_setting_that_came_later_is_in_the_key_only_where_it_is_used() -> None:
    assert "precision" not in SPEC.canonical()["settings"]
    assert replace(SPEC, settings=replace(SETTINGS, precision="bf16")).key != SPEC.key


def test_rates_by_group_are_in_the_key_the_recipe_and_the_record() -> None:
    """Where there are none, all three are as they were before there were groups; an older grid still names its cells."""
    apart = replace(SPEC, settings=replace(SETTINGS, lr_by_group=(("encoder", 1e-3), ("decoder", 1e-4))))
    decays = replace(SPEC, settings=replace(SETTINGS, weight_decay_by_group=(("encoder", 1e-3), ("decoder", 1e-4))))
    told = [_identities(spec)["recipe"] for spec in (SPEC, apart, decays)]
    assert told[0] == "f4dff0aacd65" and len({*told}) == len({SPEC.key, apart.key, decays.key}) == 3
    assert "weight_decay_by_group" not in apart.canonical()["settings"]
    assert spec_from_json(json.loads(json.dumps(spec_to_json(decays)))) == decays
    content = json.loads(json.dumps(spec_to_json(apart)))
    assert content["settings"]["lr_by_group"] == [["encoder", 1e-3], ["decoder", 1e-4]] and spec_from_json(content) == apart
    older = json.loads(json.dumps(spec_to_json(SPEC)))
    del older["settings"]["lr_by_group"], older["settings"]["weight_decay_by_group"], older["method"]["groups"]
    assert spec_from_json(older) == SPEC


def test_what_is_only_shown_does_not_change_the_key() -> None:
    assert replace(SPEC, method=replace(LORA, shown="")).key == SPEC.key


def test_grid_is_the_product_data_sets_outermost() -> None:
    cells = list(Grid(("sam", "lora"), ("whu", "sbu"), seeds=(0, 1)).cells())
    assert len(cells) == 8
    assert cells[:3] == [("whu", "sam", 1, 0, 0), ("whu", "sam", 1, 0, 1), ("whu", "lora", 1, 0, 0)]


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
VALUES = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text(max_size=8), NAMES)
CALLS = st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3))


def _written(name: str, values: dict) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


@settings(deadline=None)
@given(CALLS)
def test_parse_call_reads_what_is_written(call: tuple[str, dict]) -> None:
    assert parse_call(_written(*call)) == call


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, st.integers() | NAMES, max_size=3)), max_size=4))
def test_split_calls_cuts_outside_brackets_only(calls: list[tuple[str, dict]]) -> None:
    parts = split_calls(" , ".join(_written(*call) for call in calls))
    assert [parse_call(part) for part in parts] == calls


@settings(deadline=None)
@given(st.integers(1, 64), st.sampled_from(["sam", "hq"]), st.floats(0, 9).map(lambda x: round(x, 3)), st.booleans())
def test_a_choice_is_read_back_from_its_label(rank: int, decoder: str, scale: float, bias: bool) -> None:
    choice = choose_method(Toy, {"rank": rank, "decoder": decoder, "scale": scale, "bias": bias})
    name, values = parse_call(choice.label)
    assert name == "toy"
    assert choose_method(Toy, values) == choice


def test_a_choice_has_all_parameters_and_shows_decoder_and_changes() -> None:
    assert choose_method(Toy, {}) == MethodChoice(
        "toy", (("decoder", "sam"), ("rank", 4), ("scale", 0.5), ("bias", False)), 2, "decoder=sam"
    )
    assert choose_method(Toy, {"rank": 8, "scale": 1}).label == "toy(decoder=sam,rank=8,scale=1.0)"


@pytest.mark.parametrize(
    "text", ["", "lora(", "lora(8)", "lora rank=8", "a.b", "lora(rank=open('x'))", "1+1", "f(x)(y)", "lora(**{})", "\0"]
)
def test_what_is_no_call_is_named(text: str) -> None:
    with pytest.raises(RequestError, match=r"Cannot read .*write a name"):
        parse_call(text)


LRS, SELECTIONS = ("1e-3", "3e-4"), ("['last']", "['val']")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("lora(rank=8)", ["lora(rank=8)"]),
        ("lora(rank=4|8, decoder=hq|sam)", [f"lora(rank={rank},decoder={decoder})" for rank in (4, 8) for decoder in ("hq", "sam")]),
        ("clean(lr=1e-3|3e-4,selections=['last']|['val'])", [f"clean(lr={lr},selections={of})" for lr in LRS for of in SELECTIONS]),
    ],
)
def test_a_sweep_is_its_calls(text: str, calls: list[str]) -> None:
    assert [parse_call(call) for call in expanded(text)] == [parse_call(call) for call in calls]
    assert split_calls(text) == [text]


@pytest.mark.parametrize("text", ["lora(4|8)", "lora(rank=4||8)", "lora|dora", "lora(rank=4|open('x'))"])
def test_what_is_no_sweep_is_named(text: str) -> None:
    with pytest.raises(RequestError, match=r"Cannot read .*write a name"):
        for call in expanded(text):
            parse_call(call)


def test_words_of_a_list_without_quotes_are_named() -> None:
    with pytest.raises(RequestError, match=r"Words in a list need quotes"):
        parse_call("clean(selections=[last,val])")


def test_wrong_parameters_are_named_with_what_is_allowed() -> None:
    with pytest.raises(RequestError, match=r"Unknown parameter of toy 'rnk'\. Did you mean rank\? Known: bias, decoder, rank, scale\."):
        choose_method(Toy, {"rnk": 8})
    with pytest.raises(RequestError, match=r"toy: rank = 'eight' has the wrong type: int is needed\."):
        choose_method(Toy, {"rank": "eight"})
    with pytest.raises(RequestError, match="rank = True has the wrong type: int"):
        choose_method(Toy, {"rank": True})


def test_annotations_that_name_nothing_are_one_sentence() -> None:
    cls = dataclass(type("Elsewhere", (), {"__annotations__": {"rank": "Absent"}, "rank": 4, "name": "elsewhere"}))
    with pytest.raises(RequestError, match=r"The annotations of Elsewhere cannot be read: name 'Absent' is not defined\."):
        choose_method(cls, {})


def test_planning_and_tables_do_not_wait_for_torch() -> None:
    modules = [f"bench.grid.{name}" for name in ("spec", "protocol", "registry", "store", "provenance", "progress")]
    code = f"import sys, bench.tables, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_method_without_what_it_needs_is_one_sentence():
    with pytest.raises(RequestError, match=r"^The method adapter lacks file: adapter\(file=…\) is needed\.$"):
        choose_methods("adapter")
