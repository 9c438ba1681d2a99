"""What the README says works as it says it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench import ROOT

README = (ROOT / "README.md").read_text()


def test_the_new_method_of_the_readme_is_one_file(tmp_path):
    """In a copy of the project with that one file added, the name is known, trains its own parameters and nothing else."""
    for folder in ("bench", "methods", "datasets", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "golden"))
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    (tmp_path / "methods" / "scaled.py").write_text(code[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance/test_methods.py", "-k", "scaled"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 6  # the suite took it up, with either decoder


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m ([\w.]+)", README)):
        path = ROOT / Path(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in re.findall(r"`((?:configs|tests|datasets|methods|pretrained|bench)/[\w./]+\.\w+)`", README):
        assert (ROOT / path).exists(), path
