"""The SLURM launcher: sends the cells of a grid that have neither a result nor a job, and returns."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import RequestError
from bench.plan import Place
from bench.slurm_check import check_nodes
from bench.slurm_plan import ArrayPlan, array_plans, shown
from bench.slurm_profile import Profile
from bench.slurm_queue import (
    Task,
    cancel,
    flag_words,
    jobs_in_queue,
    last_word,
    limits,
    need_slurm,
    outside_of_jobs,
    slurm,
    tasks,
    test_only,
)
from bench.slurm_turn import Turn
from bench.snapshot import take_snapshot
from bench.spec import RunSpec
from bench.store import ResultStore
from bench.submission import FOLDER, Array, Submission, live_cells, new_id, submission_path

ENDING_SECONDS = 40.0  # a job that was cancelled lives on for SLURM's KillWait
SETUP = ("trap '' USR2", 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"', "export CUBLAS_WORKSPACE_CONFIG=:4096:8")
COLLECT = "{python} -m bench.tables --like all --format md,csv,latex,html --out {out} && {python} -m bench.report --out {out}"


@dataclass(frozen=True)
class Launch:
    """A grid to be sent: where it runs, what it asks for, and which of its methods train nothing. place: absolute paths."""

    place: Place
    profile: Profile
    untrained: frozenset[str]
    dry_run: bool
    collect: bool


def launch(specs: Sequence[RunSpec], wanted: Sequence[RunSpec], grid: Launch) -> int:
    """Sends those of the `wanted` cells that no job holds, and says how to watch them; 0, or 1 where SLURM took a part only.

    specs: the whole grid. RequestError where the cluster refuses it: nothing of it is left in the queue then.
    """
    if grid.dry_run:
        _list_arrays(wanted, grid)
        return 0
    need_slurm()
    store = ResultStore(grid.place.out)
    store.check_writable()
    folder = grid.place.out / FOLDER
    with Turn(folder) as turn:
        live = _live(grid.place.out, {spec.key for spec in wanted})
        free = [spec for spec in wanted if spec.key not in live and _is_open(store, spec, grid.place.overwrite)]
        if not free:
            store.write_grid(specs)
            print(f"{len(specs)} cells: nothing to send, {len(live)} are with SLURM already.")
            return 0
        plans, left = _within_limits(array_plans(free, grid.profile, grid.untrained, limits().array_size), grid.profile)
        for flags in {repr(plan.flags): plan.flags for plan in plans}.values():
            test_only({**flags, "output": "/dev/null"})
        sent = Submission(new_id(), replace(grid.place, overwrite="never"), folder, grid.profile.attempts, {}, (), folder)
        keys = {key for plan in plans for pack in plan.packs for key in pack}
        cells = {spec.key: spec for spec in free if spec.key in keys}
        arrays = tuple(Array(plan.flags, plan.packs, plan.signal_s) for plan in plans)
        path, snapshot = submission_path(grid.place.out, sent.id), take_snapshot(folder / "snapshots")
        sent = replace(sent, cells=cells, arrays=arrays, path=path, snapshot=snapshot)
        check = check_nodes(grid.place.out, plans[0].flags, snapshot, sys.executable)
        _discard(store, cells.values(), grid.place.overwrite)
        store.write_grid(specs)
        sent.write()
        sent, refused = _send(sent, plans, grid.profile, check, turn)
        if grid.collect:
            _collect(sent, grid.profile)
    return _say(sent, plans, live, left, refused, check)


def _live(out: Path, wanted: set[str]) -> dict[str, Task]:
    """The wanted cells that jobs hold; waits a little for jobs that are just ending, which will hold none."""
    until = time.monotonic() + ENDING_SECONDS
    while True:
        live = {key: task for key, task in live_cells(out, tasks()).items() if key in wanted}
        if not any(task.state == "COMPLETING" for task in live.values()) or time.monotonic() > until:
            return live
        time.sleep(0.5)


def _is_open(store: ResultStore, spec: RunSpec, overwrite: str) -> bool:
    """Whether the cell is still to be computed; while this launcher waited for its turn, another one's job may have done it."""
    return overwrite == "always" or store.status(spec).phase != "stored"


def _within_limits(plans: list[ArrayPlan], profile: Profile) -> tuple[list[ArrayPlan], int]:
    """The arrays that the cluster has room for now, and how many jobs were left out; RequestError where it has no room at all."""
    everybody, mine = jobs_in_queue()
    room = limits().jobs - everybody - 1  # one for the check
    if profile.max_jobs:
        room = min(room, profile.max_jobs - mine - 1)
    if room < 1:
        raise RequestError(f"The queue has no room: {everybody} jobs, {mine} of them yours; run this again when some have ended.")
    kept, left = [], 0
    for plan in plans:
        packs = plan.packs[:room]
        left += len(plan.packs) - len(packs)
        room -= len(packs)
        if packs:
            kept.append(replace(plan, packs=packs))
    return kept, left


def _discard(store: ResultStore, cells: Any, overwrite: str) -> None:
    """Removes what is to be computed anew: failed cells, and all of them under `always`. Jobs themselves overwrite nothing."""
    for spec in cells:
        if overwrite == "always" or store.status(spec).phase == "failed":
            store.discard(spec)


def _send(sent: Submission, plans: Sequence[ArrayPlan], profile: Profile, check: str, turn: Turn) -> tuple[Submission, str]:
    """Sends the arrays one by one, noting each number at once, and SLURM's words where it refused one for lack of room.

    RequestError where it refused otherwise; what was sent is taken back then.
    """
    for index, plan in enumerate(plans):
        turn.still_here()
        try:
            job = _sbatch(sent, index, plan, profile, check)
        except RequestError as error:
            if index and "limit" in str(error).lower():
                return sent, str(error)
            cancel([array.job for array in sent.arrays if array.job] + ([check] if check else []))
            raise
        arrays = list(sent.arrays)
        arrays[index] = replace(arrays[index], job=job)
        sent = replace(sent, arrays=tuple(arrays))
        sent.write()
    return sent, ""


def _sbatch(sent: Submission, index: int, plan: ArrayPlan, profile: Profile, check: str) -> str:
    """Sends one array through submitit; its number.

    The last line of its script is an `exec`, so that Python itself gets the signal that SLURM sends to the batch shell, and the
    script goes to the snapshot first, because Python finds modules in its current folder before all others.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from bench.job import run_pack

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


def _collect(sent: Submission, profile: Profile) -> None:
    """Sends a job that renders tables and the report when all others have ended, however they ended."""
    flags = {**sent.arrays[0].flags, "time": 30, "job-name": "spb_collect", "output": sent.logs / "collect.out", "chdir": sent.snapshot}
    flags = {name: value for name, value in flags.items() if name != "gres"}
    flags["dependency"] = "afterany:" + ":".join(array.job for array in sent.arrays if array.job)
    command = COLLECT.format(python=shlex.quote(sys.executable), out=shlex.quote(str(sent.place.out)))
    script = "\n".join(["#!/bin/bash", *profile.setup, f"cd {shlex.quote(str(sent.snapshot))} || exit 1", command, ""])
    job = slurm("sbatch", "--parsable", *flag_words(flags), text=script).strip()
    print(f"Job {job} renders the tables and the report when all have ended.")


def _list_arrays(wanted: Sequence[RunSpec], grid: Launch) -> None:
    """The arrays that would be sent, as far as can be said without asking the cluster."""
    size = 1000
    try:
        need_slurm()
        live, size = _live(grid.place.out, {spec.key for spec in wanted}), limits().array_size
    except RequestError as error:
        live = {}
        print(f"(The cluster was not asked: {error})")
    if live:
        print(f"{len(live)} of these cells are with SLURM already.")
    plans = array_plans([spec for spec in wanted if spec.key not in live], grid.profile, grid.untrained, size)
    for number, plan in enumerate(plans, 1):
        print(f"array {number}: {shown(plan)}")
    if not plans:
        print("Nothing would be sent.")


def _say(sent: Submission, plans: Sequence[ArrayPlan], live: dict[str, Task], left: int, refused: str, check: str) -> int:
    out = sent.place.out
    for array, plan in zip(sent.arrays, plans, strict=True):
        print(f"array {array.job or '(not taken)'}: {shown(plan)}")
    if live:
        print(f"{len(live)} more cells are with SLURM already.")
    if check:
        print(f"They wait for job {check}, which checks that the nodes see {out}; if they do not, SLURM cancels them all.")
    if refused or left:
        print(f"SLURM has no room for the rest ({refused or f'{left} jobs'}): run the same command again when some have ended.")
    print(f"Sent {len(sent.cells)} cells as {sent.id}, code and logs in {out / FOLDER}. You may log out.")
    print(f"  python -m bench.status --out {out} --watch\n  python -m bench.logs CELL --out {out}\n  python -m bench.cancel --out {out}")
    return 1 if refused else 0
