"""The reader of what users write: a dataclass, or one sentence that names the file and the key, whatever a value is."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ROOT
from bench.cluster.profile import Profile
from bench.errors import RequestError
from bench.grid.plan import REQUEST
from bench.grid.protocol import Protocol, Settings
from bench.grid.toml_reader import LARGEST, NO_KEY, build, kinds, load, not_empty, part, read_toml, typed
from bench.model.backbones import SamConfig
from bench.pretraining.config import PretrainConfig
from bench.study import FILE as STUDY
from bench.types import Range
from datasets.definition import Definition

TABLES = {cls.__name__: kinds(cls) for cls in (Protocol, Settings, Profile, Definition, PretrainConfig, SamConfig)}
TABLES |= {"suite": REQUEST, "study": STUDY}
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "full", "x" * 20_000]),
    st.dates(),
)
KEYS = st.one_of(st.sampled_from(sorted({key for table in TABLES.values() for key in table})), st.text(max_size=9), st.just("1"))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True)
class Toy:
    name: str = field(metadata=NO_KEY)
    count: Annotated[int, Range(1, 9)]
    kind: Literal["box", "point"] = "box"
    side: Literal[4, 8] = 8
    words: Annotated[tuple[str, ...], not_empty] = ("a",)
    lines: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    most: Annotated[int, Range(1)] | None = None
    inner: Inner = Inner()
    by_number: Mapping[Annotated[int, Range(1)], str] = field(default_factory=dict)
    rows: tuple[Annotated[Mapping[str, Any], kinds(Inner)], ...] = field(default=(), metadata={"key": "row"})

    def __post_init__(self) -> None:
        if self.count == 7:
            raise RequestError("count = 7 is unlucky.")


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_its_dataclass(tmp_path: Path) -> None:
    text = 'count = 3\nwords = "b"\npair = [1, 2.5]\nmost = 2\n[inner]\nshare = 1\n[by_number]\n16 = "x"\n[[row]]\nshare = 0\n[[row]]\n'
    toy = load(_written(tmp_path / "toy.toml", "\ufeff" + text), Toy, name="toy")
    assert toy == Toy("toy", 3, words=("b",), pair=(1.0, 2.5), most=2, inner=Inner(1.0), by_number={16: "x"}, rows=({"share": 0.0}, {}))
    assert [type(number) for number in (*toy.pair, toy.inner.share, toy.rows[0]["share"])] == [float] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", " lacks count."),
        ("count = 0", ": count = 0 is too small: at least 1 is needed."),
        ("count = 10", ": count = 10 is too large: at most 9 is allowed."),
        ("count = 7", ": count = 7 is unlucky."),
        ("count = 1.0", ": count = 1.0 has the wrong type: int is needed."),
        ("count = true", ": count = True has the wrong type: int is needed."),
        ("count = 1\ncuont = 1", "Unknown key in {path} 'cuont'. Did you mean count? Known: by_number, "),
        ("count = 1\nname = 'x'", "Unknown key in {path} 'name'"),
        ("count = 1\nrows = []", "Unknown key in {path} 'rows'. Did you mean row"),
        ("count = 1\nkind = 'boxe'", "Unknown value of kind in {path} 'boxe'. Did you mean box? Known: box, point."),
        ("count = 1\nkind = 3", ": kind = 3 has the wrong type: box or point is needed."),
        ("count = 1\nside = 5", "Unknown value of side in {path} '5'. Known: 4, 8."),
        ("count = 1\nwords = []", ": words = [] is empty: at least one is needed."),
        ("count = 1\nwords = [['a']]", ": words = ['a'] has the wrong type: string is needed."),
        ("count = 1\nlines = 'a'", ": lines = 'a' has the wrong type: a list of strings is needed."),
        ("count = 1\npair = [1.0]", ": pair = [1.0] has the wrong type: a list of 2 floats is needed."),
        ("count = 1\npair = [1.0, nan]", ": pair = nan is not allowed: numbers from "),
        ("count = 1\nmost = 0", ": most = 0 is too small"),
        ("count = 1\nmost = 'a'", ": most = 'a' has the wrong type: int is needed."),
        ("count = 1\ninner = 3", ": inner = 3 has the wrong type: a table is needed."),
        ("count = 1\n[inner]\nshare = inf", " [inner]: share = inf is not allowed"),
        ("count = 1\n[inner]\nshrae = 1", "Unknown key in {path} [inner] 'shrae'. Did you mean share?"),
        ("count = 1\n[by_number]\n0 = 'x'", " [by_number]: a key = 0 is too small"),
        ("count = 1\n[by_number]\nmany = 'x'", " [by_number]: a key = 'many' has the wrong type: int is needed."),
        ("count = 1\n[[row]]\nshare = 0\n[[row]]\nshare = 2", " [row 2]: share = 2 is too large"),
        ("count = 1\nrow = 3", ": row = 3 has the wrong type: a list of tables is needed."),
        ("count = 0x" + "f" * 9000, ": count = a huge number is not allowed: numbers"),
        ("count = " + "[" * 9000, "Cannot read {path}: its brackets are nested too deeply."),
        ("count." + "a." * 20_000 + "a = 1", "Cannot read {path}: at most 1048576 bytes, and keys of at most 32 parts"),
        ("'c'." + '\'a b\' . "\\"".' * 9_000 + "a = 1", "Cannot read {path}: at most 1048576 bytes, and keys of at most 32 parts"),
        ("#" * (LARGEST + 1), "Cannot read {path}: at most"),
        ("count = 1\0", "Cannot read {path}: "),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = _written(tmp_path / "toy.toml", text)
    with pytest.raises(RequestError) as error:
        load(path, Toy, name="toy")
    sentence = str(error.value)
    assert said.format(path=path) in sentence and str(path) in sentence
    assert "\n" not in sentence and len(sentence) < 500 + len(str(path))


def test_a_list_of_file_names_is_no_deep_key(tmp_path: Path) -> None:
    names = [f"a.b-{number}.png" for number in range(500)]
    path = _written(tmp_path / "toy.toml", f"count = 1\nlines = {json.dumps(names)}")
    assert load(path, Toy, name="toy").lines == tuple(names)


def test_a_file_that_is_no_text_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xff")
    for name in ("x.toml", "absent.toml", "."):
        with pytest.raises(RequestError, match=r"Cannot read .*: ") as error:
            read_toml(tmp_path / name)
        assert "Errno" not in str(error.value)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(TABLES)), st.data())
def test_any_value_of_any_key_is_read_or_refused_in_one_sentence(table: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(TABLES[table])))
    value = data.draw(VALUES)
    try:
        read = part("a.toml", {key: value}, TABLES[table])
    except RequestError as error:
        assert "a.toml" in str(error) and key in str(error) and len(str(error)) < 2000
        assert "\n" not in str(error)
    else:
        assert part("a.toml", read, TABLES[table]) == read  # what was read can be read again


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([Protocol, Profile, Definition]), st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_is_a_dataclass_or_one_sentence(cls: type, table: dict[str, Any]) -> None:
    given = {"name": "a"} if cls is not Definition else {}
    try:
        assert isinstance(build("a.toml", table, cls, **given), cls)
    except RequestError as error:
        assert "a.toml" in str(error) and "\n" not in str(error)


def test_reading_a_number_keeps_what_is_in_keys() -> None:
    assert json.dumps(typed("a", "lr", 1, kinds(Settings)["lr"])) == "1.0"
    assert json.dumps(typed("a", "lr", 1e-3, kinds(Settings)["lr"])) == "0.001"


def test_every_default_is_what_its_own_annotation_allows() -> None:
    for cls, own in ((Profile, Profile("p")), (Definition, Definition()), (Inner, Inner())):
        given = {f.name for f in fields(cls) if f.metadata == NO_KEY}
        table = {f.metadata.get("key", f.name): getattr(own, f.name) for f in fields(cls) if f.name not in given}
        optional = {key: value for key, value in table.items() if value != ()}  # a list that may not be given empty
        assert asdict(build("a", optional, cls, **{name: getattr(own, name) for name in given})) == asdict(own)


def test_planning_reads_everything_without_torch() -> None:
    code = "import sys, bench.grid.plan, bench.cluster.profile, bench.pretraining.config, datasets.own; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
