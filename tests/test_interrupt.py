"""Ctrl-C while a command loads its modules, or works: one sentence and 130, no traceback."""

import signal
import subprocess
import sys

import pytest

from bench import ROOT

COMMANDS = {
    "bench.run": ("--methods", "sam", "--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--out"),
    "bench.pretrain": ("--config", "configs/pretrain/smoke.toml", "--out", "x.safetensors", "--work"),
    "bench.tables": ("--out",),
    "datasets.prepare": ("verify", "synth_polyps", "--out"),
}


@pytest.mark.parametrize(("command", "module"), [(c, m) for c in COMMANDS for m in ("argparse", "numpy")] + [("bench.run", "torch.nn")])
def test_ctrl_c_while_modules_load(command, module, tmp_path):
    """Python says which module it has just loaded; then comes Ctrl-C."""
    words = [sys.executable, "-X", "importtime", "-m", command, *COMMANDS[command], str(tmp_path / "out")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            process.send_signal(signal.SIGINT)
            break
    said = "".join(line for line in process.stderr if not line.startswith("import time:"))
    code = process.wait(timeout=60)
    assert code in (130, -signal.SIGINT), said  # which a shell calls 130 too: Python's own end where an `eval` was interrupted
    assert said.strip().splitlines()[-1].startswith("Stopped") and "Traceback" not in said
