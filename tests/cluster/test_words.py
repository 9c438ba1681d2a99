"""What SLURM prints and how the launcher takes it, where no test cluster can be made to say so; and what of it needs no cluster."""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from test_launcher import bench_on, grid, in_a_job, submitted

from bench import ROOT, logs, status
from bench.cluster import grid_status, queue
from bench.cluster.array_plan import array_plans
from bench.cluster.limits import minutes, number
from bench.cluster.profile import Profile, load_profile
from bench.cluster.queue import NEVER, PER_USER, Task
from bench.errors import RequestError
from bench.grid.heartbeat import holder
from bench.grid.store import STATE, ResultStore, starts_without_progress


def command(folder, name, script):
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("reason", "ends"),
    [
        ("Resources", True),
        ("Priority", True),
        ("Dependency", True),
        ("ReqNodeNotAvail", True),
        ("AssocGrpGRES", True),
        ("PartitionNodeLimit", False),
        ("PartitionTimeLimit", False),
        ("DependencyNeverSatisfied", False),
        ("QOSMinGRES", False),
        ("QOSMaxCpuPerJobLimit", False),
        ("AssocMaxWallDurationPerJobLimit", False),
    ],
)
def test_10_which_reasons_no_waiting_ends(reason, ends):
    assert bool(NEVER.search(reason)) != ends
    assert all(PER_USER.search(one) for one in ("QOSMaxGRESPerUser", "QOSMaxJobsPerUserLimit", "AssocMaxCpuPerUserLimit"))


def test_10_limits_are_read_as_slurm_writes_them():
    assert [minutes(text) for text in ("90", "30:30", "2:00:00", "1-12:00:00", "2-00", "UNLIMITED")] == [90, 30.5, 120, 2160, 2880, None]
    assert [number(text) for text in ("4", "62.50G", "4000M", "UNLIMITED", "")] == [4, 64000, 4000, None, None]


@pytest.mark.parametrize(
    ("states", "refused"), [("idle mixed", True), ("idle reboot^", False), ("idle~ idle", False), ("down* idle", False)]
)
def test_13_a_node_that_reboots_or_sleeps_may_come_back(tmp_path, monkeypatch, states, refused):
    command(tmp_path, "sbatch", "echo 'sbatch: error: Requested node configuration is not available' >&2; exit 1")
    command(tmp_path, "sinfo", f"printf '%s\\n' {states}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if not refused:
        queue.test_only({"gres": "gpu:1"})
        return
    with pytest.raises(RequestError, match="node configuration is not available"):
        queue.test_only({"gres": "gpu:1"})


def test_05_every_command_goes_to_the_cluster_that_is_named_without_the_shells_habits(tmp_path, monkeypatch):
    for name in ("squeue", "scancel", "scontrol", "sinfo"):
        command(tmp_path, name, f'echo "{name} $*"; env | grep -E "^(SQUEUE|SBATCH|SLURM|SINFO|SCANCEL)_"; true')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {
        "SQUEUE_STATES": "R",
        "SINFO_FORMAT": "x",
        "SBATCH_ACCOUNT": "a",
        "SLURM_JOB_ID": "1",
        "SLURM_CLUSTERS": "two",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    for name in ("squeue", "scancel", "scontrol", "sinfo"):
        assert queue.slurm(name, "x").splitlines() == [f"{name} -M two x"]
    profile = load_profile(str(ROOT / "slurm" / "testcluster.toml"))
    assert (profile.account, profile.partition, profile.cluster) == ("a", "main", "two")


def test_13_the_throttle_holds_over_all_arrays_and_arrays_are_as_small_as_the_profile_says():
    specs = grid(methods="lora", seeds=",".join(map(str, range(10))))
    plans = array_plans(specs, Profile("p", parallel=2, max_array_tasks=2), 1000)
    assert [len(plan.packs) for plan in plans] == [2] * 5
    assert [plan.after for plan in plans] == [None, None, 0, 1, 2] and {plan.parallel for plan in plans} == {1}
    few = grid(methods="lora", seeds="0", shots="full")
    profile = Profile("p", parallel=3, overrides=({"shots": ["full"], "time_min": 999},))
    uneven = array_plans([*specs, *few], profile, 9)
    assert [len(plan.packs) for plan in uneven] == [9, 1, 1] and sum(plan.parallel for plan in uneven) == 3


def test_02_only_starts_without_progress_count_and_what_was_given_up_goes_on(tmp_path, monkeypatch):
    store, spec = ResultStore(tmp_path), grid()[0]
    folder = store.folder(spec)
    for job, (resume, count) in enumerate([(None, 1), (b"1", 1), (None, 2), (b"22", 1), (None, 2), (None, 3)]):
        if resume:  # the start before made progress
            (folder / "resume.pt").write_bytes(resume)
            os.utime(folder / "resume.pt", (job, job))
        in_a_job(monkeypatch, str(job))
        store.begin_attempt(spec)
        assert starts_without_progress(folder) == count, job
    store.give_up(spec, "Given up.")
    store.reset(spec)
    assert [path.name for path in folder.iterdir()] == ["resume.pt"]
    store.fail(spec, "It diverged.")
    store.reset(spec)
    assert not list(folder.iterdir())


def test_01_a_local_run_too_keeps_a_result_until_it_has_another(tmp_path, rectangles, smoke):
    runner, spec = bench_on(tmp_path, rectangles, smoke)
    runner.run(spec, lambda share, doing: None)
    path = runner.store.folder(spec) / "record.json"
    before = path.read_bytes()
    again, _ = bench_on(tmp_path, rectangles, smoke, overwrite="always")

    def stop(share, doing):
        again.stop.asked = True

    assert again.run(spec, stop) == "stopped" and path.read_bytes() == before
    again.stop.asked = False
    assert again.run(spec, lambda share, doing: None).startswith("mIoU")
    assert json.loads(path.read_bytes())["scores"] == json.loads(before)["scores"] and path.read_bytes() != before


def test_08_a_folder_that_somebody_else_owns_is_refused_before_the_work(tmp_path):
    if os.geteuid():
        pytest.skip("root is needed to become somebody else")
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    store, spec = ResultStore(tmp_path / "out"), grid()[0]
    store.check_writable([spec])
    store.runs.chmod(0o777)
    store.folder(spec).mkdir(parents=True)  # umask 022: the cell's folders are root's alone
    os.seteuid(65534)
    try:
        with pytest.raises(RequestError, match=r"which user 0 owns: .* --group-writable"):
            store.check_writable([spec])
        store.check_writable([])
    finally:
        os.seteuid(0)


def beating(store, spec, **changes):
    store.heartbeat(spec, "running", {"share": 0.5})
    path = store.folder(spec) / STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_17_a_heartbeats_age_is_told_by_the_disk_and_not_by_a_nodes_clock(tmp_path, monkeypatch):
    store, (spec, other, *_) = ResultStore(tmp_path), grid()
    store.write_grid([spec, other])
    fast = beating(store, spec, host="n1", time="2999-01-01T00:00:00Z")  # its clock was ahead; it died an hour ago
    os.utime(fast, (time.time() - 3600,) * 2)
    beating(store, other, host="n2", time="2020-01-01T00:00:00Z")  # its clock is behind; it lives
    assert [one.phase for one in grid_status.live_statuses(tmp_path, None)] == ["lost", "running"]
    assert holder(store.folder(spec)) == "" and "on n2, heartbeat" in holder(store.folder(other))


def test_17_a_process_that_is_gone_holds_nothing(tmp_path):
    store, spec = ResultStore(tmp_path), grid()[0]
    with subprocess.Popen(["true"]) as gone:
        pass
    beating(store, spec, pid=gone.pid)
    assert holder(store.folder(spec)) == ""
    beating(store, spec, pid=1)
    assert "process 1 on" in holder(store.folder(spec))


def test_16_the_memory_that_was_too_little_is_said(tmp_path, monkeypatch):
    store, specs = ResultStore(tmp_path), grid(methods="lora", seeds="0")
    store.write_grid(specs)
    submitted(tmp_path, specs, ((specs[0].key,),))
    command(
        tmp_path, "scontrol", "echo JobId=12 JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125 NodeList=n1 TRES=cpu=1,mem=4G,node=1"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (seen,) = grid_status.live_statuses(tmp_path, [])
    assert seen.phase == "lost" and "out of memory, of which it had 4G; give the profile more mem_gb" in seen.detail


def test_16_the_kernels_words_for_a_process_that_was_ended_for_its_memory(tmp_path):
    """`job.sh` asks the group that /proc names; a grep that looks into this folder stands for the one that looks into /sys."""
    for words, code in (("oom 3\noom_kill 1\n", 0), ("oom 3\noom_kill 0\n", 1)):
        (tmp_path / "memory.events").write_text(words)
        look = f'grep() {{ command grep "$1" "$2" {tmp_path}/memory.events; }}'
        script = f". {ROOT}/bench/cluster/job.sh\n{look}\nout_of_memory"
        assert subprocess.run(["bash", "-c", script], env={"SLURM_JOB_ID": "1", "PATH": os.environ["PATH"]}).returncode == code


def test_17_many_lost_cells_are_counted_and_not_listed(tmp_path, monkeypatch):
    store, specs = ResultStore(tmp_path), grid(methods="lora", seeds=",".join(map(str, range(300))))
    store.write_grid(specs)
    submitted(tmp_path, specs, tuple((spec.key,) for spec in specs))
    monkeypatch.setattr(status, "tasks", lambda: [])
    command(tmp_path, "scontrol", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    lines, moving = status.report(tmp_path)
    assert not moving and len(lines) < 30 and any("280 more cells  no heartbeat and no job" in line for line in lines)
    assert len(status.report(tmp_path, every_cell=True)[0]) > 300


@pytest.mark.slow
def test_17_the_status_of_many_cells_and_launches_is_there_at_once(tmp_path, monkeypatch):
    """1,200 cells, stored half of them by name, and 50 launches; three times what it takes here is allowed."""
    store, specs = ResultStore(tmp_path), grid(methods="lora,bitfit", seeds=",".join(map(str, range(600))))
    store.write_grid(specs)
    packs = tuple((spec.key,) for spec in specs)
    first = submitted(tmp_path, specs, packs)
    for copy in range(49):
        replace(first, id=f"{first.id}{copy:02}", path=first.path.with_name(f"{first.id}{copy:02}.json")).write()
    for spec in specs[:600]:
        store.stop(spec, "stopped by a signal")
    tasks = [Task(f"12_{index}", "PENDING", "Priority", "", first.id, 0, index) for index in range(600, 1200)]
    monkeypatch.setattr(status, "tasks", lambda: tasks)
    began = time.process_time()
    lines, _ = status.report(tmp_path)
    assert time.process_time() - began < 3.0 and "1200 cells: 600 pending, 600 unfinished" in lines[0]


def test_17_the_logs_say_where_the_launcher_itself_failed(tmp_path, capsys):
    store, specs = ResultStore(tmp_path), grid(methods="lora", seeds="0")
    store.write_grid(specs)
    sent = submitted(tmp_path, specs, ((specs[0].key,),))
    replace(sent, arrays=(replace(sent.arrays[0], job=""),)).write()
    assert logs.main([specs[0].key, "--out", str(tmp_path)]) == 1
    assert f"the launcher of {sent.id} ended before SLURM took this cell" in capsys.readouterr().out


@pytest.mark.slow
def test_17_a_dry_run_of_many_cells_is_there_at_once(tmp_path):
    """1,200 cells, methods known from the run before; seconds of this process and its children, which other load does not lengthen."""
    seeds = ",".join(map(str, range(600)))
    words = ["--methods", "lora,bitfit", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench.run", *words, "--launcher", "slurm", "--profile", "testcluster", "--dry-run", "--seeds"]
    subprocess.run([*command, "0"], cwd=ROOT, check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, seeds], cwd=ROOT, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "1200 cells, 1200 to run." in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4.0
