"""Runs a grid: every cell that is asked for and not stored yet is trained, evaluated and stored.

    python -m bench.run --methods paper --datasets whu,kvasir,sbu --shots 1
    python -m bench.run --methods sam,cat_sam_t --datasets synth_polyps --backbone tiny --protocol smoke      # CPU, seconds

Running it again is the retry: stored cells stay, unfinished ones go on where they stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from bench.errors import STOPPED, ProcessGroupError, RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plan import Request, text_of
from bench.grid.plugins import add_option
from bench.grid.store import ResultStore
from bench.running.grid import Options, run_grid
from bench.training.launch import is_distributed, launch_processes
from bench.types import COMPILE_MODES, STEP_GRAPH, Shots

if TYPE_CHECKING:
    from pandas import DataFrame

ABOUT = {name: f"; `python -m bench.list {name.rstrip('s')}s` names them" for name in ("methods", "datasets", "backbone", "protocol")}
ABOUT |= {"shots": "; labelled images, as 1,16,full", "seeds": "; as 0,1,2 or 0:3", "draws": "; of the labelled images, as 0:10"}


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all stored, 1 some failed or unfinished, 2 wrong request, 130 stopped)."""
    try:
        request, options = parse(arguments)
        if options.group_writable:
            os.umask(os.umask(0) & ~0o070)  # SLURM gives its jobs the launcher's
        if options.devices > 1 and options.launcher == "local" and not is_distributed():
            return _launch_processes(sys.argv[1:] if arguments is None else arguments, options)
        if options.launcher == "slurm":
            from bench.cluster.submit import launch_grid

            return run_grid(request, options, launch_grid)
        from bench.cluster.submission import free_of_jobs

        return run_grid(request, options, free=free_of_jobs)
    except ProcessGroupError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return 1


def run(
    methods: str | Sequence[str],
    datasets: str | Sequence[str],
    *,
    shots: Shots | str | Sequence[Shots] = 1,
    seeds: int | str | Sequence[int] = "",
    draws: int | str | Sequence[int] = 0,
    backbone: str = Request.backbone,
    protocol: str = Request.protocol,
    out: str | Path = "results",
    data: str | Path = "data",
    pretrained: str | Path = Options.pretrained,
    checkpoint: Path | None = None,
    device: str = "auto",
    workers: int = 1,
    overwrite: str = "never",
) -> "DataFrame":
    """Runs a grid on this machine as the command does, and returns its stored cells as rows of `bench.results`.

    Names and numbers as on the command line, or as lists; seeds "" means the protocol's own. Cells that are stored already are not run
    again. A cell that failed is no row, and is named on the terminal. With several workers a script needs `if __name__ == "__main__":`.
    RequestError for what the command refuses, before anything runs; KeyboardInterrupt where the user stops it.
    """
    request = Request(*map(text_of, (methods, datasets, shots, seeds, draws, backbone, protocol)))
    options = Options(Path(data), Path(pretrained), Path(out), overwrite, device, workers=workers, checkpoint=checkpoint)
    if run_grid(request, options) == STOPPED:
        raise KeyboardInterrupt
    from bench.exporting.cell_tables import results  # here: pandas takes its time

    asked, stored = {cell.key for cell in ResultStore(options.out).grid()}, results(out)
    return stored[stored["key"].isin(asked)].reset_index(drop=True) if len(stored) else stored


class _Callable(ModuleType):
    """This module, which `bench.run` is as well as the function."""

    __call__ = staticmethod(run)


def _launch_processes(arguments: Sequence[str], options: Options) -> int:
    """Runs this command as `devices` processes; the exit code."""
    import torch

    from bench.running.workers import device_of

    available = torch.cuda.device_count()
    if device_of(options.device) == "cuda" and available < options.devices:
        raise RequestError(f"--devices {options.devices}: torch finds {available} GPUs here; at most as many are allowed.")
    return launch_processes(["-m", "bench.run", *arguments], options.devices)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.run", __doc__)
    for field in fields(Request):
        parser.add_argument(f"--{field.name}", help=f"default: {field.default or 'the protocol’s'}{ABOUT.get(field.name, '')}")
    parser.add_argument("--config", type=Path, help="a suite, configs/suites/….toml; flags go before it")
    add_common(parser, "data", "pretrained", "out", "device", "checkpoint")
    parser.add_argument("--embeddings", type=Path, help="folder of kept embeddings, which later runs read instead of encoding images again")
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help="here, or as jobs of a cluster")
    add_common(parser, "profile", "workers")
    parser.add_argument("--collect", action="store_true", help="with --launcher slurm: a last job renders tables and report")
    parser.add_argument("--overwrite", choices=["never", "failed", "changed", "always"], default="never", help="changed: of other data")
    parser.add_argument("--save-every", type=float, default=Options.save_every, metavar="SECONDS", help="between two resume files")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs (or CPU processes) that run each cell together")
    parser.add_argument("--micro-batch", type=int, default=0, metavar="N", help="images of a training step in memory together; 0: all")
    parser.add_argument("--checkpointing", action="store_true", help="less memory: backward computes the encoder's blocks again")
    parser.add_argument("--compile", choices=(*COMPILE_MODES, STEP_GRAPH), default="", help="the encoder, or steps as a graph; on a GPU")
    parser.add_argument("--keep-gb", type=float, default=Options.keep_gb, help="memory for prepared test images and frozen embeddings")
    parser.add_argument("--spill-gb", type=float, default=Options.spill_gb, help="of embeddings beyond those, in a temporary file (TMPDIR)")
    parser.add_argument("--log", default="", metavar="NAMES", help="also write training to tensorboard, wandb, or a plugin's logger")
    parser.add_argument("--steal", action="store_true", help="also the cells that another process computes just now")
    parser.add_argument("--group-writable", action="store_true", help="other people of the folder's group may write the results too")
    parser.add_argument("--dry-run", action="store_true", help="list the cells with their state")
    add_option(parser)
    return parser


def parse(arguments: Sequence[str] | None) -> tuple[Request, Options]:
    """The request and the options of a command line; a suite file's values stand behind the flags."""
    given = _parser().parse_args(arguments)
    request = Request().with_suite(given.config) if given.config else Request()
    request = replace(request, **{f.name: value for f in fields(Request) if (value := getattr(given, f.name)) is not None})
    if given.workers > 1 and (given.devices > 1 or is_distributed()):
        raise RequestError(f"--workers {given.workers}: cells that several devices run together are run one after the other, --workers 1.")
    if given.workers > 1 and given.launcher == "slurm":
        raise RequestError(f"--workers {given.workers}: how many cells share a job of SLURM is for the profile to say, cells_per_job.")
    return request, Options(**{field.name: getattr(given, field.name) for field in fields(Options)})


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
