"""The SLURM launcher: sends the cells of a grid that have neither a result nor a job, and returns."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cluster.array_plan import ArrayPlan, array_plans, shown
from bench.cluster.launch_lock import LaunchLock
from bench.cluster.probe import check_nodes, checked_partition
from bench.cluster.profile import Profile, load_profile
from bench.cluster.queue import Task, jobs_in_queue, limits, need_slurm, tasks, test_only
from bench.cluster.send import all_or_nothing, collector_flags, send, send_collector
from bench.cluster.snapshot import take_snapshot
from bench.cluster.submission import FOLDER, Array, Submission, live_cells, new_id, submission_path
from bench.errors import RequestError
from bench.grid.catalogue import Catalogue
from bench.grid.plan import RunContext
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore, clears
from bench.running.grid import Options, run_context

ENDING_SECONDS = 40.0  # a job that was cancelled lives on for SLURM's KillWait


@dataclass(frozen=True)
class Launch:
    """A grid to be sent: where it runs, what it asks for, and which of its methods train nothing. context: absolute paths."""

    context: RunContext
    profile: Profile
    untrained: frozenset[str]
    dry_run: bool
    collect: bool


def launch_grid(
    specs: Sequence[RunSpec], missing: Sequence[RunSpec], known: Catalogue, checkpoint: Path, backbone: str, options: Options
) -> int:
    """Sends the cells to SLURM, whose nodes need whole paths."""
    profile = load_profile(options.profile)
    checkpoint, data, out = (Path(os.path.abspath(path)) for path in (checkpoint, options.data, options.out))
    device = profile.device_of(options.device)
    profile.check_devices(options.devices, device)
    context = replace(run_context(backbone, checkpoint, device, options), data=data, out=out)
    return launch(specs, missing, Launch(context, profile, known.untrained, options.dry_run, options.collect))


def launch(specs: Sequence[RunSpec], wanted: Sequence[RunSpec], grid: Launch) -> int:
    """Sends those of the `wanted` cells that no job holds, and says how to watch them; 0, or 1 where only a part could be sent.

    specs: the whole grid. RequestError where the cluster refuses it, or the disk: nothing of it is left in the queue then.
    """
    if grid.dry_run:
        _list_arrays(wanted, grid)
        return 0
    need_slurm()
    store = ResultStore(grid.context.out)
    store.check_writable()
    with LaunchLock(grid.context.out / FOLDER) as lock:
        live = _live(grid.context.out, {spec.key for spec in wanted})
        free = [spec for spec in wanted if spec.key not in live and _is_open(store, spec, grid.context.overwrite)]
        if not free:
            store.write_grid(specs)
            print(f"{len(specs)} cells: nothing to send, {len(live)} are with SLURM already.")
            return 0
        plans, left = _within_limits(array_plans(free, grid.profile, grid.untrained, limits().array_size), grid.profile)
        for flags in _requests(plans, grid.collect):
            test_only({**flags, "output": "/dev/null"})
        with all_or_nothing(grid.context.out) as jobs:
            sent = _submission(free, plans, grid)
            checks = _checks(sent, plans, jobs)
            _discard(store, sent.cells.values(), grid.context.overwrite)
            store.write_grid(specs)
            sent.write()
            sent, refused = send(sent, plans, grid.profile, checks, lock, jobs)
            collector = send_collector(sent, grid.profile) if grid.collect else ""
    _say(sent, plans, live, list(filter(None, checks.values())), collector)
    return _say_what_is_left(sent, left, refused)


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
    return overwrite in ("always", "changed") or store.status(spec).phase != "stored"


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


def _requests(plans: Sequence[ArrayPlan], collect: bool) -> list[Mapping[str, Any]]:
    """The distinct requests of a launch, the collector's with them."""
    flags = [plan.flags for plan in plans] + ([collector_flags(plans[0].flags)] if collect else [])
    return list({repr(one): one for one in flags}.values())


def _submission(free: Sequence[RunSpec], plans: Sequence[ArrayPlan], grid: Launch) -> Submission:
    """The submission of these arrays, none sent yet, with a snapshot of the code."""
    keys = {key for plan in plans for pack in plan.packs for key in pack}
    cells = {spec.key: spec for spec in free if spec.key in keys}
    arrays = tuple(Array(plan.flags, plan.packs, plan.signal_s) for plan in plans)
    name, snapshot = new_id(), take_snapshot(grid.context.out / FOLDER / "snapshots")
    context = replace(grid.context, overwrite="never")  # jobs themselves overwrite nothing
    return Submission(name, context, snapshot, grid.profile.attempts, cells, arrays, submission_path(context.out, name))


def _checks(sent: Submission, plans: Sequence[ArrayPlan], jobs: list[str]) -> dict[str, str]:
    """Place -> the job that still checks it, "" where it has passed; each job is entered into `jobs` too."""
    found: dict[str, str] = {}
    for plan in plans:
        if (context := checked_partition(plan.flags)) not in found:
            found[context] = check_nodes(sent.context.out, plan.flags, sent.snapshot, sys.executable)
            jobs += [found[context]] if found[context] else []
    return found


def _discard(store: ResultStore, cells: Iterable[RunSpec], overwrite: str) -> None:
    """Removes what is to be computed anew."""
    for spec in cells:
        if clears(store.status(spec), overwrite):
            store.discard(spec)


def _list_arrays(wanted: Sequence[RunSpec], grid: Launch) -> None:
    """The arrays that would be sent, as far as can be said without asking the cluster."""
    size = 1000
    try:
        need_slurm()
        live, size = _live(grid.context.out, {spec.key for spec in wanted}), limits().array_size
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


def _say(sent: Submission, plans: Sequence[ArrayPlan], live: Mapping[str, Task], checks: Sequence[str], collector: str) -> None:
    out = sent.context.out
    for array, plan in zip(sent.arrays, plans, strict=True):
        print(f"array {array.job or '(not taken)'}: {shown(replace(plan, packs=array.packs))}")
    if live:
        print(f"{len(live)} more cells are with SLURM already.")
    for check in checks:
        print(f"They wait for job {check}, which checks that the nodes see {out}; if they do not, SLURM cancels them all.")
    if collector:
        print(f"Job {collector} renders the tables and the report when all have ended.")


def _say_what_is_left(sent: Submission, left: int, refused: str) -> int:
    """Says what was sent, what there was no room for, and what to do next; 1 where something was left."""
    out = sent.context.out
    cells = sum(len(pack) for array in sent.arrays if array.job for pack in array.packs)
    rest = f"{len(sent.cells) - cells} cells" if refused else f"{left} jobs" if left else ""
    if rest:
        print(f"There is no room for {rest} now: run the same command again when some have ended. {refused}".rstrip())
    print(f"Sent {cells} cells as {sent.id}, code and logs in {out / FOLDER}. You may log out.")
    print(f"  python -m bench.status --out {out} --watch\n  python -m bench.logs CELL --out {out}\n  python -m bench.cancel --out {out}")
    return 1 if rest else 0
