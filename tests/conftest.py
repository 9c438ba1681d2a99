"""Toys that the tests share: a SAM of a few thousand weights and a data set of rectangles."""

import gc
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from archive_files import write_archives

from bench.conformance.toys import TOY, Rectangles, toy_backbone
from bench.grid.plugins import VARIABLE
from bench.grid.protocol import Settings, load_protocol
from bench.grid.registry import DATASETS, METHODS
from bench.model.sam import Sam
from datasets import prepare
from datasets.synth import LAYOUTS, write_layout

__all__ = ["TOY", "Rectangles", "toy_backbone"]
torch.set_num_threads(1)
gc.disable()  # until all is imported: looking through it for garbage again and again was a seventh of all seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests come first: a worker that has nothing more to do then waits for a short one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What was imported is never looked through for garbage again, and the rest seldom."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _torch_as_before():
    """A test that leaves torch changed fails itself, and not whichever comes after it in the process."""
    yield
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "highest"
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == 1


@pytest.fixture
def sam() -> Sam:
    return toy_backbone()


@pytest.fixture
def rectangles() -> Rectangles:
    return Rectangles()


@pytest.fixture
def smoke() -> Settings:
    return load_protocol("smoke").resolve("any", "any", 1)


@pytest.fixture(scope="session")
def polyps(tmp_path_factory) -> Path:
    """A data folder with a generated kvasir of four test images, for cells of seconds: the generated domains have 64."""
    data = tmp_path_factory.mktemp("polyps")
    write_layout(LAYOUTS["kvasir"], data / "kvasir", 20, 4)
    return data


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """See `archive_files.write_archives`."""
    top = tmp_path_factory.mktemp("archives")
    write_archives(top)
    return top


@pytest.fixture
def archive_data(archives, tmp_path):
    """A data folder that a test may damage; links, which are replaced and not written through."""
    shutil.copytree(archives / "folders", tmp_path / "data", copy_function=lambda source, target: Path(target).hardlink_to(source))
    return tmp_path / "data"


@pytest.fixture
def said(capsys, tmp_path):
    """Runs the command; its exit code and all that it printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        code = prepare.main([*map(str, words), "--out", str(tmp_path / "results")])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def plugins_leave(monkeypatch):
    """Plugins that a test uses in this process leave it again."""
    monkeypatch.setenv(VARIABLE, "")
    known = METHODS.names(), DATASETS.names()
    yield
    monkeypatch.setenv(VARIABLE, "")
    for registry, names in zip((METHODS, DATASETS), known, strict=True):
        for name in set(registry.names()) - set(names):
            del registry._classes[name]


class BlockDiagonal:
    """What peft's kernel for CUDA computes: rotations (m, D, b, b) -> (m, C, C)."""

    @staticmethod
    def apply(rotations):
        return torch.stack([torch.block_diag(*factor) for factor in rotations])


@pytest.fixture
def any_butterfly(monkeypatch):
    """peft's BOFT with as many factors as asked for, of which it has one where it cannot compile its kernel."""
    layer = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(layer, "_FBD_CUDA", True)
    monkeypatch.setattr(layer, "FastBlockDiag", BlockDiagonal)
