"""What the READMEs say works as they say it: every command is run, made short where the shown one takes hours or a cluster."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_files import NAMES
from PIL import Image

import bench
from bench import ROOT
from datasets.synth import LAYOUTS, write_layout

READMES = {path.parent.name if path.parent != ROOT else "": path.read_text() for path in (ROOT / "README.md", *ROOT.glob("*/README.md"))}
NEW_METHOD = re.search(r"```python\n(.*?)```", READMES["methods"], re.DOTALL)[1]
COMMAND = re.compile(r"^ {4,}(?:for .*?; do )?((?:python -m|make|cp|slurm/|eval|sinfo|\. ) ?[^\n]*)$", re.MULTILINE)
SHORT = [  # what makes a shown command short; everything else of it is run as it stands
    (r"; done$", ""),
    (r"\$name", "sbu"),
    (r"(datasets\.synth .*)", r"\1 --train 24 --test 2"),
    (r"--methods paper", "--methods sam,lora"),
    (r"bench\.tune .* --name mine", "bench.tune --methods lora --datasets kvasir --backbone tiny --protocol smoke --trials 2 --images 2"),
    (r'--datasets whu,kvasir,sbu --protocol "clean\(tuned=mine\)"', '--datasets kvasir --protocol "smoke(tuned=mine)"'),
    (r"--profile mine", "--profile a100"),
    (r"(bench\.run (?!.*--backbone)(?!.*--config).*)", r"\1 --backbone tiny"),
    (r"(bench\.run (?!.*--protocol)(?!.*--config).*)", r"\1 --protocol smoke"),
    (r"epochs=200", "epochs=2"),
    (r'"clean\((lr=[^)]*)\)"', r'"clean(\1,epochs=2)"'),
    (r"(bench\.run .*(--launcher slurm|--config).*)", r"\1 --dry-run"),
    (r"configs/pretrain/smoke.toml", "configs/pretrain/smoke.toml --steps 4 --work work"),
    (r"configs/studies/demo_lr.toml", "study.toml --out studies"),
    (r"bench\.status --watch", "bench.status"),
    (r"export CELL --format cat-sam", "export CAT_KEY --format cat-sam"),
    (r"reevaluate CELL .*", "reevaluate CELL --prompt 'box,box(jitter=0.25),none' --corruption none,jpeg"),
    (r"\bCELL\b", "KEY"),
    (r"--images FOLDER", "--images folder"),
    (r"--out FOLDER", "--out predicted"),
    (r"compare A B", "compare CELL_FOLDER CELL_FOLDER"),
    (r"\bcolleague\b", "results"),
    (r"merge mine results --into both", "merge results --into both"),
    (r"power (LORA CAT|\"lora\" \"cat_sam_a\")", "power 'lora(decoder=sam)' cat_sam_a"),
    (r"--draws 0:10 --seeds 0:3", "--draws 0:3"),
    (r"(perf cost .*)", r"\1 --methods sam"),
    (r"\b3f2a\b", "KEY"),
    (r"check scaled", "check --plugin scaled.py scaled"),
    (r"(datasets\.prepare kvasir --from.*)", r"\1 --data unpacked"),
    (r"peft --out results/export/mine", "peft --out results/export/again"),
    (r"(--adapter \S+) --datasets whu --backbone vit_b", r"\1 --datasets kvasir --backbone tiny"),
    (r"--checkpoint whu_cat-a_vit-l_1shot.pth --datasets whu", "--checkpoint whu_cat-a_vit-l_1shot.pth --datasets kvasir"),
]
ON_A_CLUSTER = ("bench.logs", "bench.cancel", "bench.status", "bench.clean")  # without SLURM they say so, in one sentence
TUNED = """
request = {protocol = "smoke"}
trials = 2
per = "grid"
sampler = "halton"
seed = 0
rates = "3e-05 to 0.1, log-uniform"
halving = false
only_rates = true
images = 0
held_out = {kvasir = 5}
checkpoint_sha256 = ""
device = ""
[[choice]]
method = "lora(decoder=sam)"
chosen = "lora(decoder=sam)"
trial = 1
rates = {encoder = 0.02}
score = 60.0
best_so_far = [50.0, 60.0]
cells = 2
steps = 8
seconds = 1.0
space = {}
"""
STUDY = """
summary = "short"
protocol = "smoke"
methods = "vpt_shallow"
datasets = ["kvasir"]
backbone = "tiny"
seeds = [0]
[[variant]]
lr = 1e-3
"""


def commands(text):
    """The commands of a README's indented blocks, without their remarks."""
    return [part.strip() for line in COMMAND.findall(text) for part in re.split(r"&&", re.split(r"\s+#", line)[0]) if part.strip()]


def short(command):
    for pattern, replacement in SHORT:
        command = re.sub(pattern, replacement, command)
    return command


SHOWN = {}  # by what is run: that is run once, for the README that shows it first
for name, text in READMES.items():
    for command in commands(text):
        SHOWN.setdefault(short(command), (name, command))


@pytest.fixture(scope="module")
def place(tmp_path_factory, archives):
    """A folder to work in, as the READMEs' reader has it: data, archives, an own data set, cells of two methods, a checkpoint."""
    here = tmp_path_factory.mktemp("reader")
    for name in NAMES:
        write_layout(LAYOUTS[name], here / "data" / name, 24, 2)
    for path in archives.glob("*.zip"):
        (here / path.name).symlink_to(path)
    (here / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "pretrained", here / "pretrained")
    (here / "scaled.py").write_text(NEW_METHOD)
    (here / "study.toml").write_text(STUDY)
    (here / "results" / "tuned").mkdir(parents=True)
    (here / "results" / "tuned" / "mine.toml").write_text(TUNED)
    own = "\n".join(line.removeprefix("    ") for line in re.findall(r"^    [\w\[].* ?= ?.*$|^    \[.*\]$", _own_data(), re.MULTILINE))
    (here / "data" / "mine.toml").write_text(own)
    rng = np.random.default_rng(0)
    for folder in ("data/mine/images", "data/mine/masks", "folder"):
        (here / folder).mkdir(parents=True)
    for number in range(10, 20):
        mask = np.zeros((64, 64), np.uint8)
        mask[number : number + 20, 20:40] = 255
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(here / "data/mine/images" / f"frame_0{number}.png")
        Image.fromarray(mask).save(here / "data/mine/masks" / f"frame_0{number}.png")
    for name in ("a.png", "image.png", "folder/b.png"):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(here / name)
    (here / "prompts.csv").write_text("image,x0,y0,x1,y1\nb.png,20,30,90,110\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        grid = "--methods sam,lora,cat_sam_a --datasets kvasir --shots 1 --draws 0:3 --backbone tiny --protocol smoke"
        assert importlib.import_module("bench.run").main(grid.split()) == 0
        again = "results/runs --methods lora --datasets kvasir,sbu --prompt box,none"
        assert importlib.import_module("bench.reevaluate").main(again.split()) == 0
        for cell, form, to in (
            (cell_of(here, "cat_sam_a"), "cat-sam", "whu_cat-a_vit-l_1shot.pth"),
            (cell_of(here, "lora"), "peft", "results/export/mine"),
        ):
            assert importlib.import_module("bench.export").main([str(cell), "--format", form, "--out", to]) == 0
    return here


def _own_data():
    return READMES["datasets"].split("## Your own data")[1].split("python -m")[0]


def cell_of(place, method):
    return next(path for path in (place / "results/runs/kvasir").glob(f"{method}*/*") if "_of_" not in path.name)


def filled(command, place):
    lora, cat = cell_of(place, "lora"), cell_of(place, "cat_sam_a")
    command = command.replace("CELL_FOLDER", str(lora)).replace("CAT_KEY", cat.name.rpartition("_")[2])
    return command.replace("KEY", lora.name.rpartition("_")[2])


@pytest.mark.slow
@pytest.mark.xdist_group("place")  # which takes a while to make: one worker does
@pytest.mark.parametrize(("readme", "command"), [pytest.param(*pair, id=f"{pair[0]}: {pair[1]}") for pair in SHOWN.values()])
def test_a_command_that_is_shown_runs(readme, command, place, plugins_leave, monkeypatch, capsys):
    if not command.startswith("python -m"):
        return the_file_or_target_exists(command)
    monkeypatch.chdir(place)
    _, _, module, *words = shlex.split(filled(short(command), place))
    code = importlib.import_module(module).main(words)
    said = capsys.readouterr()
    if module in ON_A_CLUSTER and code:
        assert code in (1, 2) and said.out + said.err and "Traceback" not in said.err
    else:
        assert code == 0, said.out + said.err


def the_file_or_target_exists(command):
    """Of what needs root, a network or a cluster: the script is there, and make knows what it would do."""
    first, *words = shlex.split(command)
    if first == "make":
        assert subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode == 0
    elif first == "cp":
        assert (ROOT / words[0]).exists()
    elif first == "eval":
        assert (ROOT / re.search(r"slurm/\w+", words[0])[0]).exists()
    elif first.startswith("slurm/"):
        assert (ROOT / first).exists()


@pytest.mark.slow
@pytest.mark.xdist_group("place")
def test_the_python_that_is_shown_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    block = re.search(r"^    import bench\n(?:    .*\n|\n)+", READMES["bench"], re.MULTILINE)[0]
    code = re.sub(r"^    ", "", block, flags=re.MULTILINE).replace("3f2a", cell_of(place, "lora").name.rpartition("_")[2])
    code = code.replace('load_cat_sam("whu_cat-a_vit-l_1shot.pth")', 'load_cat_sam("whu_cat-a_vit-l_1shot.pth", sam="tiny")')
    names = {"image": torch.zeros(3, 200, 260), "boxes": torch.tensor([[20.0, 30.0, 90.0, 110.0]]), "targets": torch.zeros(1, 200, 260)}
    exec(code, names)
    assert names["mask"].shape == (256, 256) and names["loss"].item() > 0 and isinstance(names["model"], bench.PromptableSegmenter)


def test_the_new_method_that_is_shown_is_one_file(tmp_path):
    """In a copy of the project with that one file added, the name is known, trains its own parameters and nothing else."""
    for folder in ("bench", "methods", "datasets", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "methods" / "scaled.py").write_text(NEW_METHOD)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance/test_methods.py", "-k", "scaled"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 6  # the suite took it up, with either decoder


@pytest.mark.parametrize("name", READMES)
def test_what_a_readme_names_exists(name):
    makefile, text = (ROOT / "Makefile").read_text(), READMES[name]
    for target in re.findall(r"^ {4}make ([\w-]+)|`make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        path = ROOT / Path(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in re.findall(r"`((?:configs|tests|datasets|methods|pretrained|bench)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / name / path).exists(), path


def test_the_front_page_is_short():
    lines = READMES[""].splitlines()
    assert len(lines) <= 150
    prose = [line for line in lines if not line.startswith(("|", "!", "    ", "- "))]
    assert max(map(len, prose)) <= 110
    assert max(len(part.splitlines()) for part in "\n".join(prose).split("\n\n")) <= 6


OVERVIEW = {"facts": False, "pyramid": False, "sam": True, "newer": True}  # whether it takes seconds


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * slow) for kind, slow in OVERVIEW.items()])
def test_the_tables_of_the_methods_readme_are_as_the_methods_are(kind):
    """`python -m bench.check --all --readme methods/README.md` makes them so."""
    from bench.conformance.overview import renewed

    text, mark = READMES["methods"], f"<!-- table: {kind} -->"
    before, rest = text.split(f"{mark}\n")
    assert renewed(f"{before}{mark}\n| lost |\n<!-- end -->{rest.partition('<!-- end -->')[2]}", [kind]) == text
    assert kind == "pyramid" or all(f"\n| `{name}` |" in rest.partition("<!-- end -->")[0] for name in bench.methods())
