"""Records that were changed by hand, by a disk or by another program: left out by name, and never in the way of the others."""

import io
import json
import math
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_spec import SPEC

from bench import export, report, status, tables
from bench.errors import RequestError
from bench.grid.metrics import Images, count, scores
from bench.grid.rows import disagreement
from bench.grid.store import Record, ResultStore, read_state
from bench.running.cell import images_table

NESTED = "[" * 100_000
ANYWHERE: list[tuple[tuple[str, ...], Any]] = [
    *((("scores", "best", "miou_all"), value) for value in (101, -1, "70", True, 1e308, [], {}, 10**400, math.inf)),
    *((("scores", "best"), value) for value in (None, [], 3)),
    *((("scores",), value) for value in (None, {}, [])),
    *((("cost",), value) for value in (None, [], "x")),
    *((("cost", "trainable_parameters"), value) for value in ("many", -1, {}, [], math.nan, 10**400)),
    *((("cost", "training_seconds"), value) for value in ("long", {"a": 1})),
    *((("provenance",), value) for value in (None, 7, [])),
    *((("provenance", "git"), value) for value in ("x", [])),
    *((("provenance", "git", "commit"), value) for value in (7, ["a"])),
    *((("provenance", name), value) for name, value in {"time": 5, "command": {"a": 1}, "device_name": ["a"], "host": "\ud800"}.items()),
    *((("spec",), value) for value in (None, [], "x")),
    *((("spec", "shots"), value) for value in (0, -1, "few", 1.5, True, None)),
    *((("spec", "seed"), value) for value in (-1, "0", 2**40, None)),
    *((("spec", "backbone"), value) for value in (3, None, ["vit_l"], "\ud800")),
    *((("spec", "method"), value) for value in ("lora", None)),
    *((("spec", "method", "parameters"), value) for value in ("x", [["rank"]], [["rank", {}]], [[1, 2]])),
    *((("spec", "method", "shown"), value) for value in (None, 1)),
    *((("spec", "settings"), value) for value in ([], None)),
    *((("spec", "settings", "lr"), value) for value in ("fast", math.nan)),
    *((("spec", "settings", "epochs"), value) for value in (1.5, True)),
    *((("spec", "settings", "selections"), value) for value in ("best", [], [1])),
    *((("spec", name), value) for name, value in {"draw": "x", "dataset": {}, "generated": "no", "checkpoint_sha256": None}.items()),
    *((("key",), value) for value in (None, 5, "0" * 12)),
]


def stored(store: ResultStore, seed: int) -> Path:
    """The folder of a cell whose record says what its rows say."""
    rng, spec = np.random.default_rng(seed), replace(SPEC, seed=seed)
    rows = {rule: [count(f"{i:03}", i % 3, *(rng.random((2, 8, 8)) > 0.4)) for i in range(6)] for rule in spec.settings.selections}
    found, cost = (
        {rule: scores(Images.of(of)) for rule, of in rows.items()},
        {"trainable_parameters": 8, "total_parameters": 9, "training_seconds": 1.5},
    )
    facts = {
        "git": {"commit": "a" * 40, "dirty": False},
        "time": "2026-01-01T00:00:00+00:00",
        "command": "run.py",
        "device_name": "a machine",
    }
    return store.save(Record(spec, found, cost, facts), images_table(rows), pd.DataFrame({"epoch": [1], "loss": [0.5]}), b"")


def change(folder: Path, place: tuple[str, ...], value: Any) -> None:
    """Puts a value into a record, and the key that belongs to what it then says, if that is a spec at all."""
    from bench.grid.protocol import Settings
    from bench.grid.spec import MethodChoice, RunSpec

    content = json.loads((folder / "record.json").read_text())
    at = content
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    if place[0] == "spec":
        try:
            spec = content["spec"]
            parts = {"method": MethodChoice(**spec["method"]), "settings": Settings(**spec["settings"])}
            content["key"] = RunSpec(**{**spec, **parts}).key
        except Exception:  # what has no key any more is damaged whatever it says
            pass
    (folder / "record.json").write_text(json.dumps(content))


def said_by(main: Any, *words: object) -> str:
    """What a command prints that ends well."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main([*map(str, words)]) == 0, err.getvalue()
    return out.getvalue() + err.getvalue()


def test_every_kind_of_damage_costs_its_record_alone(tmp_path: Path) -> None:
    """A hundred damaged records beside a sound one: all of them are named, and no command stops at any of them."""
    store = ResultStore(tmp_path / "results")
    sound = stored(store, 0)
    raw = ["", '{"key"', "null", "[]", '"x"', "\0" * 50, NESTED, '{"spec": ' * 50_000, "9" * 5000]
    whole = (sound / "record.json").read_text()
    for number, (place, value) in enumerate(ANYWHERE):
        folder = stored(store, number + 1)
        change(folder.rename(folder.with_name(f"a{number}")), place, value)
    for number, text in enumerate([*raw, whole[: len(whole) // 2], whole.replace("{", "[")]):
        folder = sound.with_name(f"b{number}")
        folder.mkdir()
        (folder / "record.json").write_text(text)
    (sound.with_name("c") / "record.json").mkdir(parents=True)
    scan = store.scan()
    wrong = {folder.name for folder in sound.parent.iterdir()} - {sound.name}
    assert len(wrong) > 80 and list(scan.table["path"]) == [str(sound)]
    assert {item.path.parent.name for item in scan.damaged} == wrong
    assert all("\n" not in item.reason for item in scan.damaged)
    printed = said_by(tables.main, "--out", store.root)
    assert all(f"/{name}/record.json: " in printed for name in wrong)
    for command in (report, status):
        said_by(command.main, "--out", store.root)
    with pytest.warns(UserWarning, match="Left out"):
        said_by(export.main, "--out", store.root)


def test_a_score_that_its_rows_do_not_give_is_no_result(tmp_path: Path) -> None:
    """A number written by hand was printed, in bold."""
    store = ResultStore(tmp_path / "results")
    folders = [stored(store, seed) for seed in (0, 1)]
    assert len(store.records()) == 2
    for name in ("miou_all", "dice_all", "mean_image_iou_with_objects"):
        change(folders[1], ("scores", "best", name), 99.9)
        (left_out,) = store.scan().damaged
        assert left_out.path.parent == folders[1]
        assert f"its best {name} is 99.9, and " in left_out.reason and left_out.reason.endswith(" by its images.csv")
        assert store.status_of(folders[1]).phase == "failed"
        assert "99.9" not in said_by(tables.main, "--out", store.root).partition("Left out")[0]
        folders[1] = stored(store, 1)
    assert len(store.records()) == 2


def test_rows_that_were_cut_short_are_no_result_and_absent_ones_are_not_asked_for(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    folder = stored(store, 0)
    text = (folder / "images.csv").read_text()
    (folder / "images.csv").write_text("\n".join(text.splitlines()[:-2]) + "\n")
    assert "images.csv" in store.scan().damaged[0].reason
    (folder / "images.csv").unlink()
    assert store.status_of(folder).phase == "stored"


def test_rows_are_read_again_only_where_a_file_changed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    folder = stored(store, 0)
    store.scan()
    assert store.root.joinpath("cache", "compared.json").is_file()
    facts = (folder / "images.csv").stat()
    (folder / "images.csv").write_text("x" * facts.st_size)  # the same size and time: it is not looked at
    os.utime(folder / "images.csv", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert len(ResultStore(store.root).records()) == 1
    store.root.joinpath("cache", "compared.json").write_text("[")
    assert len(ResultStore(store.root).records()) == 1  # a damaged cache, and rows that cannot be read: the record stands alone
    assert disagreement(folder, {}) == ""


@pytest.mark.parametrize(
    "state",
    [
        '{"phase": 5}',
        '{"phase": "running", "progress": [], "time": "now"}',
        '{"phase": "running", "progress": {"share": "half"}, "time": "2026-01-01T00:00:00Z"}',
        '{"phase": "running", "progress": {"share": NaN}}',
        '{"phase": "running", "time": 5}',
        '{"phase": "failed", "error": "\\ud800"}',
        NESTED,
    ],
)
def test_a_damaged_state_is_an_empty_one(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    assert read_state(tmp_path) == {}


@pytest.mark.parametrize(
    "change", [{"folder": "../../up"}, {"folder": "/etc"}, {"shots": None}, {"seed": -1}, {"method": 5}, {"key": ["a"]}]
)
def test_a_damaged_grid_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    store = ResultStore(tmp_path)
    store.write_grid([SPEC])
    (cell,) = json.loads((tmp_path / "grid.json").read_text())
    (tmp_path / "grid.json").write_text(json.dumps([{**cell, **change}]))
    with pytest.raises(RequestError, match=r"Cannot read .*grid\.json: "):
        store.grid()
