"""Tunes methods with the same budget each: trials of learning rates and parameters, chosen on held-out training images.

    python -m bench.tune --methods paper --datasets synth_polyps --backbone tiny --protocol demo --trials 8 --name mine
    python -m bench.run --methods paper --datasets synth_polyps --backbone tiny --protocol "demo(tuned=mine)"
    python -m bench.tables --like tuning

Trials are cells like any other, in `results/tuned/<name>/`, where `bench.status` shows them; the choice is `results/tuned/<name>.toml`.
Running it again goes on where it stopped. No test image is read.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from bench.errors import one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plan import Request, protocol_of
from bench.grid.plugins import add_option
from bench.grid.space import RATES, read_range
from bench.grid.spec import parse_call
from bench.running.grid import Options
from bench.tuning.choice import tune
from bench.tuning.draws import SAMPLERS
from bench.tuning.search import Search


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit codes of `bench.run`. No choice is written before all trials have ended."""
    given = _parser().parse_args(arguments)
    asked = {f.name: value for f in fields(Request) if (value := getattr(given, f.name)) is not None}
    request = replace(Request().with_suite(given.config) if given.config else Request(), **asked)
    request = replace(request, seeds=request.seeds or str(protocol_of(request.protocol).seeds[0]))
    names = ("trials", "per", "sampler", "halving", "only_rates", "images")
    chosen = {name: getattr(given, name) for name in names}
    search = Search(given.name or parse_call(request.protocol)[0], request, seed=given.draw_seed, rates=read_range(given.rates), **chosen)
    options = Options(**{f.name: value for f in fields(Options) if (value := getattr(given, f.name, None)) is not None})
    options = replace(options, overwrite="failed" if given.retry_failed else "never")
    if given.launcher == "slurm":
        from bench.cluster.submit import launch_grid

        return tune(search, options, launch_grid, overwrite=given.overwrite)
    from bench.cluster.submission import free_of_jobs

    return tune(search, options, free=free_of_jobs, overwrite=given.overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.tune", __doc__)
    for field in fields(Request):
        default = "the protocol’s first" if field.name == "seeds" else field.default
        parser.add_argument(f"--{field.name}", help=f"as of bench.run; default: {default}")
    parser.add_argument("--config", type=Path, help="a suite, configs/suites/….toml; flags go before it")
    parser.add_argument("--name", help="of the choice, tuned/NAME.toml; default: the protocol's")
    parser.add_argument("--trials", type=int, default=Search.trials, help="of each method; the first has the protocol's own rates")
    parser.add_argument("--per", choices=["grid", "dataset"], default=Search.per, help="one choice for all data sets, or one for each")
    parser.add_argument("--sampler", choices=SAMPLERS, default=Search.sampler, help="random: independent draws; halton: evenly spread ones")
    parser.add_argument("--draw-seed", type=int, default=Search.seed, metavar="N", help="of the trials' draws")
    parser.add_argument("--rates", default=f"{RATES.low:g}:{RATES.high:g}", metavar="LOW:HIGH", help="of every group of parameters")
    parser.add_argument("--only-rates", action="store_true", help="leaves the methods' own parameters as they are")
    parser.add_argument("--halving", action="store_true", help="short training for all trials, longer for the better half, and so on")
    parser.add_argument("--images", type=int, default=Search.images, metavar="N", help="held out, a data set; 0: all that it holds out")
    add_common(parser, "data", "pretrained", "out", "device", "checkpoint")
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help="here, or as jobs; then run it again to choose")
    add_common(parser, "profile", "workers")
    parser.add_argument("--overwrite", action="store_true", help="an earlier choice of this name")
    parser.add_argument("--retry-failed", action="store_true", help="trials that failed; they count as tried, as those that diverge do")
    parser.add_argument("--dry-run", action="store_true", help="list the trials with their state")
    add_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
