"""A real SLURM cluster on this machine (slurm/testcluster) and grids that run on it, for the drills of test_slurm.py."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import ROOT

PYTHON = sys.executable
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SHORT = "smoke(epochs=2,evaluate_every=2,selections=['last'])"
LONG = "smoke(epochs=16,evaluate_every=16,selections=['last'])"
PACKED = (
    'partition = "main"\ngpus = 1\ncpus = 1\ntime_min = 20\nsignal_s = 10\ndevice = "cpu"\ncells_per_job = 6\nevaluations_per_job = 8\n'
)
SINGLE = PACKED.replace("cells_per_job = 6", "cells_per_job = 1")
LONELY = SINGLE.replace("evaluations_per_job = 8", "evaluations_per_job = 1")
MARK = 123.0

# A third party's method: LoRA, held back for so many seconds a step as a file says that a drill writes and removes. So a drill, and
# not the speed of the machine, decides where in its training a cell is when the fault comes.
BRAKED = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from bench.grid.registry import METHODS
from methods.lora import LoRA, LoRATuner

class BrakedTuner(LoRATuner):
    def begin(self, image, x):
        brake = Path(os.environ.get("DRILL_BRAKE", "/nowhere"))
        until = time.monotonic() + (float(brake.read_text() or 0) if self.training and brake.exists() else 0.0)
        while time.monotonic() < until and brake.exists():
            time.sleep(0.05)
        return super().begin(image, x)

@METHODS.register("braked")
@dataclass(frozen=True)
class Braked(LoRA):
    def tuner(self, sam):
        return BrakedTuner(sam, self.placed(sam), self.rank, self.scale)

@METHODS.register("diverging")
@dataclass(frozen=True)
class Diverging(LoRA):
    def tuner(self, sam):
        tuner = super().tuner(sam)
        for parameter in tuner.parameters():
            parameter.data.fill_(float("nan"))
        return tuner
"""


def absent(*commands):
    """Those of the commands that this machine lacks."""
    return [name for name in commands if shutil.which(name, path=PATH) is None]


def shared_files(folder):
    """Two small data sets, and the method above as an installed package; the folder of the data and the environment for both."""
    for name in ("kvasir", "sbu"):
        words = ["--layout", name, "--train", "16", "--test", "4", "--out", str(folder / "data" / name)]
        subprocess.run([PYTHON, "-m", "datasets.synth", *words], cwd=ROOT, check=True, capture_output=True)
    info = folder / "package" / "braked-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: braked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sam_peft_bench.methods]\nbraked = braked\n")
    (folder / "package" / "braked.py").write_text(BRAKED)
    return folder / "data", {"PYTHONPATH": str(folder / "package")}


class Cluster:
    """A cluster, its commands, and what grids on it share."""

    def __init__(self, folder, data=None, environment=None):
        self.folder, self.data, self.since = folder, data, {}
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "etc/slurm.conf"), "OMP_NUM_THREADS": "1", **(environment or {})}

    def manage(self, *words):
        done = subprocess.run([ROOT / "slurm/testcluster", *words, "--dir", self.folder], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *words):
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def jobs(self):
        return self.ask("squeue", "-h", "-r", "-o", "%i").split()

    def waiting(self):
        return self.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split()

    def empty(self):
        """Takes what a drill left from the queue."""
        until = time.monotonic() + 30
        while self.jobs() and time.monotonic() < until:
            self.ask("scancel", "--user", str(os.getuid()))
            time.sleep(0.5)

    def release(self):
        """Lifts the two minutes that SLURM lets a requeued job wait, but for the seconds in which its node still ends its last life."""
        now = time.monotonic()
        self.since = {job: self.since.get(job, now) for job in self.waiting()}
        for job in [job for job, since in self.since.items() if now > since + 3]:
            self.ask("scontrol", "update", f"jobid={job}", "starttime=now")


@contextlib.contextmanager
def running(*words, **shared):
    """A cluster in a folder of a short name, which its sockets need."""
    with tempfile.TemporaryDirectory(prefix="spb") as folder:
        found = Cluster(Path(folder), **shared)
        try:
            found.manage("up", *words)
            yield found
        finally:
            found.manage("down")


class Grid:
    """A grid, how it is asked for, and what became of it."""

    def __init__(self, cluster, out, methods="braked", datasets="kvasir", seeds="0,1", protocol=LONG, profile=SINGLE, root=ROOT):
        self.cluster, self.out, self.root = cluster, out, root
        (cluster.data / "cache").mkdir(exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "cache").symlink_to(cluster.data / "cache")  # what methods there are is found out once
        self.profile = out.with_suffix(".toml")
        self.profile.write_text(profile)
        self.brake = out.with_suffix(".brake")
        self.environment = {**cluster.environment, "DRILL_BRAKE": str(self.brake)}
        self.words = [PYTHON, "-m", "bench.run", "--methods", methods, "--datasets", datasets, "--seeds", seeds, "--backbone", "tiny"]
        self.words += ["--protocol", protocol, "--data", str(cluster.data), "--out", str(out), "--save-every", "1"]
        self.count = len(methods.split(",")) * len(datasets.split(",")) * len(seeds.split(","))

    def run(self, words, timeout=120, **more):
        given = {"cwd": self.root, "env": self.environment, "capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run(words, **{**given, **more})

    def launched(self, *more):
        return [*self.words, "--launcher", "slurm", "--profile", str(self.profile), *more]

    def launch(self, *more, rc=0):
        done = self.run(self.launched(*more))
        assert done.returncode == rc, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        self.said = done.stdout + done.stderr
        return self.said

    def launch_braked(self, seconds, cells, *more):
        """Sends the grid; when so many cells have trained for a step of a second, each further step takes `seconds`, until `go`. A
        step that takes long hears of signals at its end. The states of the cells."""
        self.brake.write_text("1")
        self.launch(*more)
        self.wait(lambda: len(list(self.out.glob("runs/*/*/*/resume.pt"))) >= cells)
        self.brake.write_text(str(seconds))
        return self.states()

    def go(self):
        self.brake.unlink()

    @contextlib.contextmanager
    def running_here(self):
        """A local run of the grid beside what is done within; at the end it is complete."""
        with subprocess.Popen(self.words, cwd=self.root, env=self.environment, stderr=subprocess.PIPE, text=True) as process:
            yield
            said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said

    def command(self, module, *words, before=()):
        done = self.run([*before, PYTHON, "-m", f"bench.{module}", *words, "--out", str(self.out)])
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def records(self):
        return {path.parent.name: json.loads(path.read_text()) for path in self.out.glob("runs/*/*/*/record.json")}

    def states(self):
        found = {}
        for path in self.out.glob("runs/*/*/*/state.json"):
            state = json.loads(path.read_text())
            if state["phase"] == "running" and not path.with_name("record.json").exists():
                found[path.parent.name] = state
        return found

    def starts(self):
        """How often SLURM jobs started each cell."""
        return {folder.name: len(list(folder.glob("attempt_*.json"))) for folder in self.out.glob("runs/*/*/*")}

    def scores(self):
        return {name: record["scores"] for name, record in self.records().items()}

    def mark(self):
        """Enters a loss that no training gives into the resume files, while no cell runs."""
        for path in self.out.glob("runs/*/*/*/resume.pt"):
            content = torch.load(path, weights_only=True)
            content["course"]["history"][0]["loss"] = MARK
            torch.save(content, path)

    def went_on(self):
        """The cells whose training went on from a marked resume file."""
        curves = {path.parent.name: list(csv.DictReader(path.open())) for path in self.out.glob("runs/*/*/*/history.csv")}
        return {name for name, rows in curves.items() if float(rows[0]["loss"]) == MARK}

    def wait(self, ready, seconds=150, release=False, pause=0.2):
        until = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < until, self.command("status") + self.cluster.ask("squeue") + self.cluster.ask("sinfo")
            if release:
                self.cluster.release()
            time.sleep(pause)
        return found

    def wait_stored(self, seconds=200, release=False):
        self.wait(lambda: len(self.records()) == self.count, seconds, release, pause=0.5)

    def wait_idle(self):
        self.wait(lambda: not self.cluster.jobs(), pause=0.5)  # each look is a process
