"""A cluster's bad days, and sites that differ from ours, one drill each on the real test cluster (with accounting). Nothing is imitated
but what SLURM says where this machine cannot make it say so: then a script of the same name stands first in PATH."""

import json
import os
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
    pytest.mark.xdist_group("slurm_bad_days"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM on this machine ({', '.join(MISSING)} not found); make test-slurm installs it"),
]
HELD = "[flags]\nhold = true\n"
SAM = {"methods": "sam", "seeds": "0", "protocol": SHORT}


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
    grid = Grid(cluster, tmp_path / "out", **SAM, profile=f"{PACKED}attempts = 2\ncheck_partition = 'none'\nsetup = ['true', 'false', 'echo past']\n")
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
    importing = folder / "importing"
    importing.touch()
    where = "'RANK' in os.environ" if ranks else "'SUBMITIT_EXECUTOR' in os.environ"
    (folder / "sitecustomize.py").write_text(
        f"import os, time\nif {where}:\n    open({str(folder / 'begun')!r}, 'w').close()\n"
        f"    until = time.time() + {seconds}\n    while os.path.exists({str(importing)!r}) and time.time() < until:\n        time.sleep(0.05)\n"
    )
    return importing, folder / "begun"


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
    grid = Grid(cluster, tmp_path / "out", seeds="0", protocol=SHORT)
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
