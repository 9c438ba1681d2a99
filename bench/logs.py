"""Shows what a cell's jobs printed, and where it failed.

    python -m bench.logs 3f2a                              # the key that bench.status shows, or the start of it
    python -m bench.logs 3f2a --lines 0                    # all of it

It may be the cell's folder instead.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cluster.grid_status import cell_title, find_cell
from bench.cluster.queue import job_state
from bench.cluster.submission import FOLDER, submissions, use_cluster
from bench.errors import one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.job_environment import task_id
from bench.grid.store import TRACEBACK, GridCell, ResultStore, attempts, read_attempt


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, 1 where there is no log, 2 where the cell is not known."""
    parser = command_parser("bench.logs", __doc__)
    parser.add_argument("cell", help="a key, the start of one, or the cell's folder")
    add_common(parser, "out")
    parser.add_argument("--lines", type=int, default=60, help="of the end of each file; 0 for all")
    given = parser.parse_args(arguments)
    out = given.out.absolute()
    use_cluster(out)
    cell = find_cell(out, given.cell)
    print(f"{cell_title(cell)}: {ResultStore(out).status_of(out / 'runs' / cell.folder).reason or 'stored'}")
    return show(out, cell, given.lines)


def show(out: Path, cell: GridCell, lines: int) -> int:
    """Prints the logs of the cell's jobs, the last job last, and the traceback of its failure; 1 where none is there."""
    jobs = jobs_of(out, cell)
    files = [path for job in jobs for path in sorted((out / FOLDER / "logs").glob(f"*/{job}_0_log.*"))]
    files += [path for path in [out / "runs" / cell.folder / TRACEBACK] if path.is_file()]
    for path in files:
        text = path.read_text(errors="replace").splitlines()
        print(f"==> {path}", *text[-lines:], sep="\n")
    if files:
        return 0
    if not jobs and (planned := [sent.id for sent in submissions(out) if cell.key in sent.cells]):
        print(f"There is no log: the launcher of {planned[-1]} ended before SLURM took this cell; the same bench.run sends it again.")
        return 1
    said = {job: job_state(job) for job in jobs[-1:]}
    known = "; ".join(f"SLURM says of {job}: {state['JobState']}, {state.get('Reason')}" for job, state in said.items() if state)
    print(f"There is no log{f' of the jobs {chr(44).join(jobs)}' if jobs else ': it was never sent to SLURM'}. {known}".rstrip())
    return 1


def jobs_of(out: Path, cell: GridCell) -> list[str]:
    """The jobs that were to run the cell, and those that did, oldest first."""
    sent = [job for submission in submissions(out) for job in submission.jobs().get(cell.key, [])]
    ran = [task_id(facts) for path in attempts(out / "runs" / cell.folder) if (facts := read_attempt(path))]
    return list(dict.fromkeys([*sent, *ran]))


if __name__ == "__main__":
    sys.exit(main())
