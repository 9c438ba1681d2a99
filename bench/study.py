"""Studies that choose a protocol: variants of its settings, compared on validation images only.

    python -m bench.study configs/studies/demo_lr.toml --workers 2      # about twenty minutes on two CPU cores

A study's cells are cells like any other, under `results/studies/<name>/`, with the setting `evaluation_split = "val"`; what is
stored is not run again. The comparison goes to `results/studies/<name>.md` and `.csv`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from bench.errors import STOPPED, RequestError, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.plan import REQUEST, Request, text_of
from bench.grid.plugins import add_option
from bench.grid.protocol import CHANGES, load_protocol
from bench.grid.spreadsheet import spreadsheet
from bench.grid.store import ResultStore
from bench.grid.toml_reader import Kinds, not_empty, part, read_toml
from bench.running.grid import Options, run_grid

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """A request and the variants of its protocol's settings."""

    name: str
    summary: str
    request: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...]


VARIANT = Annotated[Mapping[str, Any], CHANGES]
FILE: Kinds = {**REQUEST, "summary": str, "variant": Annotated[tuple[VARIANT, ...], not_empty]}


def read_study(path: Path) -> Study:
    """A study's file; RequestError for a wrong key or value."""
    content = read_toml(path)
    values = part(str(path), content, FILE)
    if "protocol" not in values or "variant" not in values:
        raise RequestError(f"{path}: a study needs a protocol and at least one [[variant]].")
    request = {key: text_of(values[key]) for key in values if key in REQUEST}
    return Study(path.stem, values.get("summary", ""), request, tuple(content["variant"]))  # as written: it is part of the cells' keys


def run_study(study: Study, out: Path, workers: int) -> int:
    """Runs the study's cells and writes its comparison; the worst exit code of its runs."""
    cells = ResultStore(out / study.name)
    codes = []
    for variant in study.variants:
        print(f"{study.name}: {_words(variant)}")
        request = Request(**{**study.request, "protocol": _call(study.request["protocol"], variant)})
        codes.append(run_grid(request, Options(out=cells.root, workers=workers)))
        if codes[-1] == STOPPED:
            return STOPPED
    table = compare(study, cells)
    text = table.to_markdown(index=False, floatfmt=".1f", missingval="-")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{study.name}.md").write_text(f"# {study.summary}\n\nForeground mIoU (%) on validation images, mean over seeds.\n\n{text}\n")
    (out / f"{study.name}.csv").write_bytes(spreadsheet(table, "%.3f"))
    print(f"\n{text}\n\nWritten to {out}/{study.name}.md")
    return max(codes)


def compare(study: Study, cells: ResultStore) -> "pd.DataFrame":
    """A row a variant and data set (and their mean), a column a method: the mean validation mIoU over the seeds."""
    import pandas as pd

    records = cells.records()
    rows = []
    for variant in study.variants:
        protocol = load_protocol(study.request["protocol"], {**variant, "evaluation_split": "val"}).name
        scores = records[records["protocol"] == protocol].pivot_table("last.miou_all", "dataset", "label")
        scores.loc["mean"] = scores.mean()
        rows += [{"variant": _words(variant), "data set": dataset, **scores.loc[dataset]} for dataset in scores.index]
    return pd.DataFrame(rows)


def _call(protocol: str, variant: Mapping[str, Any]) -> str:
    values = {**variant, "evaluation_split": "val"}
    return f"{protocol}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def _words(variant: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {text_of(value)}" for key, value in variant.items())


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit codes of `bench.run`."""
    parser = command_parser("bench.study", __doc__)
    parser.add_argument("file", type=Path, help="a study, configs/studies/….toml")
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    parser.add_argument("--workers", type=int, default=1, help="processes side by side, one thread each")
    add_option(parser)
    given = parser.parse_args(arguments)
    return run_study(read_study(given.file), given.out, given.workers)


if __name__ == "__main__":
    sys.exit(main())
