"""The SLURM launcher: sends the cells of a grid that have neither a result nor a job, and returns."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cluster.array_plan import ArrayPlan, array_plans, shown
from bench.cluster.job import given_up
from bench.cluster.launch_lock import LaunchLock
from bench.cluster.limits import refuse_what_never_starts
from bench.cluster.probe import check_nodes, checked_partition
from bench.cluster.profile import NONE, Profile, load_profile
from bench.cluster.queue import CLUSTER, Task, ended, job_state, jobs_in_queue, limits, need_slurm, tasks, test_only
from bench.cluster.send import all_or_nothing, collector_flags, is_limit, send, send_collector
from bench.cluster.snapshot import take_snapshot
from bench.cluster.submission import FOLDER, Array, Submission, live_cells, new_id, read_submission, submission_path
from bench.errors import RequestError, counted
from bench.grid.heartbeat import disk_now, holder
from bench.grid.job_environment import task_id
from bench.grid.plan import RunContext
from bench.grid.spec import RunSpec
from bench.grid.store import ResultStore, clears, read_state, starts_without_progress
from bench.running.grid import Options, run_context

ENDING_SECONDS = 40.0  # a job that was cancelled lives on for SLURM's KillWait


@dataclass(frozen=True)
class Launch:
    """A grid to be sent: where it runs and what it asks for. context: absolute paths."""

    context: RunContext
    profile: Profile
    dry_run: bool
    collect: bool


def launch_grid(specs: Sequence[RunSpec], missing: Sequence[RunSpec], checkpoint: Path, backbone: str, options: Options) -> int:
    """Sends the cells to SLURM, whose nodes need whole paths."""
    profile = load_profile(options.profile)
    checkpoint, data, out = (Path(os.path.abspath(path)) for path in (checkpoint, options.data, options.out))
    device = profile.device_of(options.device)
    profile.check_devices(options.devices, device)
    context = replace(run_context(backbone, checkpoint, device, options), data=data, out=out)
    return launch(specs, missing, Launch(context, profile, options.dry_run, options.collect))


def launch(specs: Sequence[RunSpec], wanted: Sequence[RunSpec], grid: Launch) -> int:
    """Sends those of the `wanted` cells that no job holds, and says how to watch them; 0, or 1 where only a part could be sent.

    specs: the whole grid. RequestError where the cluster refuses it, or the disk: nothing of it is left in the queue then.
    """
    if grid.profile.cluster:
        os.environ[CLUSTER] = grid.profile.cluster
    if grid.dry_run:
        _list_arrays(wanted, grid)
        return 0
    need_slurm()
    out, store = grid.context.out, ResultStore(grid.context.out)
    if "%" in str(out):
        raise RequestError(f"--out {out}: SLURM replaces what follows a % in the names of logs; a folder without it is needed.")
    with LaunchLock(out / FOLDER) as lock:
        live = _live(out, {spec.key for spec in wanted})
        free, elsewhere = _free(store, [spec for spec in wanted if spec.key not in live], grid)
        if not free:
            store.write_grid(specs)
            print(f"{counted(len(specs), 'cell')}: nothing to send, {len(live)} are with SLURM already.{elsewhere}")
            return 0
        plans, left = _within_limits(array_plans(free, grid.profile, limits().array_size), grid.profile)
        collect = grid.collect and grid.profile.collect_partition != NONE
        _test_requests(plans, grid.profile, collect)
        sent = _submission(free, plans, grid)
        with all_or_nothing(sent) as jobs:
            checks = _checks(sent, plans, grid.profile, jobs)
            sent.write()
            with store.asked_for(specs):  # a grid that was refused is none that `status` knows
                sent, refused = send(sent, plans, grid.profile, checks, lock, jobs)
            collector = send_collector(sent, grid.profile) if collect else ""
    _say(sent, plans, live, list(filter(None, checks.values())), collector)
    if elsewhere:
        print(elsewhere.strip())
    return _say_what_is_left(sent, left, refused)


def _free(store: ResultStore, specs: Sequence[RunSpec], grid: Launch) -> tuple[list[RunSpec], str]:
    """The cells that are still to be computed and that nobody computes or gave up, and a sentence on those that others compute."""
    anew = grid.context.overwrite in ("always", "changed")  # else another launcher's job may have done some while this one waited
    still = [spec for spec in specs if anew or store.status(spec).phase != "stored"]
    free, elsewhere = _without_running(store, still, grid.context.steal)
    return _without_given_up(grid.context.out, store, free, grid), elsewhere


def _without_running(store: ResultStore, specs: Sequence[RunSpec], steal: bool) -> tuple[list[RunSpec], str]:
    """The cells that no process computes, and a sentence on the others. A job that SLURM knows to have ended computes nothing, which
    is noted, so that the next job need not wait for its silence."""
    now = disk_now(store.root)
    others = {spec: said for spec in specs if not steal and (said := holder(store.folder(spec), now))}
    jobs = {spec: task_id(facts) for spec in others if (facts := read_state(store.folder(spec)).get("slurm"))}
    gone = ended(set(jobs.values()))
    for spec, job in jobs.items():
        if job in gone:
            store.stop(spec, f"job {job} ended without a word")
            del others[spec]
    first = next(iter(others.values()), "")
    said = f" {len(others)} cells are computed by others ({first}); --steal sends them too." if others else ""
    return [spec for spec in specs if spec not in others], said


def _without_given_up(out: Path, store: ResultStore, specs: Sequence[RunSpec], grid: Launch) -> list[RunSpec]:
    """The cells without those that starts got no further as often as is allowed, the starts counted that never reached Python; they
    have failed then, which is noted. What is to be overwritten is counted anew."""
    marks: dict[str, list[Path]] = {}
    for mark in (out / FOLDER / "logs").glob("*/*.early"):
        marks.setdefault(mark.parent.name, []).append(mark)
    early: dict[str, list[Path]] = {}
    for submission, paths in marks.items():
        path = submission_path(out, submission)
        for key, jobs in (read_submission(path).jobs() if path.is_file() else {}).items():
            early.setdefault(key, []).extend(path for path in paths if path.name.split(".")[0] in jobs)
    for spec in specs:
        for mark in early.get(spec.key, []) if clears(store.status(spec), grid.context.overwrite) else []:
            mark.unlink(missing_ok=True)
    kept = []
    for spec in specs:
        starts = sum(path.exists() for path in early.get(spec.key, []))
        starts += starts_without_progress(store.folder(spec)) if starts else 0  # else the job itself counts
        if starts >= grid.profile.attempts:
            store.give_up(spec, given_up(starts))
        else:
            kept.append(spec)
    return kept


def _test_requests(plans: Sequence[ArrayPlan], profile: Profile, collect: bool) -> None:
    """RequestError where SLURM would refuse an array, never start it, or no node could run the collector. That a limit leaves no room
    for that one now is said when it is sent."""
    for flags in {repr(plan.flags): plan.flags for plan in plans}.values():
        refuse_what_never_starts(flags)
        test_only({**flags, "output": "/dev/null"})
    if not collect:
        return
    try:
        test_only({**collector_flags(plans[0].flags, profile), "output": "/dev/null"})
    except RequestError as error:
        if not is_limit(error):
            raise


def _live(out: Path, wanted: set[str]) -> dict[str, Task]:
    """The wanted cells that jobs hold; waits a little for jobs that are just ending, which will hold none."""
    until = time.monotonic() + ENDING_SECONDS
    while True:
        live = {key: task for key, task in live_cells(out, tasks()).items() if key in wanted}
        if not any(task.state == "COMPLETING" for task in live.values()) or time.monotonic() > until:
            return live
        time.sleep(0.5)


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


def _submission(free: Sequence[RunSpec], plans: Sequence[ArrayPlan], grid: Launch) -> Submission:
    """The submission of these arrays, none sent yet, with a snapshot of the code."""
    keys = {key for plan in plans for pack in plan.packs for key in pack}
    cells = {spec.key: spec for spec in free if spec.key in keys}
    arrays = tuple(Array(plan.flags, plan.packs, plan.signal_s) for plan in plans)
    name, snapshot = new_id(), take_snapshot(grid.context.out / FOLDER / "snapshots")
    path = submission_path(grid.context.out, name)
    return Submission(name, grid.context, snapshot, grid.profile.attempts, cells, arrays, path, grid.profile.at_once, grid.profile.cluster)


def _checks(sent: Submission, plans: Sequence[ArrayPlan], profile: Profile, jobs: list[str]) -> dict[str, str]:
    """Place -> the job that still checks it, "" where it has passed; each job is entered into `jobs` too."""
    found: dict[str, str] = {}
    for plan in plans:
        if (context := checked_partition(plan.flags)) not in found:
            found[context] = check_nodes(sent, plan.flags, profile, jobs)
    return found


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
    plans = array_plans([spec for spec in wanted if spec.key not in live], grid.profile, size)
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
        why = job_state(check).get("Reason", "None")
        state = "" if why == "None" else f" and waits itself ({why})"
        print(f"They wait for job {check}, which checks that the nodes see {out}{state}; if they do not, SLURM cancels them all.")
    if collector:
        print(f"Job {collector} renders the tables and the report when all have ended.")


def _say_what_is_left(sent: Submission, left: int, refused: str) -> int:
    """Says what was sent, what there was no room for, and what to do next; 1 where something was left."""
    out = sent.context.out
    cells = sum(len(pack) for array in sent.arrays if array.job for pack in array.packs)
    rest = f"{len(sent.cells) - cells} cells" if refused else f"{left} jobs" if left else ""
    if rest:
        print(f"There is no room for {rest} now: run the same command again when some have ended. {refused}".rstrip())
    print(f"Sent {counted(cells, 'cell')} as {sent.id}, code and logs in {out / FOLDER}. You may log out.")
    where = f"--out {shlex.quote(str(out))}"
    print(f"  python -m bench.status {where} --watch\n  python -m bench.logs CELL {where}\n  python -m bench.cancel {where}")
    return 1 if rest else 0
