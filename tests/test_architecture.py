"""The rules of the house that a machine can check."""

import ast
import os
import subprocess
import sys

import pytest

from bench import ROOT

# A package may import from itself and from the packages of the lines below it. What stands beside it on its line, it may not.
ORDER = [
    ["commands"],
    ["predicting"],
    ["pretraining", "profiling", "conformance", "exporting", "reporting", "cluster", "tuning"],
    ["running"],
    ["training"],
    ["methods"],
    ["model"],
    ["datasets"],
    ["data"],
    ["grid"],
    ["types", "errors"],
]
LEVEL = {package: level for level, line in enumerate(ORDER) for package in line}
ONLY = {"methods": {"model", "grid", "types", "errors"}, "datasets": {"data", "grid", "types", "errors"}}
USERS = {"methods": set(), "datasets": {"pretraining"}, "pretraining": {"commands"}}  # who may import it; registries load by name


def modules():
    for folder in ("bench", "methods", "datasets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def package_of(module):
    """The package that a module belongs to; a module directly in `bench` is a command, or one of the two that all share."""
    first, *rest = module.split(".")
    if first != "bench" or not rest:
        return first
    return rest[0] if rest[0] in LEVEL else "commands"


def imports(tree):
    """The project's modules that a syntax tree imports, those for type checking only left out."""
    hidden = {
        part for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" for part in node.body
    }
    for node in (one for one in ast.walk(tree) if one not in hidden):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("bench", "methods", "datasets"):
            names = [f"bench.{name.name}" for name in node.names if name.name != "ROOT"]
            yield from names if node.module == "bench" else [node.module]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith(("bench.", "methods.", "datasets.")))


def broken(module, imported):
    """The sentence that says why `module` may not import `imported`; "" where it may."""
    mine, theirs = package_of(module), package_of(imported)
    if mine == theirs == "commands":
        return f"{module} imports {imported}: a command imports no other command; what both need belongs into a package."
    if mine == theirs:
        return ""
    if mine in ONLY and theirs not in ONLY[mine]:
        return f"{module} imports {imported}: {mine}/ knows only {', '.join(sorted(ONLY[mine]))}."
    if theirs in USERS and mine not in USERS[theirs]:
        return f"{module} imports {imported}: only {' and '.join(USERS[theirs]) or 'its registry'} may."
    if LEVEL[mine] >= LEVEL[theirs] and {mine, theirs} != {"types", "errors"}:
        return f"{module} imports {imported}: {theirs} is not below {mine}."
    return ""


def test_imports_go_down():
    every = [(module, imported) for module, path in modules() if module != "bench" for imported in imports(ast.parse(path.read_text()))]
    found = [sentence for module, imported in every if (sentence := broken(module, imported))]
    assert len(every) > 500 and not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "line", "why"),
    [
        ("bench.report", "from bench.tables import tables", "a command imports no other command"),
        ("bench.report", "from bench import tables", "a command imports no other command"),
        ("bench.model.sam", "from bench.training.train import fit", "training is not below model"),
        ("bench.model.sam", "def f():\n    from methods.lora import LoRA", "only its registry may"),
        ("bench.cluster.send", "import bench.reporting.table", "reporting is not below cluster"),
        ("methods.lora", "from datasets.whu import Whu", "methods/ knows only"),
        ("datasets.own", "from bench.model.sam import Sam", "datasets/ knows only"),
        ("bench.grid.plan", "from datasets.own import register_own", "only pretraining may"),
        ("bench.running.cell", "from bench.pretraining.card import write", "only commands may"),
    ],
)
def test_an_import_that_goes_up_is_named(module, line, why):
    (imported,) = imports(ast.parse(line))
    assert broken(module, imported).startswith(f"{module} imports {imported}: ") and why in broken(module, imported)


def test_what_a_user_types_and_nothing_else_lies_at_the_door():
    """Directly in `bench`: commands of at most some 150 lines, and what all rooms share."""
    at_the_door = sorted((ROOT / "bench").glob("*.*"))
    assert all(path.suffix == ".py" or path.name == "README.md" for path in at_the_door)
    commands = [path for path in at_the_door if path.suffix == ".py" and path.stem not in ("__init__", "types", "errors")]
    assert all("def main(" in path.read_text() for path in commands)
    assert {path.name: n for path in commands if (n := len(path.read_text().splitlines())) > 150} == {}


def test_no_branch_on_the_name_of_a_method_or_data_set():
    """The project's own, without those that other tests register."""
    code = "import bench; print(*bench.methods(), *bench.datasets())"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(said.split())
    assert {"lora", "whu"} < names
    for _, path in (one for one in modules() if one[0].startswith("bench")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                compared = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                assert not compared & names, f"{path}:{node.lineno}: where it is another word, as in shots == FULL, give it a name"


def test_planning_and_tables_import_no_torch():
    modules = "bench.grid.spec, bench.grid.protocol, bench.grid.plan, bench.grid.store, bench.tables, bench.grid.provenance"
    code = f"import sys, bench, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "False"


def test_help_of_every_command_comes_at_once():
    """Half a second is Python, numpy and the registry; any of these would double it. It shows a call and has room in 80 columns."""
    code = """
import contextlib, importlib, io, pathlib, sys
for path in sorted(pathlib.Path("bench").glob("*.py")):
    if path.stem not in ("__init__", "types", "errors"):
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
            importlib.import_module(f"bench.{path.stem}").main(["--help"])
        heavy = [name for name in ("torch", "pandas", "scipy", "matplotlib", "cv2", "jinja2") if name in sys.modules]
        lines = said.getvalue().splitlines()
        assert "--help" in said.getvalue() and not heavy, (path.stem, heavy)
        assert any(line.startswith(f"    python -m bench.{path.stem}".removesuffix(".__main__")) for line in lines), path
        assert max(map(len, lines)) <= 80, (path.stem, max(lines, key=len))
"""
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_of_tables_names_every_kind_and_format():
    from bench.reporting.formats import FORMATS
    from bench.reporting.tables import KINDS

    words = subprocess.run([sys.executable, "-m", "bench.tables", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {name for name in (*KINDS, *FORMATS) if name not in words} == set()


def test_another_package_named_datasets_is_noticed(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import bench"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "another package named `datasets`" in done.stderr


def test_functions_and_files_are_short():
    lengths, files = [], []
    for _, path in modules():
        files.append(len(path.read_text().splitlines()))
        lengths += [n.end_lineno - n.lineno + 1 for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    lengths.sort()
    files.sort()
    assert lengths[len(lengths) // 2] <= 8 and lengths[int(len(lengths) * 0.9)] <= 20
    assert files[len(files) // 2] <= 150 and files[int(len(files) * 0.9)] <= 330


@pytest.mark.xdist_group("together")
def test_the_groups_of_workers_are_kept(request: pytest.FixtureRequest) -> None:
    """With some versions of pytest the mark has no effect, and every worker makes what a group shares, a SLURM cluster too."""
    assert request.node.nodeid.endswith("@together") or not getattr(request.config.option, "loadgroup", False)
