"""What SLURM says: the queue, the limits of the site, and its own words where it refuses something. Never asks for accounting."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bench.errors import RequestError

NAME = re.compile(r"spb_(?P<submission>[0-9a-f-]+)_(?P<array>\d+|check|collect)")  # of every job that a launch sends
FORMAT = "%i|%K|%T|%r|%N|%u|%j"
TIMEOUT_S = 120
# Reasons of waiting that no waiting ends: what was asked for exceeds what the partition, account or QOS allows a job.
NEVER = re.compile(
    r"Partition(Config|TimeLimit|NodeLimit)|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|DependencyNeverSatisfied"
    r"|(Assoc|QOS)(Max|Min)\w*PerJob\w*|(Assoc|QOS)Min\w+"
)
PER_USER = re.compile(r"(Assoc|QOS)Max\w+PerUser\w*")  # ends when jobs of the user do, if there are any
ENDED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")
HOLDING = "RUNNING,COMPLETING,CONFIGURING,SUSPENDED"
NO_SUCH_NODE = "node configuration is not available"
UNBEGUN = "4294967294"  # as the task number of what is left of an array
IN_SERVICE = re.compile(r"idle|mixed|allocated|completing|planned|reserved")  # any other state, or a mark behind it (~ # @ ^ *), may pass
# A user's own variables that fill what the profile leaves open; every other one that changes what SLURM's commands do is taken out.
HONOURED = {"account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS", "partition": "SBATCH_PARTITION", "constraint": "SBATCH_CONSTRAINT"}
CLUSTER = "SLURM_CLUSTERS"
VARIABLES = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SINFO_", "SCONTROL_", "SACCT_", "SACCTMGR_")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # of the login node's shell: a job has its own


@dataclass(frozen=True)
class Task:
    """A job of the launcher's in the queue: the pack `index` of array `array` of a submission; array -1 is its check or its collector.
    `job` is SLURM's "12_3" or "12"."""

    job: str
    state: str
    reason: str
    node: str
    submission: str
    array: int
    index: int
    user: str = ""


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


def slurm(*words: str, text: str | None = None, clusters: bool = True) -> str:
    """What a SLURM command prints, of the cluster that SLURM_CLUSTERS names; RequestError with SLURM's last word where it fails."""
    where = ["-M", os.environ[CLUSTER]] if clusters and os.environ.get(CLUSTER) else []
    command = [words[0], *where, *words[1:]]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, env=outside_environment())
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
    """The launcher's jobs that SLURM still has in its queue, whoever sent them, the packs of an array one by one."""
    lines = slurm("squeue", "--all", "--noheader", "--array", f"--format={FORMAT}").splitlines()
    return [task for task in map(_task, lines) if task]


def _task(line: str) -> Task | None:
    if line.count("|") < 6:  # a heading
        return None
    job, index, state, reason, node, user, name = line.split("|", 6)
    ours = NAME.fullmatch(name.strip())
    if ours is None:
        return None
    number = int(index) if index.isdigit() else 0  # a launch of one pack is no array
    return Task(job, state, reason, node, ours["submission"], int(ours["array"]) if ours["array"].isdigit() else -1, number, user)


def ended(jobs: Collection[str]) -> set[str]:
    """Those of the jobs that the controller knows to be over; one that it does not know may be another cluster's."""
    if not jobs:
        return set()
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    with suppress(RequestError):
        lines = slurm("squeue", "--all", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T").splitlines()
        states = dict(line.split("|") for line in lines if "|" in line)
        return {job for job in jobs if states.get(job) in ("COMPLETED", *ENDED)}
    return set()


def jobs_named(name: str) -> list[str]:
    """The numbers of the jobs and arrays of such a name, which need not have reached the launcher that sent them."""
    return list(dict.fromkeys(slurm("squeue", "--all", "--noheader", f"--name={name}", "--format=%F").split()))


def jobs_in_queue(state: str = "") -> tuple[int, int]:
    """How many jobs are in the queue, or of those in a state: everybody's, and this user's."""
    users = slurm("squeue", "--all", "--noheader", "--array", "--format=%U", *([f"--states={state}"] if state else [])).split()
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
    lines = slurm("squeue", "--all", "--noheader", "--states=PENDING", "--format=%F|%r").splitlines()
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
        known = ""
        if "partition" in str(error):
            known = f" Partitions here: {', '.join(sorted(set(slurm('sinfo', '--noheader', '--format=%R').split())))}."
        raise RequestError(f"{error} {asked_for(flags)}{known}") from None


def _out_of_service(partition: str) -> bool:
    """Whether a node is down, drained, asleep or rebooting: it may come back."""
    where = [f"--partition={partition}"] if partition else []
    return not all(map(IN_SERVICE.fullmatch, slurm("sinfo", "--noheader", "--format=%T", *where).split()))


def asked_for(flags: Mapping[str, Any]) -> str:
    """A sentence with what sbatch was asked for."""
    asked = {name: value for name, value in flags.items() if name not in ("nodes", "ntasks", "output")}
    return f"It was asked for {' '.join(flag_words(asked))}."


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line; True is a flag without a value, False is none."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items() if value is not False]


def cancel(jobs: list[str]) -> None:
    """Takes jobs from the queue; those that ended meanwhile are no error."""
    for at in range(0, len(jobs), 500):  # a command line is not endless
        slurm("scancel", "--quiet", *jobs[at : at + 500])


def outside_environment() -> dict[str, str]:
    """The environment without what changes SLURM's commands behind our back: the user's own settings of them, what SLURM set for the
    job that this process may run in (a job sent from a job is its own), and the threads of the login node."""
    out = (*THREADS, "SUBMITIT_PREEMPT_SIGNAL")
    return {n: v for n, v in os.environ.items() if n == "SLURM_CONF" or not (n.startswith(VARIABLES) or n in out)}


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
