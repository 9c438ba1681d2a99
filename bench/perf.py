"""How long things take on this machine: steps, kernels, planning, sending.

    python -m bench.perf cost --backbone tiny              # of every method; what `bench.run --dry-run` estimates by
    python -m bench.perf gpu --minutes 10                  # the first minutes on a card
    python -m bench.perf model --device cuda

`store` plans that many cells, stores made-up records for them, reads them back into the paper's table, loads them with `bench.results()`
and makes a report of 500. It exits with 1 above 10 s of a processor for each 10,000 cells for planning and the table, 10 s and 2 GB of
memory for loading, 4 s for the report. `submit` sends that many cells to a SLURM whose commands answer at once, and exits with 1 above
5 s of a processor for each 1,000 cells.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.errors import RequestError, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.plan import choose_methods
from bench.grid.store import ResultStore
from bench.model.backbones import read_backbone


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for a wrong request."""
    parser = command_parser("bench.perf", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser("store", help="planning, storing and reading back many cells")
    store.add_argument("--cells", type=int, default=10_000)
    store.set_defaults(run=_store)
    submit = commands.add_parser("submit", help="sending many cells to SLURM")
    submit.add_argument("--cells", type=int, default=1_000)
    submit.set_defaults(run=lambda given: _late("many_cells", "time_submit")(given.cells))
    for add in (_add_model, _add_cost, _add_peers, _add_gpu):
        add(commands)
    given = parser.parse_args(arguments)
    read_backbone(getattr(given, "backbone", "tiny"))  # or say what there is
    for name in ("cells", "rounds", "at_once", "images", "side", "objects", "threads", "calls"):
        if (value := getattr(given, name, None)) is not None and value < 1:
            raise RequestError(f"--{name.replace('_', '-')} {value}: whole numbers from 1 are allowed.")
    if not 0 < getattr(given, "minutes", 1.0) < float("inf"):
        raise RequestError(f"--minutes {given.minutes:g}: numbers above 0 are allowed.")
    return int(given.run(given))


def _store(given: argparse.Namespace) -> int:
    from bench.profiling.many_cells import time_store
    from bench.reporting.comparable import CellQuery
    from bench.reporting.tables import tables

    return time_store(given.cells, lambda store: len(tables(store, CellQuery(), "paper")))


def _add_model(commands: Any) -> None:
    model = commands.add_parser("model", help="training step, evaluation and memory, fast path against the reference")
    model.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cpu: vit_b on two cores; cuda: vit_b, vit_l and vit_h")
    model.add_argument("--methods", default="cat_sam_t,cat_sam_a", help="with commas, as bench.run takes them")
    model.add_argument("--minutes", type=float, default=5.0, help="on two CPU cores two turns of all pairs take about 5")
    model.add_argument("--at-once", type=int, help="measurements side by side; by default two on a CPU, which take 18 GiB, one on a GPU")
    model.add_argument("--out", type=Path, default=Path("results/perf"))
    model.set_defaults(run=_compare)
    samples = commands.add_parser("samples", help="preparing images and keeping frozen work, against the plain way")
    samples.add_argument("--side", type=int, default=4096, help="of a mask, in pixels")
    samples.add_argument("--objects", type=int, default=200, help="in it")
    samples.add_argument("--threads", type=int, default=1, help="masks at once; the plain way takes 3.4 GB for each")
    samples.add_argument("--methods", default="hq_sam,decoder,lora,lora(first_block=3),cat_sam_a", help="as bench.run takes them")
    samples.add_argument("--backbone", default="tiny")
    samples.set_defaults(run=_samples)
    kernels = commands.add_parser("kernels", help="attention kernels and products against one another")
    kernels.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    kernels.add_argument("--backbone", choices=["vit_b", "vit_l", "vit_h"], default="vit_b")
    kernels.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    kernels.add_argument("--images", type=int, default=1)
    kernels.set_defaults(run=_kernels)
    for each in (model, samples, kernels):
        each.add_argument("--rounds", type=int, default=3, help="turns of each pair; of `model` as far as the minutes allow")


def _add_cost(commands: Any) -> None:
    cost = commands.add_parser("cost", help="a step, an image and memory of each method on this machine, for `tables --like efficiency`")
    cost.add_argument("--methods", default="paper", help="with commas, as bench.run takes them")
    cost.add_argument("--backbone", default="vit_l")
    cost.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    cost.add_argument("--out", type=Path, default=Path("results"), help="the results folder; costs go to its costs/")
    cost.add_argument("--calls", type=int, default=3, help="steps and images at least, after one that warms up; 1 where one takes minutes")
    cost.set_defaults(run=_cost)


def _add_peers(commands: Any) -> None:
    peers = commands.add_parser("peers", help="beside segment-anything, and transformers with peft, on one thread of this processor")
    peers.add_argument("--backbone", default="vit_b", help="of vit_b a round takes 4 minutes and 16 GiB")
    peers.add_argument("--rounds", type=int, default=3)
    peers.add_argument("--out", type=Path, default=Path("results/perf"))
    peers.set_defaults(run=lambda given: _late("peers", "compare_peers")(given.backbone, given.rounds, given.out))


def _add_gpu(commands: Any) -> None:
    gpu = commands.add_parser("gpu", help="the first minutes on a card: is it set up right, and how long will a grid take?")
    gpu.add_argument("--minutes", type=float, default=10.0, help="at most; a step that takes too long is ended, and the next one begun")
    gpu.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    gpu.add_argument("--backbone", default="vit_l")
    gpu.add_argument("--out", type=Path, default=Path("results/perf"))
    gpu.add_argument("--results", type=Path, default=Path("results"), help="the results folder, in whose costs/ dry runs look")
    gpu.set_defaults(run=lambda given: _late("gpu", "first_minutes")(given.device, given.backbone, given.minutes, given.out, given.results))


def _cost(given: argparse.Namespace) -> int:
    store = ResultStore(given.out)
    store.check_writable()
    return int(_late("cost", "measure_costs")(choose_methods(given.methods), given.backbone, _device(given), store, given.calls))


def _compare(given: argparse.Namespace) -> int:
    _device(given)
    at_once = given.at_once or (1 if given.device == "cuda" else 2)
    return int(_late("turns", "compare")(given.device, _labels(given), given.rounds, given.minutes, at_once, given.out))


def _kernels(given: argparse.Namespace) -> int:
    _device(given)
    return int(_late("kernels", "compare_kernels")(given.device, given.backbone, given.precision, given.images, given.rounds))


def _samples(of: argparse.Namespace) -> int:
    return int(_late("samples", "compare_samples")(of.side, of.objects, of.threads, _labels(of), of.backbone, of.rounds))


def _labels(given: argparse.Namespace) -> list[str]:
    return [choice.label for choice in choose_methods(given.methods)]


def _device(given: argparse.Namespace) -> str:
    from bench.running.workers import device_of

    return device_of(given.device)


def _late(module: str, name: str) -> Any:
    """What a module of bench.profiling has, which is loaded only now."""
    return getattr(import_module(f"bench.profiling.{module}"), name)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the temporary folder goes, however it ends
    sys.exit(main())
