"""The benchmark of speed says no more than it measured."""

import json
from dataclasses import replace

import pytest
import torch

from bench.perf import main
from bench.profiling.kernels import compare_kernels
from bench.profiling.model import Operations, cpu_jobs
from bench.profiling.turns import affordable, compare, summary, verdict

PAIR = cpu_jobs(["cat_sam_t"])[0]


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1.6], "1 turn, too few to tell"),
        ([1.5, 1.6], "within the spread"),  # two turns alone: a difference must be six times theirs
        ([1.59, 1.6], "gain"),
        ([1.5, 1.6, 1.7], "gain"),
        ([1.2, 1.3, 1.4], "gain"),
        ([1.0, 1.2, 1.3], "within the spread"),
        ([0.8, 1.0, 1.2], "within the spread"),
        ([0.6, 0.65, 0.7], "loss"),
    ],
)
def test_nothing_is_a_gain_that_is_smaller_than_the_spread(ratios, said):
    assert verdict(ratios) == said


def test_a_row_is_of_the_turns_own_ratios_and_the_best_product_rate():
    def found(seconds, user, peak):
        return {"seconds": seconds, "user_seconds": user, "peak_mb": peak, "tflop": 2.0, "gemm_tflops": 0.1}

    measured = [(found(10.0, 9.0, 1024), found(20.0, 12.0, 4096)), (found(11.0, 9.0, 1024), found(33.0, 12.0, 4096))]
    row = summary(PAIR, [*measured, ({"failed": "no memory"}, found(1.0, 1.0, 1))], {"fp32": 0.2})
    assert (row["turns"], row["ratio"], row["range"], row["user only"]) == (2, 2.5, "2.00–3.00", 1.33)
    assert (row["reference s"], row["reference MFU %"], row["fast MFU %"]) == (26.5, 38, 95)
    assert summary(PAIR, [({"failed": "no memory"}, {"failed": "no memory"})], {})["verdict"] == "failed: no memory"


def test_later_turns_end_in_time():
    evaluate, train = cpu_jobs(["cat_sam_t"])
    cost = {evaluate: 20.0, train: 100.0}
    assert affordable(cost, float("inf"), 2) == [evaluate, train]
    assert affordable(cost, 60.0, 2) == [evaluate]
    assert affordable(cost, 10.0, 2) == []


def test_operations_are_counted():
    x, weight, image, kernel = torch.ones(3, 5), torch.ones(7, 5), torch.ones(1, 2, 8, 8), torch.ones(4, 2, 3, 3)
    with Operations() as counted, torch.no_grad():
        torch.nn.functional.linear(x, weight)
        torch.bmm(x.expand(6, -1, -1), x.mT.expand(6, -1, -1))
        torch.nn.functional.conv2d(image, kernel, padding=1)
        (x * 2).exp()
    assert counted.flop == 2 * (3 * 5 * 7 + 6 * 3 * 5 * 3 + 4 * 2 * 9 * 64)


@pytest.mark.slow
def test_measurements_become_a_table_and_a_file(tmp_path, monkeypatch, capsys):
    pair = tuple(replace(job, backbone="tiny", boxes=2) for job in cpu_jobs(["hq_sam"])[0])
    monkeypatch.setattr("bench.profiling.turns.cpu_jobs", lambda methods: [pair])
    assert compare("cpu", ["hq_sam"], 1, 5.0, 2, tmp_path) == 0
    written = json.loads(next(tmp_path.glob("*.json")).read_text())
    (row,) = written["rows"]
    assert row["verdict"] == "1 turn, too few to tell" and row["reference GiB"] > 0 and row["fast s"] > 0
    assert written["measurements"][0]["reference"]["tflop"] > 0.001
    assert written["about"]["allocator"]["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_=0" in capsys.readouterr().out and next(tmp_path.glob("*.md")).read_text().count("\n") == 5


def test_what_was_measured_that_day_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.profiling.turns.measured_in_subprocess", lambda job: {"failed": "no memory"})
    for count in (1, 2, 3):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert compare("cpu", ["hq_sam"], 1, 5.0, 2, tmp_path) == 1
        assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.md"))) == count
        assert all((tmp_path / name).read_bytes() == content for name, content in before.items())


def test_a_method_that_trains_nothing_is_evaluated_only():
    assert [(fast.method, fast.work) for fast, _ in cpu_jobs(["sam", "lora(rank=8)"])] == [
        ("sam", "evaluate"),
        ("lora(rank=8)", "evaluate"),
        ("lora(rank=8)", "train"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model --methods cat_sam", "Unknown method 'cat_sam'."),
        ("model --methods lora(rank=0)", "rank = 0"),
        ("model --rounds 0", "--rounds 0: whole numbers from 1 are allowed."),
        ("model --minutes 0", "--minutes 0: numbers above 0 are allowed."),
        ("model --at-once 0", "--at-once 0: whole numbers from 1 are allowed."),
        ("kernels --images 0", "--images 0: whole numbers from 1 are allowed."),
        ("store --cells 0", "--cells 0: whole numbers from 1 are allowed."),
        *[(f"{what} --device cuda", "Device cuda was asked for, but torch finds no GPU here") for what in ("model", "kernels")],
        ("samples --side 5", "--side 5: 200 objects apart from each other need 30 pixels or more."),
        ("samples --methods sam", "--methods sam: it trains nothing, and steps are what is compared."),
    ],
)
def test_a_wrong_request_is_one_sentence_and_measures_nothing(words, said, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_every_kernel_and_product_is_timed_and_agrees(capsys):
    """Kernels on two kinds of block, products on four layers, each without gradients and with them; one of each is the chosen one."""
    assert compare_kernels("cpu", "tiny", "fp32", 1, 1) == 0
    table = capsys.readouterr().out
    assert (
        table.count("| chunked") == table.count("| folded") == table.count("| whole") == 4
        and table.count("| torch") == table.count("| onednn") == 8
    )
    assert table.count("| yes") == 12 and "| flex" not in table
    found = [float(row.split("|")[6]) for row in table.splitlines() if "forward" in row]
    assert len(found) == 28 and max(found) < 1e-4
