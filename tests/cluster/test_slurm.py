"""The SLURM launcher on a real cluster: slurm/testcluster, started for these tests on this machine. Nothing here is imitated.

Every drill ends with the same: the same command again completes the grid, and its numbers are those of a local run.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
from slurm_grid import LONELY, PACKED, PYTHON, ROOT, SHORT, SINGLE, Grid, absent, running, shared_files

MISSING = absent("slurmctld", "slurmd", "sbatch", "munged")
if MISSING and os.environ.get("REQUIRE_SLURM"):
    raise RuntimeError(f"REQUIRE_SLURM is set, but {', '.join(MISSING)} is not installed.")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM on this machine ({', '.join(MISSING)} not found); make test-slurm installs it"),
]


def impossible_here(why):
    """Skips a test that this machine cannot run, unless all must run."""
    assert not os.environ.get("REQUIRE_SLURM"), why
    pytest.skip(why)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    data, environment = shared_files(tmp_path_factory.mktemp("shared"))
    return {"data": data, "environment": environment}


@pytest.fixture(scope="module")
def cluster(shared):
    with running("--nodes", "2", "--gpus", "2", "--cpus", "4", "--array-size", "5", **shared) as found:
        yield found


@pytest.fixture(autouse=True)
def an_empty_queue(request):
    """A drill that failed leaves its jobs to nobody."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").empty()


@pytest.fixture(scope="module")
def reference(cluster, tmp_path_factory):
    """The scores of the drills' two cells as a local run gives them."""
    grid = Grid(cluster, tmp_path_factory.mktemp("local"))
    with grid.running_here():
        pass
    return grid.scores()


def test_a_grid_gives_the_table_of_a_local_run_with_a_gpu_for_each_cell(cluster, tmp_path):
    names = {"methods": "sam,lora,cat_sam_t", "datasets": "kvasir,sbu", "seeds": "0,1,2", "protocol": SHORT}
    remote, local = (Grid(cluster, tmp_path / place, **names, profile=PACKED) for place in ("remote", "local"))
    assert "Sent 14 cells" in remote.launch("--collect")
    together = set()

    def look():
        held = {(s["slurm"]["node"], s["slurm"]["gpus"], s["pid"]) for s in remote.states().values()}
        alive = {one for one in held if Path(f"/proc/{one[2]}").exists()}
        assert len({one[:2] for one in alive}) == len(alive), f"two cells share a GPU: {alive}"
        together.add(frozenset(one[:2] for one in alive))
        return len(remote.records()) == 14

    with local.running_here():
        remote.wait(look, 300)
    assert any({("n1", "0"), ("n1", "1")} <= at_once for at_once in together), f"never two at a time on a node: {together}"
    assert remote.scores() == local.scores()
    assert set(remote.starts().values()) == {1}
    assert "14 stored" in remote.command("status") and "nothing to send" in remote.launch()
    remote.wait_idle()
    tables = sorted((remote.out / "tables").glob("*.csv"))
    assert tables and (remote.out / "report" / "index.html").exists(), "the collector made no tables"
    local.command("tables", "--like", "all", "--format", "csv")
    ours = [path for path in tables if "efficiency" not in path.name]  # but for what is measured in seconds
    assert ours and all(path.read_text() == (local.out / "tables" / path.name).read_text() for path in ours)


def test_cells_that_were_cancelled_and_killed_go_on_when_the_command_runs_again(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    states = grid.launch_braked(4, cells=2)
    assert "2 running" in grid.command("status")
    cancelled, killed = states
    slurm = states[cancelled]["slurm"]
    cluster.ask("scancel", f"{slurm['array']}_{slurm['task']}")
    os.kill(states[killed]["pid"], signal.SIGKILL)
    grid.wait_idle()
    assert not grid.records()
    status = grid.command("status")
    for name in states:
        key = name.rpartition("_")[2]
        assert "braked" in grid.command("logs", key) and key in status
    grid.mark()
    grid.go()
    assert "Sent 2 cells" in grid.launch()
    grid.wait_stored()
    assert grid.scores() == reference and grid.went_on() == set(reference)
    grid.wait_idle()


def test_the_log_folder_is_deleted_while_one_cell_runs_and_one_waits(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out", profile=f"{SINGLE}parallel = 1\n")
    grid.launch_braked(600, cells=1)
    shutil.rmtree(grid.out / "slurm" / "logs")
    grid.go()
    grid.wait_idle()
    status = grid.command("status")
    assert "1 stored, 1 lost" in status and "FAILED" in status  # the second job could not write its log, and never began
    assert "Sent 1 cell as" in grid.launch()
    grid.wait_stored()
    assert grid.scores() == reference
    grid.wait_idle()


def test_preempted_cells_save_themselves_and_go_on(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch_braked(4, cells=2)
    cluster.ask("sbatch", "-p", "high", "-N2", "--ntasks-per-node=1", "--gres=gpu:2", "-o", "/dev/null", "--wrap", "sleep 2")
    grid.wait(lambda: len(cluster.waiting()) == 2 and not grid.states())
    assert "2 pending" in grid.command("status")
    grid.mark()
    grid.go()
    grid.wait_stored(release=True)
    assert grid.scores() == reference and grid.went_on() == set(reference)
    assert {record["provenance"]["slurm"]["restart"] for record in grid.records().values()} == {"1"}
    grid.wait_idle()


def test_the_time_limit_in_the_middle_of_training(cluster, reference, tmp_path):
    """A limit is whole minutes, and SLURM looks at it every half: the job has one or two more, and is warned 90 s before."""
    grid = Grid(cluster, tmp_path / "out", seeds="0", profile=SINGLE.replace("signal_s = 10", "signal_s = 90"))
    grid.launch_braked(8, cells=1)
    (job,) = cluster.jobs()
    minutes, seconds = map(int, cluster.ask("squeue", "-h", "-o", "%M").split(":"))
    cluster.ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes + (seconds + 65 + 59) // 60}")
    grid.wait(lambda: cluster.waiting() and not grid.states())
    cluster.ask("scontrol", "update", f"jobid={job}", "timelimit=20")
    grid.mark()
    grid.go()
    grid.wait_stored(release=True)
    ((name, record),) = grid.records().items()
    assert record["scores"] == reference[name] and grid.went_on() == {name}
    assert record["cost"]["steps"] == 16 and record["provenance"]["slurm"]["restart"] == "1"
    grid.wait_idle()


def test_a_node_that_is_lost_while_its_cells_go_on(cluster, reference, tmp_path):
    """Both copies of each cell run to their end; the result is stored once."""
    grid = Grid(cluster, tmp_path / "out")
    states = grid.launch_braked(600, cells=2)
    node, old = next(iter(states.values()))["slurm"]["node"], [Path(f"/proc/{state['pid']}") for state in states.values()]
    assert {state["slurm"]["node"] for state in states.values()} == {node}
    cluster.manage("stop", f"slurmd.{node}", "--kill")
    try:
        grid.wait(lambda: set(grid.starts().values()) == {2}, release=True)
        assert all(process.exists() for process in old) and not grid.records()
        grid.go()
        grid.wait_stored()
        grid.wait(lambda: not any(process.exists() for process in old))
    finally:
        cluster.manage("start", f"slurmd.{node}")
    assert grid.scores() == reference and "2 stored" in grid.command("status")
    assert not list(grid.out.glob("runs/*/*/*/.*.tmp")) and not list(grid.out.glob("runs/*/*/*/resume.pt"))
    grid.wait(lambda: not cluster.jobs(), release=True)
    grid.wait(lambda: "down" not in cluster.ask("sinfo", "-h", "-o", "%t"))


def test_the_controller_restarts_in_the_middle_of_an_array(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out", profile=f"{SINGLE}parallel = 1\n")
    grid.launch_braked(600, cells=1)
    cluster.manage("stop", "slurmctld")
    assert "SLURM was not asked" in grid.command("status")
    grid.go()
    grid.wait(lambda: len(grid.records()) == 1)  # it needs no controller
    cluster.manage("start", "slurmctld")
    grid.wait_stored()
    assert grid.scores() == reference and set(grid.starts().values()) == {1}
    grid.wait_idle()


def test_a_full_disk_while_results_are_written(cluster, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        impossible_here("a small disk cannot be mounted here (root is needed)")
    try:
        grid = Grid(cluster, disk / "out", methods="sam", seeds="0", protocol=SHORT, profile=PACKED)
        grid.launch()
        filler = disk / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        grid.wait_idle()
        assert not grid.records()
        filler.unlink()
        grid.launch()
        grid.wait_stored()
        assert not list(disk.rglob(".*.tmp"))
        grid.wait_idle()
    finally:
        subprocess.run(["umount", "-l", disk])


def test_a_cell_that_always_fails_fails_alone(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", methods="sam,diverging", protocol="smoke(selections=['last'])", seeds="0", profile=PACKED)
    grid.launch()
    grid.wait_idle()
    status = grid.command("status")
    assert "1 stored, 1 failed" in status and "The loss became nan" in status
    assert "nothing to send" in grid.launch()
    assert "The loss became nan" in grid.command("tables")


def test_a_launcher_that_is_killed_between_two_arrays(cluster, tmp_path):
    profile = f"{PACKED}[[override]]\nmethods = ['lora']\ntime_min = 21\n"
    grid = Grid(cluster, tmp_path / "out", methods="cat_sam_t,lora", protocol=SHORT, profile=profile)
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "sbatch").write_text(
        f'#!/bin/sh\ncase "$*" in *test-only*|*_check*) exec {shutil.which("sbatch")} "$@";; esac\n'
        f'[ -e {slow}/first ] && {{ touch {slow}/second; sleep 30; exit 1; }}\ntouch {slow}/first\nexec {shutil.which("sbatch")} "$@"\n'
    )
    (slow / "sbatch").chmod(0o755)
    environment = {**grid.environment, "PATH": f"{slow}:{os.environ['PATH']}"}
    launcher = subprocess.Popen(grid.launched(), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    grid.wait((slow / "second").exists, 60)
    launcher.kill()
    launcher.wait()
    assert "2 cells  not sent yet" in grid.command("status")
    assert "Sent 2 cells" in grid.launch()
    grid.wait_stored()
    assert set(grid.starts().values()) == {1}
    grid.wait_idle()


def test_two_launchers_at_once_send_each_cell_once(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", methods="layernorm", protocol=SHORT, profile=PACKED)
    both = [subprocess.Popen(grid.launched(), cwd=ROOT, env=grid.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Sent 2 cells" in text for text in said) == 1, said
    grid.wait_stored()
    assert set(grid.starts().values()) == {1}
    grid.wait_idle()


def test_cells_are_given_up_after_starts_that_got_them_no_further_and_go_on_from_there(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out", profile=f"{SINGLE}attempts = 1\n")
    grid.launch_braked(4, cells=2)
    assert "1 cell in 1 job" in grid.command("cancel", "--seeds", "1")
    grid.wait(lambda: len(cluster.jobs()) <= 1)
    assert "1 cell in 1 job" in grid.command("cancel")
    grid.wait_idle()
    grid.mark()
    grid.brake.write_text("600")
    assert "Sent 2 cells" in grid.launch()  # they had got further
    grid.wait(lambda: len(grid.states()) == 2 and set(grid.starts().values()) == {2})
    grid.command("cancel")
    grid.wait_idle()
    assert "Sent 2 cells" in grid.launch()
    grid.wait_idle()
    assert "2 failed" in (status := grid.command("status")) and "Given up after 1 starts" in status
    assert "nothing to send" in grid.launch()
    grid.go()
    assert "Sent 2 cells" in grid.launch("--overwrite", "failed")
    grid.wait_stored()
    assert grid.scores() == reference and grid.went_on() == set(reference)
    assert set(grid.starts().values()) == {1}  # counted anew
    grid.wait_idle()


def test_two_gpus_train_a_cell_together(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out", seeds="0", profile=SINGLE.replace("gpus = 1", "gpus = 2"))
    grid.launch_braked(4, 1, "--devices", "2")
    cluster.ask("scancel", "--batch", "--signal=USR2", *cluster.jobs())
    grid.wait(lambda: cluster.waiting() and not grid.states())
    grid.mark()
    grid.go()
    grid.wait_stored(release=True)
    ((name, record),) = grid.records().items()
    assert record["cost"]["devices"] == 2 and record["provenance"]["slurm"]["gpus"] == "0,1" and grid.went_on() == {name}
    assert record["scores"]["last"]["miou_all"] == pytest.approx(reference[name]["last"]["miou_all"], abs=0.5)
    grid.wait_idle()


LAUNCH = "import sys; from bench.run import main; code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"


def a_checkout(root):
    """A copy of the project with a commit of its own; the commit's number."""
    for folder in ("bench", "methods", "datasets", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".gitignore").write_text("__pycache__/\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_jobs_run_the_code_as_it_was_sent_and_are_seen_from_another_login_node(cluster, tmp_path):
    """Twelve held jobs, in arrays of at most five, in two launches; the code is broken while they wait. The launcher imports no torch."""
    commit = a_checkout(root := tmp_path / "project")
    seeds, held = ",".join(map(str, range(12))), "[flags]\nhold = true\n"
    grid = Grid(
        cluster, tmp_path / "out", methods="layernorm", seeds=seeds, protocol=SHORT, profile=f"{LONELY}max_jobs = 8\n{held}", root=root
    )
    grid.words += ["--pretrained", str(ROOT / "pretrained")]
    assert "no room for 5 jobs" in (said := grid.launch(rc=1)) and "Sent 7 cells" in said
    grid.profile.write_text(f"{LONELY}{held}")
    done = grid.run([PYTHON, "-c", LAUNCH, *grid.launched()[3:]])
    assert done.returncode == 0 and "Sent 5 cells" in done.stdout, done.stdout + done.stderr
    assert len(cluster.jobs()) == 12 and len(cluster.ask("squeue", "-h", "-o", "%F").split()) == 3
    (root / "bench" / "cluster" / "job.py").write_text("raise SystemExit('this edit came later')\n")
    (root / "configs" / "protocols" / "smoke.toml").write_text("")
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname login2 && exec "$@"', "sh"]
    if subprocess.run([*elsewhere, "true"], capture_output=True).returncode:
        impossible_here("a name of its own for a login node cannot be given here (root is needed)")
    assert "12 cells  SLURM: JobHeldUser" in grid.command("status", before=elsewhere)
    cluster.ask("scontrol", "release", cluster.jobs()[0])
    (record,) = grid.wait(grid.records).values()
    assert record["provenance"]["git"] == {"commit": commit, "dirty": False}
    assert "1 stored, 11 pending" in grid.command("status", before=elsewhere)
    assert "11 cells in 11 jobs" in grid.command("cancel", "--methods", "layernorm", before=elsewhere)
    grid.wait_idle()
    assert grid.command("status").count("was cancelled before it began") == 11


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("partition = 'nowhere'", "partitions here: high, main, short"),
        ("gpus = 9", "not available"),
        ("cpus = 900", "not available"),
        ("constraint = 'a100'", "feature"),
        ("partition = 'short'", "never start"),  # 20 minutes where 5 are allowed: sbatch itself takes it
    ],
)
def test_a_request_that_slurm_refuses(cluster, tmp_path, change, said):
    key = change.partition(" ")[0]
    profile = "".join(f"{line}\n" for line in PACKED.splitlines() if not line.startswith(key)) + change
    text = Grid(cluster, tmp_path / "out", profile=profile).launch(rc=2)
    assert said in text.lower() and text.strip().count("\n") == 0
    assert not cluster.jobs()


def test_trials_are_jobs_and_the_same_command_chooses(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "remote", profile=PACKED)
    words = [PYTHON, "-m", "bench.tune", "--methods", "sam,lora", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", SHORT]
    words += ["--trials", "2", "--only-rates", "--name", "mine", "--data", str(cluster.data)]
    remote = [*words, "--out", str(grid.out), "--launcher", "slurm", "--profile", str(grid.profile)]
    sent = grid.run(remote)
    assert sent.returncode == 0 and "2 of 2 trial cells have no result yet" in sent.stdout, sent.stdout + sent.stderr
    local = grid.run([*words, "--out", str(tmp_path / "local")])
    assert local.returncode == 0, local.stdout + local.stderr
    grid.wait(lambda: len(list(grid.out.glob("tuned/mine/runs/*/*/*/record.json"))) == 2, 120)
    assert not (grid.out / "tuned" / "mine.toml").exists()
    assert grid.run(remote).returncode == 0
    found, here = (tomllib.loads((out / "tuned" / "mine.toml").read_text()) for out in (grid.out, tmp_path / "local"))
    assert found["trial"] == here["trial"] and found["choice"][0]["rates"] == here["choice"][0]["rates"]
    grid.wait_idle()


def test_a_machine_without_slurm(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    done = grid.run(grid.launched(), env={**grid.environment, "PATH": str(tmp_path)})
    assert done.returncode == 2 and "sbatch" in done.stderr and done.stderr.count("\n") == 1


def test_an_output_folder_that_the_nodes_do_not_see(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "hidden" / "out")
    profile = shutil.copy(grid.profile, tmp_path)
    hidden = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs {tmp_path}/hidden && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        impossible_here("a mount namespace cannot be made here (root is needed)")
    done = grid.run([*hidden, *grid.words, "--launcher", "slurm", "--profile", str(profile)])
    assert done.returncode == 2 and "output folder" in done.stderr and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert not cluster.jobs()


def test_a_user_without_rights_has_a_cluster_too(tmp_path):
    if os.geteuid():
        impossible_here("root is needed to become somebody else")
    with tempfile.TemporaryDirectory(prefix="spb") as folder:
        script = shutil.copy(ROOT / "slurm/testcluster", folder)
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SLURM_CONF": f"{folder}/etc/slurm.conf"}

        def ask(*words):
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "env": environment, "cwd": folder}
            return subprocess.run(words, capture_output=True, text=True, timeout=60, **who)

        python = shutil.which("python3", path=environment["PATH"])  # the tests' own may lie in root's home
        if python is None:
            impossible_here("there is no python3 that every user may run")
        try:
            up = ask(python, script, "up", "--dir", folder)
            assert up.returncode == 0, up.stderr
            assert ask("srun", "--gres=gpu:1", "sh", "-c", "echo $(id -un) $CUDA_VISIBLE_DEVICES").stdout.split() == ["nobody", "0"]
        finally:
            down = ask(python, script, "down", "--dir", folder)
        assert down.returncode == 0, down.stderr
        assert "runs, process" not in (status := ask(python, script, "status", "--dir", folder).stdout) and "does not answer" in status


def test_a_cluster_in_a_folder_of_a_long_name_is_refused(tmp_path):
    words = [ROOT / "slurm/testcluster", "up", "--dir", tmp_path / ("long" * 20)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "characters" in done.stderr and done.stderr.count("\n") == 1
