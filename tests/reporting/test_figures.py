"""Figures: each is drawn where its cells are, the same bytes twice, and the front and the ranks are what they say."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.transforms import Bbox
from test_renderings import CAT, SAM, put
from test_spec import SPEC
from test_store import record, save

from bench.figures import main
from bench.grid.published import titles
from bench.grid.spec import MethodChoice
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.figures import pareto, pictures
from bench.reporting.style import COLUMN, GREY, METADATA, PAGE, looks, rendered


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_a_front_has_only_what_no_other_beats() -> None:
    assert pareto([(3, 70), (1, 60), (2, 50), (3, 65), (4, 70)]) == [(1, 60), (3, 70)]
    assert pareto([]) == []


def test_every_figure_is_written_in_three_formats_and_twice_the_same(store: ResultStore) -> None:
    for method in (SAM, CAT):
        for dataset in ("whu", "sbu"):
            put(store, 70.0 + len(method.name), dataset=dataset, method=method)
    put(store, 90.0, shots=16, method=CAT)
    for method in (SAM, CAT):
        store.keep_cost(method, "vit_l", "a machine", {"images_per_second": 2.0, "peak_memory_mb": 700.0})
    assert main(["--out", str(store.root)]) == 0
    first = {path.name: path.read_bytes() for path in (store.root / "figures").iterdir()}
    kinds = {name.partition("_")[0] for name in first}
    assert kinds == {"bars", "parameters", "memory", "time", "curves", "images", "ranks", "shots"}
    assert {name.rpartition(".")[2] for name in first} == set(METADATA)
    for picture in pictures(store, CellQuery()):
        if picture.name.startswith(("bars_vit_l_abababab_1shot", "images")):
            figure = picture.draw()
            assert {form: first[f"{picture.name}.{form}"] for form in METADATA} == {form: rendered(figure, form) for form in METADATA}


def apart(boxes: Sequence[Bbox]) -> bool:
    """Whether no box covers a part of another, but for a point and a half: lines of text have room for what few letters have."""
    return not any(Bbox.intersection(a, b.padded(-4)) for a, b in combinations(boxes, 2))


@pytest.mark.slow
def test_no_text_is_cut_or_covered_with_thirty_methods(store: ResultStore) -> None:
    names = [f"a_method_{i:02}" for i in range(29)]
    methods = [MethodChoice(name, (), 1, "rank=8,alpha=16.0" if i % 9 == 8 else "") for i, name in enumerate(names)]
    for shots in (1, 16):
        for i, method in enumerate((SAM, *methods)):
            put(store, 50.0 + i, method=method, shots=shots)
            if shots == 1:
                put(store, 40.0 + i, method=method, dataset="kvasir")
    found = pictures(store, CellQuery())
    assert len({picture.name for picture in found}) == len(found)
    for picture in found:
        figure = picture.draw()
        rendered(figure, "png")  # texts are where this puts them
        renderer = figure.canvas.get_renderer()
        inside, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        assert inside.x0 > -0.02 and inside.y0 > -0.02 and inside.x1 < width + 0.02 and inside.y1 < height + 0.02, picture.name
        assert width == pytest.approx(COLUMN) or width == pytest.approx(PAGE)
        for ax in figure.axes:
            assert apart([label.get_window_extent(renderer) for label in ax.get_yticklabels() if label.get_text()]), picture.name
            for axis, side in ((ax.xaxis, "y"), (ax.yaxis, "x")):  # its label is beyond its numbers
                numbers = [getattr(text.get_window_extent(renderer), f"{side}0") for text in axis.get_ticklabels() if text.get_text()]
                assert not axis.get_label_text() or getattr(axis.label.get_window_extent(renderer), f"{side}1") < min(numbers), picture.name
        assert apart([ax.title.get_window_extent(renderer) for ax in figure.axes if ax.get_title()]), picture.name
        for legend in figure.legends:
            assert apart([text.get_window_extent(renderer) for text in legend.get_texts()]), picture.name
    (ranks,) = [
        picture.draw() for picture in found if picture.name.startswith("ranks") and "1shot" in picture.name and "16shot" not in picture.name
    ]
    assert "exceeds the scale" in ranks.axes[0].get_xlabel()  # two data sets tell thirty methods not apart


def test_curves_are_means_of_runs_within_their_range(store: ResultStore) -> None:
    for seed, scale in ((0, 1.0), (1, 3.0)):
        folder = store.folder(put(store, 70.0, seed=seed))
        rows = [f"{step},{scale * (1 + 1 / step)}" for step in range(1, 201)]
        (folder / "history.csv").write_text("\n".join(["step,loss", *rows]))
    (picture,) = [picture for picture in pictures(store, CellQuery()) if picture.name.startswith("curves")]
    (ax,) = picture.draw().axes
    (line,), (band,) = ax.lines, ax.collections
    assert len(line.get_xdata()) == 100 and line.get_ydata()[-1] == pytest.approx(2.0, abs=0.02)
    ends = band.get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == (pytest.approx(1.0, abs=0.01), pytest.approx(6.0, abs=0.01))
    for path in store.root.glob("runs/*/*/*/history.csv"):
        path.unlink()
    assert not [picture for picture in pictures(store, CellQuery()) if picture.name.startswith("curves")]


def test_what_has_no_cells_is_not_drawn(store: ResultStore) -> None:
    put(store, 70.0)  # the memory that its record tells is the whole worker's
    assert {picture.name.partition("_")[0] for picture in pictures(store, CellQuery())} == {"bars", "parameters", "time", "curves"}


def test_an_empty_store_is_one_sentence(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(store.root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_family_has_a_colour_and_a_member_a_marker() -> None:
    names = ["sam", "lora(decoder=sam)", "dora(decoder=sam)", "lora(decoder=hq)", "mona(decoder=sam)", "a_plugin"]
    look = looks(names)
    assert look["sam"].colour == look["a_plugin"].colour == GREY and look["sam"].marker != look["a_plugin"].marker
    blue = {look[name].colour for name in names[1:4]}
    assert len(blue) == 1 and len({look[name].marker for name in names[1:4]}) == 3 and look["mona(decoder=sam)"].colour not in {*blue, GREY}
    assert len({look.colour for look in looks([f"lora(rank={rank})" for rank in range(8)]).values()}) == 8  # one family: one each
    many = looks([*(f"lora(rank={rank})" for rank in range(24)), "mona"])
    assert len(set(many.values())) == 25


def test_names_stand_beside_the_points_of_one_data_set(store: ResultStore) -> None:
    names = ["sam", "lora", "dora", "ssf", "ia3", "conv_lora", "mona", "adaptformer", "evp", "vpt_deep", "hq_sam", "bitfit"]
    for i, name in enumerate(names):
        spec = replace(SPEC, method=MethodChoice(name, (), 1, "", trains=name != "sam"))
        made = record(spec, 60.0 + i % 4 * 0.2)
        save(store, replace(made, cost={**made.cost, "trainable_parameters": 0 if name == "sam" else 40_000 + 2_000 * i}))
    (picture,) = [picture for picture in pictures(store, CellQuery()) if picture.name.startswith("parameters")]
    figure = picture.draw()
    rendered(figure, "png")
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts]
    assert {text.get_text() for text in ax.texts} == {titles()[name] for name in names[1:]} and apart(boxes)
    assert all(ax.get_window_extent().contains(*box.min) and ax.get_window_extent().contains(*box.max) for box in boxes)
    headings = [text.get_text() for text in figure.legends[0].get_texts() if text.get_fontweight() == "bold"]
    assert headings == ["lora", "adapter", "prompt", "decoder", "selective"] and ax.get_xscale() == "log"
    assert "SAM" in {text.get_text() for text in figure.legends[0].get_texts()}  # the line of what costs nothing
