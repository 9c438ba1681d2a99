"""A cluster's bad days, and sites that differ from ours, one drill each on the real test cluster (with accounting). Nothing is imitated
but what SLURM says where this machine cannot make it say so: then a script of the same name stands first in PATH."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_grid import LONELY, PACKED, PYTHON, SHORT, SINGLE, Grid, absent, running, shared_files

MISSING = absent("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "mariadb-install-db")
if MISSING and os.environ.get("REQUIRE_SLURM"):
    raise RuntimeError(f"REQUIRE_SLURM is set, but {', '.join(MISSING)} is not installed.")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm_bad_days"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM on this machine ({', '.join(MISSING)} not found); make test-slurm installs it"),
]
HELD = "[flags]\nhold = true\n"
SAM = {"methods": "sam", "seeds": "0", "protocol": SHORT}
LIMIT = ("sacctmgr", "-i", "modify", "user", pwd.getpwuid(os.getuid()).pw_name, "set")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    data, environment = shared_files(tmp_path_factory.mktemp("shared"))
    with running("--nodes", "2", "--gpus", "2", "--accounting", data=data, environment=environment) as found:
        found.ask("sacctmgr", "-i", "add", "user", "nobody", "account=lab")
        yield found


@pytest.fixture(autouse=True)
def an_empty_queue(cluster):
    """A drill that failed leaves its jobs to nobody."""
    yield
    cluster.empty()


def standing_in(folder, name, script):
    """A command of the name that runs the script; `real "$@"` in it is SLURM's own. The PATH where it comes first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/bash\nreal() {{ {shutil.which(name)} "$@"; }}\n{script}\n')
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def said_by(done):
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_01_a_result_goes_only_when_its_replacement_is_there(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=f"partition = 'nowhere'\n{PACKED.replace('partition', '#')}")
    with grid.running_here():
        pass
    (path,) = grid.out.glob("runs/*/*/*/record.json")
    before = path.read_bytes()
    grid.launch("--overwrite", "always", rc=2)
    assert path.read_bytes() == before and not list((grid.out / "slurm").glob("submissions/*"))
    grid.profile.write_text(f"{LONELY}{HELD}")
    grid.launch("--overwrite", "always")
    assert path.read_bytes() == before and "1 pending" in grid.command("status")
    cluster.ask("scontrol", "release", *cluster.jobs())
    grid.wait(lambda: path.read_bytes() != before)
    after = json.loads(path.read_bytes())
    assert after["provenance"]["slurm"] and after["scores"] == json.loads(before)["scores"]
    grid.wait_idle()
    assert "1 stored" in grid.command("status")


def test_02_setup_lines_that_fail_end_the_job_and_count_as_starts(cluster, tmp_path):
    grid = Grid(
        cluster,
        tmp_path / "out",
        **SAM,
        profile=f"{PACKED}attempts = 2\ncheck_partition = 'none'\nsetup = ['true', 'false', 'echo past']\n",
    )
    for _ in range(2):
        grid.launch()
        grid.wait_idle()
    logs = "".join(path.read_text() for path in grid.out.glob("slurm/logs/*/*_log.*"))
    assert logs.count("A setup line of the profile failed with exit code 1: false") == 2 and "past" not in logs
    assert "FAILED" in grid.command("status")
    assert "nothing to send" in grid.launch()
    assert "1 failed" in (status := grid.command("status")) and "Given up after 2 starts" in status
    grid.profile.write_text(PACKED)
    grid.launch("--overwrite", "failed")
    grid.wait_stored()


def slow_python(folder, seconds, ranks):
    """An environment whose Python, in a job, takes so long before its first line while the file `importing` is there."""
    folder.mkdir(exist_ok=True)
    importing, begun = folder / "importing", folder / "begun"
    importing.touch()
    where = "'RANK' in os.environ" if ranks else "'SUBMITIT_EXECUTOR' in os.environ"
    wait = f"while os.path.exists({str(importing)!r}) and time.time() < until:\n        time.sleep(0.05)"
    code = f"open({str(begun)!r}, 'w').close()\n    until = time.time() + {seconds}\n    {wait}"
    (folder / "sitecustomize.py").write_text(f"import os, time\nif {where}:\n    {code}\n")
    return importing, begun


@pytest.mark.parametrize("devices", ["1", "2"])
def test_03_a_warning_while_python_imports(cluster, tmp_path, devices):
    profile = SINGLE.replace("gpus = 1", f"gpus = {devices}")
    grid = Grid(cluster, tmp_path / "out", seeds="0", protocol=SHORT, profile=profile)
    importing, begun = slow_python(tmp_path / "slow", 60, ranks=devices == "2")
    grid.environment["PYTHONPATH"] += f":{tmp_path / 'slow'}"
    grid.launch("--devices", devices)
    grid.wait(begun.exists)
    time.sleep(0.5)
    cluster.ask("scancel", "--batch", "--signal=USR2", *cluster.jobs())
    grid.wait(cluster.waiting, 30)
    importing.unlink()
    grid.wait_stored(release=True)
    ((_, record),) = grid.records().items()
    assert record["provenance"]["slurm"]["restart"] == "1"
    grid.wait_idle()


def test_04_the_controller_is_away_when_a_job_is_warned(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", seeds="0")
    (state,) = grid.launch_braked(4, 1).values()
    shell = int(Path(f"/proc/{state['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    cluster.manage("stop", "slurmctld")
    try:
        os.kill(shell, signal.SIGUSR2)
        grid.wait(lambda: any("tries again" in path.read_text() for path in grid.out.glob("slurm/logs/*/*_log.out")), 60)
    finally:
        cluster.manage("start", "slurmctld")
    grid.wait(cluster.waiting, 60)
    grid.go()
    grid.wait_stored(release=True)
    assert set(grid.starts().values()) == {2}
    grid.wait_idle()


def test_05_the_users_own_variables_hide_nothing_and_are_heeded_where_they_fill_a_gap(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", methods="lora", seeds="0,1", protocol=SHORT, profile=f"{LONELY}{HELD}")
    grid.launch()
    hiding = {
        "SQUEUE_STATES": "RUNNING",
        "SQUEUE_FORMAT": "%t",
        "SQUEUE_USERS": "nobody",
        "SCANCEL_STATE": "RUNNING",
        "SLURM_BITSTR_LEN": "1",
    }
    grid.environment |= hiding
    assert "nothing to send, 2 are with SLURM" in grid.launch() and "2 pending" in grid.command("status")
    assert "2 cells in 2 jobs" in grid.command("cancel")
    grid.wait_idle()
    grid.environment["SBATCH_ACCOUNT"] = "nobody"
    assert "account=nobody" in grid.launch(rc=2)
    grid.environment |= {"SBATCH_ACCOUNT": "lab", "SBATCH_QOS": "normal", "SBATCH_TIMELIMIT": "1", "SLURM_CLUSTERS": "loop"}
    grid.launch()
    assert set(cluster.ask("squeue", "-h", "-o", "%a %q %l").splitlines()) == {"lab normal 20:00"}
    del grid.environment["SLURM_CLUSTERS"]
    assert "2 pending" in grid.command("status")
    grid.environment["SLURM_CLUSTERS"] = "nowhere"
    assert "nowhere" in grid.launch(rc=2)


def test_06_everything_that_a_launch_sent_is_cancelled_and_none_of_it_is_lost(cluster, tmp_path):
    cluster.ask("sbatch", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300")
    grid = Grid(cluster, tmp_path / "out", methods="lora", seeds="0,1,2", protocol=SHORT, profile=LONELY)
    assert "waits itself (Resources)" in grid.launch("--collect")
    name = cluster.ask("squeue", "-h", "-o", "%j").split()
    (name,) = {one for one in name if one.endswith("_0")}
    cluster.ask("sbatch", "-H", "-J", name, "-o", "/dev/null", "--wrap", "true")  # a second job for the first cell
    assert len(cluster.jobs()) == 1 + 1 + 3 + 1 + 1  # the sleeper, the check, the cells, the collector, the second job
    assert "2 cells in 2 jobs" in grid.command("cancel", "--seeds", "1,2") and len(cluster.jobs()) == 5
    assert "1 cell in 2 jobs, and 2 jobs to check or collect" in grid.command("cancel")
    assert len(cluster.jobs()) == 1
    status = grid.command("status")
    assert "3 unfinished" in status and "was cancelled before it began" in status and "lost" not in status


def test_07_what_another_process_computes_is_left_to_it_until_it_is_stolen(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", seeds="0", protocol=SHORT, profile=f"{LONELY}{HELD}")
    grid.brake.write_text("600")
    with subprocess.Popen(grid.words, cwd=grid.root, env=grid.environment, stderr=subprocess.DEVNULL) as local:
        grid.wait(grid.states)
        assert "1 cells are computed by others (process" in grid.launch() and not cluster.jobs()
        assert "is computed by process" in said_by(grid.run(grid.words)) and not grid.records()
        assert "Sent 1 cell as" in grid.launch("--steal") and len(cluster.jobs()) == 1
        local.kill()
    grid.go()
    assert "lost" not in grid.command("status")  # its job waits
    assert "1 cells are left to jobs of SLURM" in said_by(grid.run(grid.words)) and not grid.records()
    assert grid.run([*grid.words, "--steal"]).returncode == 0 and len(grid.records()) == 1


def test_08_two_users_share_a_folder(cluster, tmp_path):
    cluster.folder.chmod(0o755)
    grid = Grid(cluster, tmp_path / "out", methods="lora", seeds="0,1", protocol=SHORT, profile=f"{LONELY}{HELD}")
    grid.launch("--group-writable")
    assert (grid.out / "slurm" / "logs").stat().st_mode & 0o070 == 0o070
    name = cluster.ask("squeue", "-h", "-o", "%j").split()[0]
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "env": cluster.environment, "cwd": "/"}
    words = ["sbatch", "-A", "lab", "-H", "-J", name, "--array=0-1", "-o", "/dev/null", "--wrap", "true"]
    done = subprocess.run(words, capture_output=True, text=True, **nobody)
    if done.returncode:
        pytest.skip(f"this cluster takes no job of somebody else: {done.stderr}")
    cluster.ask("scancel", "--user", "root")
    assert "nothing to send, 2 are with SLURM" in grid.launch() and "2 pending" in grid.command("status")
    assert "belongs to nobody, who alone can cancel it" in grid.command("cancel") and len(cluster.jobs()) == 2
    cluster.ask("scancel", "--user", "nobody")


def test_09_an_array_that_slurm_took_though_sbatch_gave_up_is_found_by_its_name(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=f"{LONELY}{HELD}")
    late = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
    script = f'real "$@" >{tmp_path}/said; case "$*" in *submission_file*) {late};; *) cat {tmp_path}/said;; esac'
    grid.environment["PATH"] = standing_in(tmp_path / "bin", "sbatch", script)
    assert "Socket timed out" in grid.launch(rc=2) and not cluster.jobs()


@pytest.fixture
def busy(cluster):
    """Every node computes for somebody else."""
    cluster.ask("sbatch", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300")
    cluster.ask("sacctmgr", "-i", "add", "qos", "small", "set", "MaxTRESPerUser=gres/gpu=1", "MinTRESPerJob=gres/gpu=1")
    cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=small")
    cluster.ask("scontrol", "update", "partitionname=high", "minnodes=2")
    yield cluster
    cluster.ask("scontrol", "update", "partitionname=high", "minnodes=1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("partition = 'short'", "partition short allows time of at most 5, and 20 is asked for"),
        ("partition = 'high'", "partition high allows jobs of at least 2 nodes, and 1 is asked for"),
        ("gpus = 2\nqos = 'small'", "QOS small allows gres/gpu of at most 1 (MaxTRESPU), and 2 is asked for"),
        ("gpus = 0\nqos = 'small'", "QOS small allows gres/gpu of at least 1 (MinTRES), and 0 is asked for"),
    ],
)
def test_10_on_a_busy_cluster_too_what_would_never_start_is_refused(busy, tmp_path, change, said):
    keys = {line.partition(" ")[0] for line in change.splitlines()}
    profile = "".join(f"{line}\n" for line in PACKED.splitlines() if line.partition(" ")[0] not in keys) + change
    text = Grid(busy, tmp_path / "out", **SAM, profile=profile).launch(rc=2)
    assert said in text and "would never start" in text and text.count("\n") == 1 and len(busy.jobs()) == 1


def test_11_what_cannot_be_cancelled_is_said_beside_the_first_failure(cluster, tmp_path):
    profile = f"{PACKED}[[override]]\nmethods = ['lora']\ntime_min = 21\n{HELD}"
    grid = Grid(cluster, tmp_path / "out", methods="sam,lora", seeds="0", protocol=SHORT, profile=profile)
    second = f'[ -e {tmp_path}/first ] && {{ echo "sbatch: error: The first failure" >&2; exit 1; }}; touch {tmp_path}/first'
    standing_in(tmp_path / "bin", "sbatch", f'case "$*" in *submission_file*) {second};; esac; real "$@"')
    grid.environment["PATH"] = standing_in(tmp_path / "bin", "scancel", "echo 'scancel: error: The second one' >&2; exit 1")
    said = grid.launch(rc=2)
    (job,) = cluster.jobs()
    assert "The first failure." in said and "The second one." in said and f"`scancel {job}`" in said


def test_12_a_collector_for_which_a_limit_leaves_no_room_is_left_out_with_a_word(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", methods="lora", seeds="0,1", protocol=SHORT, profile=f"{LONELY}check_partition = 'none'\n{HELD}")
    cluster.ask(*LIMIT, "MaxSubmitJobs=2")
    try:
        said = grid.launch("--collect")
    finally:
        cluster.ask(*LIMIT, "MaxSubmitJobs=-1")
    assert "Sent 2 cells" in said and "No job will render the tables: " in said and len(cluster.jobs()) == 2


@pytest.mark.parametrize(
    ("change", "fields", "shown"),
    [
        ("gpus = 1\ngpu_flag = 'gpus-per-node'\ngpu_type = 'fake'", "%b", {"gres:gpu:fake:1"}),
        ("max_array_tasks = 2", "%F", 2),
        ("[flags]\nexclusive = false", "%h", {"OK"}),
        ("check_partition = 'high'\ncollect_partition = 'short'", "%j %P", {"collect short", "0 main"}),
    ],
)
def test_13_what_sites_differ_in_is_a_key_of_the_profile(cluster, tmp_path, change, fields, shown):
    keys = {line.partition(" ")[0] for line in change.splitlines()}
    profile = "".join(f"{line}\n" for line in LONELY.splitlines() if line.partition(" ")[0] not in keys)
    profile += f"{change}\nhold = true\n" if "[flags]" in change else f"{change}\n{HELD}"
    grid = Grid(cluster, tmp_path / "out", methods="lora", seeds="0,1,2", protocol=SHORT, profile=profile)
    grid.launch("--collect")
    found = set(cluster.ask("squeue", "-h", "-o", f"%j|{fields}").splitlines())
    cells = {line.partition("|")[2] for line in found if "collect" not in line}
    if isinstance(shown, int):
        assert len(cells) == shown
    elif "%j" in fields:
        assert {line.partition("|")[2].rpartition("_")[2] for line in found} == shown
    else:
        assert cells == shown


def test_13_no_more_jobs_run_at_once_than_the_profile_says_over_all_arrays(cluster, tmp_path):
    profile = f"{SINGLE}parallel = 1\ncheck_partition = 'none'\nmax_array_tasks = 1\nsetup = ['echo threads $OMP_NUM_THREADS']\n"
    grid = Grid(
        cluster,
        tmp_path / "out",
        methods="lora",
        seeds="0,1",
        protocol=SHORT,
        profile=f"{profile}evaluations_per_job = 1\n".replace("evaluations_per_job = 8\n", ""),
    )
    grid.environment["OMP_NUM_THREADS"] = "7"  # of the login shell
    grid.launch()
    running = []

    def look():
        running.append(len(cluster.ask("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()))
        return len(grid.records()) == 2

    grid.wait(look)
    assert max(running) == 1
    logs = "".join(path.read_text() for path in grid.out.glob("slurm/logs/*/*_log.out"))
    assert logs.count("threads 1\n") == 2
    grid.wait_idle()


def test_14_another_python_runs_the_jobs(cluster, tmp_path):
    """What stands for `apptainer exec image.sif python`: a script of its own name, found by the PATH that a setup line makes."""
    path = standing_in(tmp_path / "bin", "env", f'echo "in the container: $*"; shift 2; exec {PYTHON} "$@"').partition(":")[0]
    shutil.move(f"{path}/env", f"{path}/container")
    profile = f'{LONELY}python = "container exec image.sif"\nsetup = ["export PATH={path}:$PATH"]\n'
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=profile)
    grid.launch("--collect")
    grid.wait_stored()
    grid.wait_idle()
    logs = "".join(path.read_text() for path in grid.out.glob("slurm/logs/*/*.out"))
    assert "in the container: exec image.sif -u -m submitit" in logs and "in the container: exec image.sif -m bench.tables" in logs
    broken = Grid(cluster, tmp_path / "broken", **SAM, profile=f"{LONELY}python = 'no_such_python'\n")
    assert "the Python of the jobs" in broken.launch(rc=2) and not cluster.jobs()


def test_15_cells_share_a_gpu_at_once(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", protocol=SHORT, profile=SINGLE.replace("cells_per_job = 1", "cells_per_gpu = 2"))
    states = grid.launch_braked(4, 2)
    assert len({state["pid"] for state in states.values()}) == 2
    assert len({(state["slurm"]["job"], state["slurm"]["gpus"]) for state in states.values()}) == 1
    cluster.ask("scancel", "--batch", "--signal=USR2", *cluster.jobs())
    grid.wait(lambda: cluster.waiting() and not grid.states())
    grid.mark()
    grid.go()
    grid.wait_stored(release=True)
    assert len(grid.went_on()) == 2
    grid.wait_idle()


def test_16_a_job_that_its_node_ended_for_its_memory_is_tried_once_more_with_more(cluster, tmp_path):
    """There is no cgroup here that ends a process: a setup line says of the first life that one did, and Python is killed."""
    killed = "out_of_memory() { [ ${SLURM_RESTART_COUNT:-0} = 0 ]; }"
    profile = f"{SINGLE}mem_gb = 1\nmem_gb_max = 3\nsetup = ['{killed}']\n"
    grid = Grid(cluster, tmp_path / "out", seeds="0", protocol=SHORT, profile=profile)
    (state,) = grid.launch_braked(4, 1).values()
    os.kill(state["pid"], signal.SIGKILL)
    grid.wait(cluster.waiting)
    assert cluster.ask("squeue", "-h", "-o", "%m").split() == ["3G"]
    grid.go()
    grid.wait_stored(release=True)
    logs = "".join(path.read_text() for path in grid.out.glob("slurm/logs/*/*_log.*"))
    assert "which had 1024 MB" in logs and "queued again with 3072 MB" in logs
    grid.wait_idle()


def test_17_a_killed_cell_is_seen_at_once_and_paths_may_hold_spaces(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "my out", seeds="0", protocol=SHORT)
    (state,) = grid.launch_braked(600, 1).values()
    assert f"--out '{grid.out}'" in grid.said
    os.kill(state["pid"], signal.SIGKILL)
    grid.wait_idle()
    assert "1 lost" in (status := grid.command("status")) and "FAILED" in status
    grid.go()
    assert "Sent 1 cell as" in grid.launch()  # not left to the heartbeat of a dead job
    grid.wait_stored()
    grid.wait_idle()
    percent = Grid(cluster, tmp_path / "a%j", **SAM)
    assert "a folder without it is needed" in percent.launch(rc=2)


def test_17_past_launches_are_cleaned_up(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=f"{LONELY}{HELD}")
    grid.launch()
    assert "0 files and folders would be removed" in grid.command("clean", "--days", "0")  # its job waits
    grid.command("cancel")
    assert "0 files and folders would" in grid.command("clean")  # it is young
    assert "3 files and folders would be removed; --remove does it." in grid.command("clean", "--days", "0")
    assert "3 files and folders were removed." in grid.command("clean", "--days", "0", "--remove")
    assert not [*grid.out.glob("slurm/submissions/*"), *grid.out.glob("slurm/logs/*"), *grid.out.glob("slurm/snapshots/*")]
    assert "1 unfinished" in grid.command("status") and "Sent 1 cell as" in grid.launch()


def test_18_accounts_and_their_limits(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=f"account = 'nobody'\n{PACKED}")
    assert "account" in grid.launch(rc=2).lower()
    grid.profile.write_text(f"account = 'lab'\nqos = 'golden'\n{PACKED}")
    assert "qos" in grid.launch(rc=2).lower()
    assert not cluster.jobs()
    grid.profile.write_text(f"account = 'lab'\n{PACKED}")
    grid.launch()
    grid.wait_stored()
    assert "1 stored" in grid.command("status")
    grid.wait_idle()
    cluster.ask(*LIMIT, "MaxSubmitJobs=3")
    cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=maintenance")
    profile = f"account = 'lab'\n{LONELY}"
    try:
        many = Grid(cluster, tmp_path / "many", methods="layernorm", seeds="0,1,2,3,4", protocol=SHORT, profile=profile)
        said = many.launch(rc=1)
        assert "Sent 2 cells" in said and "no room for 3 cells" in said and "checks that the nodes see" in said
        status = many.command("status")
        assert "2 cells  SLURM: " in status and "3 cells  not sent yet" in status
    finally:
        cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
    many.wait(lambda: len(many.records()) == 2)
    many.wait_idle()
    cluster.ask(*LIMIT, "MaxSubmitJobs=-1")
    assert "Sent 3 cells" in many.launch()
    many.command("cancel")
