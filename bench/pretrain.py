"""Pre-trains the tiny SAM on procedural home images; a run that was interrupted goes on where it was.

    python -m bench.pretrain --config configs/pretrain/tiny.toml     # makes pretrained/tiny.safetensors, about an hour of two CPU cores
    python -m bench.pretrain --config configs/pretrain/smoke.toml --out results/smoke.safetensors     # in seconds: does it work?

What it was made from stands beside it, in a .md file of its name.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from bench.errors import STOPPED, DivergedError, RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.pretrain", __doc__)
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/pretrain/")
    parser.add_argument("--out", type=Path, default=ROOT / "pretrained" / "tiny.safetensors", help="the checkpoint to write")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "pretrain", help="folder for the cache and the resume file")
    add_common(parser, "device")
    parser.add_argument("--steps", type=int, help="a shorter (or longer) run: the config's schedule in so many steps")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished checkpoint")
    return parser


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: written, 2: the request was wrong, 3: it diverged, 130: it was interrupted and can go on."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    from bench.pretraining.config import read_config, squeezed  # not before the words are read
    from bench.pretraining.run import pretrain
    from bench.running.workers import device_of

    device = device_of(options.device)
    config = read_config(options.config, device)
    config = config if options.steps is None else squeezed(config, options.steps)
    _check_out(options.out, options.overwrite)
    command = shlex.join(["python", "-m", "bench.pretrain", *given])
    try:
        done = pretrain(config, options.out, options.work, device, command)
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0 if done else STOPPED


def _check_out(out: Path, overwrite: bool) -> None:
    """RequestError unless the checkpoint can be written in the end."""
    if out.exists() and not overwrite:
        raise RequestError(f"{out} is a finished checkpoint: give --overwrite to replace it, or another --out.")
    if out.suffix != ".safetensors":
        raise RequestError(f"--out {out} must be a .safetensors file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"The folder {out.parent} cannot be made ({error.strerror}): give another --out.") from None


if __name__ == "__main__":
    sys.exit(main())
