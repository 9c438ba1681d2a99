"""Takes cells from SLURM's queue: python -m bench.cancel [--methods …] [--datasets …] [--shots …] [--seeds …] [--out results]

Without a filter it takes all cells that were sent from the results' folder. What a running cell did is kept in its resume file as
of the last save; the same bench.run sends cancelled cells again.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bench.cluster.grid_status import Filter, all_cells, cell_title
from bench.cluster.queue import cancel, need_slurm, tasks
from bench.cluster.submission import live_cells, submissions
from bench.errors import one_sentence
from bench.grid.spec import split_calls


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 where SLURM cannot be asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.cancel", description=(__doc__ or "").splitlines()[0])
    for name in fields(Filter):
        parser.add_argument(f"--{name.name}", default="", help="with commas between them; default: all")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="say what would be cancelled")
    given = parser.parse_args(arguments)
    meant = Filter(**{name.name: tuple(split_calls(getattr(given, name.name))) for name in fields(Filter)})
    return take_out(given.out.absolute(), meant, given.dry_run)


def take_out(out: Path, meant: Filter, dry_run: bool) -> int:
    """Cancels the jobs that hold a cell that is meant, and says so; other cells of these jobs go with them."""
    need_slurm()
    live, cells = live_cells(out, tasks()), all_cells(out, submissions(out))
    jobs = dict.fromkeys(task.job for key, task in live.items() if meant.keeps(cells[key]))
    held = [key for key, task in live.items() if task.job in jobs]
    for key in held:
        beside = "" if meant.keeps(cells[key]) else "  (shares a job with one of these)"
        print(f"job {live[key].job}  {cell_title(cells[key])}{beside}")
    if not dry_run:
        cancel(list(jobs))
    print(f"{len(held)} cells in {len(jobs)} jobs {'would be' if dry_run else 'were'} taken from the queue.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
