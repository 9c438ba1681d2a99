"""Methods and data sets of third parties: installed packages with entry points, and plugin files; real distributions and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ROOT
from bench.cluster.snapshot import take_snapshot
from bench.errors import RequestError
from bench.grid.catalogue import catalogue
from bench.grid.plan import choose_methods
from bench.grid.plugins import VARIABLE, plugin_files, use_plugin
from bench.grid.registry import METHODS, Registry
from bench.run import main

METHOD = '''
"""A learned scale of the patch embedding."""
from dataclasses import dataclass
import torch
from bench.model.decoder import Decoder
from bench.model.method import Method
from bench.grid.registry import METHODS
from bench.model.sam import Tuner

class Scale(Tuner):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def step(self, i, block, x, carry):
        return super().step(i, block, x + self.scale if i == 0 else x, carry)

@METHODS.register("NAME")
@dataclass(frozen=True)
class Scaled(Method):
    """x + s."""
    title, source, family = "Scaled", "a test", "scales"

    def build(self, sam):
        return Scale(), Decoder()
'''
DATASET = '''
import numpy as np
from bench.grid.registry import DATASETS
from bench.types import Dataset, ObjectRule, Sample

@DATASETS.register("NAME")
class Stripes(Dataset):
    """Five images of one rectangle."""
    title, rule, val_images = "Stripes", ObjectRule(), 1

    @classmethod
    def open(cls, data):
        return cls()

    def names(self, split):
        return {"train": ("a", "b", "c"), "val": ("c",), "test": ("d", "e")}[split]

    def load(self, split, name):
        mask = np.zeros((48, 48), np.uint8)
        mask[10:30, 5:40] = 1
        return Sample(name, np.dstack([mask * 200] * 3), mask)
'''


def write(path: Path, text: str, name: str = "outside") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("NAME", name))
    return path


def python(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(cwd), environment.pop("PYTHONPATH", "")]))
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path, **environment}
    )


def install(site: Path, methods: dict[str, str], datasets: dict[str, str]) -> None:
    """A distribution as an installer leaves it."""
    groups = {"sam_peft_bench.methods": methods, "sam_peft_bench.datasets": datasets}
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    write(site / "acme_sam-0.3.dist-info" / "entry_points.txt", "\n".join(lines))
    write(site / "acme_sam-0.3.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: acme-sam\nVersion: 0.3\n")


def test_an_installed_packages_entry_points_are_found_and_a_broken_one_harms_nobody(tmp_path):
    write(tmp_path / "acme" / "__init__.py", "")
    write(tmp_path / "acme" / "scale.py", METHOD, "acme_scale")
    write(tmp_path / "acme" / "stripes.py", DATASET, "acme_stripes")
    write(tmp_path / "acme_broken.py", METHOD + "\nimport no_such_library\n", "half")
    write(tmp_path / "acme_greedy.py", METHOD, "lora")
    write(tmp_path / "acme_idle.py", "")
    methods = {"scale": "acme.scale:Scaled", "broken": "acme_broken", "greedy": "acme_greedy", "idle": "acme_idle"}
    install(tmp_path, methods, {"stripes": "acme.stripes"})
    code = """
from bench.errors import RequestError
from bench.grid.registry import DATASETS, METHODS, third_party
assert DATASETS.names()[-1] == "acme_stripes" and METHODS.names()[-1] == "acme_scale", METHODS.names()
assert METHODS.get("lora").__module__ == "methods.lora" and "half" not in METHODS.names()
print(third_party("acme_scale", "acme_stripes"), third_party("sam", "whu"))
try:
    METHODS.get("half")
except RequestError as error:
    print(error)
"""
    done = python("-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found, missed = done.stdout.splitlines()
    assert found == "{'method': 'acme-sam 0.3', 'dataset': 'acme-sam 0.3'} {}"
    assert missed.startswith("Unknown method 'half'.") and "No module named 'no_such_library'" in missed
    warnings = done.stderr.splitlines()
    assert len(warnings) == 3 and all(line.startswith("warning: The entry point ") for line in warnings)
    said = (
        "warning: The entry point broken = acme_broken of acme-sam 0.3 is left out: ModuleNotFoundError: No module named 'no_such_library'."
    )
    assert said in warnings
    assert "The method name 'lora' is taken by methods.lora.LoRA; acme_greedy.Scaled needs another." in done.stderr
    assert "acme_idle of acme-sam 0.3 is left out: it registers no method." in done.stderr


def test_cells_of_a_plugin_run_and_their_record_names_its_file(tmp_path, plugins_leave, capsys):
    plugins = [write(tmp_path / "mine.py", METHOD, "mine"), write(tmp_path / "data" / "mine.py", DATASET, "stripes")]
    flags = [word for path in plugins for word in ("--plugin", path)]
    grid = ["--methods", "mine", "--datasets", "stripes", "--backbone", "tiny", "--protocol", "smoke", "--out", tmp_path / "out"]
    run = ["-m", "bench.run", *map(str, (*flags, *grid)), "--seeds", "0,1"]
    done = python(*run)
    assert done.returncode == 0 and "2 stored" in done.stdout, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("record.json")]
    digests = [subprocess.check_output(["sha256sum", path], text=True).split()[0] for path in plugins]
    expected = {"method": f"mine.py, sha256 {digests[0]}", "dataset": f"mine.py, sha256 {digests[1]}"}
    assert [record["provenance"]["third_party"] for record in records] == [expected] * 2
    plugins[0].write_text(plugins[0].read_text() + "# better now\n")
    assert main(run[2:]) == 0
    said = capsys.readouterr().out
    assert "Stored by other code of mine (mine.py, sha256 " in said and ": 2 of these cells" in said and "of stripes" not in said


def test_a_jobs_snapshot_holds_the_plugins_and_edits_do_not_reach_it(tmp_path, plugins_leave):
    plain = take_snapshot(tmp_path / "snapshots")
    mine = write(tmp_path / "mine.py", DATASET, "as_sent")
    use_plugin(mine)
    taken = take_snapshot(tmp_path / "snapshots")
    assert taken != plain and take_snapshot(tmp_path / "snapshots") == taken
    write(mine, DATASET, "as_edited")
    assert take_snapshot(tmp_path / "snapshots") != taken
    names = "from bench.grid.registry import DATASETS; print(DATASETS.names()[-1], DATASETS.origin(DATASETS.names()[-1])[:15])"
    assert python("-c", names, cwd=taken).stdout == "as_sent mine.py, sha256\n"  # though the variable names the edited file
    assert python("-c", names).stdout == "as_edited mine.py, sha256\n"


def test_the_catalogue_notices_that_a_plugin_was_edited(tmp_path, monkeypatch):
    mine = write(tmp_path / "mine.py", METHOD, "mine")
    monkeypatch.setenv(VARIABLE, str(mine))

    def found():  # by a family of its own
        return [(choice.name, choice.revision) for choice in catalogue("@scales", tmp_path / "cache").choices]

    assert found() == found() == [("mine", 1)]
    mine.write_text(mine.read_text().replace("title, source", "revision = 2\n    title, source"))
    assert found() == [("mine", 2)]
    assert len(list((tmp_path / "cache" / "methods").iterdir())) == 2
    mine.write_text(mine.read_text().replace('"scales"', "None"))
    with pytest.raises(RequestError, match="Unknown family of methods '@scales'"):
        catalogue("@scales", tmp_path / "cache")


WRONG = {
    "syntax": ("x = (", r"bad.py cannot be loaded: SyntaxError in line 1: "),
    "import": ("\n\nimport no_such_library", r"ModuleNotFoundError in line 3: No module named 'no_such_library'\."),
    "own error": ("def f():\n    raise ValueError('two\\nlines.')\nf()", r"ValueError in line 2: two\."),
    "a taken name": (METHOD.replace("NAME", "lora"), r"'lora' is taken by methods\.lora\.LoRA; /.*bad.py's Scaled needs another\."),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_plugin_that_cannot_be_loaded_is_one_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(write(tmp_path / "bad.py", WRONG[kind][0])))
    with pytest.raises(RequestError, match=WRONG[kind][1]) as error:
        METHODS.names()
    assert "\n" not in str(error.value)
    monkeypatch.setenv(VARIABLE, "")
    assert METHODS.get("lora").__module__ == "methods.lora"


def test_an_error_in_a_method_is_told_with_file_and_line(tmp_path, plugins_leave, capfd):
    """At its making, and in a cell, where what nobody foresaw is printed in full besides, once for both cells."""
    late = write(tmp_path / "late.py", METHOD.replace("x + self.scale", "x + self.scale + no_name"), "late")
    early = write(tmp_path / "early.py", METHOD + "\n    def __post_init__(self):\n        no_name\n", "early")
    use_plugin(early)
    with pytest.raises(
        RequestError, match=rf"The method early cannot be made: NameError in {early}, line 28: name 'no_name' is not defined"
    ):
        choose_methods("early")
    grid = ["--datasets", "synth_polyps", "--backbone", "tiny", "--protocol", "smoke", "--seeds", "0,1"]
    assert main(["--plugin", str(late), "--methods", "late", *grid, "--out", str(tmp_path / "out")]) == 1
    out, error = capfd.readouterr()
    assert out.count(f"seed 1: NameError in {late}, line 16: name 'no_name' is not defined.") == 1
    assert error.count("Traceback") == 1


def test_a_broken_file_of_the_projects_own_is_one_sentence(tmp_path, monkeypatch):
    write(tmp_path / "own_methods" / "__init__.py", "")
    bad = write(tmp_path / "own_methods" / "bad.py", "\nno_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("method", "own_methods", "nobodys.group")
    for _ in range(2):
        with pytest.raises(RequestError, match=rf"{bad} cannot be loaded: NameError in line 2: name 'no_name' is not defined\."):
            registry.names()
    bad.write_text("")
    assert registry.names() == []


def test_plugins_are_named_by_whole_paths_once_each(tmp_path, monkeypatch):
    first, second = write(tmp_path / "a.py", ""), write(tmp_path / "b.py", "")
    monkeypatch.setenv(VARIABLE, str(first))
    monkeypatch.chdir(tmp_path)
    use_plugin(Path("b.py"))
    use_plugin(first)
    assert plugin_files() == [second, first]
    for wrong in (tmp_path / "none.py", tmp_path):
        with pytest.raises(RequestError, match="is no Python file"):
            use_plugin(wrong)
    monkeypatch.setenv(VARIABLE, "a.py")
    with pytest.raises(RequestError, match=r"names a\.py: whole paths are needed"):
        plugin_files()
