"""Sends arrays of jobs, and the collector behind them, to SLURM: all of a launch, or nothing of it."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bench.cluster.array_plan import ArrayPlan
from bench.cluster.launch_lock import LaunchLock
from bench.cluster.probe import checked_partition, python_of, without_gpus
from bench.cluster.profile import Profile
from bench.cluster.queue import NEVER, asked_for, cancel, flag_words, jobs_named, last_word, outside_of_jobs, slurm, waiting_reasons
from bench.cluster.submission import Array, Submission
from bench.errors import RequestError

REASON_SECONDS = 3.0  # until SLURM's scheduler has looked at new jobs
COLLECT_MINUTES = 30
SETTLE_SECONDS = 2.0
# Nobody sends submitit the signal that it is told to listen to: warnings are for job.sh, and no short job has "timed out" then.
SETUP = ("export SUBMITIT_PREEMPT_SIGNAL=URG",)
COLLECT = "{python} -m bench.tables --like all --format md,csv,latex,html --out {out} && {python} -m bench.report --out {out}"


@contextmanager
def all_or_nothing(sent: Submission) -> Iterator[list[str]]:
    """A list for the numbers of a launch's jobs; where it ends with an error they are all taken back, with those that SLURM took
    though it did not say so. A disk's error becomes a RequestError."""
    jobs: list[str] = []
    try:
        yield jobs
    except RequestError as error:
        raise RequestError(f"{error}{_taken_back(sent, jobs)}") from None
    except OSError as error:
        left = _taken_back(sent, jobs) or " Nothing was sent."
        raise RequestError(f"Cannot write to the output folder {sent.context.out}: {error.strerror or error}.{left}") from None
    except KeyboardInterrupt:
        _taken_back(sent, jobs)
        raise


def _taken_back(sent: Submission, jobs: Sequence[str]) -> str:
    """Cancels a launch's jobs, found by their names too; "", or a sentence with those that are left where SLURM cannot be asked."""
    found = list(jobs)
    time.sleep(SETTLE_SECONDS)  # a controller that was too busy to answer may take an array after sbatch gave up
    try:
        for name in ("check", *range(len(sent.arrays))):
            found += jobs_named(sent.name(name))
        cancel(list(dict.fromkeys(found)))
    except RequestError as error:
        known = f"scancel {' '.join(jobs)}" if jobs else f"scancel --name={sent.name(0)}"
        return f" Jobs of it may be left in the queue, because they could not be cancelled ({error}); `{known}` does that."
    sent.path.unlink(missing_ok=True)
    return ""


def send(
    sent: Submission, plans: Sequence[ArrayPlan], profile: Profile, checks: Mapping[str, str], lock: LaunchLock, jobs: list[str]
) -> tuple[Submission, str]:
    """Sends the arrays one by one, noting each number at once; SLURM's words where a limit of the user's jobs left no room for
    the rest. checks: place -> the job that an array waits for, "" for none. RequestError where SLURM refuses, or would never start
    what it took."""
    refused = ""
    for index, plan in enumerate(plans):
        lock.still_held()
        try:
            before = sent.arrays[plan.after].job if plan.after is not None else ""
            array, refused = _send_array(sent, index, plan, profile, checks[checked_partition(plan.flags)], before)
        except RequestError as error:
            if not (index and is_limit(error)):
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


def _send_array(sent: Submission, index: int, plan: ArrayPlan, profile: Profile, check: str, before: str) -> tuple[Array, str]:
    """Sends an array, or as much of its beginning as SLURM takes: a limit of an account or QOS shows only where it is met.
    SLURM's words where it did not take all."""
    packs, refused = plan.packs, ""
    while True:
        try:
            job = _sbatch(sent, index, replace(plan, packs=packs), profile, check, before)
            return replace(sent.arrays[index], packs=packs, job=job), refused
        except RequestError as error:
            if len(packs) == 1 or not is_limit(error):
                raise
            packs, refused = packs[: len(packs) // 2], str(error)


def is_limit(error: Exception) -> bool:
    """Whether SLURM refuses for a limit, which fewer jobs may keep."""
    return "limit" in str(error).lower()


def _sbatch(sent: Submission, index: int, plan: ArrayPlan, profile: Profile, check: str, before: str) -> str:
    """Sends one array through submitit; its number. check: the job that it starts behind if that ends well; before: the array that it
    starts behind however that ends; "" for none."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from bench.cluster.job import run_pack

    flags = {**plan.flags, "signal": f"B:USR2@{plan.signal_s}", "requeue": True}
    if sent.cluster:
        flags["clusters"] = sent.cluster
    if waits := [*([f"afterok:{check}"] if check else []), *([f"afterany:{before}"] if before else [])]:
        flags |= {"dependency": ",".join(waits), "kill-on-invalid-dep": "yes"}
    packs = len(plan.packs)
    with outside_of_jobs():
        executor = submitit.SlurmExecutor(folder=sent.logs, python=f"run_cells {python_of(profile)}")
        executor.update_parameters(
            job_name=sent.name(index),
            use_srun=False,
            array_parallelism=plan.parallel,
            setup=_lines_before_python(sent, plan, profile),
            wckey=None,
            additional_parameters=flags,
        )
        try:
            jobs = executor.map_array(run_pack, [str(sent.path)] * packs, [index] * packs, range(packs))
        except (FailedJobError, FailedSubmissionError) as error:
            raise RequestError(f"SLURM refuses (sbatch): {last_word(str(error))}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _lines_before_python(sent: Submission, plan: ArrayPlan, profile: Profile) -> list[str]:
    """The batch script but for its last line. It goes to the snapshot at the end, because Python finds modules in its current folder
    before all others."""
    threads = f'export OMP_NUM_THREADS="$((n = ${{SLURM_CPUS_PER_TASK:-1}} / {sent.context.devices}, n > 0 ? n : 1))"'
    around = [
        f". {shlex.quote(str(sent.snapshot / 'bench' / 'cluster' / 'job.sh'))} || exit 1",
        f"spb_logs={shlex.quote(str(sent.logs))} spb_attempts={sent.attempts} spb_mem_max={plan.mem_max_mb}",
        "begin",
    ]
    go = f"cd {shlex.quote(str(sent.snapshot))} || exit 1"
    path = f'export PYTHONPATH={shlex.quote(str(sent.snapshot))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return [*SETUP, threads, *around, *profile.setup, "ready", go, path]


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


def collector_flags(flags: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """What the collector asks for: the same as a job of the grid, but no GPU, half an hour, and the partition that is meant for it."""
    if profile.collect_partition:
        return without_gpus(flags) | {"partition": profile.collect_partition, "time": COLLECT_MINUTES}
    return {name: value for name, value in flags.items() if not name.startswith(("gres", "gpu"))} | {"time": COLLECT_MINUTES}


def send_collector(sent: Submission, profile: Profile) -> str:
    """Sends a job that renders tables and the report when all others have ended, however they ended; its number, or "" where a limit
    leaves no room for it, which is said: the cells are worth more."""
    own = {"job-name": sent.name("collect"), "output": sent.logs / "collect.out", "chdir": sent.snapshot}
    own["dependency"] = "afterany:" + ":".join(array.job for array in sent.arrays if array.job)
    command = COLLECT.format(python=python_of(profile), out=shlex.quote(str(sent.context.out)))
    setup = ["trap 'exit 1' ERR", *profile.setup, "trap - ERR", f"cd {shlex.quote(str(sent.snapshot))} || exit 1"]
    words = flag_words({**collector_flags(sent.arrays[0].flags, profile), **own})
    try:
        return slurm("sbatch", "--parsable", *words, text="\n".join(["#!/bin/bash", *setup, command, ""])).strip().partition(";")[0]
    except RequestError as error:
        if not is_limit(error):
            raise
        print(f"No job will render the tables: {error} `python -m bench.tables` does it when the cells are stored.")
        return ""
