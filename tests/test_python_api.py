"""`bench.run`, `bench.table` and `bench.figure` as a script uses them that lies in a folder of its own, and `bench.list`."""

import os
import subprocess
import sys

import pytest

import bench
from bench import ROOT
from bench import list as names

SCRIPT = """
import bench, bench.run
from bench.errors import RequestError
SHORT = "smoke(epochs=1,selections=['last'])"
cells = bench.run(["sam", "lora(rank=2|4)"], "kvasir", backbone="tiny", protocol=SHORT, seeds=[0])
assert list(cells["label"]) == ["lora(decoder=sam,rank=2)", "lora(decoder=sam)", "sam"], list(cells["label"])
again = bench.run("sam", "kvasir", backbone="tiny", protocol=SHORT)
assert list(again["label"]) == ["sam"] and again["key"][0] in set(cells["key"])
table = bench.table()
frame = table.frame()
assert list(frame.index) == ["SAM", "LoRA", "LoRA (rank: 2)"], frame
assert frame.loc["SAM", "Kvasir-SEG"] == float(cells.set_index("label").loc["sam", "last.miou_all"])
assert table._repr_markdown_().startswith("### Foreground mIoU")
bench.figure("bars").savefig("bars.png")
for call in (lambda: bench.figure("bras"), lambda: bench.table(shot="1"), lambda: bench.table(rows="method,rank", columns="seed"),
             lambda: bench.run("lorra", "synth_polyps", backbone="tiny"), lambda: bench.table(rows="rank", columns="dataset")):
    try:
        print(call())
    except RequestError as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_a_script_in_any_folder_runs_cells_and_shows_them(tmp_path, polyps):
    (tmp_path / "data").symlink_to(polyps)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "refused: Unknown figure 'bras'. Did you mean bars?" in said and "refused: Unknown option 'shot'. Did you mean shots?" in said
    assert "refused: Unknown method 'lorra'. Did you mean lora" in said
    assert "refused: These are 2 tables: choose one by" in said and (tmp_path / "bars.png").stat().st_size > 1000
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "bars.png", "data", "results"}


@pytest.mark.parametrize("kind", names.KINDS)
def test_every_name_has_a_line(kind, capsys, tmp_path):
    assert names.main([kind, "--data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = {"methods": bench.methods, "datasets": bench.datasets}.get(kind)
    assert lines and all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert known is None or {line.split()[0] for line in lines} >= set(known())
