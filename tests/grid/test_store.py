"""Results on disk: complete or absent, read back as they were written, damage reported and never counted.

What stands around a record (provenance, progress) is tested here too.
"""

import io
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pty_runs import on_terminal
from test_spec import LORA, ROOT, SETTINGS, SPEC

from bench.errors import CheckpointError, RequestError
from bench.grid.files import file_sha256
from bench.grid.progress import Progress, duration, working
from bench.grid.provenance import git_state, provenance
from bench.grid.spec import MethodChoice, RunSpec
from bench.grid.store import CellStatus, DamagedRecord, Record, ResultStore, read_record, record_bytes, spec_from_json, spec_to_json

IMAGES = pd.DataFrame({"name": ["007", "NA", "a,b"], "intersection": [1, 2, 3], "iou": [1 / 3, math.nan, 100.0]})
HISTORY = pd.DataFrame({"epoch": [1, 2], "loss": [0.1, 1e-17]})
SCORES = {"best": {"miou_all": 70.123456789012345}, "last": {"miou_all": 65.5, "miou_with_objects": math.nan}}
COST = {"trainable_parameters": 294912, "total_parameters": 300_000_000, "peak_memory_mb": 12.5}


def record(spec: RunSpec = SPEC, miou: float = 70.0, **provenance: Any) -> Record:
    """A record whose one score is given."""
    return Record(spec, {"best": {"miou_all": miou}, "last": {"miou_all": miou - 1}}, COST, provenance)


def save(store: ResultStore, kept: Record) -> Path:
    """Stores a record beside some images and a curve."""
    return store.save(kept, IMAGES, HISTORY, b"weights")


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.integers(), FLOATS, st.booleans(), st.none(), WORDS, st.lists(st.integers(), max_size=3).map(tuple))
METHODS = st.builds(
    MethodChoice, WORDS, st.dictionaries(WORDS, VALUES, max_size=4).map(lambda d: tuple(d.items())), st.integers(1, 9), WORDS
)
SHOTS = st.integers(1, 99) | st.just("full")
COUNTS = st.integers(0, 2**31)
SPECS = st.builds(
    RunSpec,
    WORDS,
    st.text("0123456789abcdef", min_size=64, max_size=64),
    WORDS,
    COUNTS,
    st.booleans(),
    METHODS,
    SHOTS,
    COUNTS,
    COUNTS,
    WORDS,
    st.just(SETTINGS),
)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda inner: st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SCORED = st.dictionaries(WORDS, st.floats(0, 100), max_size=3)
GROUPS = st.fixed_dictionaries({"best": SCORED, "last": SCORED}, optional={"val": SCORED})
FACTS = st.dictionaries(st.text().map("_{}".format), NESTED, max_size=3)  # no name that the store reads, which would need its kind of value
RECORDS = st.builds(Record, SPECS, GROUPS, FACTS, FACTS)


@settings(deadline=None)
@given(SPECS)
def test_a_spec_is_read_back_equal(spec: RunSpec) -> None:
    again = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert again == spec
    assert again.key == spec.key
    assert hash(again) == hash(spec)


@settings(deadline=None, max_examples=50)
@given(RECORDS)
def test_a_record_is_read_back_equal_and_writes_the_same_bytes(kept: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(Path(folder))
        save(store, kept)
        assert store.read(kept.spec) == kept
        assert record_bytes(store.read(kept.spec)) == record_bytes(kept) == (store.folder(kept.spec) / "record.json").read_bytes()


def test_what_is_saved_is_read_back(store: ResultStore) -> None:
    folder = save(store, Record(SPEC, SCORES, COST, {"git": {"dirty": False}}))
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "images.csv", "record.json", "state.json", "tuned.safetensors"]
    assert folder == store.folder(SPEC)
    pd.testing.assert_frame_equal(store.images(SPEC), IMAGES, check_exact=True)
    pd.testing.assert_frame_equal(store.history(folder), HISTORY, check_exact=True)
    assert store.read(SPEC).scores["best"]["miou_all"] == 70.123456789012345
    assert math.isnan(store.read(SPEC).scores["last"]["miou_with_objects"])
    assert store.status(SPEC) == CellStatus("stored")
    assert json.loads((folder / "state.json").read_text())["phase"] == "stored"


def test_a_method_that_trains_nothing_has_no_curve(store: ResultStore) -> None:
    store.save(record(), IMAGES, pd.DataFrame([]), None)
    assert store.history(SPEC).empty
    assert not (store.folder(SPEC) / "tuned.safetensors").exists()


def test_a_score_that_is_infinite_is_refused(store: ResultStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save(store, record(miou=math.inf))
    assert store.status(SPEC).phase == "pending"


def test_the_states_of_a_cell(store: ResultStore) -> None:
    assert store.status(SPEC) == CellStatus("pending", "not started")
    store.heartbeat(SPEC, phase="training", progress={"share": 0.5})
    status = store.status(SPEC)
    assert status.phase == "unfinished"
    assert status.reason.startswith("training, last heard of from ")
    store.fail(SPEC, "Loss became nan at step 3.")
    assert store.status(SPEC) == CellStatus("failed", "Loss became nan at step 3.")
    (store.folder(SPEC) / "resume.pt").write_bytes(b"x")
    store.heartbeat(SPEC, phase="training")
    assert store.status(SPEC).phase == "unfinished"
    save(store, record())
    assert store.status(SPEC).phase == "stored"
    assert not (store.folder(SPEC) / "resume.pt").exists()


def test_a_resume_file_alone_is_unfinished_and_so_is_an_empty_state(store: ResultStore) -> None:
    store.folder(SPEC).mkdir(parents=True)
    (store.folder(SPEC) / "resume.pt").write_bytes(b"x")
    assert store.status(SPEC).phase == "unfinished"
    (store.folder(SPEC) / "state.json").write_bytes(b"")
    assert store.status(SPEC) == CellStatus("unfinished", "it left no readable state")


def test_a_cell_that_was_moved_or_renamed_is_still_read(store: ResultStore, tmp_path: Path) -> None:
    folder = save(store, record())
    shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(folder, tmp_path / "kept")
    for place in (tmp_path / folder.name, tmp_path / "kept"):
        assert store.read(place) == store.read(SPEC)
        assert len(store.images(place)) == 3


def _damage(text: str) -> list[tuple[str, str]]:
    """(damaged content, what is said of it)"""
    content = json.loads(text)
    other_seed = {**content, "spec": {**content["spec"], "seed": 1}}
    lacking = {**content, "spec": {key: value for key, value in content["spec"].items() if key != "seed"}}
    return [
        ("", "JSONDecodeError"),
        (text[: len(text) // 2], "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ("\0" * 100, "JSONDecodeError"),
        (json.dumps(other_seed), "the key of its content is"),
        (json.dumps({**content, "key": "0" * 12}), f"the key of its content is {SPEC.key}, but it says 000000000000"),
        (json.dumps(lacking), "missing 1 required positional argument: 'seed'"),
        (json.dumps({**content, "scores": {}}), "no scores"),
        (json.dumps({**content, "scores": {"best": {"miou_all": "70"}}}), "miou_all = '70' is not a number"),
    ]


def test_damaged_records_are_reported_by_path_and_left_out(store: ResultStore) -> None:
    sound = replace(SPEC, seed=0)
    save(store, record(sound))
    path = save(store, record()) / "record.json"
    for text, said in _damage(path.read_text()):
        path.write_text(text)
        scan = store.scan()
        assert list(scan.table["key"]) == [sound.key]
        assert [damage.path for damage in scan.damaged] == [path]
        assert said in scan.damaged[0].reason
        assert store.status(SPEC).phase == "failed"
        with pytest.raises(DamagedRecord):
            store.read(SPEC)


def test_a_record_in_another_cells_folder_is_damaged(store: ResultStore) -> None:
    other = replace(SPEC, seed=0)
    shutil.copytree(save(store, record()), store.folder(other))
    assert store.scan().damaged[0].reason == f"the key of its content is {SPEC.key}, but its folder is named {other.key}"


def test_a_copied_cell_is_counted_once(store: ResultStore) -> None:
    folder = save(store, record())
    shutil.copytree(folder, folder.with_name("a copy"))
    scan = store.scan()
    assert list(scan.table["path"]) == [str(folder)]
    assert scan.damaged[0].reason == f"it is a copy of {folder}"


def test_records_are_tidy(store: ResultStore) -> None:
    assert store.records().empty
    save(store, record(SPEC, 70.5, git={"commit": "abc", "dirty": False}))
    save(store, record(replace(SPEC, shots="full", method=MethodChoice("cat_sam_t", (), 1, "")), 80))
    table = store.records().set_index("label")
    row = table.loc["lora(decoder=sam)"]
    expected = {"dataset": "whu", "method": "lora", "decoder": "sam", "shots": 1, "draw": 0, "seed": 3407, "backbone": "vit_l"}
    expected |= {"protocol": "paper", "key": SPEC.key, "best.miou_all": 70.5, "last.miou_all": 69.5, "cost.trainable_parameters": 294912}
    expected |= {"provenance.git.commit": "abc", "selection": "best", "path": str(store.folder(SPEC))}
    assert {name: row[name] for name in expected} == expected
    assert table.loc["cat_sam_t", "shots"] == "full"


def test_recipe_and_method_id_ignore_what_may_differ_within_a_table(store: ResultStore) -> None:
    changed = MethodChoice("lora", (("decoder", "sam"), ("rank", 8), ("alpha", 4.0)), 1, "decoder=sam")
    specs = [SPEC, replace(SPEC, seed=0, draw=3), replace(SPEC, dataset="sbu"), replace(SPEC, method=changed)]
    for spec in specs:
        save(store, record(spec))
    rows = store.records().set_index("key").loc[[spec.key for spec in specs]]
    assert rows["recipe"].duplicated().tolist() == [False, True, False, False]
    assert rows["method_id"].duplicated().tolist() == [False, True, True, False]


def test_the_grid_is_read_back(store: ResultStore) -> None:
    assert store.grid() == ()
    store.write_grid([SPEC, replace(SPEC, method=replace(LORA, shown="decoder=sam,rank=8"))])
    cells = store.grid()
    assert [cell.method for cell in cells] == ["lora(decoder=sam)", "lora(decoder=sam,rank=8)"]
    assert store.runs / cells[0].folder == store.folder(SPEC)
    (store.root / "grid.json").write_text("[{}]")
    with pytest.raises(RequestError, match=r"Cannot read .*grid\.json: .*; remove it, or run again\."):
        store.grid()


def test_an_unwritable_output_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"Cannot write to the output folder .*file: "):
        ResultStore(tmp_path / "file").check_writable()
    ResultStore(tmp_path / "new").check_writable()
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def _python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    start = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'grid')!r}]\nfrom pathlib import Path\n{code}"
    return subprocess.Popen([sys.executable, "-c", start, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True)


FULL_DISK = """
import resource
from test_store import *
store = ResultStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.save(record(), IMAGES, HISTORY, b"w" * 5000)
except OSError:
    sys.exit(7)
"""


@pytest.mark.parametrize("limit_bytes", [0, 400, 4999])
def test_a_disk_that_takes_no_more_leaves_no_file(store: ResultStore, limit_bytes: int) -> None:
    """The limit on a file's size stands for a full disk: a write ends half-way with an OSError."""
    store.heartbeat(SPEC, "training")
    process = _python(FULL_DISK, store.root, limit_bytes)
    assert process.wait() == 7, process.stderr and process.stderr.read()
    assert [path.name for path in store.folder(SPEC).iterdir()] == ["state.json"]
    assert store.status(SPEC).phase == "unfinished"


SAVE_OFTEN = """
from test_store import *
for i in range(15):
    ResultStore(Path(sys.argv[1])).save(record(SPEC, float(sys.argv[2])), IMAGES, HISTORY, b"w" * 1000)
"""


def test_two_processes_may_save_one_cell(store: ResultStore) -> None:
    processes = [_python(SAVE_OFTEN, store.root, miou) for miou in (10, 20)]
    read = set()
    while any(process.poll() is None for process in processes):
        if (store.folder(SPEC) / "record.json").exists():
            read.add(read_record(store.folder(SPEC)).scores["best"]["miou_all"])
    assert [process.returncode for process in processes] == [0, 0]
    assert read <= {10.0, 20.0}
    assert len(store.records()) == 1
    assert len(list(store.folder(SPEC).iterdir())) == 5


def test_a_files_hash_is_remembered_until_it_changes(tmp_path: Path) -> None:
    weights, cache = tmp_path / "sam.pth", tmp_path / "cache"
    weights.write_bytes(b"abc")
    first = file_sha256(weights, cache)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (entry,) = json.loads((cache / "sha256.json").read_text()).values()
    (cache / "sha256.json").write_text(json.dumps({str(weights.resolve()): [*entry[:-1], "remembered"]}))
    assert file_sha256(weights, cache) == "remembered"
    assert file_sha256(weights) == first
    weights.write_bytes(b"abcd")
    assert file_sha256(weights, cache) not in (first, "remembered")
    (cache / "sha256.json").write_text("damaged")
    assert file_sha256(weights, cache) == file_sha256(weights)
    with pytest.raises(CheckpointError, match=r"Cannot read the checkpoint .*absent\.pth: No such file"):
        file_sha256(tmp_path / "absent.pth")


def test_provenance_is_json_and_works_without_git(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_bytes(b"abc")
    facts = provenance("cpu", tmp_path / "sam.pth", tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["checkpoint"]["name"] == "sam.pth"
    assert facts["packages"]["numpy"]
    assert provenance("cpu")["checkpoint"] is None
    assert git_state(tmp_path) == (None, None)


def test_a_cell_of_any_command_is_read_back(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ",".join(f"lora(rank={rank})" for rank in range(1, 1000))
    monkeypatch.setattr(sys, "argv", ["bench/run.py", "--data", "\udcff", "--methods", many])
    save(store, Record(SPEC, SCORES, COST, provenance("cpu")))
    assert store.read(SPEC).provenance["command"].startswith("run.py --data '?' --methods 'lora(rank=1),lora(rank=2),")


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git_state.cache_clear()
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "new.py").write_text("")
    git_state.cache_clear()
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), True)
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == (None, None)


def test_progress_in_a_log_is_a_few_plain_lines() -> None:
    log = io.StringIO()
    with Progress(log, every_seconds=0) as progress:
        progress.cell(3, 12, "whu lora(decoder=sam) seed 0")
        progress.update(0.0, "epoch 1/2000, loss 0.9")
        progress.update(1.0, "epoch 2000/2000, loss 0.412")
        progress.note("a note")
        progress.done("mIoU 70.0 (best)")
    lines = log.getvalue().splitlines()
    assert lines[0] == "[ 3/12] whu lora(decoder=sam) seed 0: epoch 1/2000, loss 0.9"
    assert lines[1:3] == [f"{lines[0][:36]}: epoch 2000/2000, loss 0.412, 0.0 s left", "a note"]
    assert lines[3].startswith(f"{lines[0][:36]}: mIoU 70.0 (best); about ") and lines[3].endswith(" s for the other 11")
    quiet = io.StringIO()
    with Progress(quiet, every_seconds=60) as progress:
        progress.cell(1, 1, "a")
        progress.update(0.5, "b")
    assert quiet.getvalue() == ""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


BARS = """
import time
from bench.grid.progress import Progress, working
with Progress() as progress:
    for index in (1, 2):
        progress.cell(index, 12, "synth_buildings vpt_shallow(decoder=sam) tiny 1-shot draw 0 seed 3407 demo")
        for share in (0.1, 0.2):
            progress.update(share, "epoch 40/2000, loss 0.412", index)
            time.sleep(0.1)
    progress.done("mIoU 70.0 (best)", 1)
    time.sleep(0.3)
with working("Writing 3f2a as onnx"):
    time.sleep(0.2)
print("done")
"""


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_bars_and_the_time_left_are_seen_at_any_width(width: int) -> None:
    code, said = on_terminal(["-c", BARS], width)
    pyte = pytest.importorskip("pyte", reason="pyte, of requirements-dev.txt, is not installed")
    screen, seen = pyte.Screen(width, 20), []
    stream = pyte.Stream(screen)
    for part in re.split(r"(?=\r\x1b\[2K)", said):  # each time before lines are drawn again
        stream.feed(part)
        seen.append([line.rstrip() for line in screen.display])
    assert code == 0
    lines = next(lines for lines in reversed(seen) if any("1 of 12 cells" in line for line in lines))
    assert any(re.search(r"━.* 8% 1 of 12 cells .*about .* s left$", line) for line in lines), lines
    assert any(line.startswith("[ 2/12] synth_buildings vpt_shallow(decoder=sam)") for line in lines)
    assert any(re.search(r"━.* 20% epoch 40/2000, loss.* s left$", line) for line in lines), lines
    assert any("Writing 3f2a as onnx" in line for lines in seen for line in lines)
    assert "done" in said and [line for line in seen[-1] if line][-1] == "done"


def test_what_takes_long_is_said_in_a_log_and_what_does_not_is_not() -> None:
    log = io.StringIO()
    with working("Drawing", log, every_seconds=0.1) as say:
        time.sleep(0.2)
        assert log.getvalue() == ""
        say("Drawing 2: bars")
        time.sleep(2.2)
    lines = log.getvalue().splitlines()
    assert len(lines) >= 2 and re.fullmatch(r"Drawing 2: bars … 2\.\d s", lines[0])


def test_progress_on_a_terminal_keeps_brackets() -> None:
    screen = Terminal()
    with Progress(screen) as progress:
        progress.cell(1, 2, "whu sam seed 0")
        progress.update(0.5, "test [3/9]")
        progress.note("kept [bold]as it is[/bold]")
        progress.done("mIoU 70.0")
    assert "kept [bold]as it is[/bold]" in screen.getvalue()
    assert "[1/2] whu sam seed 0: mIoU 70.0" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(1.23, "1.2 s"), (59.97, "1 min 00 s"), (200, "3 min 20 s"), (18240, "5 h 04 min")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
