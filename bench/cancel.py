"""Takes cells from SLURM's queue.

    python -m bench.cancel --dry-run                       # everything that was sent from results/
    python -m bench.cancel --methods lora --seeds 1,2      # only these

Without a filter it takes everything that was sent from the results' folder, with the jobs that check the nodes and render the tables.
What a running cell did is kept in its resume file as of the last save; the same bench.run sends cancelled cells again.
"""

import contextlib
import getpass
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from bench.cluster.grid_status import Filter, cell_title, cells_of
from bench.cluster.queue import Task, cancel, need_slurm, tasks
from bench.cluster.submission import held_packs, use_cluster
from bench.errors import counted, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.spec import split_calls
from bench.grid.store import GridCell, ResultStore


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, 1 where jobs of somebody else are left, or 2 where SLURM cannot be asked."""
    parser = command_parser("bench.cancel", __doc__)
    for name in fields(Filter):
        parser.add_argument(f"--{name.name}", default="", help="with commas between them; default: all")
    add_common(parser, "out")
    parser.add_argument("--dry-run", action="store_true", help="say what would be cancelled")
    given = parser.parse_args(arguments)
    meant = Filter(**{name.name: tuple(split_calls(getattr(given, name.name))) for name in fields(Filter)})
    return take_out(given.out.absolute(), meant, given.dry_run)


def take_out(out: Path, meant: Filter, dry_run: bool) -> int:
    """Cancels every job that holds a cell that is meant, and says so; other cells of these jobs go with them, and the checks and
    collectors of launches of which nothing else is left."""
    need_slurm()
    use_cluster(out)
    packs = list(held_packs(out, tasks()))
    cells: dict[str, GridCell] = {}
    for _, submission, keys in packs:
        cells |= cells_of(out, submission, [key for key in keys if key not in cells])
    store = ResultStore(out)
    left = {
        key for key, cell in cells.items() if store.status_of(store.runs / cell.folder).phase != "stored"
    }  # of stored cells jobs just end
    chosen = {task.job: (task, keys) for task, _, keys in packs if any(key in left and meant.keeps(cells[key]) for key in keys)}
    busy = {task.submission for task, _, keys in packs if left.intersection(keys) and task.job not in chosen}
    beside = {task.job: task for task, _, keys in packs if not keys and task.submission not in busy}
    user = getpass.getuser()
    others = [task for task, _ in chosen.values() if task.user != user]
    taken = {job: (task, keys) for job, (task, keys) in chosen.items() if task.user == user}
    for job, (_, keys) in taken.items():
        for key in keys:
            print(f"job {job}  {cell_title(cells[key])}{'' if meant.keeps(cells[key]) else '  (shares a job with one of these)'}")
    if not dry_run:
        cancel([*taken, *(job for job, task in beside.items() if task.user == user)])
        _note(out, taken, cells)
    count = len({key for _, keys in taken.values() for key in keys})
    more = f", and {counted(len(beside), 'job')} to check or collect" if beside else ""
    print(f"{counted(count, 'cell')} in {counted(len(taken), 'job')}{more} {'would be' if dry_run else 'were'} taken from the queue.")
    for task in others:
        print(f"job {task.job} belongs to {task.user}, who alone can cancel it.")
    return 1 if others else 0


def _note(out: Path, taken: Mapping[str, tuple[Task, Sequence[str]]], cells: Mapping[str, GridCell]) -> None:
    """Says of cells that had not begun that they were cancelled; those that run say so themselves."""
    store = ResultStore(out)
    for task, keys in taken.values():
        for key in keys if task.state == "PENDING" else ():
            folder = store.runs / cells[key].folder
            if store.status_of(folder).phase in ("pending", "unfinished"):
                with contextlib.suppress(OSError):
                    store.stop(folder, f"job {task.job} was cancelled before it began; the same bench.run sends it again")


if __name__ == "__main__":
    sys.exit(main())
