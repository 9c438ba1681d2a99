"""The comparison with what users would pick instead compares the same products, or says why there is none."""

import json

import pytest
import torch

from bench.errors import RequestError
from bench.model.backbones import CONFIGS
from bench.perf import main
from bench.profiling.peers import BOXES, OURS, SIDES, check_agreement, row, task_of


def found(user: float, system: float, peak: float) -> dict[str, float]:
    return {"user_seconds": user, "seconds": user + system, "peak_mb": peak}


def test_a_row_is_of_the_rounds_own_ratios_and_says_which_targets_are_reached() -> None:
    pairs = [(found(12.0, 8.0, 12_000), found(10.0, 0.0, 2000)), (found(26.0, 4.0, 12_000), found(20.0, 0.0, 2000))]
    made = row("transformers", "train", [*pairs, (found(9.0, 1.0, 12_000), found(10.0, 0.0, 2000))])
    assert (made["rounds"], made["theirs / ours"], made["with system"], made["reached"]) == (3, 1.2, 1.5, "speed and memory")
    assert row("transformers", "evaluate", pairs)["reached"] == "memory"
    assert row("transformers", "train", [(found(1.0, 0.0, 3000), found(1.0, 0.0, 2000))])["reached"] == "neither"


def test_sides_that_do_not_agree_are_not_compared() -> None:
    said = {(side, work): {"said": [1.0, -2.0]} for side in (OURS, "transformers") for work in BOXES}
    check_agreement(said, ["transformers"])
    with pytest.raises(RequestError, match=r"transformers and this project differ by 1.0e-02 of the largest \(train\)"):
        check_agreement({**said, ("transformers", "train"): {"said": [1.0, -1.98]}}, ["transformers"])
    with pytest.raises(RequestError, match="differ by nan"):
        check_agreement({**said, ("transformers", "train"): {"said": [1.0, float("nan")]}}, ["transformers"])


def test_where_nobody_is_installed_it_says_so(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("bench.profiling.peers.find_spec", lambda name: None)
    assert main(["peers", "--backbone", "tiny", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "transformers is not compared: transformers and peft cannot be imported here" in out and "nobody to compare with" in err
    assert main(["peers", "--rounds", "0"]) == 2 and not list(tmp_path.iterdir())
    monkeypatch.setattr("bench.profiling.peers.find_spec", lambda name: None if name == "transformers" else name)
    assert main(["peers", "--backbone", "tiny", "--out", str(tmp_path)]) == 2  # peft imports transformers
    assert "segment-anything is not compared: transformers cannot be imported here" in capsys.readouterr().out


def test_what_cannot_be_compared_or_written_is_refused_before_anything_is_measured(tmp_path, capsys) -> None:
    assert main(["peers", "--backbone", "tiny_sam2", "--out", str(tmp_path)]) == 2
    assert "--backbone tiny_sam2: the peers are of the first SAM alone" in capsys.readouterr().err
    (closed := tmp_path / "file").touch()
    assert main(["peers", "--backbone", "tiny", "--out", str(closed)]) == 2
    assert f"Cannot write to the output folder {closed}: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("work", ["evaluate", "train"])
def test_all_sides_compute_the_same(work) -> None:
    pytest.importorskip("transformers")
    config = CONFIGS["tiny"]
    said = {side: SIDES[side](config, work, task_of(config, work))() for side in SIDES}
    for side, numbers in said.items():
        assert numbers.shape == said[OURS].shape and numbers.abs().max() > 0.05
        assert torch.allclose(numbers, said[OURS], rtol=1e-4, atol=1e-4 * float(said[OURS].abs().max())), side


@pytest.mark.slow
def test_a_round_becomes_a_table_and_a_file(tmp_path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("bench.profiling.peers.BOXES", {"evaluate": 10})
    assert main(["peers", "--backbone", "tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    written = json.loads(next(tmp_path.glob("*-peers.json")).read_text())
    assert [(one["work"], one["peer"]) for one in written["rows"]] == [("evaluate", "segment-anything"), ("evaluate", "transformers")]
    assert written["about"]["transformers"] and written["about"]["allocator"]["MALLOC_MMAP_MAX_"] == "0"
    text = next(tmp_path.glob("*-peers.md")).read_text()
    assert "theirs / ours" in text and "are Python, the libraries and the weights" in text
    assert all(0 < found["before_mb"] < found["peak_mb"] for turn in written["measurements"] for found in turn.values())
