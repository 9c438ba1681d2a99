"""Sends arrays of jobs, and the collector behind them, to SLURM: all of a launch, or nothing of it."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.cluster.array_plan import ArrayPlan
from bench.cluster.launch_lock import LaunchLock
from bench.cluster.probe import checked_partition
from bench.cluster.profile import Profile
from bench.cluster.queue import NEVER, asked_for, cancel, flag_words, last_word, outside_of_jobs, slurm, waiting_reasons
from bench.cluster.submission import Array, Submission
from bench.errors import RequestError

REASON_SECONDS = 3.0  # until SLURM's scheduler has looked at new jobs
COLLECT_MINUTES = 30
SETUP = ("trap '' USR2", 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"', "export CUBLAS_WORKSPACE_CONFIG=:4096:8")
COLLECT = "{python} -m bench.tables --like all --format md,csv,latex,html --out {out} && {python} -m bench.report --out {out}"


@contextmanager
def all_or_nothing(out: Path) -> Iterator[list[str]]:
    """A list for the numbers of a launch's jobs; where it ends with an error they are all taken back. A disk's error becomes a
    RequestError."""
    jobs: list[str] = []
    try:
        yield jobs
    except RequestError:
        cancel(jobs)
        raise
    except OSError as error:
        cancel(jobs)
        raise RequestError(f"Cannot write to the output folder {out}: {error.strerror or error}; nothing was sent.") from None


def send(
    sent: Submission, plans: Sequence[ArrayPlan], profile: Profile, checks: Mapping[str, str], lock: LaunchLock, jobs: list[str]
) -> tuple[Submission, str]:
    """Sends the arrays one by one, noting each number at once; SLURM's words where a limit of the user's jobs left no room for
    the rest. checks: place -> the job that an array waits for, "" for none. RequestError where SLURM refuses, or would never start
    what it took."""
    refused = ""
    for index, plan in enumerate(plans):
        lock.still_here()
        try:
            array, refused = _send_array(sent, index, plan, profile, checks[checked_partition(plan.flags)])
        except RequestError as error:
            if not (index and _is_limit(error)):
                raise
            refused = str(error)
            break
        jobs.append(array.job)
        sent = replace(sent, arrays=(*sent.arrays[:index], array, *sent.arrays[index + 1 :]))
        sent.write()
        if refused:
            break
    _refuse_what_never_starts([array for array in sent.arrays if array.job])
    return sent, refused


def _send_array(sent: Submission, index: int, plan: ArrayPlan, profile: Profile, check: str) -> tuple[Array, str]:
    """Sends an array, or as much of its beginning as SLURM takes: a limit of an account or QOS shows only where it is met.
    SLURM's words where it did not take all."""
    packs, refused = plan.packs, ""
    while True:
        try:
            job = _sbatch(sent, index, replace(plan, packs=packs), profile, check)
            return replace(sent.arrays[index], packs=packs, job=job), refused
        except RequestError as error:
            if len(packs) == 1 or not _is_limit(error):
                raise
            packs, refused = packs[: len(packs) // 2], str(error)


def _is_limit(error: Exception) -> bool:
    """Whether SLURM refuses for a limit, which fewer jobs may keep."""
    return "limit" in str(error).lower()


def _sbatch(sent: Submission, index: int, plan: ArrayPlan, profile: Profile, check: str) -> str:
    """Sends one array through submitit; its number.

    The last line of its script is an `exec`, so that Python itself gets the signal that SLURM sends to the batch shell, and the
    script goes to the snapshot first, because Python finds modules in its current folder before all others.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from bench.cluster.job import run_pack

    flags = {**plan.flags, "signal": f"B:USR2@{plan.signal_s}", "requeue": True}
    if check:
        flags |= {"dependency": f"afterok:{check}", "kill-on-invalid-dep": "yes"}
    go = f"cd {shlex.quote(str(sent.snapshot))} || exit 1"
    path = f'export PYTHONPATH={shlex.quote(str(sent.snapshot))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    packs = len(plan.packs)
    with outside_of_jobs():
        executor = submitit.SlurmExecutor(folder=sent.logs, python=f"exec {shlex.quote(sys.executable)}")
        executor.update_parameters(
            job_name=sent.name(index),
            use_srun=False,
            array_parallelism=plan.parallel,
            setup=[*SETUP, *profile.setup, go, path],
            wckey=None,
            additional_parameters=flags,
        )
        try:
            jobs = executor.map_array(run_pack, [str(sent.path)] * packs, [index] * packs, range(packs))
        except (FailedJobError, FailedSubmissionError) as error:
            raise RequestError(f"SLURM refuses (sbatch): {last_word(str(error))}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _refuse_what_never_starts(arrays: Sequence[Array]) -> None:
    """RequestError where SLURM took a job that it will never start, as it does with one that is longer than its partition allows."""
    until = time.monotonic() + REASON_SECONDS
    while True:
        reasons = waiting_reasons([array.job for array in arrays])
        for array in arrays:
            if NEVER.search(reasons.get(array.job, "")):
                raise RequestError(f"SLURM would never start such a job ({reasons[array.job]}). {asked_for(array.flags)}")
        if "None" not in reasons.values() or time.monotonic() > until:  # it has looked at all of them
            return
        time.sleep(0.5)


def collector_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the collector asks for: the same as a job of the grid, but no GPU, and half an hour."""
    return {name: value for name, value in flags.items() if not name.startswith(("gres", "gpu"))} | {"time": COLLECT_MINUTES}


def send_collector(sent: Submission, profile: Profile) -> str:
    """Sends a job that renders tables and the report when all others have ended, however they ended; its number."""
    own = {"job-name": "spb_collect", "output": sent.logs / "collect.out", "chdir": sent.snapshot}
    own["dependency"] = "afterany:" + ":".join(array.job for array in sent.arrays if array.job)
    command = COLLECT.format(python=shlex.quote(sys.executable), out=shlex.quote(str(sent.context.out)))
    script = "\n".join(["#!/bin/bash", *profile.setup, f"cd {shlex.quote(str(sent.snapshot))} || exit 1", command, ""])
    words = flag_words({**collector_flags(sent.arrays[0].flags), **own})
    return slurm("sbatch", "--parsable", *words, text=script).strip().partition(";")[0]
