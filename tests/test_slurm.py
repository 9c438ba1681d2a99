"""The SLURM launcher on a real cluster: slurm/testcluster, started for these tests on this machine. Nothing here is imitated.

Every drill ends with the same: the same command again completes the grid, and its numbers are those of a local run.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
MISSING = [
    name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
]
if MISSING and os.environ.get("REQUIRE_SLURM"):
    raise RuntimeError(f"REQUIRE_SLURM is set, but {', '.join(MISSING)} is not installed.")
pytestmark = [
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM on this machine ({', '.join(MISSING)} not found); make test-slurm installs it"),
]
SHORT = "smoke(epochs=4,evaluate_every=4,selections=['last'])"
LONG = "smoke(epochs=150,evaluate_every=150,selections=['last'])"
PACKED = (
    'partition = "main"\ngpus = 1\ncpus = 1\ntime_min = 20\nsignal_s = 10\ndevice = "cpu"\ncells_per_job = 6\nevaluations_per_job = 8\n'
)
SINGLE = PACKED.replace("cells_per_job = 6", "cells_per_job = 1")


class Cluster:
    """The cluster of this session and its commands."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "etc/slurm.conf"), "OMP_NUM_THREADS": "1"}

    def manage(self, *words):
        done = subprocess.run([ROOT / "slurm/testcluster", *words, "--dir", self.folder], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *words):
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def jobs(self):
        return self.ask("squeue", "-h", "-r", "-o", "%i").split()

    def release(self):
        """Lifts the two minutes that SLURM lets a requeued job wait."""
        for job in self.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split():
            self.ask("scontrol", "update", f"jobid={job}", "starttime=now")


@contextlib.contextmanager
def running(*words):
    """A cluster in a folder of a short name, which its sockets need."""
    with tempfile.TemporaryDirectory(prefix="spb") as folder:
        found = Cluster(Path(folder))
        try:
            found.manage("up", *words)
            yield found
        finally:
            found.manage("down")


@pytest.fixture(scope="module")
def cluster():
    with running("--nodes", "2", "--gpus", "2", "--cpus", "4") as found:
        yield found


class Grid:
    """A grid and how it is asked for."""

    def __init__(self, cluster, out, methods="lora", datasets="synth_polyps", seeds="0,1", protocol=LONG, profile=SINGLE):
        self.cluster, self.out = cluster, out
        out.mkdir(parents=True, exist_ok=True)
        self.profile = out.with_suffix(".toml")
        self.profile.write_text(profile)
        self.words = [PYTHON, "-m", "bench.run", "--methods", methods, "--datasets", datasets, "--seeds", seeds, "--backbone", "tiny"]
        self.words += ["--protocol", protocol, "--out", str(out), "--save-every", "1"]
        self.count = len(methods.split(",")) * len(datasets.split(",")) * len(seeds.split(","))

    def launched(self, *more):
        return [*self.words, "--launcher", "slurm", "--profile", str(self.profile), *more]

    def launch(self, *more, rc=0):
        done = subprocess.run(self.launched(*more), cwd=ROOT, env=self.cluster.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == rc, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def command(self, module, *words):
        words = [PYTHON, "-m", f"bench.{module}", *words, "--out", str(self.out)]
        return subprocess.run(words, cwd=ROOT, env=self.cluster.environment, capture_output=True, text=True, timeout=60).stdout

    def records(self):
        return {path.parent.name: json.loads(path.read_text()) for path in self.out.glob("runs/*/*/*/record.json")}

    def states(self):
        found = {}
        for path in self.out.glob("runs/*/*/*/state.json"):
            state = json.loads(path.read_text())
            if state["phase"] == "running" and not path.with_name("record.json").exists():
                found[path.parent.name] = state
        return found

    def wait(self, ready, seconds=150, release=False):
        until = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < until, self.command("status") + self.cluster.ask("squeue") + self.cluster.ask("sinfo")
            if release:
                self.cluster.release()
            time.sleep(0.3)
        return found

    def wait_stored(self, seconds=200, release=False):
        self.wait(lambda: len(self.records()) == self.count, seconds, release)

    def wait_idle(self):
        self.wait(lambda: not self.cluster.jobs())

    def wait_training(self, cells=1):
        """Until so many cells have trained for a while: their resume files are there."""
        self.wait(lambda: len(list(self.out.glob("runs/*/*/*/resume.pt"))) >= cells)
        return self.states()

    def scores(self):
        return {name: record["scores"] for name, record in self.records().items()}


@pytest.fixture(scope="module")
def reference(cluster, tmp_path_factory):
    """The scores of the long cells as a local run gives them."""
    grid = Grid(cluster, tmp_path_factory.mktemp("local"))
    done = subprocess.run([*grid.words, "--workers", "2"], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return grid.scores()


def test_a_grid_gives_the_table_of_a_local_run_with_a_gpu_for_each_cell(cluster, tmp_path):
    names = {"methods": "sam,lora,cat_sam_t", "datasets": "synth_polyps,synth_shadows", "seeds": "0,1,2,3", "protocol": SHORT}
    remote, local = (Grid(cluster, tmp_path / place, **names, profile=PACKED) for place in ("remote", "local"))
    began = time.monotonic()
    assert "Sent 24 cells" in remote.launch("--collect")
    together = set()

    def look():
        held = {(s["slurm"]["node"], s["slurm"]["gpus"], s["pid"]) for s in remote.states().values() if s.get("slurm")}
        alive = {one for one in held if Path(f"/proc/{one[2]}").exists()}
        assert len({one[:2] for one in alive}) == len(alive), f"two cells share a GPU: {alive}"
        together.add(len(alive))
        return len(remote.records()) == 24

    remote.wait(look, 300)
    assert max(together) >= 2, f"never two at a time in {time.monotonic() - began:.0f} s"
    done = subprocess.run([*local.words, "--workers", "2"], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert remote.scores() == local.scores()
    assert "24 stored" in remote.command("status") and "nothing to send" in remote.launch()
    remote.wait_idle()
    tables = sorted((remote.out / "tables").glob("*.csv"))
    assert tables, "the collector made no tables"
    subprocess.run([PYTHON, "-m", "bench.tables", "--like", "all", "--format", "csv", "--out", local.out], cwd=ROOT, capture_output=True)
    ours = [path for path in tables if "efficiency" not in path.name]  # but for what is measured in seconds
    assert ours and all(path.read_text() == (local.out / "tables" / path.name).read_text() for path in ours)


def test_cells_that_were_cancelled_and_killed_go_on_when_the_command_runs_again(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    states = grid.wait_training(2)
    assert "2 running" in grid.command("status")
    cancelled, killed = states
    slurm = states[cancelled]["slurm"]
    cluster.ask("scancel", f"{slurm['array']}_{slurm['task']}")
    os.kill(states[killed]["pid"], signal.SIGKILL)
    grid.wait_idle()
    assert not grid.records()
    for name in states:
        key = name.rpartition("_")[2]
        assert "lora" in grid.command("logs", key)
        assert key in grid.command("status", "--all")
    grid.launch()
    grid.wait_stored()
    assert grid.scores() == reference
    grid.wait_idle()


def test_the_log_folder_is_deleted_while_cells_run(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    grid.wait_training(2)
    shutil.rmtree(grid.out / "slurm" / "logs")
    grid.wait_idle()
    grid.launch()
    grid.wait_stored()
    assert grid.scores() == reference
    grid.wait_idle()


def test_preempted_cells_save_themselves_and_go_on(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    grid.wait_training(2)
    cluster.ask("sbatch", "-p", "high", "-N2", "--ntasks-per-node=1", "--gres=gpu:2", "-o", "/dev/null", "--wrap", "sleep 2")
    grid.wait(lambda: "PENDING" in cluster.ask("squeue", "-h", "-p", "main", "-r", "-o", "%T"))
    grid.wait_stored(release=True)
    assert grid.scores() == reference
    assert max(int(record["provenance"]["slurm"]["restart"]) for record in grid.records().values()) >= 1
    grid.wait_idle()


def test_the_time_limit_in_the_middle_of_training(cluster, tmp_path):
    """SLURM's shortest limit is a minute; warned 40 s before it, the cell has trained for a third of that."""
    profile = SINGLE.replace("time_min = 20", "time_min = 2").replace("signal_s = 10", "signal_s = 40")
    grid = Grid(cluster, tmp_path / "out", seeds="0", protocol=LONG.replace("150", "500"), profile=profile)
    grid.launch()
    grid.wait_training()
    job = cluster.jobs()[0]
    cluster.ask("scontrol", "update", f"jobid={job}", "timelimit=1")
    grid.wait(lambda: "PENDING" in cluster.ask("squeue", "-h", "-r", "-o", "%T") or grid.records(), 150)
    assert not grid.records(), "the cell ended before its time limit"
    cluster.ask("scontrol", "update", f"jobid={job}", "timelimit=20")
    grid.wait_stored(300, release=True)
    record = next(iter(grid.records().values()))
    assert record["cost"]["steps"] == 500 and int(record["provenance"]["slurm"]["restart"]) >= 1
    grid.wait_idle()


def test_a_node_that_is_lost_while_its_cell_goes_on(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    states = grid.wait_training(2)
    node = next(iter(states.values()))["slurm"]["node"]
    cluster.manage("stop", f"slurmd.{node}", "--kill")
    try:
        grid.wait_stored(release=True)
    finally:
        cluster.manage("start", f"slurmd.{node}")
    assert grid.scores() == reference
    assert "2 stored" in grid.command("status")
    grid.wait(lambda: not cluster.jobs(), release=True)
    grid.wait(lambda: "down" not in cluster.ask("sinfo", "-h", "-o", "%t"))


def test_the_controller_restarts_in_the_middle_of_an_array(cluster, reference, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    grid.wait_training(1)
    cluster.manage("stop", "slurmctld")
    assert "SLURM was not asked" in grid.command("status")
    cluster.manage("start", "slurmctld")
    grid.wait_stored()
    assert grid.scores() == reference
    grid.wait_idle()


def test_a_full_disk_while_results_are_written(cluster, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        assert not os.environ.get("REQUIRE_SLURM"), "a small disk cannot be mounted here"
        pytest.skip("a small disk cannot be mounted here (root is needed)")
    try:
        grid = Grid(cluster, disk / "out", protocol=SHORT, seeds="0,1", profile=PACKED)
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
    grid = Grid(cluster, tmp_path / "out", methods="sam,lora", protocol="smoke(lr=1e20,selections=['last'])", seeds="0", profile=PACKED)
    grid.launch()
    grid.wait_idle()
    status = grid.command("status")
    assert "1 stored" in status and "1 failed" in status and "The loss became nan" in status
    assert "nothing to send" in grid.launch()


def test_a_launcher_that_is_killed_between_two_arrays(cluster, tmp_path):
    profile = f"{PACKED}[[override]]\nmethods = ['lora']\ntime_min = 21\n"
    grid = Grid(cluster, tmp_path / "out", methods="cat_sam_t,lora", protocol=SHORT, profile=profile)
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "sbatch").write_text(
        f'#!/bin/sh\ncase "$*" in *test-only*|*spb_check*) exec /usr/bin/sbatch "$@";; esac\n'
        f'[ -e {slow}/first ] && {{ touch {slow}/second; sleep 30; exit 1; }}\ntouch {slow}/first\nexec /usr/bin/sbatch "$@"\n'
    )
    (slow / "sbatch").chmod(0o755)
    environment = {**cluster.environment, "PATH": f"{slow}:{os.environ['PATH']}"}
    launcher = subprocess.Popen(grid.launched(), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    grid.wait((slow / "second").exists, 60)
    launcher.kill()
    launcher.wait()
    assert "Sent 2 cells" in grid.launch()
    grid.wait_stored()
    assert all(len((path.parent / "attempts.jsonl").read_text().splitlines()) <= 1 for path in grid.out.glob("runs/*/*/*/attempts.jsonl"))
    grid.wait_idle()


def test_two_launchers_at_once_send_each_cell_once(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out", methods="sam,lora", protocol=SHORT, profile=PACKED)
    both = [subprocess.Popen(grid.launched(), cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Sent 4 cells" in text for text in said) == 1, said
    grid.wait_stored()
    grid.wait_idle()


def test_cancelled_cells_are_sent_again(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    grid.launch()
    grid.wait_training(2)
    assert "1 cells in 1 jobs" in grid.command("cancel", "--seeds", "1")
    grid.wait(lambda: len(cluster.jobs()) <= 1)
    assert "2 cells" not in grid.command("cancel", "--seeds", "1")
    grid.command("cancel")
    grid.wait_idle()
    assert "Sent 2 cells" in grid.launch()
    grid.command("cancel")
    grid.wait_idle()


@pytest.mark.parametrize(
    ("change", "said"),
    [("partition = 'nowhere'", "partition"), ("gpus = 9", "not available"), ("cpus = 900", "not available")],
)
def test_a_request_that_slurm_refuses(cluster, tmp_path, change, said):
    key = change.partition(" ")[0]
    profile = "".join(f"{line}\n" for line in PACKED.splitlines() if not line.startswith(key)) + change
    text = Grid(cluster, tmp_path / "out", profile=profile).launch(rc=2)
    assert said in text.lower() and text.strip().count("\n") <= 1
    assert not cluster.jobs()


def test_a_machine_without_slurm_and_an_unknown_key(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "out")
    bare = {**cluster.environment, "PATH": str(tmp_path)}
    done = subprocess.run(grid.launched(), cwd=ROOT, env=bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "sbatch" in done.stderr and done.stderr.count("\n") == 1
    grid.profile.write_text(PACKED + "partitoin = 'x'\n")
    assert "partitoin" in grid.launch(rc=2)


def test_an_output_folder_that_the_nodes_do_not_see(cluster, tmp_path):
    grid = Grid(cluster, tmp_path / "hidden" / "out")
    hidden = f'mount -t tmpfs tmpfs {tmp_path}/hidden && exec "$@"'
    profile = tmp_path / "p.toml"
    profile.write_text(PACKED)
    words = [*grid.words, "--launcher", "slurm", "--profile", str(profile)]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made here (root is needed)")
    words = ["unshare", "-m", "sh", "-c", hidden, "sh", *words]
    done = subprocess.run(words, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "output folder" in done.stderr and "SLURM" not in done.stdout, done.stdout + done.stderr
    assert not cluster.jobs()


@pytest.mark.xdist_group("slurm_accounting")
def test_a_cluster_with_accounting_refuses_an_unknown_account(tmp_path):
    if any(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None for name in ("slurmdbd", "mariadbd", "mariadb-install-db")):
        assert not os.environ.get("REQUIRE_SLURM")
        pytest.skip("no slurmdbd or MariaDB on this machine")
    with running("--nodes", "1", "--accounting") as cluster:
        grid = Grid(cluster, tmp_path / "out", methods="sam", seeds="0", protocol=SHORT, profile=f"account = 'nobody'\n{PACKED}")
        assert "account" in grid.launch(rc=2).lower()
        grid.profile.write_text(f"account = 'lab'\n{PACKED}")
        grid.launch()
        grid.wait_stored()
        assert "1 stored" in grid.command("status")
        grid.wait_idle()


def test_a_cluster_in_a_folder_of_a_long_name_is_refused(tmp_path):
    words = [ROOT / "slurm/testcluster", "up", "--dir", tmp_path / ("long" * 20)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "characters" in done.stderr and done.stderr.count("\n") == 1
