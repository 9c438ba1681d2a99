"""What training sees, looked at in Python, as a sheet, in a record and below a table; and older cells beside newer ones."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Rectangles, toy_backbone
from test_renderings import COST, HISTORY, put
from test_spec import LORA, SETTINGS, SPEC

import bench
from bench.errors import RequestError
from bench.grid.plan import Request, open_dataset, specs_of
from bench.grid.protocol import load_protocol
from bench.grid.registry import METHODS
from bench.grid.spec import MethodChoice, choose_method
from bench.grid.store import Record, ResultStore, grid_cell
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.tables import tables
from bench.running.cell import Cell
from bench.sheets import main
from bench.training.train import batch_of

NEW = replace(SETTINGS, stream_revision=2)


def of(method="lora", **changes):
    return bench.training_samples(method, "synth_polyps", backbone="tiny", **changes)


def test_samples_are_what_the_steps_are_made_of():
    settings = load_protocol("clean").resolve("lora", "synth_polyps", 16)
    dataset = open_dataset("synth_polyps", Path("data"))
    support = dataset.support(16, 2)
    steps = [batch_of(dataset, support, settings, 5, epoch, batch, 16) for epoch in range(2) for batch in range(4)]
    seen = list(of(shots=16, draw=2, seed=5, protocol="clean", epochs=2))
    assert sorted(sample.name for sample in seen[:16]) == sorted(sample.name for sample in seen[16:]) == list(support)
    for sample, example in zip(seen, chain(*steps), strict=True):
        assert sample.image.dtype == np.uint8 and sample.masks.dtype == bool and sample.masks.shape[1:] == sample.image.shape[:2]
        assert sample.kind in ("point", "box", "mask") if len(sample.masks) else sample.kind == "none"
        assert torch.equal(torch.from_numpy(sample.image).permute(2, 0, 1), example.image)
        assert len(sample.prompts) == len(example.prompts) == len(example.target)


def test_one_shot_training_of_the_paper_is_the_references_one_sample():
    for method, seen in (("cat_sam_a", "both flips, crop of 37.1 %"), ("lora", "both flips, crop of 37.1 %")):
        samples = list(of(method, epochs=3))
        assert [(str(sample.augmentation), sample.kind) for sample in samples] == [(seen, "box")] * 3
        assert all(np.array_equal(samples[0].image, sample.image) for sample in samples)
    assert len({sample.image.tobytes() for sample in of(protocol="clean", epochs=4)}) > 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "sam"}, "sam zero-shot trains nothing"),
        ({"method": "lora,sam"}, "are 2 cells"),
        ({"epochs": 2001}, "1 to 2000 are allowed"),
        ({"shots": 0}, "shots = '0'"),
        ({"seed": 2**32}, f"whole numbers from 0 to {2**32 - 1}"),
        ({"protocol": "papr"}, "Did you mean paper?"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(changes, said):
    with pytest.raises(RequestError) as error:
        of(**changes)
    assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RequestError, match="Unknown backbone 'vit_x'"):
        bench.training_samples("lora", "synth_polyps", backbone="vit_x")


def test_a_record_says_what_its_one_sample_is(tmp_path, smoke):
    paper = replace(load_protocol("paper").resolve("lora", "rectangles", 1), epochs=2, selections=("last",))
    for shots, settings, said in ((1, paper, "both flips, crop of 36.6 %, prompt: box"), (2, paper, None), (1, smoke, None)):
        spec = replace(SPEC, backbone="toy", dataset="rectangles", shots=shots, seed=3407, settings=settings)
        spec = replace(spec, method=choose_method(METHODS.get("lora"), {}))
        record = Cell(spec, toy_backbone(), Rectangles(), tmp_path / str(spec.key), lambda share, doing: None).run({}).record
        assert record.provenance.get("only_training_sample") == said


def test_a_table_says_that_one_shot_training_is_one_picture(tmp_path):
    store = ResultStore(tmp_path)
    for method, sample in (("lora", "both flips, crop of 37.4 %, prompt: box"), ("cat_sam_t", "both flips, no crop, prompt: point")):
        settings = replace(NEW, eval_mode_after_first_look=method == "cat_sam_t")
        spec = replace(SPEC, settings=settings, method=MethodChoice(method, (), 1, ""))
        store.save(Record(spec, {"best": {"miou_all": 1.0}}, COST, {"only_training_sample": sample}), HISTORY, HISTORY, None)
    for like in ("paper", "plain"):
        (table,) = tables(store, CellQuery(), like)
        (note,) = [note for note in table.notes if note.startswith("ONE PICTURE")]
        assert "both flips, crop of 37.4 %, prompt: box (1 of 2 cells)" in note
        assert "both flips, no crop, prompt: point (1 of 2 cells)" in note
        assert "Trained in evaluation mode, without dropout, after the first evaluation: CAT-SAM-T." in table.notes
    put(store, 60.0, shots=16, settings=NEW)
    put(store, 60.0, protocol="clean", settings=replace(NEW, augmentation_stream="fresh", stream_revision=1))
    assert sum(any("ONE PICTURE" in note for note in table.notes) for table in tables(store, CellQuery())) == 1


def test_cells_on_earlier_samples_are_shown_alone_and_never_beside_newer_ones(tmp_path):
    store = ResultStore(tmp_path)
    cat, sam = MethodChoice("cat_sam_t", (), 1, ""), MethodChoice("sam", (), 1, "")
    for method in (LORA, cat):
        put(store, 60.0, method=method)
    (old,) = comparable_cells(store, CellQuery())
    assert old.labels_of(["whu"]) == ["cat_sam_t", "lora(decoder=sam)"]
    assert any("an earlier version drew (2 of 2 cells)" in note for note in old.warnings)
    store.save(Record(replace(SPEC, method=sam), {"best": {"miou_all": 1.0}}, {"steps": 0}, {}), HISTORY, HISTORY, None)
    put(store, 70.0, settings=NEW)
    (board,) = comparable_cells(store, CellQuery())
    assert board.labels_of(["whu"]) == ["lora(decoder=sam)", "sam"] and round(board.scores["lora(decoder=sam)", "whu"][0, 3407]) == 70
    assert any("older revision or of other settings under the same names (2)" in note for note in board.notes)
    assert {SPEC.key, replace(SPEC, settings=NEW).key} <= set(store.records()["key"])
    assert grid_cell(SPEC).recipe == "f4dff0aacd65" != grid_cell(replace(SPEC, settings=NEW)).recipe  # as grid files of before have it


def test_keys_change_where_numbers_do_and_nowhere_else():
    def revisions(protocol, methods):
        request = Request(methods, "whu", "1,16", "0", backbone="vit_l", protocol=protocol)
        return {(spec.method.name, spec.settings.stream_revision) for spec in specs_of(request, "")}

    assert revisions("paper", "lora,sam") == {("lora", 2), ("sam", 1)}
    assert revisions("clean", "lora,sam") == {("lora", 1), ("sam", 1)}
    assert revisions("clean(augmentation_stream=reseeded_workers)", "lora") == {("lora", 2)}
    assert replace(SPEC, settings=NEW).key != SPEC.key


def test_a_sheet_of_training_samples(tmp_path, capsys):
    words = ["--training", "--out", str(tmp_path), "--data", "data"]
    assert main([*words, "--methods", "lora,sam,ssf,cat_sam_t", "--datasets", "synth_polyps", "--shots", "1,16", "--backbone", "tiny"]) == 0
    drawn = capsys.readouterr().out.split()
    assert len(drawn) == 2 and all(Path(path).stat().st_size > 10_000 for path in drawn)
    assert main(words) == 2 and "No cell that is trained is named, or stored" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--methods", "lora"]) == 2
    old = replace(SPEC, dataset="synth_polyps", backbone="tiny")
    for settings in (SETTINGS, NEW):
        put(ResultStore(tmp_path), 60.0, **{**vars(old), "settings": settings})
    assert main(words) == 0
    said = capsys.readouterr()
    assert len(said.out.split()) == 1 and "an earlier version drew its training samples" in said.err
