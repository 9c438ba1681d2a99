"""The demo: the paper's methods on three generated domains, one shot, on the tiny SAM that lies in the repository; minutes on a CPU.

    python -m bench.demo          # what `make demo` runs; a second time it finishes in seconds

It needs no data, no checkpoint and no GPU.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from bench.errors import RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plan import Request, protocol_of
from bench.grid.store import RECORD, ResultStore, Scan, own_weights
from bench.running.grid import Options, run_grid

SUITE = ROOT / "configs" / "suites" / "demo.toml"
NEXT = """
What next
  everything else  make tables                   (intervals, comparisons, LaTeX, figures and results/report/index.html)
  your own run     python -m bench.run --methods lora --datasets synth_polyps --backbone tiny --protocol "demo(tuned=demo)" --seeds 0:5
  real data        datasets/README.md: three archives and one SAM checkpoint by hand
  the paper        make bench SHOTS=1            (vit_l; on a machine with a GPU it is used by itself)
"""


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit codes of `bench.run`."""
    parser = command_parser("bench.demo", __doc__)
    add_common(parser, "out")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes, one thread each")
    given = parser.parse_args(arguments)
    return run_demo(Request().with_suite(SUITE), given.out, given.workers)


def run_demo(request: Request, out: Path, workers: int) -> int:
    """Runs the suite, prints its table, draws its pictures and says what to do next."""
    print("Every method sees one labelled image of each of three generated domains; a frozen tiny SAM is the backbone.")
    print(f"Results go to {out}/runs. Stop at any time: the same command goes on from there.\n")
    code = run_grid(request, Options(out=out, workers=workers, device="cpu"))
    if code not in (0, 1):
        return code
    print()
    from bench.reporting.comparable import CellQuery  # not before there is something to show
    from bench.reporting.tables import print_and_write, tables

    try:
        query = CellQuery(backbone=request.backbone, protocol=protocol_of(request.protocol).name)
        print_and_write(tables(ResultStore(out), query), ("md", "csv"), out / "tables")
    except RequestError as error:  # every cell failed: the exit code says so
        print(f"error: {error}", file=sys.stderr)
    pictures = draw_pictures(ResultStore(out), request)
    print("Pictures of the predictions: " + ", ".join(map(str, pictures)))
    print(NEXT)
    return code


def draw_pictures(store: ResultStore, request: Request) -> list[Path]:
    """A sheet of predictions for each data set of the request, from the cells of the first seed; drawn only if out of date."""
    scan = store.scan()
    sheets = {name: store.root / "figures" / f"predictions_{name}.png" for name in request.datasets.split(",")}
    stale = {name: path for name, path in sheets.items() if not _is_newer(path, _cells(scan, name, request))}
    if stale:
        import torch

        torch.set_num_threads(1)  # of a few small images several would wait for each other, on a busy machine for most of a minute
        from bench.grid.registry import DATASETS
        from bench.model.checkpoints import load_sam
        from bench.reporting.pictures import prediction_sheet

        sam = load_sam(request.backbone)
        for name, path in stale.items():
            if cells := _cells(scan, name, request):
                prediction_sheet(cells, DATASETS.get(name).open(Path("data")), sam, path)  # type: ignore[attr-defined]
    return [path for path in sheets.values() if path.exists()]


def _cells(scan: Scan, dataset: str, request: Request) -> dict[str, Path]:
    """Column title -> folder of the stored cells of a data set under the request's protocol, first seed, in the tables' order."""
    from bench.grid.published import ordered, published_for
    from bench.reporting.labels import Labels

    if scan.table.empty:
        return {}
    table, protocol = own_weights(scan.table), protocol_of(request.protocol).name
    table = table[(table["dataset"] == dataset) & (table["protocol"] == protocol) & (table["backbone"] == request.backbone)]
    table = table[table["seed"] == table["seed"].min()]
    folders = dict(zip(table["label"], map(Path, table["path"]), strict=True))
    naming = Labels.of(folders, [dataset], published_for("1"), {})
    return {naming.method(label): folders[label] for label in ordered(folders, naming.published)}


def _is_newer(sheet: Path, cells: dict[str, Path]) -> bool:
    records = [folder / RECORD for folder in cells.values()]
    return sheet.exists() and all(sheet.stat().st_mtime >= record.stat().st_mtime for record in records)


if __name__ == "__main__":
    sys.exit(main())
