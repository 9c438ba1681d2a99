"""What the SLURM launcher does before and beside SLURM; tests on a real cluster are apart from these."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import toy_backbone

from bench import ROOT, run, status
from bench.cluster import grid_status
from bench.cluster.array_plan import array_plans
from bench.cluster.profile import PROFILES, Profile, load_profile
from bench.cluster.queue import Task, last_word
from bench.cluster.snapshot import code_files, take_snapshot
from bench.cluster.submission import Array, Submission, live_cells, new_id, read_submission, submission_path
from bench.errors import RequestError
from bench.grid.catalogue import catalogue
from bench.grid.plan import Request, RunContext, choose_methods, groups_by_method, specs_of
from bench.grid.provenance import git_state, provenance
from bench.grid.store import ResultStore, attempts
from bench.model.segmenter import PromptableSegmenter
from bench.profiling.many_cells import COMMANDS
from bench.running.workers import CellRunner, StopSignal
from bench.types import Memory

METHODS = "sam,lora(rank=8),lora,vpt_deep(decoder=hq,tokens=3),cat_sam_a(hidden=16)"


def grid(**changes):
    asked = {"methods": "sam,lora", "datasets": "synth_polyps", "seeds": "0,1,2", "backbone": "tiny", "protocol": "smoke", **changes}
    return specs_of(Request(**asked), "0" * 64)


def place_in(folder, **changes):
    return replace(RunContext("tiny", folder / "c", folder, folder, "cpu", "never", 60.0), **changes)


def submitted(out, specs, packs):
    path = submission_path(out, name := new_id())
    sent = Submission(
        name,
        place_in(out, memory=Memory(1, True), devices=2),
        out,
        3,
        {spec.key: spec for spec in specs},
        (Array({"time": 5}, packs, 10, "12"),),
        path,
    )
    sent.write()
    return sent


def test_methods_are_known_without_torch_as_with_it(tmp_path):
    assert list(catalogue(METHODS, tmp_path).choices) == choose_methods(METHODS)
    assert list(catalogue("all", tmp_path).choices) == choose_methods("all")
    assert {choice.name for choice in catalogue(METHODS, tmp_path).choices if not choice.trains} == {"sam"}  # from the cache now
    assert catalogue(METHODS, tmp_path).registered() == groups_by_method()
    assert len(list((tmp_path / "methods").iterdir())) == 2
    for wrong in ("lora(rnk=3)", ""):  # a process each
        with pytest.raises(RequestError) as direct:
            choose_methods(wrong)
        with pytest.raises(RequestError) as asked:
            catalogue(wrong, tmp_path)
        assert str(asked.value) == str(direct.value)


def test_a_third_partys_method_is_in_the_catalogue_and_its_edits_are_noticed(tmp_path):
    code = "from dataclasses import dataclass\nfrom bench.grid.registry import METHODS\n@METHODS.register('toy')\n@dataclass(frozen=True)\n"
    module, info = tmp_path / "toymethod.py", tmp_path / "toymethod-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toymethod\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sam_peft_bench.methods]\ntoy = toymethod\n")
    ask = f"from pathlib import Path; from bench.grid.catalogue import catalogue; print(catalogue('toy', Path({str(tmp_path)!r})).choices)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for width in (3, 5):
        module.write_text(f"{code}class Toy:\n    width: int = {width}\n    revision = 1\n")
        done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert f"('width', {width})" in done.stdout, done.stderr


def test_launching_imports_no_torch(tmp_path):
    words = ["--methods", METHODS, "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out", str(tmp_path)]
    code = "import sys; from bench.run import main; code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    command = [sys.executable, "-c", code, *words, "--launcher", "slurm", "--profile", "testcluster", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = len(choose_methods(METHODS)) * len(run.parse(["--protocol", "smoke"])[0].seeds or "0")
    assert f"{cells} cells, {cells} to run." in done.stdout and "array 1: " in done.stdout and not (tmp_path / "slurm").exists()


def test_a_grid_that_slurm_refuses_leaves_the_last_one_in_status(tmp_path, monkeypatch, capsys):
    """A cluster that answers every question and takes no array."""
    for name, answer in {
        **COMMANDS,
        "sbatch": 'case "$*" in *--test-only*) cat >/dev/null;; *) echo "sbatch: error: No room" >&2; exit 1;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("bench.cluster.send.SETTLE_SECONDS", 0)
    words = ["--methods", "sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out", str(tmp_path / "out")]
    assert run.main([*words, "--launcher", "slurm", "--profile", "testcluster"]) == 2
    assert "No room" in capsys.readouterr().err and not (tmp_path / "out" / "grid.json").exists()
    assert status.main(["--out", str(tmp_path / "out")]) == 0
    assert "No grid was run or sent" in capsys.readouterr().out


def test_a_machine_without_slurm_is_told_so(tmp_path, monkeypatch, capsys):
    words = ["--methods", "sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out", str(tmp_path)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.main([*words, "--launcher", "slurm", "--profile", "testcluster"]) == 2
    error = capsys.readouterr().err
    assert "There is no sbatch on this machine" in error and error.count("\n") == 1
    assert run.main([*words, "--launcher", "slurm"]) == 2
    assert "needs --profile: a100" in capsys.readouterr().err
    assert run.main([*words, "--launcher", "slurm", "--workers", "2"]) == 2
    assert "cells_per_job" in capsys.readouterr().err
    assert run.main([*words, "--launcher", "slurm", "--profile", "testcluster", "--devices", "2", "--device", "cuda", "--dry-run"]) == 2
    assert "asks for 1 GPUs a job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpu = 1", "Did you mean gpus"),
        ("gpus = '1'", "wrong type: int"),
        ("time_min = 0", "at least 2"),
        ("setup = 'module load x'", "a list of strings"),
        ("device = 'tpu'", "Unknown value of device in .*Known: cpu, cuda"),
        ("[flags]\narray = '0-3'", "set by the launcher"),
        ("[[override]]\ntime_min = 3", "at least one of backbones"),
        ("[[override]]\nshot = [1]", "Did you mean shots"),
        ("[[override]]\nshots = [1]\nattempts = 3", "Unknown key"),
        ("gpus = ", "Cannot read"),
        ("gpu_flag = 'gpu'", "Known: gpus, gpus-per-node, gpus-per-task, gres"),
        ("time_min = 5\nsignal_s = 300", "less than 300 s are allowed"),
        ("signal_s = 200\n[[override]]\nshots = [1]\ntime_min = 3", "less than 180 s are allowed"),
    ],
)
def test_a_wrong_profile_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=says):
        load_profile(str(path))


def test_a_profile_asks_by_backbone_and_shots(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("partition='a'\nmem_gb=8\n[[override]]\nbackbones=['tiny']\nmem_gb=2.5\n[[override]]\nshots=[16,'full']\ntime_min=90\n")
    profile, few, many = load_profile(str(path)), grid()[0], grid(shots="full")[-1]
    assert profile.of_cell(few).sbatch_flags() == {**profile.sbatch_flags(), "mem": "2560M"}
    assert profile.of_cell(many).sbatch_flags()["time"] == 90
    assert [load_profile(path.stem).name for path in PROFILES.glob("*.toml")]  # those that are shipped
    with pytest.raises(RequestError, match=r"Unknown profile 'a10'\. Did you mean a100\?"):
        load_profile("a10")


def test_arrays_are_split_packed_and_throttled():
    specs = grid(methods="bitfit,lora", shots="1,full", seeds=",".join(map(str, range(10))))
    profile = Profile("p", parallel=6, evaluations_per_job=4, overrides=({"shots": ["full"], "time_min": 999},))
    specs = [replace(spec, method=replace(spec.method, trains=spec.method.name != "bitfit")) for spec in specs]
    plans = array_plans(specs, profile, array_size=8)
    assert sorted(key for plan in plans for pack in plan.packs for key in pack) == sorted(spec.key for spec in specs)
    assert [len(plan.packs) for plan in plans] == [8, 5, 8, 5]  # 10 of lora and 3 packs of what is short, twice
    assert [plan.flags["time"] for plan in plans] == [240, 240, 999, 999]
    assert sum(plan.parallel for plan in plans) <= 6 and all(plan.parallel for plan in plans)
    by_key = {spec.key: spec.method.name for spec in specs}
    assert {(len(pack), by_key[pack[0]]) for plan in plans for pack in plan.packs} == {(1, "lora"), (4, "bitfit"), (2, "bitfit")}


def test_a_snapshot_is_the_code_as_it_was(tmp_path):
    root, below = tmp_path / "project", tmp_path / "snapshots"
    (root / "bench").mkdir(parents=True)
    (root / "bench" / "a.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("ignored.py\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    (root / "bench" / "new.py").write_text("y = 2\n")
    (root / "bench" / "ignored.py").write_text("z = 3\n")
    git_state.cache_clear()
    taken = take_snapshot(below, root)
    assert take_snapshot(below, root) == taken and [path.name for path in below.iterdir()] == [taken.name]
    (root / "bench" / "a.py").write_text("x = 2\n")
    assert take_snapshot(below, root) != taken and (taken / "bench" / "a.py").read_text() == "x = 1\n"
    assert code_files(root) == [Path("bench/a.py"), Path("bench/new.py")]
    assert git_state(taken) == (git_state(root)[0], True) and git_state(taken)[0]
    git_state.cache_clear()


TURN = """
import sys, time
from pathlib import Path
from bench.cluster.launch_lock import LaunchLock
folder = Path(sys.argv[1])
for _ in range(6):
    with LaunchLock(folder):
        (folder / "inside").touch(exist_ok=False)
        time.sleep(0.02)
        (folder / "inside").unlink()
"""


def test_two_launchers_take_turns(tmp_path):
    command = [sys.executable, "-c", TURN, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(process.wait(60) == 0 for process in both), [process.stderr.read() for process in both]
    assert not (tmp_path / "submitting").exists()


def test_a_launcher_that_died_holds_nobody_up(tmp_path):
    enter = f"LaunchLock(Path({str(tmp_path)!r})).__enter__()"
    code = f"import os; from pathlib import Path; from bench.cluster.launch_lock import LaunchLock; {enter}; os._exit(1)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert (tmp_path / "submitting").exists()
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", TURN, str(tmp_path)], cwd=ROOT).returncode == 0
    assert time.monotonic() - began < 20 and not list(tmp_path.iterdir())


def test_a_submission_is_read_back_and_finds_its_cells_in_the_queue(tmp_path):
    specs = grid()
    packs = (*((spec.key,) for spec in specs[:-1]), (specs[0].key, specs[-1].key))
    sent = submitted(tmp_path, specs, packs)
    assert sent.context.devices == 2 and sent.context.memory == Memory(1, True)
    assert read_submission(sent.path) == sent
    queue = [Task("12_1", "PENDING", "Priority", "", sent.id, 0, 1), Task("9", "RUNNING", "None", "n1", "of-another-folder", 0, 0)]
    assert live_cells(tmp_path, queue) == {specs[1].key: queue[0]}
    running = Task("12_5", "RUNNING", "None", "n1", sent.id, 0, len(packs) - 1)
    assert live_cells(tmp_path, [running, *queue])[specs[0].key] == running
    assert sent.jobs()[specs[-1].key] == [f"12_{len(packs) - 1}"]


def in_a_job(monkeypatch, job, restart="0"):
    for name, value in {"JOB_ID": job, "RESTART_COUNT": restart, "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")


def test_a_record_says_how_many_threads_there_are_now():
    usual = torch.get_num_threads()
    for threads in (2, usual):
        torch.set_num_threads(threads)
        assert provenance("cpu")["threads"] == threads


def test_starts_are_counted_in_files_and_forgotten_when_the_cell_is_reset(tmp_path, monkeypatch):
    store, spec = ResultStore(tmp_path), grid()[0]
    for job, restart, count in [("12", "0", 1), ("12", "1", 2), ("15", "0", 3), ("15", "0", 3)]:
        in_a_job(monkeypatch, job, restart)
        store.begin_attempt(spec)
        assert len(attempts(store.folder(spec))) == count
    assert [path.name for path in attempts(store.folder(spec))] == ["attempt_12_0.json", "attempt_12_1.json", "attempt_15_0.json"]
    assert provenance("cpu")["slurm"]["node"] == "n1"
    store.reset(spec)
    assert not attempts(store.folder(spec))


def test_every_phase_of_a_cell_is_told_apart(tmp_path, monkeypatch):
    store, specs = ResultStore(tmp_path), grid(methods="lora", seeds="0,1,2,3,4,5")
    store.write_grid(specs)
    in_a_job(monkeypatch, "12")
    sent = submitted(tmp_path, specs[:-1], tuple((spec.key,) for spec in specs[:-1]))
    store.heartbeat(specs[0], "running", {"share": 0.25, "doing": "epoch 1/4"})
    store.heartbeat(specs[1], "running", {"share": 0.5})
    state = store.folder(specs[1]) / "state.json"
    os.utime(state, (time.time() - 3600,) * 2)
    store.fail(specs[2], "It diverged.")
    store.stop(specs[3], "stopped by a signal")
    tasks = [Task("12_0", "RUNNING", "None", "n1", sent.id, 0, 0), Task("12_4", "PENDING", "Resources", "", sent.id, 0, 4)]
    seen = {one.cell.key: one for one in grid_status.live_statuses(tmp_path, tasks)}
    phases = [seen[spec.key].phase for spec in specs]
    assert phases == ["running", "lost", "failed", "unfinished", "pending", "pending"]
    details = [seen[spec.key].detail for spec in specs]
    assert "25%, epoch 1/4 on n1, job 12_0" in details[0] and details[2] == "It diverged."
    assert details[4] == "SLURM: Resources" and details[5] == "not sent yet"
    assert [seen[spec.key].phase for spec in specs[:2]] == [one.phase for one in grid_status.live_statuses(tmp_path, None)][
        :2
    ]  # without SLURM
    assert grid_status.find_cell(tmp_path, specs[2].key[:8]).key == specs[2].key
    with pytest.raises(RequestError, match="fits 6 cells"):
        grid_status.find_cell(tmp_path, "lora")


def test_the_time_that_is_left_is_known_before_a_cell_is_stored(tmp_path):
    store, specs = ResultStore(tmp_path), grid(methods="lora", seeds="0,1,2")
    store.write_grid(specs)
    store.heartbeat(specs[0], "running", {"share": 0.25, "seconds_left": 30.0})
    assert grid_status.seconds_left(tmp_path, grid_status.live_statuses(tmp_path, None)) == pytest.approx(30 + 2 * 40)
    store.heartbeat(specs[1], "running", {"share": 0.0})
    assert grid_status.seconds_left(tmp_path, grid_status.live_statuses(tmp_path, None)) == pytest.approx((30 + 2 * 40) / 2)
    store.fail(specs[2], "RuntimeError: first line\nsecond line")
    assert grid_status.live_statuses(tmp_path, None)[2].detail == "RuntimeError: first line"


def test_of_two_copies_of_a_cell_the_first_result_stays(tmp_path, rectangles, smoke):
    runner, spec = bench_on(tmp_path, rectangles, smoke)
    assert runner.run(spec, lambda share, doing: None).startswith("mIoU")
    store, folder = runner.store, runner.store.folder(spec)
    before = {name: (folder / name).read_bytes() for name in ("record.json", "images.csv", "history.csv", "tuned.safetensors")}
    late = replace(store.read(spec), provenance={"late": True})
    store.save(late, pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), b"other")
    assert {name: (folder / name).read_bytes() for name in before} == before


def bench_on(folder, rectangles, smoke, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "c").write_bytes(b"weights")
    spec = replace(grid()[-1], dataset="rectangles", shots=2, settings=replace(smoke, batch=2))
    return CellRunner(place_in(folder, **changes), toy_backbone(), {"rectangles": rectangles}, StopSignal()), spec


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_is_retried_once_with_smaller_steps(tmp_path, rectangles, smoke, monkeypatch, times):
    """The model itself raises what torch raises; the numbers are those of a run that had enough memory."""
    whole, spec = bench_on(tmp_path / "whole", rectangles, smoke)
    whole.run(spec, lambda share, doing: None)
    small, _ = bench_on(tmp_path / "small", rectangles, smoke)
    encode, left = PromptableSegmenter.encode, [times]

    def too_small(self, images, *more, **named):
        if self.training and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, images, *more, **named)

    monkeypatch.setattr(PromptableSegmenter, "encode", too_small)
    said = small.run(spec, lambda share, doing: None)
    if times == 2:
        assert said.startswith("FAILED: Out of memory, also with smaller steps") and small.store.status(spec).phase == "failed"
        return
    record, plain = small.store.read(spec), whole.store.read(spec)
    assert (record.cost["micro_batch"], record.cost["activation_checkpointing"]) == (1, True)
    assert (plain.cost["micro_batch"], plain.cost["activation_checkpointing"]) == (0, False)
    assert record.scores["last"]["miou_all"] == pytest.approx(plain.scores["last"]["miou_all"], abs=0.5)


def test_nothing_smaller_is_not_tried_again(tmp_path, rectangles, smoke, monkeypatch):
    runner, spec = bench_on(tmp_path, rectangles, smoke, memory=Memory(1, True))
    calls = []

    def too_small(self, images, *more, **named):
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PromptableSegmenter, "encode", too_small)
    assert runner.run(spec, lambda share, doing: None).startswith("FAILED: Out of memory") and len(calls) == 1


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account", "Batch job submission failed: Invalid account."),
        ("allocation failure: Invalid partition name specified", "Invalid partition name specified."),
        ("sbatch: error: first\nsbatch: error: last\n", "last."),
        ("", "no reason was given."),
    ],
)
def test_slurms_own_words_are_passed_on(said, word):
    assert last_word(said) == word
