"""The reference's inputs, weights and outputs, as the tests use them."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import Prompts, SamConfig

FOLDER = Path(__file__).parent / "golden"
CONFIG = SamConfig(image_size=256, patch_size=16, width=64, depth=4, heads=2, window=6, global_blocks=(1, 3))
CASES = ("box", "point", "mask", "none", "mixed")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@cache
def meta() -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / "meta.json.gz").read_bytes()))


def weights(file: str) -> dict[str, Tensor]:
    """The tensors of "sam", "cat_T" or "cat_A" by name."""
    return {
        k.removeprefix(f"{file}/"): torch.from_numpy(v / np.float32(512)) for k, v in arrays("weights").items() if k.startswith(f"{file}/")
    }


@cache
def official_state_dict(kind: str) -> dict[str, Tensor]:
    """A checkpoint as the reference writes it: the frozen SAM twice, the token twice."""
    files = {f"{name}.npz": weights(name) for name in ("sam", f"cat_{kind}")}
    return {name: files[file][key] for name, (file, key) in meta()["kinds"][kind]["state_dict_index"].items()}


def images() -> list[Tensor]:
    return [torch.from_numpy(arrays("inputs")[f"image{i}"]) for i in (0, 1)]


def targets(case: str) -> list[Tensor]:
    return [torch.from_numpy(arrays("inputs")[f"gt{i}"][: 1 if case == "none" else None]) for i in (0, 1)]


def prompts(case: str) -> list[Prompts]:
    """One Prompts for each image; "mixed" is points on the first and boxes on the second."""
    kinds = ("point", "box") if case == "mixed" else (case, case)
    return [_prompts(kind, i) for i, kind in enumerate(kinds)]


def _prompts(kind: str, i: int) -> Prompts:
    given = {k: torch.from_numpy(arrays("inputs")[f"{k}{i}"]).float() for k in ("boxes", "points", "mask")}
    if kind == "box":
        return Prompts(boxes=given["boxes"])
    if kind == "point":
        return Prompts(points=given["points"], labels=torch.ones(given["points"].shape[:2]))
    return Prompts(masks=given["mask"]) if kind == "mask" else Prompts()
