"""Shows how a grid stands: what is stored, runs, waits or failed.

    python -m bench.status
    python -m bench.status --watch

It reads the results' folder and SLURM's queue, so it works from any login node, and after the launching process has ended.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.cluster.grid_status import PHASES, LiveStatus, cell_title, live_statuses, seconds_left
from bench.cluster.queue import Task, tasks
from bench.cluster.submission import use_cluster
from bench.errors import RequestError, counted, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.progress import duration, working

LISTED = 20  # cells of a phase
CLEAR = "\033[H\033[2J"


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 where the folder cannot be read."""
    parser = command_parser("bench.status", __doc__)
    add_common(parser, "out")
    parser.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="again and again until nothing runs or waits")
    parser.add_argument("--all", action="store_true", help="one line for every cell")
    given = parser.parse_args(arguments)
    while True:
        with working("Reading the cells"):
            lines, moving = report(given.out.absolute(), given.all)
        print((CLEAR if given.watch and sys.stdout.isatty() else "") + "\n".join(lines), flush=True)
        if not given.watch or not moving:
            return 0
        time.sleep(given.watch)


def report(out: Path, every_cell: bool = False) -> tuple[list[str], bool]:
    """The lines to show, and whether a cell runs or has a job that waits."""
    queue, silence = _queue(out)
    statuses = live_statuses(out, queue)
    if not statuses:
        return [f"No grid was run or sent from {out} yet.", *silence], False
    counts = Counter(one.phase for one in statuses)
    phases = ", ".join(f"{counts[p]} {p}" for p in PHASES if counts[p])
    lines = [f"{time.strftime('%H:%M:%S')}  {counted(len(statuses), 'cell')}: {phases}", *silence]
    moving = any(one.phase == "running" or (one.phase == "pending" and one.detail != "not sent yet") for one in statuses)
    left = seconds_left(out, statuses)
    if left is not None:
        lines.append(f"about {duration(left)} left, at the present {counts['running']} cells at a time")
    for phase in PHASES:
        lines += _lines(phase, [one for one in statuses if one.phase == phase], every_cell)
    return lines, moving


def _lines(phase: str, statuses: Sequence[LiveStatus], every_cell: bool) -> list[str]:
    """A line a cell, of the first so many; waiting cells are counted by what they wait for, and stored ones not listed, unless asked
    for."""
    if every_cell or phase not in ("stored", "pending"):
        listed = statuses if every_cell else statuses[:LISTED]
        width = max((len(cell_title(one.cell)) for one in listed), default=0)
        lines = [f"{phase:10}  {cell_title(one.cell):{width}}  {one.detail}".rstrip() for one in listed]
        more = Counter(one.detail for one in statuses[len(listed) :]) if phase in ("lost", "unfinished", "failed") else Counter()
        lines += [f"{phase:10}  {count} more cells  {why}" for why, count in more.most_common(LISTED // 4)]
        return [*lines, *([f"{'':10}  … all {len(statuses)} by --all"] if len(listed) < len(statuses) else [])]
    if phase == "stored":
        return []
    return [f"{phase:10}  {counted(count, 'cell')}  {why}" for why, count in Counter(one.detail for one in statuses).most_common()]


def _queue(out: Path) -> tuple[list[Task] | None, list[str]]:
    use_cluster(out)
    try:
        return tasks(), []
    except RequestError as error:
        return None, [f"(SLURM was not asked, only heartbeats count: {error})"]


if __name__ == "__main__":
    sys.exit(main())
