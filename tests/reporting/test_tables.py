"""Tables: a golden rendering, gaps with their reasons, and what must never be mixed or averaged away."""

import csv as csv_format
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_spec import SETTINGS, SPEC
from test_store import COST, HISTORY, IMAGES, record, save

from bench import ROOT
from bench.errors import RequestError
from bench.grid.published import published_for, read_published
from bench.grid.spec import MethodChoice, RunSpec
from bench.grid.store import Record, ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.labels import Labels
from bench.reporting.table import Cell, Column, Row, Table, csv, markdown
from bench.reporting.tables import tables
from bench.tables import main

CAT_T = MethodChoice("cat_sam_t", (), 1, "")
LORA_8 = MethodChoice("lora", (("decoder", "sam"), ("rank", 8)), 1, "decoder=sam,rank=8")
LORA_HQ = MethodChoice("lora", (("decoder", "hq"), ("rank", 4)), 1, "decoder=hq")
MINE = MethodChoice("mine", (), 1, "")


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def put(store: ResultStore, miou: float, **changes: object) -> RunSpec:
    """Stores a cell that differs from the paper's LoRA on whu by `changes`."""
    spec = replace(SPEC, **changes)  # type: ignore[arg-type]
    save(store, record(spec, miou))
    return spec


def lines(store: ResultStore, like: str = "plain", query: CellQuery | None = None) -> list[dict[str, str]]:
    """The CSV lines of all tables."""
    return [line for table in tables(store, query or CellQuery(), like) for line in csv_format.DictReader(io.StringIO(csv(table)))]


def value(store: ResultStore, row: str, group: str, column: str = "ours", like: str = "paper") -> dict[str, str]:
    """One cell of the one table; `group` is a data set's name, or the average."""
    (found,) = [
        line for line in lines(store, like) if (line["row"], line["dataset"] or line["group"], line["column"]) == (row, group, column)
    ]
    return found


def fill(store: ResultStore) -> None:
    """A grid with everything in it: three seeds, a partial cell, a failure, a pending one and two variants."""
    specs = [put(store, 85.0 + seed, seed=seed) for seed in range(3)]
    specs += [put(store, 78.0, dataset="kvasir", seed=0), replace(SPEC, dataset="kvasir", seed=1)]
    failed = replace(SPEC, dataset="sbu", seed=0)
    store.fail(failed, "The loss became nan at step 3 | last 0.4.")
    specs += [failed, replace(SPEC, method=CAT_T, seed=0)]
    for dataset, miou in (("whu", 80.0), ("kvasir", 70.0), ("sbu", 60.0)):
        specs.append(put(store, miou, dataset=dataset, method=LORA_8, seed=0))
    specs.append(put(store, 50.25, method=MINE, seed=0))
    store.write_grid(specs)


PAPER = r"""### Foreground mIoU (%): ours, published, and Δ = ours - published

backbone vit_l · weights abababab · 1 shot · protocol paper · prompts box · selection best · rule all · decoder sam (of methods without their own)

| method         |   WHU Building ours |   WHU Building published |   WHU Building Δ |      Kvasir-SEG ours |   Kvasir-SEG published |   Kvasir-SEG Δ |   SBU Shadow ours |   SBU Shadow published |   SBU Shadow Δ |      average ours |   average published |   average Δ |
|:---------------|--------------------:|-------------------------:|-----------------:|---------------------:|-----------------------:|---------------:|------------------:|-----------------------:|---------------:|------------------:|--------------------:|------------:|
| LoRA           |    86.0 ± 1.0 (n=3) |                     86.1 |             -0.1 | 78.0 (n=1 of 2) [^1] |                   77.5 |           +0.5 |       failed [^2] |                   74.4 |              - |  lacks SBU Shadow |                79.3 |           - |
| CAT-SAM-T      |             pending |                     86.8 |                - |              not run |                   83.4 |              - |           not run |                   78.0 |              - | lacks 3 data sets |                82.7 |           - |
| mine           |                50.2 |                        - |                - |              not run |                      - |              - |           not run |                      - |              - | lacks 2 data sets |                   - |           - |
| LoRA (rank: 8) |                80.0 |                        - |                - |                 70.0 |                      - |              - |              60.0 |                      - |              - |              70.0 |                   - |           - |

Mean ± standard deviation over the n draws and seeds (one where no n is given); mIoU is pooled over all test pixels.

ONE PICTURE: one-shot training repeats a single augmented sample in every epoch: not the reference's, but one that an earlier version drew (8 of 8 cells).

Trained in evaluation mode, without dropout, after the first evaluation: LoRA, LoRA (rank: 8), mine.

What this table cannot say: how other seeds do (one each: LoRA (rank: 8) on Kvasir-SEG, LoRA (rank: 8) on SBU Shadow, LoRA (rank: 8) on WHU Building, LoRA on Kvasir-SEG and 1 more); how other draws of the shots do (one each); how methods do whose rates were searched for alike (untuned); how they do on images that chose nothing (best of several evaluations of the test images).

Published: CAT-SAM (arXiv 2402.03631), one-shot table; ViT-L, box prompts.

Published for SBU Shadow: the page heads SBU's column BER, but the numbers of SAM and of one shot are IoUs; whether its BER is pooled over all pixels, as here, or a mean over images is not said.

Published beside these, by systems that are not here: SPFS-SAM 53.4 on Kvasir-SEG (20 shots), SAMed 51.7 on Kvasir-SEG (20 shots).

[^1]: seed 1: pending

[^2]: seed 0: failed: The loss became nan at step 3 \| last 0.4.
"""  # noqa: E501

PLAIN = r"""### Foreground mIoU (%)

backbone vit_l · weights abababab · 1 shot · protocol paper · prompts box · selection last · rule all · decoder sam (of methods without their own)

| method         |   family |   trainable |   share % |           Kvasir-SEG |   SBU Shadow |     WHU Building |           average |
|:---------------|---------:|------------:|----------:|---------------------:|-------------:|-----------------:|------------------:|
| LoRA           |     lora |     294,912 |      0.10 | 77.0 (n=1 of 2) [^1] |  failed [^2] | 85.0 ± 1.0 (n=3) |  lacks SBU Shadow |
| LoRA (rank: 8) |     lora |     294,912 |      0.10 |                 69.0 |         59.0 |             79.0 |              69.0 |
| CAT-SAM-T      |   prompt |           - |         - |              not run |      not run |          pending | lacks 3 data sets |
| mine           |        - |     294,912 |      0.10 |              not run |      not run |             49.2 | lacks 2 data sets |

Mean ± standard deviation over the n draws and seeds (one where no n is given); mIoU is pooled over all test pixels.

ONE PICTURE: one-shot training repeats a single augmented sample in every epoch: not the reference's, but one that an earlier version drew (8 of 8 cells).

Trained in evaluation mode, without dropout, after the first evaluation: LoRA, LoRA (rank: 8), mine.

[^1]: seed 1: pending

[^2]: seed 0: failed: The loss became nan at step 3 \| last 0.4.
"""  # noqa: E501


def test_golden_paper_table(store: ResultStore) -> None:
    fill(store)
    assert [markdown(table) for table in tables(store, CellQuery(), "paper")] == [PAPER]


def test_golden_plain_table(store: ResultStore) -> None:
    fill(store)
    assert [markdown(table) for table in tables(store, CellQuery(selection="last"))] == [PLAIN]


def test_csv_is_in_full_precision_a_line_a_cell() -> None:
    table = Table("t", "T", (("shots", "1"),), "method", (Column("whu", "ours"),), (Row("a", (Cell(1 / 3, 0.1, 2, 3, notes=("x", "y")),)),))
    assert csv(table) == (
        "shots,row,group,column,value,spread,n,n_asked,low,high,images,mark,reason,notes,method,dataset\n"
        "1,a,whu,ours,0.3333333333333333,0.1,2,3,,,,,,x; y,,\n"
    )


def test_the_same_cells_give_the_same_bytes(store: ResultStore, tmp_path: Path) -> None:
    fill(store)
    first = [(markdown(table), csv(table)) for table in tables(store, CellQuery(), "paper")]
    assert first == [(markdown(table), csv(table)) for table in tables(ResultStore(store.root), CellQuery(), "paper")]


def test_mean_and_spread_are_over_seeds_and_draws(store: ResultStore) -> None:
    for draw, seed, miou in ((0, 0, 80.0), (0, 1, 82.0), (1, 0, 87.0)):
        put(store, miou, draw=draw, seed=seed)
    cell = value(store, "LoRA", "whu")
    assert (float(cell["value"]), float(cell["spread"]), cell["n"]) == (83.0, pytest.approx(13**0.5), "3")
    assert float(value(store, "LoRA", "whu", "Δ")["value"]) == pytest.approx(-3.1)


def test_average_needs_all_data_sets(store: ResultStore) -> None:
    put(store, 80.0)
    put(store, 70.0, dataset="kvasir")
    assert value(store, "LoRA", "average")["reason"] == "lacks SBU Shadow"
    put(store, 60.0, dataset="sbu")
    assert value(store, "LoRA", "average")["value"] == "70.0"


def test_averages_spread_is_that_of_the_runs_averages(store: ResultStore) -> None:
    for seed, shift in ((0, 0.0), (1, 4.0)):
        for dataset, miou in (("whu", 80.0), ("kvasir", 70.0), ("sbu", 60.0)):
            put(store, miou + shift, dataset=dataset, seed=seed)
    cell = value(store, "LoRA", "average")
    assert (cell["value"], float(cell["spread"]), cell["n"]) == ("72.0", pytest.approx(8**0.5), "2")
    put(store, 60.0, dataset="sbu", seed=2)
    cell = value(store, "LoRA", "average")
    assert (cell["spread"], cell["n"], cell["notes"]) == ("", "", "of data sets with missing runs or with different runs")


def test_nan_never_averages_away(store: ResultStore) -> None:
    put(store, 80.0, seed=0)
    put(store, math.nan, seed=1)
    cell = value(store, "LoRA", "whu")
    assert (cell["value"], cell["reason"], cell["notes"]) == ("", "undefined", "no `best` score under the rule `all`")


@pytest.mark.parametrize(
    "changes",
    [{"protocol": "clean"}, {"backbone": "vit_b"}, {"shots": 16}, {"shots": "full"}, {"checkpoint_sha256": "cd" * 32}],
)
def test_what_differs_never_shares_a_table(store: ResultStore, changes: dict) -> None:
    put(store, 80.0)
    put(store, 40.0, **changes)
    made = tables(store, CellQuery(), "paper")
    assert len({table.name for table in made}) == 2
    assert {table.rows[0].cells[0].value for table in made} == {80.0, 40.0}


def test_flags_choose_among_the_tables(store: ResultStore) -> None:
    put(store, 80.0)
    put(store, 40.0, shots=16, protocol="clean", backbone="vit_b")
    for query in (CellQuery(shots="16"), CellQuery(protocol="clean"), CellQuery(backbone="vit_b")):
        assert {line["shots"] for line in lines(store, query=query)} == {"16"}
    with pytest.raises(RequestError, match="there are: vit_b, clean, 16 shots; vit_l, paper, 1 shot"):
        tables(store, CellQuery(shots="full"))


def test_selection_and_rule_choose_the_score(store: ResultStore) -> None:
    scores = {"best": {"miou_all": 1.0, "miou_with_objects": 2.0}, "last": {"miou_all": 3.0}}
    store.save(Record(SPEC, scores, {}, {}), IMAGES, HISTORY, None)

    def first(query: CellQuery) -> Cell:
        return tables(store, query, "paper")[0].rows[0].cells[0]

    assert first(CellQuery()).value == 1.0
    assert first(CellQuery(rule="with_objects")).value == 2.0
    assert first(CellQuery(selection="last")).value == 3.0
    assert first(CellQuery(selection="val")).reason == "undefined"


def test_cells_of_an_older_revision_or_setting_are_left_out_and_said(store: ResultStore) -> None:
    put(store, 10.0, seed=0)
    put(store, 80.0, seed=1, method=replace(SPEC.method, revision=2))
    (table,) = tables(store, CellQuery(), "paper")
    assert (table.rows[0].cells[0].value, table.rows[0].cells[0].n) == (80.0, 1)
    assert "Left out: cells of an older revision or of other settings under the same names (1)." in table.notes


def test_learning_rates_that_differ_within_a_table_stand_below_it(store: ResultStore) -> None:
    put(store, 80.0)
    put(store, 80.0, method=LORA_8)
    assert not any("Learning rates" in note for like in ("plain", "paper", "shots") for note in tables(store, CellQuery(), like)[0].notes)
    put(store, 81.0, method=LORA_HQ, settings=replace(SETTINGS, lr=1e-2, lr_by_group=(("encoder", 1e-2), ("hq", 3e-3))))
    put(store, 79.0, dataset="sbu", settings=replace(SETTINGS, lr=1e-4))
    note = (
        "Learning rates: 0.0001: LoRA (decoder: sam) on SBU Shadow; 0.001: LoRA (decoder: sam) on WHU Building, "
        "LoRA (decoder: sam, rank: 8); encoder 0.01, hq 0.003: LoRA (decoder: hq)."
    )
    for like in ("plain", "paper", "shots", "efficiency"):
        assert note in tables(store, CellQuery(), like)[0].notes, like


def test_a_method_without_prompts_is_marked_beside_others_that_have_some(store: ResultStore) -> None:
    unprompted = replace(SETTINGS, evaluation_prompt="none", prompt_types=("none",))
    put(store, 60.0, method=LORA_8, settings=unprompted)
    assert not any("no prompt" in text or "PROMPTS" in text for text in said(store, "plain"))  # it stands alone
    put(store, 80.0)
    warning = "WITHOUT PROMPTS: LoRA (rank: 8), no prompt: it finds the objects by itself, and the others are told where they are."
    for like in ("plain", "paper", "shots", "efficiency"):
        assert warning in tables(store, CellQuery(), like)[0].notes, like
    assert "LoRA (rank: 8), no prompt" in said(store, "plain") and "LoRA" in said(store, "plain")


def said(store: ResultStore, like: str) -> list[str]:
    """The headings and notes of the first table."""
    table = tables(store, CellQuery(), like)[0]
    return [*(row.heading for row in table.rows), *table.notes]


def test_a_cell_that_is_asked_for_anew_is_not_filled_with_the_old_number(store: ResultStore) -> None:
    put(store, 10.0)
    store.write_grid([replace(SPEC, settings=replace(SETTINGS, lr=1e-4))])
    assert value(store, "LoRA", "whu")["reason"] == "pending"


def test_published_numbers_are_of_the_papers_method_shots_and_backbone(store: ResultStore) -> None:
    put(store, 80.0, method=LORA_8)
    put(store, 80.0, method=LORA_HQ)
    assert value(store, "LoRA (decoder: sam, rank: 8)", "whu", "published")["value"] == ""
    assert value(store, "LoRA (decoder: hq)", "whu", "published")["value"] == "86.1"
    put(store, 80.0, shots=4, backbone="vit_b")
    (many,) = tables(store, CellQuery(shots="4"), "paper")
    assert many.rows[0].cells[1].value is None
    assert "No numbers were published for 4 shots." in many.notes
    put(store, 80.0, backbone="vit_b")
    (other,) = tables(store, CellQuery(backbone="vit_b", shots="1"), "paper")
    assert other.rows[0].cells[1].value == 86.1 and other.rows[0].cells[2].reason == "other backbone"
    put(store, 80.0, protocol="clean")
    (clean,) = tables(store, CellQuery(protocol="clean"), "paper")
    assert clean.rows[0].cells[2].reason == "other protocol" and clean.rows[0].cells[1].value == 86.1


def test_rows_stand_in_the_papers_order(store: ResultStore) -> None:
    names = [MethodChoice(name, (), 1, "") for name in ("cat_sam_a", "adaptformer", "zzz", "sam", "vpt_deep")]
    for method in (*names, LORA_8, LORA_HQ, SPEC.method):
        put(store, 50.0, method=method)
    (table,) = tables(store, CellQuery(), "paper")
    said = [
        "SAM",
        "VPT-deep",
        "AdaptFormer",
        "LoRA (decoder: hq)",
        "LoRA (decoder: sam)",
        "CAT-SAM-A",
        "zzz",
        "LoRA (decoder: sam, rank: 8)",
    ]
    assert [row.heading for row in table.rows] == said


def test_copies_in_a_second_folder_are_named_in_few_lines(store: ResultStore, tmp_path: Path) -> None:
    for seed in range(6):
        put(store, 80.0, seed=seed)
    shutil.copytree(store.root, tmp_path / "colleague")
    (table,) = tables(ResultStore(store.root, tmp_path / "colleague"), CellQuery())
    notes = [note for note in table.notes if note.startswith("Left out:")]
    assert table.rows[0].cells[2].n == 6 and sum("it is a copy of" in note for note in notes) == 4
    assert notes[4:] == ["Left out: 2 more copies of cells."]


def test_damaged_records_stand_below_the_table(store: ResultStore) -> None:
    put(store, 80.0)
    broken = store.folder(put(store, 70.0, seed=1)) / "record.json"
    broken.write_text("")
    store.write_grid([SPEC, replace(SPEC, seed=1)])
    (table,) = tables(store, CellQuery(), "paper")
    assert any(
        note.startswith("Left out: runs/whu/") and "record.json: its content is not that of a record" in note for note in table.notes
    )
    assert table.rows[0].cells[0].n == 1
    assert table.rows[0].cells[0].notes[0].startswith("seed 1: failed: its record is damaged")


def test_trainable_parameters_that_differ_are_said(store: ResultStore) -> None:
    for dataset, count in (("whu", 10), ("sbu", 20)):
        spec = replace(SPEC, dataset=dataset)
        kept = replace(record(spec), cost={"trainable_parameters": count, "total_parameters": 1000})
        save(store, kept)
    (table,) = tables(store, CellQuery())
    assert [cell.value for cell in table.rows[0].cells[:2]] == [20, 2.0]
    assert table.rows[0].cells[0].notes == ("the largest of its cells, which differ",)


def test_published_averages_are_those_of_the_numbers() -> None:
    published = read_published(ROOT / "results" / "paper" / "one_shot.csv")
    assert published.datasets == ("whu", "kvasir", "sbu")
    for method in published.titles:
        average = sum(published.numbers[method, dataset] for dataset in published.datasets) / 3
        assert published.numbers[method, "average"] == pytest.approx(average, abs=0.06)


def test_the_command_writes_and_prints(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store)
    assert main(["--like", "paper", "--out", str(store.root), "--format", "csv,md"]) == 0
    name = "paper_vit_l_abababab_1shot_paper_best_all"
    assert sorted(path.name for path in (store.root / "tables").iterdir()) == [f"{name}.csv", f"{name}.md"]
    assert (store.root / "tables" / f"{name}.md").read_text() == PAPER
    assert capsys.readouterr().out == PAPER + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No cell is stored or asked for below "),
        (["--format", "md,htm"], "Unknown table format 'htm'. Did you mean html? Known: csv, html, latex, md."),
    ],
)
def test_a_wrong_request_is_one_sentence(store: ResultStore, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["--out", str(store.root), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {said}")
    assert shown.err.count("\n") == 1
    assert not store.root.exists()


def test_generated_domains_have_no_paper_table(store: ResultStore) -> None:
    put(store, 80.0, dataset="synth_polyps")
    with pytest.raises(RequestError, match="No cell is of the data sets whu, kvasir, sbu, which --like paper is about: leave it out"):
        tables(store, CellQuery(), "paper")
    assert [column.group for column in tables(store, CellQuery())[0].columns] == ["", "", ""]


def test_the_papers_table_says_in_one_line_what_it_cannot_say(store: ResultStore) -> None:
    """True to its cells: nothing that three seeds, two draws, a search or another selection have answered."""

    def said(query: CellQuery) -> str:
        (line,) = [note for table in tables(store, query, "paper") for note in table.notes if "cannot say" in note]
        return line

    cost = {**COST, "looks": 200}
    for seed in range(3):
        spec = replace(SPEC, seed=seed)
        save(store, Record(spec, {name: {"miou_all": 80.0} for name in ("best", "last", "val")}, cost, {}))
    assert said(CellQuery()) == (
        "What this table cannot say: how other draws of the shots do (one each); how methods do whose rates were searched for alike "
        "(untuned); how they do on images that chose nothing (best of 100 evaluations of the test images)."
    )
    assert "chose nothing" not in said(CellQuery(selection="last"))
    put(store, 80.0, draw=1, seed=0)
    assert "draw" not in said(CellQuery()) and "seed" not in said(CellQuery())
    put(store, 80.0, dataset="sbu", seed=0)
    assert "how other seeds do (one each: LoRA on SBU Shadow)" in said(CellQuery())


@pytest.mark.parametrize(
    ("labels", "shared"),
    [
        (["sam", "lora(decoder=sam)", "ssf(decoder=sam)", "samed(decoder=tuned)", "sam_adapter(decoder=tuned)"], (("decoder", "sam"),)),
        (["samed(decoder=tuned)", "lora(decoder=tuned)"], (("decoder", "tuned"),)),
        (["samed(decoder=tuned)"], (("decoder", "tuned"),)),
        (["lora(decoder=sam)", "lora(decoder=hq)", "samed(decoder=tuned)"], ()),
        ([*(f"{name}(decoder=sam)" for name in ("lora", "ssf", "dora", "oft")), "lora(decoder=hq)"], (("decoder", "sam"),)),
    ],
)
def test_a_decoder_that_all_share_is_said_once_whatever_a_methods_own_is(labels: list[str], shared: tuple) -> None:
    assert Labels.of(labels, ["whu"], published_for("1"), {}).shared == shared
