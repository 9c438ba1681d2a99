"""What SLURM says: the queue, the limits of the site, and its own words where it refuses something. Never asks for accounting."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bench.errors import RequestError

NAME = re.compile(r"spb_(?P<submission>[0-9a-f-]+)_(?P<array>\d+)")  # of every array that a launch sends
FORMAT = "%i|%K|%T|%r|%N|%j"
TIMEOUT_S = 120
# Reasons of waiting that no waiting ends: what was asked for exceeds what the partition, account or QOS allows a job.
NEVER = re.compile(
    r"Partition(Config|TimeLimit)|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|(Assoc|QOS)(Max|Min)\w*PerJob\w*"
)
NO_SUCH_NODE = "node configuration is not available"
UNBEGUN = "4294967294"  # as the task number of what is left of an array
OUT_OF_SERVICE = "down,drain,fail,maint,unk"


@dataclass(frozen=True)
class Task:
    """A job of ours in the queue: the pack `index` of array `array` of a submission. `job` is SLURM's "12_3" or "12"."""

    job: str
    state: str
    reason: str
    node: str
    submission: str
    array: int
    index: int


@dataclass(frozen=True)
class Limits:
    """How large an array may be, and how many jobs the cluster takes in all."""

    array_size: int
    jobs: int


def need_slurm() -> None:
    """RequestError unless SLURM's commands are on this machine."""
    missing = [command for command in ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun") if shutil.which(command) is None]
    if missing:
        raise RequestError(
            f"There is no {missing[0]} on this machine: `--launcher slurm` is for a cluster's login node, `--launcher local` runs here."
        )


def slurm(*words: str, text: str | None = None) -> str:
    """What a SLURM command prints; RequestError with SLURM's last word where it fails."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, env=outside_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestError(f"{words[0]} could not be run: {error}.") from None
    if done.returncode != 0:
        raise RequestError(f"SLURM refuses ({words[0]}): {last_word(done.stderr)}")
    return done.stdout


def last_word(errors: str) -> str:
    """The last thing that SLURM complained of, in its words, without the name of its command."""
    lines = [line.strip() for line in errors.splitlines() if "error:" in line or "failure:" in line] or errors.strip().splitlines()
    return re.sub(r"^(\w+: )?(error: |allocation failure: )?", "", lines[-1]).rstrip(".") + "." if lines else "no reason was given."


def tasks() -> list[Task]:
    """Our jobs that SLURM still has in its queue, the packs of an array one by one."""
    lines = slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={FORMAT}").splitlines()
    return [task for task in map(_task, lines) if task]


def _task(line: str) -> Task | None:
    job, index, state, reason, node, name = line.split("|", 5)
    ours = NAME.fullmatch(name.strip())
    if ours is None:
        return None
    number = int(index) if index.isdigit() else 0  # a launch of one pack is no array
    return Task(job, state, reason, node, ours["submission"], int(ours["array"]), number)


def jobs_in_queue() -> tuple[int, int]:
    """How many jobs are in the queue: everybody's, and this user's."""
    users = slurm("squeue", "--noheader", "--array", "--format=%U").split()
    return len(users), users.count(str(os.getuid()))


def limits() -> Limits:
    """The site's limits, from `scontrol show config`."""
    text = slurm("scontrol", "show", "config")
    found = {name: re.search(rf"^{name}\s*=\s*(\d+)", text, re.MULTILINE) for name in ("MaxArraySize", "MaxJobCount")}
    size, jobs = (int(found[name][1]) if found[name] else 1000 for name in found)  # type: ignore[index]
    return Limits(max(1, size), jobs)


def job_state(job: str) -> dict[str, str]:
    """What the controller still knows of a job ("JobState", "Reason", "ExitCode", "NodeList" …); empty once it forgot it.

    Tasks of an array that were cancelled together before they began are known under the array's number only.
    """
    for name in dict.fromkeys((job, job.partition("_")[0])):
        with suppress(RequestError):
            text = slurm("scontrol", "show", "job", "--oneliner", name).partition("\n")[0]
            state = dict(word.split("=", 1) for word in text.split() if "=" in word)
            if name == job or state.get("ArrayTaskId") == UNBEGUN:
                return state
    return {}


def waiting_reasons(jobs: Sequence[str]) -> dict[str, str]:
    """Job -> why it waits, of those of the jobs that do; an array's tasks, which wait for the same, under the array's number."""
    lines = slurm("squeue", "--noheader", f"--user={os.getuid()}", "--states=PENDING", "--format=%F|%r").splitlines()
    return {job: reason for job, _, reason in (line.partition("|") for line in lines) if job in jobs}


def test_only(flags: Mapping[str, Any]) -> None:
    """RequestError, with SLURM's words, where no node could ever run such a job, or a name in it is unknown.

    While nodes are out of service SLURM says so of jobs that could run later, too: then only sending them tells.
    """
    try:
        slurm("sbatch", "--test-only", *flag_words(flags), text="#!/bin/bash\ntrue\n")
    except RequestError as error:
        if NO_SUCH_NODE in str(error) and _out_of_service(flags.get("partition", "")):
            return
        known = f" Partitions here: {', '.join(_partitions())}." if "partition" in str(error) else ""
        raise RequestError(f"{error} {asked_for(flags)}{known}") from None


def _partitions() -> list[str]:
    return sorted(set(slurm("sinfo", "--noheader", "--format=%R").split()))


def _out_of_service(partition: str) -> bool:
    """Whether a node is down or drained."""
    where = [f"--partition={partition}"] if partition else []
    return bool(slurm("sinfo", "--noheader", f"--states={OUT_OF_SERVICE}", "--format=%N", *where).strip())


def asked_for(flags: Mapping[str, Any]) -> str:
    """A sentence with what sbatch was asked for."""
    asked = {name: value for name, value in flags.items() if name not in ("nodes", "ntasks", "output")}
    return f"It was asked for {' '.join(flag_words(asked))}."


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line; True is a flag without a value."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]


def cancel(jobs: list[str]) -> None:
    """Takes jobs from the queue; those that ended meanwhile are no error."""
    for at in range(0, len(jobs), 500):  # a command line is not endless
        slurm("scancel", "--quiet", *jobs[at : at + 500])


def outside_environment() -> dict[str, str]:
    """The environment without what SLURM set for the job that this process may run in: a job sent from a job is its own."""
    keep = ("SLURM_CONF",)
    return {name: value for name, value in os.environ.items() if name in keep or not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Makes that environment this process's own for a while, for a library that starts sbatch itself."""
    before = dict(os.environ)
    outside = outside_environment()
    try:
        os.environ.clear()
        os.environ.update(outside)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
