"""Embeddings that stay: a later run encodes nothing, and its cells are the same bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.export import main as export
from bench.grid.store import ResultStore
from bench.perf import main as perf
from bench.predict import main as predict
from bench.run import main as run
from bench.tables import main as tables

WHOLE = "smoke(random_crop=False,flips=False,val_images=1)"


@pytest.fixture
def grid(polyps):
    return ["--datasets", "kvasir", "--data", str(polyps), "--backbone", "tiny", "--seeds", "0"]


@pytest.fixture
def encoded():
    """The sizes of the batches that were encoded in this process meanwhile."""
    seen = []

    def look(module, images, _):
        if type(module).__name__ == "PatchEmbed":
            seen.append(len(images[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    yield seen
    handle.remove()


@pytest.mark.slow
def test_a_later_run_encodes_nothing_and_has_the_same_numbers(tmp_path, grid, encoded, capsys):
    found = {}
    for out, more in (("without", []), ("first", ["--embeddings", tmp_path / "kept"]), ("later", ["--embeddings", tmp_path / "kept"])):
        encoded.clear()
        words = ["--methods", "sam,decoder,decoder(how=lora)", "--protocol", WHOLE, "--out", tmp_path / out, *more]
        assert run([*grid, *map(str, words)]) == 0
        rows = ResultStore(tmp_path / out).scan().table
        images = [(path / "images.csv").read_bytes() for path in sorted((tmp_path / out / "runs").glob("*/*/*"))]
        found[out] = rows.filter(regex="miou|dice").to_dict(), images, sum(encoded)
    assert found["without"][:2] == found["first"][:2] == found["later"][:2] and len(found["first"][1]) == 3
    assert found["first"][2] == len({path.name for path in (tmp_path / "kept").rglob("*.pt")}) >= 5 and found["later"][2] == 0
    assert "new crop" not in capsys.readouterr().out
    assert run([*grid, "--methods", "decoder", "--protocol", "smoke", "--dry-run", "--embeddings", str(tmp_path / "kept")]) == 0
    assert f"Frozen embeddings to keep in {tmp_path / 'kept'}:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_decoder_with_lora_goes_from_the_command_line_into_a_table_and_plain_weights(tmp_path, grid, capsys):
    method = "lora(decoder='lora(rank=2, targets=qkv+mlp)')"
    assert run([*grid, "--methods", method, "--protocol", "smoke", "--out", str(tmp_path), "--embeddings", str(tmp_path / "kept")]) == 0
    assert "Under smoke each step shows a new crop" in capsys.readouterr().out
    (cell,) = (tmp_path / "runs").glob("*/*/*")
    assert cell.parent.name == "lora,decoder=lora,rank=2,targets=qkv+mlp"
    assert tables(["--out", str(tmp_path), "--backbone", "tiny", "--protocol", "smoke"]) == 0
    assert "decoder lora(rank=2,targets=qkv+mlp) (of methods without their own)" in capsys.readouterr().out
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 120, 3), np.uint8)).save(tmp_path / "a.png")
    assert export([str(cell), "--format", "sam", "--out", str(tmp_path / "sam.pth")]) == 0
    asked = f"--run {cell} --image {tmp_path / 'a.png'} --box 10 20 90 80 --out {tmp_path / 'm.png'}"
    assert predict(asked.split()) == 0
    plain = bench.build("sam", bench.load_sam("tiny", tmp_path / "sam.pth"))
    assert np.array_equal(plain.predict(tmp_path / "a.png", box=[10, 20, 90, 80]), np.asarray(Image.open(tmp_path / "m.png")) > 0)


@pytest.mark.slow
def test_the_ratio_is_measured_in_one_run(capsys, monkeypatch):
    monkeypatch.setattr("bench.profiling.samples.STEPS", 2)
    monkeypatch.setattr("bench.profiling.samples.ON_ONE_PICTURE", "clean(random_crop=False,flips=False,epochs=6)")
    assert perf(["samples", "--side", "64", "--objects", "4", "--methods", "decoder", "--rounds", "1"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(("| decoder ", "| decoder(how"))]
    assert len(rows) == 2 and all(float(row[2]) > float(row[4]) > 0 for row in rows)
