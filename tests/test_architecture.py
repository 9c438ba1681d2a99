"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room may import from itself and from the rooms after it. Commands stand first; nothing imports them.
ROOMS = [
    ["bench.demo", "bench.perf", "bench.pretrain", "bench.study", "bench.status", "bench.logs", "bench.cancel"],
    ["bench.evaluate", "bench.predict", "bench.check"],
    ["bench.predict_tasks"],
    ["bench.perf_turns", "bench.perf_kernels"],
    ["bench.perf_model"],
    ["bench.report", "bench.sheets"],
    ["bench.tables", "bench.figures", "bench.compare", "bench.export"],
    ["bench.comparisons", "bench.efficiency", "bench.pivot"],
    ["bench.picks"],
    ["bench.evidence"],
    ["bench.run", "bench.pictures", "bench.pretrain_trainer", "bench.pretrain_card"],
    ["bench.slurm_submit", "bench.watch"],
    ["bench.slurm_send"],
    ["bench.slurm_check", "bench.slurm_plan", "bench.job"],
    ["bench.submission", "bench.catalogue"],
    ["bench.model_files"],
    ["bench.onnx_files"],
    ["bench.workers", "bench.boards", "bench.pretrain_config", "bench.pretrain_data", "bench.pretrain_curve", "bench.pretrain_muon"],
    ["bench.conformance_methods", "bench.conformance_datasets", "bench.overlays", "bench.prompt_table"],
    ["bench.adapted", "bench.cell", "bench.plan", "bench.progress", "bench.snapshot"],
    ["bench.train", "bench.evaluation", "bench.provenance", "bench.store"],
    ["bench.prepared", "bench.precision", "bench.team"],
    ["methods", "datasets", "bench.released"],
    ["bench.toys"],
    ["bench.method", "bench.onnx_graphs"],
    ["bench.segmenter", "bench.losses", "bench.metrics", "bench.prompts", "bench.transforms"],
    ["bench.inputs"],
    ["bench.retuned"],
    ["bench.checkpoints", "bench.decoder", "bench.objects", "bench.streamed_loss"],
    ["bench.prompt_batch"],
    ["bench.sam", "bench.dropout"],
    ["bench.attention"],
    ["bench.kernels", "bench.mask_maps", "bench.two_way", "bench.upsampling"],
    ["bench.products"],
    [
        "bench.manifest",
        "bench.stock",
        "bench.paths",
        "bench.backbones",
        "bench.spec",
        "bench.published",
        "bench.registry",
        "bench.formats",
        "bench.statistics",
        "bench.style",
        "bench.slurm_profile",
    ],
    ["bench.conformance"],
    ["bench.table"],
    ["bench.protocol", "bench.columns", "bench.files", "bench.spread"],
    ["bench.image_files", "bench.plugins"],
    ["bench.slurm_queue", "bench.slurm_turn"],
    ["bench.types"],
    ["bench.errors", "bench.processor", "bench.slurm_facts"],
]
LEVEL = {module: i for i, room in enumerate(ROOMS) for module in room}


def modules():
    for folder in ("bench", "methods", "datasets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def room_of(module):
    return module.split(".")[0] if module.split(".")[0] in ("methods", "datasets") else module


def imports(path):
    """The project's modules that a file imports, those for type checking only left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("bench", "methods", "datasets"):
            yield from [f"bench.{name.name}" for name in node.names] if node.module == "bench" else [node.module]


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules() if m != "bench"])
def test_imports_go_one_way(module, path):
    for imported in imports(path):
        mine, theirs = room_of(module), room_of(imported)
        assert mine in LEVEL, f"{mine} has no room: enter it into ROOMS"
        if mine == theirs == "methods" or mine == theirs == "datasets":
            continue
        assert {mine, theirs} != {"methods", "datasets"}
        assert LEVEL[mine] <= LEVEL[theirs], f"{module} imports {imported}"


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules() if m.startswith("bench")])
def test_no_branch_on_the_name_of_a_method_or_data_set(module, path):
    import bench

    names = {*bench.methods(), *bench.datasets()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            compared = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not compared & names, f"{path}:{node.lineno}: where it is another word, as in shots == FULL, give it a name"


def test_planning_and_tables_import_no_torch():
    code = "import sys, bench, bench.spec, bench.protocol, bench.store, bench.tables, bench.provenance; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "False"


def test_another_package_named_datasets_is_noticed(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import bench"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "another package named `datasets`" in done.stderr


def test_functions_and_files_are_short():
    lengths, files = [], []
    for _, path in modules():
        text = path.read_text()
        files.append(len(text.splitlines()))
        lengths += [n.end_lineno - n.lineno + 1 for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    lengths.sort()
    files.sort()
    assert lengths[len(lengths) // 2] <= 12 and lengths[int(len(lengths) * 0.9)] <= 35
    assert files[len(files) // 2] <= 150 and files[int(len(files) * 0.9)] <= 330
