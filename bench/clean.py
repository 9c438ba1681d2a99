"""Removes what past launches on SLURM left beside the results.

    python -m bench.clean                   # says what would go
    python -m bench.clean --days 30 --remove

Without --remove it only says what would go: submissions of which no job is in SLURM's queue, with their logs, and the snapshots of the
code that no other submission needs. Results, resume files and everything of younger launches stay.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cluster.launch_lock import LaunchLock
from bench.cluster.queue import CLUSTER, need_slurm, tasks
from bench.cluster.submission import FOLDER, submission_files, submissions, use_cluster
from bench.errors import one_sentence
from bench.grid.command_line import add_common, command_parser


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 where SLURM cannot be asked: then nothing is removed."""
    parser = command_parser("bench.clean", __doc__)
    add_common(parser, "out")
    parser.add_argument("--days", type=float, default=7.0, help="younger launches stay")
    parser.add_argument("--remove", action="store_true", help="remove it")
    given = parser.parse_args(arguments)
    out = given.out.absolute()
    need_slurm()
    use_cluster(out)
    with LaunchLock(out / FOLDER):  # no launcher makes a snapshot meanwhile
        going = superfluous(out, given.days)
        for path in going:
            print(path)
            if given.remove and path.is_dir():
                shutil.rmtree(path)
            elif given.remove:
                path.unlink()
    print(f"{len(going)} files and folders {'were removed.' if given.remove else 'would be removed; --remove does it.'}")
    return 0


def superfluous(out: Path, days: float) -> list[Path]:
    """Files and folders of past launches that nothing needs any more. RequestError where SLURM cannot be asked."""
    held, old = {task.submission for task in tasks()}, time.time() - 86400 * days
    kept, going = set(), []
    every = submissions(out)
    for sent in every:
        if sent.id in held or sent.cluster != os.environ.get(CLUSTER, "") or sent.path.stat().st_mtime > old:
            kept.add(sent.snapshot.name)
        else:
            going += [sent.path, *([sent.logs] if sent.logs.is_dir() else [])]
    known = len(every) == len(submission_files(out))  # else one needs nobody knows what
    snapshots = (out / FOLDER / "snapshots").glob("*") if known else ()
    return [*going, *sorted(path for path in snapshots if path.name not in kept and path.stat().st_mtime < old)]


if __name__ == "__main__":
    sys.exit(main())
