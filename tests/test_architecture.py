"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys

import pytest

from bench import ROOT

# Each room may import from itself and from the rooms after it. Commands stand first; nothing imports them.
ROOMS = [
    ["bench.demo", "bench.perf", "bench.pretrain", "bench.study", "bench.status", "bench.logs", "bench.cancel"],
    ["bench.evaluate", "bench.predict", "bench.check"],
    ["bench.predicting.tasks"],
    ["bench.profiling.turns", "bench.profiling.kernels"],
    ["bench.profiling.model"],
    ["bench.report", "bench.sheets"],
    ["bench.tables", "bench.figures", "bench.compare", "bench.export"],
    ["bench.reporting.comparisons", "bench.reporting.efficiency", "bench.reporting.pivot"],
    ["bench.reporting.image_selection"],
    ["bench.reporting.table_statistics"],
    ["bench.run", "bench.reporting.pictures", "bench.pretraining.trainer", "bench.pretraining.card"],
    ["bench.cluster.submit", "bench.cluster.grid_status"],
    ["bench.cluster.send"],
    ["bench.cluster.probe", "bench.cluster.array_plan", "bench.cluster.job"],
    ["bench.cluster.submission", "bench.grid.catalogue"],
    ["bench.exporting.model_files"],
    ["bench.exporting.onnx_files"],
    [
        "bench.running.workers",
        "bench.reporting.comparable",
        "bench.pretraining.config",
        "bench.pretraining.data",
        "bench.pretraining.curve",
        "bench.pretraining.muon",
    ],
    ["bench.conformance.methods", "bench.conformance.datasets", "bench.reporting.overlays", "bench.predicting.prompt_table"],
    ["bench.running.adapted", "bench.running.cell", "bench.grid.plan", "bench.grid.progress", "bench.cluster.snapshot"],
    ["bench.training.train", "bench.training.evaluation", "bench.grid.provenance", "bench.grid.store"],
    ["bench.training.prepared", "bench.model.precision", "bench.training.process_group"],
    ["methods", "datasets", "bench.model.released"],
    ["bench.conformance.toys"],
    ["bench.model.method", "bench.exporting.onnx_graphs"],
    ["bench.model.segmenter", "bench.training.losses", "bench.training.metrics", "bench.training.prompts", "bench.training.transforms"],
    ["bench.model.inputs"],
    ["bench.model.retuned"],
    ["bench.model.checkpoints", "bench.model.decoder", "bench.data.objects", "bench.training.streamed_loss"],
    ["bench.model.prompt_batch"],
    ["bench.model.sam", "bench.model.dropout"],
    ["bench.model.attention"],
    ["bench.model.kernels", "bench.model.mask_maps", "bench.model.two_way", "bench.model.upsampling"],
    ["bench.model.products"],
    [
        "bench.data.manifest",
        "bench.model.sam_modules",
        "bench.model.implementation",
        "bench.model.backbones",
        "bench.grid.spec",
        "bench.grid.published",
        "bench.grid.registry",
        "bench.reporting.formats",
        "bench.reporting.statistics",
        "bench.reporting.style",
        "bench.cluster.profile",
    ],
    ["bench.conformance.checks"],
    ["bench.reporting.table"],
    ["bench.grid.protocol", "bench.grid.columns", "bench.grid.files", "bench.training.launch"],
    ["bench.data.image_files", "bench.grid.plugins"],
    ["bench.cluster.queue", "bench.cluster.launch_lock"],
    ["bench.types"],
    ["bench.errors", "bench.grid.processor", "bench.grid.job_environment"],
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
    code = "import sys, bench, bench.grid.spec, bench.grid.protocol, bench.grid.store, bench.tables, bench.grid.provenance; print('torch' in sys.modules)"
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
