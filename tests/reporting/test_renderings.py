"""Tables with evidence: intervals, marks, published numbers inside or outside, the four renderings, and pivots."""

import math
import re
import shutil
import subprocess
from csv import reader
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_spec import LORA, SPEC
from test_store import HISTORY

from bench.errors import RequestError
from bench.grid.metrics import ImageRow, Images
from bench.grid.metrics import scores as scores_of
from bench.grid.rows import COUNTS
from bench.grid.spec import MethodChoice, RunSpec
from bench.grid.spreadsheet import spreadsheet
from bench.grid.store import Record, ResultStore, record_bytes
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.figures import heat_maps
from bench.reporting.formats import FORMATS, html, latex
from bench.reporting.pivot import Pivot, _values, _without
from bench.reporting.table import Cell, Column, Row, Table, csv, markdown, number
from bench.reporting.table_statistics import read_rows, table_statistics
from bench.reporting.tables import pivoted, tables
from bench.tables import main

CAT = MethodChoice("cat_sam_t", (), 1, "")
SAM = MethodChoice("sam", (), 1, "")
COST = {"trainable_parameters": 1000, "total_parameters": 10_000, "tuned_bytes": 4000, "training_seconds": 50.0}
COST |= {"evaluation_seconds": 4.0, "steps": 100, "looks": 2, "test_images": 40, "peak_memory_mb": 512.0}

BEST = Cell(86.04, 1.06, 3, 3, low=84.0, high=88.0, images=9, mark="best")
SMALL = Table(
    "small",
    "A & B_1",
    (("shots", "1"),),
    "method",
    (Column("whu", "ours"), Column("whu", "Δ", signed=True), Column("sbu", "ours", about=(("dataset", "sbu"),))),
    (
        Row("LoRA (rank: 8)", (BEST, Cell(-0.12), Cell(reason="failed", notes=("x < 1",))), (("method", "lora"), ("method", "b"))),
        Row("SAM", (Cell(43.5, mark="second"), Cell(), Cell(1.0, notes=("x < 1",)))),
    ),
    ("Said below.",),
)

LATEX = r"""\begin{table*}
\centering\footnotesize\setlength{\tabcolsep}{4pt}
\caption{A \& B\_1. 1 shot.}
\label{tab:small}
\par\smallskip
\begin{tabular}{lrrr}
\toprule
 & \multicolumn{2}{c}{whu} & \multicolumn{1}{c}{sbu} \\
\cmidrule(lr){2-3}\cmidrule(lr){4-4}
method & ours & $\Delta$ & ours \\
\midrule
LoRA (rank: 8) & \textbf{86.0 $\pm$ 1.1} & $-$0.1 & failed$^{\dagger1}$ \\
 & {\scriptsize [84.0, 88.0] ($n$=3)} &  &  \\
SAM & \underline{43.5} & - & 1.0$^{\dagger1}$ \\
\bottomrule
\end{tabular}
\par\smallskip
\begin{minipage}{\textwidth}\scriptsize\raggedright
Said below.\par
$^{\dagger1}$~x \textless{} 1.
\end{minipage}
\end{table*}
"""

HTML = """<figure class="table" id="small" data-shots="1">
<div class="scroll"><table><caption><span>A &amp; B_1<br><small>1 shot</small></span></caption>
<thead><tr><th scope="col">method</th><th scope="col">whu ours</th><th scope="col">whu Δ</th>\
<th scope="col" data-dataset="sbu">sbu ours</th></tr></thead>
<tbody>
<tr data-method="lora|b"><th scope="row">LoRA (rank: 8)</th>\
<td data-value="86.04"><strong>86.0 ± 1.1</strong><small> [84.0, 88.0] (n=3)</small></td>\
<td data-value="-0.12"><span>-0.1</span><small></small></td>\
<td class="gap" data-dataset="sbu">failed<sup><a href="#small-1" aria-label="note 1">1</a></sup></td></tr>
<tr><th scope="row">SAM</th><td data-value="43.5"><u>43.5</u><small></small></td><td class="gap">-</td>\
<td data-value="1.0" data-dataset="sbu"><span>1.0</span><small></small><sup><a href="#small-1" aria-label="note 1">1</a></sup></td></tr>
</tbody></table></div>
<figcaption class="notes"><p>Said below.</p><ol><li id="small-1">x &lt; 1</li></ol></figcaption>
</figure>
"""


def put(store: ResultStore, level: float, images: int = 40, empty: int = 0, noise: float = 0.5, **changes: object) -> RunSpec:
    """Stores a cell whose images, the last `empty` without objects, have about this IoU; the first image varies by method."""
    spec = replace(SPEC, **changes)  # type: ignore[arg-type]
    hardness = np.random.default_rng(1).normal(0, 4, images)
    iou = level + hardness + np.random.default_rng(int(spec.key, 16)).normal(0, noise, images)
    rows = []
    for i, value in enumerate(iou):
        objects = int(i < images - empty)
        both = round(10 * value) if objects else 0
        counts = {"objects": objects, "intersection": both, "union": 1000, "truth": 1000 * objects, "predicted": 1000}
        rows += [{"selection": rule, "name": f"{i:03}", **counts, "iou": both / 10, "dice": 0.0} for rule in ("best", "last")]
    table = pd.DataFrame(rows)
    images = [ImageRow(row["name"], *(row[name] for name in COUNTS)) for row in rows if row["selection"] == "best"]
    scores = {name: value for name, value in scores_of(Images.of(images)).items() if name.startswith("miou_")}
    store.save(Record(spec, {"best": scores, "last": scores}, COST, {"device_name": "a machine"}), table, HISTORY, None)
    return spec


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_golden_latex_and_html() -> None:
    assert latex(SMALL) == LATEX
    assert html(SMALL) == HTML


class Read(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += [tag, *(name for name, _ in attrs)]
        self.texts += [value for _, value in attrs if value is not None]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def marked(value: Any) -> Any:
    """The same with markup behind every text but a mark."""
    if isinstance(value, str):
        return value if value in ("", "best", "second") else f"{value}\"'><script>&amp;"
    if isinstance(value, tuple):
        return tuple(map(marked, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: marked(getattr(value, field.name)) for field in fields(value)})
    return value


def test_no_text_of_a_table_is_markup() -> None:
    plain = replace(SMALL, context=(), rows=tuple(replace(row, about=()) for row in SMALL.rows))  # their names become attributes' names
    plain = replace(plain, columns=tuple(replace(column, about=()) for column in plain.columns))
    hostile, read = marked(plain), Read(html(marked(plain)))
    assert "script" not in read.tags and read.tags == Read(html(plain)).tags
    for text in (hostile.title, hostile.corner, *hostile.notes, hostile.rows[0].heading, hostile.rows[0].cells[2].reason):
        assert text in "".join(read.texts)
    about = replace(SMALL, rows=(replace(SMALL.rows[0], about=(("method", "a\"'><script>"),)),))
    assert "a\"'><script>" in Read(html(about)).texts


def test_markdown_and_csv_carry_interval_and_mark() -> None:
    assert "**86.0 ± 1.1** [84.0, 88.0] (n=3)" in markdown(SMALL)
    assert "<u>43.5</u>" in markdown(SMALL)
    assert "1,LoRA (rank: 8),whu,ours,86.04,1.06,3,3,84.0,88.0,9,best,,,lora|b,\n" in csv(SMALL)


WIDE = replace(
    SMALL,
    name="wide",
    context=tuple((name, "long " * 20) for name in ("protocol", "weights", "prompts", "rule")),
    columns=tuple(Column(f"Data set {i} (generated)", name) for i in range(6) for name in ("ours", "published", "Δ", "in 95 %")),
    rows=tuple(Row(f"Method {k} (rank: {k})", (BEST, *(Cell(-0.12),) * 2, Cell(reason="inside")) * 6) for k in range(30)),
)


def test_long_and_wide_tables_are_parted_in_latex() -> None:
    for table in (WIDE, replace(SMALL, rows=SMALL.rows * 50)):
        parts = latex(table).split("\\begin{table*}")[1:]
        assert len({line for part in parts for line in part.splitlines() if "\\label" in line}) == len(parts)
        assert all(len(re.findall(r"\\\\$", part, re.MULTILINE)) <= 46 for part in parts)  # lines of a page
        assert max(len(spec) for spec in re.findall(r"\{tabular\}\{(l?r+)\}", latex(table))) <= 12
        assert all(len(of) <= 300 for of in re.findall(r"\\caption\{(.*)\}", latex(table)))
        assert latex(table).count("86.0 $\\pm$ 1.1") == sum(cell == BEST for row in table.rows for cell in row.cells)
    groups = [re.findall(r"c\}\{(Data set \d)", of) for of in latex(WIDE).split("\\toprule")[1:]]
    assert sorted({name for of in groups for name in of}) == [f"Data set {i}" for i in range(6)]  # a data set is never cut in two


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_within_the_text(tmp_path: Path) -> None:
    """With booktabs alone, and nothing sticks out."""
    made = "".join(map(latex, (SMALL, WIDE, replace(SMALL, name="long", rows=SMALL.rows * 50))))
    (tmp_path / "t.tex").write_text("\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + made + "\\end{document}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout and "too large" not in done.stdout, done.stdout[-2000:]


def fill(store: ResultStore, gap: float) -> None:
    for seed in range(3):
        put(store, 86.0, seed=seed)
        put(store, 86.0 - gap, seed=seed, method=CAT)
        put(store, 60.0, seed=seed, method=SAM)


def marks(store: ResultStore) -> dict[str, str]:
    (table,) = tables(store, CellQuery())
    return {row.heading: row.cells[2].mark for row in table.rows}


def test_best_is_bold_only_where_the_difference_is_outside_the_noise(store: ResultStore) -> None:
    fill(store, 6.0)
    assert marks(store) == {"SAM": "", "LoRA": "best", "CAT-SAM-T": "second"}


def test_nothing_is_second_without_a_first_that_is_ahead_of_it(store: ResultStore) -> None:
    fill(store, 0.02)  # both far ahead of SAM, and not told apart
    assert set(marks(store).values()) == {""}


def test_the_best_is_ahead_of_all_and_not_of_the_next_alone(store: ResultStore) -> None:
    fill(store, 6.0)
    put(store, 50.0, method=MethodChoice("mine", (), 1, ""), seed=0)  # one run, which tells nothing
    assert set(marks(store).values()) == {""}


def test_one_run_marks_and_tests_nothing_and_says_so(store: ResultStore) -> None:
    for method, level in ((LORA, 90.0), (CAT, 60.0), (SAM, 30.0)):
        put(store, level, seed=0, method=method)
    (table,) = tables(store, CellQuery())
    assert set(marks(store).values()) == {""} and table.rows[0].cells[2].low is not None
    said = " ".join(table.notes)
    assert "95 % interval over test images of this one run alone." in said and "One run cannot tell methods apart" in said
    (compared,) = tables(store, CellQuery(), "comparisons")
    assert {row.heading: row.cells[1].reason for row in compared.rows} == {
        "LoRA": "",
        "CAT-SAM-T": "one run",
        "SAM": "one run",
    }


def test_a_table_says_over_what_its_intervals_generalise(store: ResultStore) -> None:
    fill(store, 6.0)
    assert "In brackets: 95 % interval over seeds and test images, for this one draw of the shots." in tables(store, CellQuery())[0].notes
    for seed in range(3):
        put(store, 86.0, seed=seed, draw=1)
    said = " ".join(tables(store, CellQuery())[0].notes)
    assert "; of LoRA over draws of the shots, each with its seeds, and test images." in said


def test_few_test_images_are_said_and_too_few_are_a_reason(store: ResultStore) -> None:
    for seed in range(3):
        put(store, 80.0, images=12, seed=seed)
    assert any(
        note.startswith("Fewer than 20 test images") and note.endswith("WHU Building has 12.")
        for note in tables(store, CellQuery())[0].notes
    )
    put(store, 80.0, images=3, empty=2, method=CAT)
    table = pd.read_csv(store.folder(replace(SPEC, method=CAT)) / "images.csv", converters={"name": str})
    table.loc[table["objects"] == 0, ["intersection", "union"]] = 0  # one image decides all: no other resample has a union
    images = [ImageRow(*row) for row in table.loc[table["selection"] == "best", ["name", *COUNTS]].itertuples(index=False)]
    scores = {name: value for name, value in scores_of(Images.of(images)).items() if name.startswith("miou_")}
    kept = replace(store.read(replace(SPEC, method=CAT)), scores={"best": scores, "last": scores})
    table.to_csv(store.folder(kept.spec) / "images.csv", index=False)
    (store.folder(kept.spec) / "record.json").write_bytes(record_bytes(kept))
    said = [note for note in tables(store, CellQuery())[0].notes if note.startswith("No interval")]
    assert said == [
        "No interval: CAT-SAM-T on WHU Building: fewer than two of its test images have pixels in prediction or truth, or of a class."
    ]


UNTRAINED = {"trainable_parameters": 0, "total_parameters": 10_000}


def put_untrained(store: ResultStore, **changes: object) -> None:
    """Stores SAM as it is, which trains nothing: all its cells have one number."""
    spec = put(store, 60.0, noise=0.0, method=SAM, **changes)
    path = store.folder(spec) / "record.json"
    path.write_bytes(record_bytes(replace(store.read(spec), cost={**COST, **UNTRAINED})))


def test_what_trains_nothing_is_one_number_of_images_alone(store: ResultStore) -> None:
    for draw, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        put_untrained(store, draw=draw, seed=seed)
        put(store, 86.0, draw=draw, seed=seed)
        put(store, 86.0, draw=draw, seed=seed, shots=16)
    few, many = tables(store, CellQuery())
    for table in (few, many):  # once in each, also where it was stored for other shots
        sam = table.rows[0].cells[2]
        assert (table.rows[0].heading, sam.std, sam.n, sam.of, sam.notes) == ("SAM", None, 1, 1, ())
        assert sam.low is not None and sam.high is not None and sam.low < 60 < sam.high
        assert table.rows[1].cells[2].mark == "best"
        assert not any("One run" in note for note in table.notes)
    assert [dict(table.context)["shots"] for table in (few, many)] == ["1", "16"]


def test_what_trains_nothing_alone_is_one_table(store: ResultStore) -> None:
    put_untrained(store, shots=1)
    put_untrained(store, shots=16)
    (table,) = tables(store, CellQuery())
    assert [row.cells[2].n for row in table.rows] == [1]


def test_the_papers_table_says_whether_the_published_number_is_inside(store: ResultStore) -> None:
    for seed in range(3):
        put(store, 86.1, seed=seed)  # published: 86.1
        put(store, 70.0, seed=seed, method=CAT)  # published: 86.8
    (table,) = tables(store, CellQuery(), "paper")
    said = {row.heading: (row.cells[0].n, row.cells[0].images, row.cells[3].reason) for row in table.rows}
    assert said == {"LoRA": (3, 40, "inside"), "CAT-SAM-T": (3, 40, "above ours")}


def compared(store: ResultStore, against: str) -> dict[str, tuple[Cell, ...]]:
    (table,) = tables(store, CellQuery(against=against), "comparisons")
    return {row.heading: row.cells for row in table.rows}


def test_methods_are_compared_with_the_best_with_a_control_or_in_pairs(store: ResultStore) -> None:
    fill(store, 6.0)
    best, control, pairs = (compared(store, against) for against in ("best", "sam", "pairs"))
    assert best["LoRA"][0].reason == "best" and sorted(control) == ["CAT-SAM-T", "LoRA"]
    assert sorted(pairs) == ["CAT-SAM-T - LoRA", "CAT-SAM-T - SAM", "LoRA - SAM"]
    for delta, p, d in (best["CAT-SAM-T"], pairs["CAT-SAM-T - LoRA"]):
        assert delta.value == pytest.approx(-6.0, abs=0.5)
        assert delta.low is not None and delta.high is not None and delta.low < delta.value < delta.high < 0
        assert p.value is not None and p.value < 0.01 and d.value is not None and d.value < -1
        assert (delta.n, delta.images) == (3, 40)
    assert control["CAT-SAM-T"][0].value == pytest.approx(20, abs=1)
    with pytest.raises(RequestError, match="Unknown method to compare with 'samm'"):
        compared(store, "samm")


@pytest.mark.parametrize("gap", [0.0, 0.35, 1.0])
def test_an_interval_excludes_zero_exactly_where_its_p_is_small(store: ResultStore, gap: float) -> None:
    for i in range(4):
        for seed in range(3):
            put(store, 80.0 - gap * i, seed=seed, method=MethodChoice(f"m{i}", (), 1, ""))
    found = [cells for against in ("best", "pairs") for cells in compared(store, against).values() if cells[1].value is not None]
    assert len(found) == 3 + 6
    for delta, p, _ in found:
        assert delta.low is not None and delta.high is not None and p.value is not None
        assert (delta.low > 0 or delta.high < 0) == (p.value < 0.05)


def images_of(folder: Path, rule: str) -> dict[str, tuple[int, int]]:
    """image -> its intersection and union, as a table counts them."""
    images, pixels = read_rows(folder, "best", rule) or ([], [])
    return {name: (int(both), int(either)) for name, (both, either) in zip(images, pixels, strict=True)}


def test_rules_count_images_as_the_metric_does(store: ResultStore) -> None:
    folder = store.folder(put(store, 80.0, empty=10))
    assert {rule: len(images_of(folder, rule)) for rule in ("all", "with_objects", "empty_as_empty")} == {
        "all": 40,
        "with_objects": 30,
        "empty_as_empty": 40,
    }
    rows = images_of(folder, "empty_as_empty")
    assert rows["039"] == (0, 0)
    assert images_of(folder, "all")["039"] == (0, 1000)


def test_cells_without_rows_by_image_have_no_interval(store: ResultStore) -> None:
    fill(store, 6.0)
    (store.folder(replace(SPEC, seed=1)) / "images.csv").write_text("selection,name\n")
    (comparable,) = comparable_cells(store, CellQuery())
    known = table_statistics(comparable, ["whu"], averaged=False)
    assert sorted(label for label, _ in known.counts) == ["cat_sam_t", "sam"]
    assert known.interval(LORA.label, "whu") is None
    (table,) = tables(store, CellQuery())
    assert any(note.startswith("No interval: LoRA on WHU Building: the rows by image of whu/lora,") for note in table.notes)


def test_efficiency_is_of_all_cells(store: ResultStore) -> None:
    fill(store, 6.0)
    (table,) = tables(store, CellQuery(), "efficiency")
    values = dict(zip([column.name for column in table.columns], [cell.value for cell in table.rows[0].cells], strict=True))
    assert values == {
        "trainable": 1000,
        "share %": 10.0,
        "adapter MB": 0.004,
        "s/step": None,  # measured apart from the cells: tests/profiling/test_cost.py
        "peak memory MB": None,
        "test images/s": None,
        "device hours, all cells": pytest.approx(3 * 54 / 3600),
    }


def test_pivots_join_shots_and_part_what_they_do_not_show(store: ResultStore) -> None:
    put(store, 80.0)
    put(store, 90.0, shots=16)
    put(store, 50.0, protocol="clean")
    made = tables(store, CellQuery(), "shots")
    assert [dict(table.context)["protocol"] for table in made] == ["clean", "paper"]
    assert [(column.group, column.name) for column in made[1].columns] == [("WHU Building", "1 shot"), ("WHU Building", "16 shots")]
    assert [round(cell.value or 0) for cell in made[1].rows[0].cells] == [80, 90]


def test_pivots_of_miou_have_the_intervals_of_the_tables(store: ResultStore) -> None:
    fill(store, 6.0)
    (plain,), (shots,) = tables(store, CellQuery()), tables(store, CellQuery(), "shots")
    assert [row.cells[2].low for row in plain.rows] == [row.cells[0].low for row in shots.rows]
    assert shots.rows[0].cells[0].low is not None and shots.rows[0].cells[0].images == 40
    assert any(note.startswith("In brackets") for note in shots.notes)
    (steps,) = pivoted(store, CellQuery(), Pivot.of("method", "dataset", "cost.steps"))
    assert steps.rows[0].cells[0].low is None and not any(note.startswith("In brackets") for note in steps.notes)


def test_pivots_may_show_seeds_apart(store: ResultStore) -> None:
    for seed in (10, 9):
        put(store, 50.0 + seed, seed=seed)
    (table,) = pivoted(store, CellQuery(), Pivot.of("seed", "dataset", "miou"))
    assert [(row.heading, round(row.cells[0].value or 0), row.cells[0].n) for row in table.rows] == [("9", 59, 1), ("10", 60, 1)]


def test_what_a_sweep_changed_is_a_field_and_no_part_of_a_name(store: ResultStore) -> None:
    """Rank by learning rate, as numbers in order; of what has no rank there is a row of its own; a run that lacks says so."""
    for rank, lr in ((16, 1e-3), (2, 1e-3), (2, 1e-4)):
        choice = replace(LORA, parameters=(("decoder", "sam"), ("rank", rank)), shown=f"decoder=sam,rank={rank}")
        put(store, 50.0 + rank, method=choice, protocol=f"clean(lr={lr})", settings=replace(SPEC.settings, lr=lr))
    missing = replace(SPEC, method=choice, protocol="clean(lr=0.01)", settings=replace(SPEC.settings, lr=0.01))
    store.write_grid([missing])
    put(store, 40.0, method=SAM, protocol="clean(lr=0.001)", settings=replace(SPEC.settings, lr=1e-3))
    (table,) = pivoted(store, CellQuery(), Pivot.of("method,rank", "lr", "miou"))
    assert dict(table.context)["protocol"] == "clean"
    assert [column.name for column in table.columns] == ["0.0001", "0.001", "0.01"]
    shown = {row.heading: [cell.reason or round(cell.value or 0) for cell in row.cells] for row in table.rows}
    assert shown == {
        "SAM / -": ["not run", 40, "not run"],
        "LoRA / 2": [52, 52, "pending"],
        "LoRA / 16": ["not run", 66, "not run"],
    }
    assert _without("clean(lr=0.1,selections=last+val)", ["lr"]) == "clean(selections=last+val)"  # a list, as names have it
    assert _values("clean(lr=decoder:0.1+encoder:1e-05)") == {"lr": "decoder:0.1+encoder:1e-05"}
    (picture,) = heat_maps(store, CellQuery(), Pivot.of("method,rank", "lr", "miou"))
    figure = picture.draw()
    (ax,) = figure.axes
    assert sorted(round(float(text.get_text())) for text in ax.texts) == [40, 52, 52, 66]
    with pytest.raises(RequestError, match=r"Unknown field 'rnk'\. Did you mean rank\?"):
        pivoted(store, CellQuery(), Pivot.of("rnk", "lr", "miou"))


def test_pivots_keep_gaps_and_nan(store: ResultStore) -> None:
    missing = replace(SPEC, method=CAT)
    store.write_grid([put(store, 80.0, seed=1), missing])
    store.fail(missing, "It broke.")
    (table,) = tables(store, CellQuery(), "selections")
    cells = {row.heading: row.cells for row in table.rows}
    assert cells["CAT-SAM-T"][-1].reason in ("failed", "not run")
    (table,) = tables(store, CellQuery(), "shots")
    assert [row.heading for row in table.rows] == ["LoRA", "CAT-SAM-T"]  # as published
    assert table.rows[1].cells[0].reason == "failed"
    store.save(Record(replace(SPEC, seed=2), {"best": {"miou_all": math.nan}}, COST, {}), pd.DataFrame(), HISTORY, None)
    (table,) = tables(store, CellQuery(), "shots")
    assert table.rows[0].cells[0].reason == "undefined"


@pytest.mark.parametrize(
    ("rows", "columns", "metric", "said"),
    [
        ("methods", "dataset", "miou", "Unknown field 'methods'. Did you mean method"),
        ("method", "method", "miou", "each named once"),
        ("method", "", "miou", "at least one field"),
        ("method", "dataset", "speed", "No record has 'speed'"),
        ("method", "dataset", "key", "is not a number"),
    ],
)
def test_a_wrong_pivot_is_one_sentence(store: ResultStore, rows: str, columns: str, metric: str, said: str) -> None:
    put(store, 80.0)
    with pytest.raises(RequestError, match=said):
        pivoted(store, CellQuery(), Pivot.of(rows, columns, metric))


def test_the_command_pivots_into_all_formats_the_same_bytes_twice(store: ResultStore) -> None:
    fill(store, 6.0)
    command = [
        "--rows",
        "method",
        "--columns",
        "dataset",
        "--metric",
        "cost.steps",
        "--out",
        str(store.root),
        "--format",
        ",".join(FORMATS),
    ]
    assert main(command) == 0
    first = {path.name: path.read_bytes() for path in (store.root / "tables").iterdir()}
    assert sorted(name.rpartition(".")[2] for name in first) == ["csv", "html", "md", "tex"]
    assert main(command) == 0
    assert first == {path.name: path.read_bytes() for path in (store.root / "tables").iterdir()}


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-1+1",
        "@SUM(A1)",
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
    ],
)
def test_no_text_is_run_by_a_spreadsheet_or_a_page(text: str) -> None:
    cells = (Cell(reason=text, notes=(f"{text} [x]: javascript:alert(1)",)), Cell(-1.5))
    table = Table("a", text, ((text, text),), text, (Column(text, text), Column("", "b")), (Row(text, cells),), (text,))
    fields = [field for line in reader(csv(table).splitlines()) for field in line]
    assert "-1.5" in fields and not [field for field in fields if re.match(r"[=+@\t\r-].", field) and field != "-1.5"]
    page = markdown(table)
    assert not re.search(r"<[A-Za-z/!?]|\]\(|\]\[|[^1]\]:", page)
    assert "<script" not in html(table) and "<img" not in html(table)


def test_a_frame_as_csv_keeps_numbers_and_names() -> None:
    frame = pd.DataFrame({"name": ["=x", "-", "-1.5", "007", None], "=head": [1, -2, 3, 4, 5]})
    assert spreadsheet(frame).decode() == "name,'=head\n'=x,1\n-,-2\n-1.5,3\n007,4\n,5\n"


def test_a_protocol_with_many_changes_has_a_file_name(store: ResultStore) -> None:
    """The protocol is part of a table's name, which file systems limit."""
    put(store, 70.0, protocol=f"smoke({','.join(f'setting_{i}=0.001' for i in range(30))})")
    assert main(["--out", str(store.root)]) == 0
    (path,) = (store.root / "tables").glob("*.md")
    assert len(path.name.encode()) < 255


def test_what_is_not_nothing_is_not_shown_as_nothing() -> None:
    p, share = Column("", "p", digits=4), Column("", "share %", digits=2)
    shown = [number(Cell(value), column) for value, column in ((3e-6, p), (6e-5, p), (0.0, share), (0.0007, share), (0.008, share))]
    assert shown == ["<0.0001", "0.0001", "0.00", "<0.01", "0.01"]
    assert "$<$0.0001" in latex(Table("t", "T", (), "", (p,), (Row("a", (Cell(3e-6),)),)))
