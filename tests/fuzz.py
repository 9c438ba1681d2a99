"""Wrong flags, damaged files and damaged records, generated: every command ends in a sentence and an exit code, never in a traceback.

    python -m tests.fuzz                       # all cases of seed 0, a few minutes
    python -m tests.fuzz --only 137 --show     # one case again, with what it printed

Every case is a command as a user types it, with one or two things wrong that its number alone decides. The commands are found by their
modules, and their flags by their own parsers, so a new one is in it from its first day. Each runs in this process and in a folder of its
own; one that has work to do is interrupted, as by Ctrl-C, after a moment.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save, save_file

from bench import ROOT

CASES = 1200
MOMENT, PATIENCE = 0.4, 90.0  # seconds before Ctrl-C, and before a command counts as one that hangs
HEAVY = (".safetensors", ".pth")  # linked into a case's folder, not copied
ALLOWED = (0, 1, 2, 3, 130)
MODULES = ("bench", "datasets")
LEFT_OUT = ("bench.grid.catalogue", "bench.cluster.job", "bench.profiling.model")  # what commands start; no user does


def commands() -> list[str]:
    """The modules that a user starts."""
    found = [path for top in MODULES for path in sorted((ROOT / top).glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
    return [name for name in (f"{path.parent.name}.{path.stem}" for path in found) if name not in LEFT_OUT]


# --- a small world: data, files, and results of three cells

PROMPTS = "image,x0,y0,x1,y1,x,y,label\n" + "".join(f"f{i}.png,4,4,20,20,10,10,1\n" for i in range(3))
FILES = {
    "suite.toml": 'methods = ["lora"]\ndatasets = ["mine"]\nshots = [1]\nseeds = [0, 1]\nbackbone = "tiny"\nprotocol = "smoke"\n',
    "study.toml": 'summary = "s"\nmethods = ["lora"]\ndatasets = ["mine"]\nshots = [1]\nbackbone = "tiny"\nprotocol = "smoke"\n'
    "[[variant]]\nlr = 1e-3\n[[variant]]\nlr = 1e-2\nepochs = 2\n",
    "profile.toml": 'partition = "p"\ngpus = 0\ncpus = 1\nmem_gb = 1.5\nsetup = ["true"]\nflags = { comment = "x" }\n'
    '[[override]]\nmethods = ["lora"]\ntime_min = 30\n',
    "prompts.csv": PROMPTS,
    "plugin.py": "X = 1\n",
    "data/mine.toml": 'images = "images"\nmasks = "masks"\ntest_share = 0.4\nval_images = 2\nmin_area = 4\n',
    "data/other.toml": 'images = "images"\nannotations = "ann.json"\ntest_share = 0.4\nval_images = 2\n[few_shot]\n1 = "shots.txt"\n',
    "data/shots.txt": "f0\n",
}


def build(world: Path) -> None:
    """The world's files, and three cells of it."""
    rng = np.random.default_rng(0)
    for folder in ("data/images", "data/masks", "pretrained"):
        (world / folder).mkdir(parents=True)
    annotations = []
    for i in range(8):
        mask = np.zeros((32, 40), np.uint8)
        mask[4 : 14 + i, 6:20] = 255
        cv2.imwrite(str(world / f"data/images/f{i}.png"), rng.integers(0, 90, (32, 40, 3), np.uint8) + mask[..., None] // 2)
        cv2.imwrite(str(world / f"data/masks/f{i}.png"), mask)
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": 100,
                "bbox": [6, 4, 14, 10],
                "segmentation": [[6, 4, 20, 4, 20, 14, 6, 14]],
            }
        )
    images = [{"id": i, "file_name": f"f{i}.png", "height": 32, "width": 40} for i in range(8)]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (world / "data/ann.json").write_text(json.dumps(coco))
    for name, text in FILES.items():
        (world / name).write_text(text)
    shutil.copy(ROOT / "configs" / "pretrain" / "smoke.toml", world / "pretrain.toml")
    shutil.copy(ROOT / "pretrained" / "tiny.safetensors", world / "pretrained")
    (world / "bin").mkdir()
    for name in ("sbatch", "scontrol", "squeue", "scancel", "sinfo", "srun", "sacct"):
        (world / "bin" / name).write_text("#!/bin/sh\nexit 0\n")
        (world / "bin" / name).chmod(0o755)
    store_cells(world)
    state = {"phase": "running", "progress": {"share": 0.5, "doing": "x", "seconds_left": 3.0}, "error": None, "pid": 1, "host": "h"}
    lora = next((world / "out/runs/mine").glob("lora*/*"))
    pending = lora.with_name(re.sub("_seed0_.*", "_seed1_0123456789ab", lora.name))
    pending.mkdir()
    slurm = {"job": "7", "restart": "0", "node": "n", "task": "7"}
    (pending / "state.json").write_text(json.dumps({**state, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "slurm": slurm}))
    (pending / "attempt_7_0.json").write_text(json.dumps({**slurm, "time": state["host"]}))
    grid = json.loads((world / "out/grid.json").read_text())
    lora_cell = next(cell for cell in grid if cell["method"].startswith("lora"))
    folder = pending.relative_to(world / "out/runs").as_posix()
    (world / "out/grid.json").write_text(json.dumps([*grid, {**lora_cell, "seed": 1, "key": "0123456789ab", "folder": folder}]))


def store_cells(world: Path) -> None:
    """Three untrained cells as a run stores them, a released checkpoint, and the list of methods that a launcher keeps."""
    from bench import run
    from bench.grid.metrics import Images, count, scores
    from bench.grid.plan import Request, specs_of
    from bench.grid.provenance import provenance
    from bench.grid.store import Record, ResultStore
    from bench.model.checkpoints import load_sam
    from bench.model.released import released_tensors
    from bench.running.cell import build_model, images_table

    rng, store, sam = np.random.default_rng(0), ResultStore(world / "out"), load_sam("tiny", world / "pretrained/tiny.safetensors")
    request = Request("sam,lora,cat_sam_a", "mine", seeds="0", backbone="tiny", protocol="smoke")
    specs = specs_of(request, sam.sha256, world / "data")
    for spec in specs:
        model = build_model(spec, sam)
        rows = {rule: [count(f"f{i}", 1, *(rng.random((2, 32, 40)) > 0.5)) for i in range(3)] for rule in spec.settings.selections}
        weights = save({name: tensor.detach().contiguous() for name, tensor in model.tuned().items()})
        cost = {"trainable_parameters": 8, "total_parameters": 9, "training_seconds": 1.5, "evaluation_seconds": 0.5, "test_images": 3}
        found = {rule: scores(Images.of(of)) for rule, of in rows.items()}
        curve = pd.DataFrame(
            [{"step": i + 1, "epoch": i + 1, "loss": 1.0 / (i + 1), "ends_epoch": True, "best_miou": 50.0} for i in range(4)]
        )
        store.save(Record(spec, found, cost, provenance("cpu")), images_table(rows), curve, weights)
        if spec.method.name == "cat_sam_a":
            torch.save({"model": released_tensors(model)}, world / "released.pth")
    store.write_grid(specs)
    with contextlib.chdir(world), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run.main([*LAUNCH, "--dry-run"])


GRID = ["--datasets", "mine", "--backbone", "tiny", "--data", "data", "--pretrained", "pretrained", "--out", "out", "--device", "cpu"]
LAUNCH = ("--methods", "lora", "--protocol", "smoke", *GRID, "--launcher", "slurm", "--profile", "profile.toml")
DATA, OUT, LISTS = ("data/*.toml", "data/*.json", "data/*.txt", "data/*/*"), ("out/runs/*/*/*/*", "out/*.json"), ("out/cache/**/*.json",)
WEIGHTS = ("pretrained/*", "out/runs/*/*/*/tuned.safetensors")


@dataclass(frozen=True)
class Usage:
    """A sound call of a command, the files that it reads, and how often it is drawn."""

    words: tuple[str, ...]
    reads: tuple[str, ...] = ()
    weight: int = 4
    moment: float = PATIENCE


def _usages() -> dict[str, list[Usage]]:
    run = ("--methods", "lora", "--protocol", "smoke", *GRID)
    predict = ("--run", "CELL", "--results", "out", "--pretrained", "pretrained", "--device", "cpu")
    return {
        "bench.run": [
            Usage(run, (*DATA, *OUT, *LISTS, *WEIGHTS), 16, MOMENT),
            Usage(("--config", "suite.toml", *GRID[4:]), ("suite.toml",), 10, MOMENT),
            Usage((*LAUNCH, "--dry-run"), ("profile.toml", *OUT, *LISTS), 8),
        ],
        "bench.tables": [Usage(("--out", "out"), OUT, 30), Usage(("--out", "out", "--like", "all"), OUT, 6)],
        "bench.report": [Usage(("--out", "out"), OUT, 3)],
        "bench.figures": [Usage(("--out", "out"), OUT, 2)],
        "bench.sheets": [Usage(("--out", "out", "--data", "data", "--pretrained", "pretrained"), (*OUT, *DATA, *WEIGHTS), 3)],
        "bench.export": [
            Usage(("--out", "out"), OUT, 16),
            Usage(("CELL", "--format", "sam", "--out", "new.pth", "--pretrained", "pretrained"), (*OUT, *WEIGHTS), 6),
        ],
        "bench.compare": [Usage(("out", "out"), OUT, 10), Usage(("CELL", "CELL"), OUT)],
        "bench.__main__": [Usage(())],
        "bench.list": [Usage(("datasets", "--data", "data"), DATA, 3)],
        "bench.merge": [Usage(("out", "--into", "merged"), OUT, 6)],
        "bench.power": [Usage(("lora", "sam", "--out", "out"), OUT, 4)],
        "bench.tune": [Usage(("--methods", "lora", "--protocol", "smoke", "--trials", "1", *GRID), (*DATA, *OUT), 4, MOMENT)],
        "bench.reevaluate": [Usage(("CELL", "--prompt", "none", *GRID[4:]), (*WEIGHTS, *OUT, *DATA), 6, MOMENT)],
        "bench.status": [Usage(("--out", "out", "--all"), OUT, 16, 2.0)],
        "bench.logs": [Usage(("0123456789ab", "--out", "out"), OUT, 6)],
        "bench.cancel": [Usage(("--out", "out", "--dry-run"), OUT)],
        "bench.clean": [Usage(("--out", "out"), OUT, 2)],
        "bench.check": [Usage(("lora",), (), 3, MOMENT), Usage(("mine", "--data", "data"), DATA, 6)],
        "bench.evaluate": [Usage(("--checkpoint", "released.pth", *GRID), ("released.pth", *DATA), 8)],
        "bench.predict": [
            Usage((*predict, "--image", "data/images/f0.png", "--box", "4", "4", "20", "20", "--out", "new.png"), (*WEIGHTS, *OUT[:1]), 8),
            Usage(
                (*predict, "--images", "data/images", "--prompts", "prompts.csv", "--out", "masks"), ("prompts.csv", "data/images/*"), 12
            ),
        ],
        "bench.pretrain": [
            Usage(("--config", "pretrain.toml", "--out", "new.safetensors", "--work", "work"), ("pretrain.toml",), 14, MOMENT)
        ],
        "bench.study": [Usage(("study.toml", "--out", "studies"), ("study.toml", "data/mine.toml"), 10, MOMENT)],
        "bench.perf": [
            Usage(("store", "--cells", "1"), (), 2, MOMENT),
            Usage(("model",), (), 2, MOMENT),
            Usage(("kernels",), (), 2, MOMENT),
        ],
        "bench.demo": [Usage(("--out", "demo", "--workers", "1"), (), 1, MOMENT)],
        "datasets.prepare": [
            Usage(("verify", "mine", "--data", "data", "--out", "out"), DATA, 10),
            Usage(("verify", "other", "--data", "data", "--out", "out"), DATA, 8),
            Usage(("whu", "--from", "data", "--data", "new"), DATA, 3),
        ],
        "datasets.synth": [Usage(("--layout", "whu", "--out", "new", "--train", "2", "--test", "1"))],
    }


# --- what is wrong with a case

NUMBERS = ["0", "-1", "1", "2", "nan", "inf", "-inf", "1e999", "0x10", "1_0", "²", "1.5", "9" * 30, "9" * 5000, str(2**63), str(2**32)]
NAMES = ["", " ", ",", "all", "paper", "full", "mine", "other", "sam", "lora", "a" * 300, "$x$", "<b>", "=1+1", "|", "é", "a\nb", "\udcff"]
CALLS = [
    "lora(rank=4",
    "lora(rank=0)",
    "lora(rank=4,rank=8)",
    "lora(rank=1e999)",
    "lora(alpha=1e999)",
    "lora(alpha=nan)",
    f"lora(rank={'9' * 30})",
    f"lora(rank={'9' * 5000})",
    "lora(**{})",
    "lora(rank=None)",
    "lora(decoder='\\ud800')",
    "lora(decoder='a/b')",
    "lora(rank=1j)",
    "lora(rank=b'x')",
    "lora(rank={1})",
    "lora.rank",
    "lora()()",
    "(" * 300,
    "-" * 3000 + "1",
    "lora(rank=" + "[" * 150 + "]" * 150 + ")",
    "smoke(lr=1e999)",
    "smoke(lr=nan)",
    "smoke(lr=-1)",
    "smoke(epochs=10**9)",
    f"smoke(epochs={'9' * 30})",
    "smoke(lr=1,lr=2)",
    "smoke(batch=0)",
    "smoke(crop_area_min=2)",
    "smoke(selections=())",
    "smoke(selections=(1,))",
    "smoke(loader_workers=999999999)",
    "smoke(matmul_precision=high)",
]
PLACES = [
    "",
    ".",
    "absent",
    "absent/deeper",
    "/dev/null",
    "/dev/null/x",
    "/proc/nothing/x",
    "data",
    "data/images",
    "data/images/f0.png",
    "x" * 300,
]
PLACES += [
    "data/mine.toml",
    "data/ann.json",
    "released.pth",
    "prompts.csv",
    "plugin.py",
    "out",
    "out/grid.json",
    "loop",
    "d\udcffr",
    "new\n.png",
]
FEW = (
    "--workers",
    "--devices",
    "--cells",
    "--at-once",
    "--rounds",
    "--minutes",
    "--images",
    "--keep-gb",
    "--spill-gb",
)  # numbers that cost what they say
CHEAP = ["0", "-1", "nan", "inf", "x", "", "1e999", "9" * 30]
ODD: list[Any] = [None, True, False, 0, -1, 1, 1.5, -1e308, 10**400, "", "x", "\ud800", "a\nb", "<b>|$", "../../up", "/etc", "9" * 5000]
ODD += [[], {}, [None], {"": None}, [[]], "nan", float("nan"), float("inf"), 2**63, "é" * 300, {"a": {"b": 1}}, [1, "a"]]


class Found(Exception):
    """The parser that a command has made."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """A command's own parser, caught as it parses."""
    parse = argparse.ArgumentParser.parse_args

    def catch(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Found(parser)

    argparse.ArgumentParser.parse_args = catch  # type: ignore[assignment,method-assign]
    try:
        importlib.import_module(command).main(["x"])
    except Found as found:
        return found.args[0]  # type: ignore[no-any-return]
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]
    raise AssertionError(f"{command} parses nothing")


def flags_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The flags of a parser and its sub-commands."""
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    inner = [choice for action in commands for choice in action.choices.values()]
    own = [action for action in parser._actions if action.option_strings and not isinstance(action, argparse._HelpAction)]
    return [*own, *(action for choice in inner for action in flags_of(choice))]


def wrong_flag(rng: random.Random, action: argparse.Action) -> list[str]:
    """A flag with values that it may not like."""
    flag = rng.choice(action.option_strings)
    if action.nargs == 0:
        return [flag]
    pool = CHEAP if flag in FEW else rng.choice([NUMBERS, NAMES, CALLS, PLACES, list(map(str, action.choices or NAMES))])
    count = action.nargs if isinstance(action.nargs, int) else rng.choice([0, 1, 1, 1, 1, 2, 3])
    if count == 1 and flag.startswith("--") and rng.random() < 0.5:
        return [f"{flag}={rng.choice(pool)}"]
    return [flag, *(rng.choice(pool) for _ in range(count))]


def wrong_word(rng: random.Random, words: list[str]) -> str:
    """Replaces, drops or doubles one word of a call."""
    at = rng.randrange(len(words))
    what = rng.choice(["replace", "replace", "drop", "double"])
    if what == "drop":
        return f"drops {words.pop(at)!r}"
    new = words[at] if what == "double" else rng.choice(NAMES + CALLS + PLACES + NUMBERS[:6])
    if words[max(0, at - 1)] in FEW:
        new = rng.choice(CHEAP)
    words[at : at + (what == "replace")] = [new]
    return f"{what}s word {at} by {new[:40]!r}"


def damage(rng: random.Random, path: Path) -> str:
    """Damages a file in one way that fits its kind; says which."""
    kinds: dict[str, Callable[[random.Random, Path], str]] = {
        ".json": odd_json,
        ".toml": odd_toml,
        ".csv": odd_csv,
        ".safetensors": odd_tensor,
    }
    kinds[".pth"] = odd_tensor
    content = path.read_bytes()
    path.unlink()  # it may be a link to the world's
    path.write_bytes(content)
    way = kinds.get(path.suffix, odd_bytes)
    try:
        return (way if rng.random() < 0.85 else odd_bytes)(rng, path)
    except Exception:  # it was damaged before
        return odd_bytes(rng, path)


def odd_bytes(rng: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    what = rng.choice(["empty", "half", "flip", "insert", "marked", "nul", "folder", "loop", "gone", "twice", "not utf-8"])
    at = rng.randrange(len(content) + 1)
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    elif what != "gone":
        if what == "flip" and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        changed = {"empty": b"", "half": content[: len(content) // 2], "insert": content[:at] + b"[{\"'" + content[at:]}
        changed |= {
            "marked": b"\xef\xbb\xbf" + content,
            "nul": b"\0" * 100,
            "twice": content * 2,
            "not utf-8": content[:at] + b"\xff" + content[at:],
        }
        path.write_bytes(bytes(changed.get(what, content)))
    return f"{what} at {at}"


def odd_value(rng: random.Random, content: Any) -> str:
    """Changes one place of nested values; says what and where."""
    at, where = content, ""
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return f"nothing at {where}"
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.25:
            break
        at, where = at[key], f"{where}.{key}"
    what = rng.choice(["set", "set", "set", "set", "drop", "more"])
    odd = rng.choice(ODD)
    if what == "drop":
        del at[key]
    elif what == "set":
        at[key] = odd
    elif isinstance(at, dict):
        at[rng.choice(["", "x", "a\ud800", "name", "__class__"])] = odd
    else:
        at.append(odd)
    return f"{what} {where}.{key} = {str(odd)[:40]!r}"


def odd_json(rng: random.Random, path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return odd_bytes(rng, path)
    if rng.random() < 0.08:
        path.write_text(rng.choice(["[" * 100_000, '{"a":' * 50_000, "null", "[]", "{}", "1", '"x"', "[null]"]))
        return "another JSON"
    what = odd_value(rng, content) if isinstance(content, dict | list) else "nothing"
    if path.name == "record.json" and isinstance(content, dict) and rng.random() < 0.7:
        what += sealed(path, content)
    path.write_bytes(json.dumps(content).encode())
    return what


def sealed(path: Path, content: dict[str, Any]) -> str:
    """Gives a record that was changed the key that belongs to it, in its file and in its grid, where it still has one."""
    from bench.grid.store import spec_from_json

    try:
        content["key"] = spec_from_json(content["spec"]).key
    except Exception:
        return ""
    if path.parent.name.rpartition("_")[2] != content["key"]:
        path.parent.rename(path.parent.with_name(f"a copy {content['key'][:3]}"))
        path.parent.mkdir(exist_ok=True)
    return ", with its key"


def odd_toml(rng: random.Random, path: Path) -> str:
    content = tomllib.loads(path.read_text())
    what = odd_value(rng, content)
    path.write_text("".join(f"{toml(key)} = {toml(value)}\n" for key, value in content.items()), errors="surrogatepass")
    return what


def toml(value: Any) -> str:
    """A value as TOML writes it; what TOML lacks is a date, which no key takes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        return "1979-05-27"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def odd_csv(rng: random.Random, path: Path) -> str:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    if not rows:
        return odd_bytes(rng, path)
    row = rng.choice(rows[:1] + rows)
    at = rng.randrange(len(row))
    new = rng.choice(
        ["", "x", "nan", "inf", "-1", "9" * 30, "9" * 5000, "1e999", '"', "../f0.png", "/etc/passwd", "a,b", "é", "\0", "1.5", "name"]
    )
    what = rng.choice(["set", "drop", "add", "double"])
    if what == "set":
        row[at] = new
    elif what == "drop":
        del row[at]
    elif what == "add":
        row.insert(at, new)
    else:
        rows.insert(rng.randrange(len(rows)), list(row))
    path.write_text("\n".join(",".join(row) for row in rows))
    return f"{what} {at} {new[:20]!r}"


class Evil:
    """What a pickle would run, were it run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo broken into",)


def odd_tensor(rng: random.Random, path: Path) -> str:
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    tensors = tensors.get("model", tensors)
    if not tensors:
        return odd_bytes(rng, path)
    name = rng.choice(sorted(tensors))
    odd: dict[str, Callable[[torch.Tensor], Any]] = {
        "nan": lambda t: t.float() * float("nan"),
        "inf": lambda t: t.float() + float("inf"),
        "int": lambda t: t.to(torch.int64),
        "bool": lambda t: t.bool(),
        "complex": lambda t: t.to(torch.complex64),
        "flat": lambda t: t.reshape(-1)[:1].clone(),
        "empty": lambda t: t.reshape(-1)[:0].clone(),
    }
    what = rng.choice([*odd, "drop", "add", "evil"])
    if what in odd:
        tensors[name] = odd[what](tensors[name])
    elif what == "drop":
        del tensors[name]
    else:
        tensors["x"] = Evil() if what == "evil" and path.suffix != ".safetensors" else torch.ones(1)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return f"{what} {name}"


# --- one case


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `fault` is empty where it ended as it must."""

    number: int
    command: str
    words: Sequence[str]
    wrong: str
    code: Any
    said: str
    fault: str
    seconds: float


def drawn(number: int, seed: int) -> tuple[random.Random, str, Usage]:
    """What a case's number decides."""
    rng = random.Random(f"{seed} {number}")
    listed = [(command, usage) for command, usages in USAGES.items() for usage in usages]
    command, usage = rng.choices(listed, [usage.weight for _, usage in listed])[0]
    return rng, command, usage


def spoilt(rng: random.Random, command: str, usage: Usage, folder: Path) -> tuple[list[str], str]:
    """The words of a case, after something was made wrong in them or in the files of its folder."""
    cells = sorted(path for path in (folder / "out/runs/mine").glob("*/*") if (path / "record.json").is_file() and "lora" in str(path))
    words = [str(cells[0].relative_to(folder)) if word == "CELL" else word for word in usage.words]
    wrong = []
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.random()
        files = sorted(path for pattern in usage.reads for path in folder.glob(pattern) if path.is_file() and path.suffix not in (".pt",))
        if files and kind < 0.6:
            by_name = sorted({path.name if "runs" in path.parts else str(path) for path in files})
            name = rng.choice(by_name)
            path = rng.choice([path for path in files if name in (path.name, str(path))])
            wrong.append(f"{path.relative_to(folder)}: {damage(rng, path)}")
        elif kind < 0.85 and (flags := FLAGS[command]):
            added = wrong_flag(rng, rng.choice(flags))
            words += added
            wrong.append(f"adds {' '.join(added)[:80]!r}")
        elif words:
            wrong.append(wrong_word(rng, words))
    return words, "; ".join(wrong)


def run_case(number: int, seed: int, world: Path, top: Path) -> Outcome:
    """Makes the case's folder, runs its command there and judges how it ended."""
    rng, command, usage = drawn(number, seed)
    folder = top / "case" / "a" / "b"
    shutil.rmtree(top / "case", ignore_errors=True)
    shutil.copytree(
        world, folder, copy_function=lambda source, place: (os.link if Path(source).suffix in HEAVY else shutil.copy)(source, place)
    )
    (folder / "loop").symlink_to("loop")
    words, wrong = spoilt(rng, command, usage, folder)
    began = time.monotonic()
    code, said, fault = called(command, words, folder, usage.moment)
    seconds = time.monotonic() - began
    if seconds > PATIENCE:
        fault = fault or f"it took {seconds:.0f} s"
    return Outcome(number, command, words, wrong, code, said, fault or judged(code, said), seconds)


def called(command: str, words: Sequence[str], folder: Path, moment: float) -> tuple[Any, str, str]:
    """A command's exit code, what it printed, and the traceback that it ended in."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    environment, path = dict(os.environ), list(sys.path)
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    code, fault = None, ""
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), interrupted(moment):
            code = importlib.import_module(command).main(list(words))
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        fault = "Ctrl-C was not caught"
    except Exception:
        fault = traceback.format_exc()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
    return code, "".join(texts(streams)), fault


def texts(streams: Sequence[io.TextIOWrapper]) -> Iterator[str]:
    """What was written to the streams."""
    for stream in streams:
        stream.flush()
        yield stream.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


@contextlib.contextmanager
def interrupted(moment: float) -> Iterator[None]:
    """Ctrl-C after a moment, and again every few seconds."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, moment, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def judged(code: Any, said: str) -> str:
    """What is wrong with an ending that was no exception; empty where nothing is."""
    if "Traceback (most recent call last)" in said:
        return said[said.index("Traceback") :]
    if code not in ALLOWED:
        return f"exit code {code!r}"
    sentence = re.search(r"^(error|python -m [^:]+: error): \S", said, re.MULTILINE)
    if code == 2 and not sentence:
        return f"no sentence: {said[-200:]!r}"
    if "broken into" in said:
        return "code of a checkpoint was run"
    return ""


USAGES: Mapping[str, list[Usage]] = _usages()
FLAGS: dict[str, list[argparse.Action]] = {}


def outcomes(numbers: Sequence[int], seed: int = 0, seconds: float = float("inf")) -> Iterator[Outcome]:
    """The outcomes of these cases, in this order, as far as the seconds allow."""
    torch.set_num_threads(1)
    missing = [command for command in commands() if command not in USAGES]
    assert not missing, f"{missing} have no sound call in tests/fuzz.py"
    FLAGS.update({command: flags_of(parser_of(command)) for command in USAGES})
    with tempfile.TemporaryDirectory() as folder:
        world, top = Path(folder) / "world", Path(folder)
        build(world)
        began = time.monotonic()
        for number in numbers:
            if time.monotonic() - began > seconds:
                return
            yield run_case(number, seed, world, top)


def main() -> int:
    """Runs the cases and shows those that end badly; 1 where there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    parser.add_argument("--show", action="store_true", help="what every case printed")
    given = parser.parse_args()
    counts, spent, faults = Counter[str](), Counter[str](), []
    for one in outcomes(given.only or range(given.cases), given.seed):
        counts[one.command] += 1
        spent[one.command] += one.seconds  # type: ignore[assignment]
        if one.fault:
            faults.append(one)
            print(
                f"--- {one.number}: python -m {one.command} {' '.join(one.words)[:300]!r}\n    {one.wrong}\n{one.fault.rstrip()[-1500:]}",
                flush=True,
            )
        if given.show:
            print(f"=== {one.number} {one.seconds:.1f} s, exit code {one.code}: {one.command} {one.wrong}\n{one.said}", flush=True)
    for command, count in counts.items():
        print(f"{command:20} {count:5} cases {spent[command]:7.1f} s {sum(one.command == command for one in faults):4} end badly")
    print(f"{counts.total()} cases of seed {given.seed}: {len(faults)} end badly.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
