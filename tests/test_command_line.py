"""What is typed: a list of all commands, and one sentence with the nearest word for what is not known."""

import importlib
import re
import subprocess
import sys

import pytest
from fuzz import commands

from bench import ROOT


def test_what_there_is_to_type_is_listed():
    done = subprocess.run([sys.executable, "-m", "bench"], cwd=ROOT, capture_output=True, text=True)
    named = set(re.findall(r"^  python -m ([\w.]+) {2,}\w", done.stdout, re.MULTILINE))
    assert done.returncode == 0 and named == {*commands()} - {"bench.__main__"}
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("bench.run", "--dryrun", "--dryrun is no flag here. Did you mean --dry-run?"),
        ("bench.run", "--metods=lora", "--metods is no flag here. Did you mean --methods?"),
        ("bench.run", "--methods lora, vpt_deep", "'vpt_deep' is a word too many: names stand together, 'lora,vpt_deep'"),
        ("bench.run", "--launcher slrm", "Unknown launcher 'slrm'. Did you mean slurm? Known: local, slurm."),
        ("bench.run", "--workers two", "Argument --workers: invalid int value: 'two'."),
        ("bench.perf", "store --clls 3", "--clls is no flag here. Did you mean --cells? All flags: python -m bench.perf store --help"),
        ("bench.list", "method", "Unknown kind 'method'. Did you mean methods?"),
        ("bench.tables", "--like comparison", "Unknown kind of table 'comparison'. Did you mean comparisons"),
        ("bench.__main__", "rnu", "Unknown command 'rnu'. Did you mean run?"),
        ("bench.__main__", "run --methods lora", "A command is typed with a point: python -m bench.run --methods lora"),
        ("datasets.synth", "--layout wu --out x", "Unknown layout 'wu'. Did you mean whu?"),
    ],
)
def test_a_word_that_is_not_known_is_one_sentence(command, words, said, capsys):
    try:
        code = importlib.import_module(command).main(words.split())
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr().err
    assert code == 2 and printed.startswith(f"error: {said}") and printed.count("\n") == 1
