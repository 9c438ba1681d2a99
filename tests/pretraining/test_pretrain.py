"""Pre-training: reproducible to the byte, interrupted or not; and the checkpoint that is shipped."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import ROOT, load_sam
from bench.errors import CheckpointError, DataError, RequestError
from bench.model.checkpoints import PRETRAINED, file_sha256, read_tensors
from bench.model.decoder import Decoder
from bench.model.sam import Tuner
from bench.model.segmenter import PromptableSegmenter
from bench.pretrain import main
from bench.pretraining.config import read_config, squeezed
from bench.pretraining.curve import read_curve
from bench.pretraining.data import held_out, object_masks, open_cache, training_batch
from bench.pretraining.muon import Muon, orthogonal
from bench.pretraining.trainer import Trainer, grown, initialised, pooled_iou

pytestmark = pytest.mark.xdist_group("pretrain")  # one worker makes what its tests share

SMOKE = ROOT / "configs" / "pretrain" / "smoke.toml"
SHIPPED = PRETRAINED / "tiny.safetensors"
MARGIN = 1.0  # IoU points between the first 60 held-out images and the 128 of the card; there, 86.05 against 86.03 was measured


@pytest.fixture(autouse=True)
def _as_before():
    """`main` sets the signal handlers of the process."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The checkpoint of an uninterrupted smoke run."""
    folder = tmp_path_factory.mktemp("smoke")
    out = folder / "a.safetensors"
    assert run(out, folder / "work") == 0
    return out


def run(out: Path, work: Path, *more: str, config: Path = SMOKE) -> int:
    return main(["--config", str(config), "--out", str(out), "--work", str(work), "--device", "cpu", *more])


def edited(folder: Path, old: str, new: str) -> Path:
    """The smoke config with one of its lines replaced."""
    path = folder / "edited.toml"
    assert old in SMOKE.read_text()
    path.write_text(SMOKE.read_text().replace(old, new))
    return path


def test_a_second_run_gives_the_same_bytes(smoke, tmp_path, monkeypatch):
    """Of a process that is afterwards as it was."""
    threads, original = torch.get_num_threads(), Trainer.train_step

    def step(trainer, batch):
        assert torch.are_deterministic_algorithms_enabled()  # without it only more threads than the smoke run's would differ
        return original(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert run(tmp_path / "b.safetensors", tmp_path / "work") == 0
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()
    assert file_sha256(tmp_path / "b.safetensors") == file_sha256(smoke)


@pytest.mark.parametrize("steps", [4, 9], ids=["growing", "cool-down"])
def test_an_interrupted_run_gives_the_same_bytes(smoke, tmp_path, monkeypatch, steps, capsys):
    import bench.pretraining.run as module

    taken = 0
    original = module.Trainer.train_step

    def interrupted(trainer, batch):
        nonlocal taken
        taken += 1
        if taken == steps:
            signal.raise_signal(signal.SIGTERM)
        return original(trainer, batch)

    monkeypatch.setattr(module.Trainer, "train_step", interrupted)
    assert run(tmp_path / "c.safetensors", tmp_path / "work") == 130
    assert f"stopped at step {steps} of 12" in capsys.readouterr().out
    assert not (tmp_path / "c.safetensors").exists()
    assert run(tmp_path / "c.safetensors", tmp_path / "work") == 0
    assert file_sha256(tmp_path / "c.safetensors") == file_sha256(smoke)


def test_a_run_can_be_made_longer_before_it_cools_down(smoke, tmp_path, monkeypatch):
    import bench.pretraining.run as module

    longer, stops = edited(tmp_path, "steps = 12", "steps = 20"), iter([False] * 7 + [True])
    config = read_config(longer, "cpu")
    module.pretrain(config, tmp_path / "d.safetensors", tmp_path / "work", "cpu", "", lambda: next(stops))
    assert run(tmp_path / "d.safetensors", tmp_path / "work") == 0
    assert file_sha256(tmp_path / "d.safetensors") == file_sha256(smoke)


def test_a_schedule_can_be_squeezed(tmp_path, capsys):
    short = squeezed(read_config(SMOKE, "cpu"), 6)
    assert (short.steps, short.half_size_steps, short.warmup_steps, short.cooldown_steps) == (6, 2, 1, 2)
    assert [round(short.rate(step), 2) for step in range(6)] == [1, 1, 1, 1, 1, 0.5]
    assert run(tmp_path / "j.safetensors", tmp_path / "work", "--steps", "1") == 2
    assert "--steps 1" in capsys.readouterr().err


def test_a_run_that_cools_down_cannot_be_made_longer(smoke, tmp_path, capsys):
    longer = edited(tmp_path, "steps = 12", "steps = 20")
    assert run(tmp_path / "e.safetensors", smoke.parent / "work", config=longer) == 2
    assert "is at step 12 of 12" in capsys.readouterr().err


def test_a_finished_checkpoint_is_not_overwritten(smoke, capsys):
    before = file_sha256(smoke)
    assert run(smoke, smoke.parent / "work") == 2
    assert str(smoke) in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert run(smoke, smoke.parent / "work", "--overwrite") == 0
    assert file_sha256(smoke) == before


def test_a_damaged_resume_file_is_named(smoke, tmp_path, capsys):
    whole = next((smoke.parent / "work").glob("*/resume.pt"))
    resume = tmp_path / "work" / whole.parent.name / whole.name
    resume.parent.mkdir(parents=True)
    resume.write_bytes(whole.read_bytes()[:5000])
    assert run(tmp_path / "g.safetensors", tmp_path / "work") == 2
    assert str(resume) in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 3", "bach = 3", "'bach'"),
        ("seed = 0", 'seed = "0"', "wrong type"),
        ("seed = 0\n", "", "lacks seed"),
        ("steps = 12", "steps = 9", "steps = 9"),
        ("[0.6, 0.2, 0.2]", "[0.6, 0.2]", "a list of 3 floats is needed"),
        ("[model]", "[model]\nwidht = 3", "'widht'"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, capsys, old, new, said):
    assert run(tmp_path / "h.safetensors", tmp_path / "work", config=edited(tmp_path, old, new)) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_the_command_line_is_interrupted_by_a_signal(tmp_path):
    out = tmp_path / "i.safetensors"
    config = edited(tmp_path, "steps = 12", "steps = 100000")
    command = [sys.executable, "-m", "bench.pretrain", "--config", str(config), "--out", str(out), "--work", str(tmp_path / "work")]
    process = subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = next(line for line in process.stdout if "box IoU" in line)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(timeout=20) == 130, line + rest
    assert "the same command goes on from there" in rest and list(tmp_path.glob("work/*/resume.pt"))


def test_the_curve_and_the_card_lie_beside_the_checkpoint(smoke):
    assert [p.step for p in read_curve(smoke.with_name("a_curve.csv"))] == [6, 12]
    assert smoke.with_name("a_curve.png").stat().st_size > 5000
    assert file_sha256(smoke) in smoke.with_suffix(".md").read_text()


def test_the_cache_is_the_same_for_any_number_of_processes(tmp_path):
    one, two = (open_cache(tmp_path / str(n), 3, 64, n, str) for n in (1, 2))
    assert np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)


def test_a_batch_is_a_function_of_its_key(tmp_path):
    cache = open_cache(tmp_path, 3, 64, 1, str)
    first, again, other = (training_batch(cache, key, 2, 3, (0.5, 0.3, 0.2), 32, False) for key in ((0, 1), (0, 1), (0, 2)))
    assert all(torch.equal(a, b) for a, b in zip(first.images, again.images, strict=True))
    assert torch.equal(first.targets(), again.targets())
    assert not all(torch.equal(a, b) for a, b in zip(first.images, other.images, strict=True))


def test_objects_too_small_are_not_asked_for():
    labels = np.zeros((128, 128), np.uint8)
    labels[:10, :10], labels[50:53, 50:53] = 1, 2
    assert len(object_masks(labels)) == 1


def test_muon_makes_orthogonal():
    matrices = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(matrices))
    assert singular.min() > 0.5 and singular.max() < 1.3


@pytest.mark.parametrize("shape", [(48, 16), (16, 48)])
def test_muon_updates_as_torchs_does(shape):
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.full(shape, 0.5)) for _ in range(2))
    pairs = [(ours, Muon([ours], 0.02, weight_decay=0.1)), (theirs, torch.optim.Muon([theirs], 0.02, weight_decay=0.1))]
    for _ in range(3):  # the momentum counts from the second
        gradient = torch.randn(shape, generator=draw)
        for parameter, optimiser in pairs:
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (ours - 0.5).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 has 8 bits; another scale, momentum or decay is far more than that


def test_growing_keeps_what_has_no_position():
    config = read_config(SMOKE, "cpu").model
    small = initialised(type(config)(**{**vars(config), "image_size": 32}), 0).state_dict()
    large = grown(small, config).state_dict()
    assert large["image_encoder.pos_embed"].shape[1:3] == (8, 8)
    assert torch.equal(large["image_encoder.blocks.0.mlp.lin1.weight"], small["image_encoder.blocks.0.mlp.lin1.weight"])


def test_the_shipped_checkpoint_is_as_good_as_its_card_says():
    stated = re.search(r"held-out box IoU at home \(tight boxes\) \| ([\d.]+) %", SHIPPED.with_suffix(".md").read_text())
    assert stated is not None
    model = PromptableSegmenter(load_sam("tiny"), Tuner(), Decoder())
    measured = pooled_iou(model, held_out(60, 128).boxes)
    assert abs(measured - float(stated[1])) < MARGIN


def test_the_shipped_checkpoint_is_small_and_the_one_of_its_card():
    assert SHIPPED.stat().st_size <= 12e6
    assert file_sha256(SHIPPED) in SHIPPED.with_suffix(".md").read_text()


def test_a_truncated_checkpoint_is_named(tmp_path):
    damaged = tmp_path / "tiny.safetensors"
    damaged.write_bytes(SHIPPED.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=re.escape(str(damaged))):
        read_tensors(damaged)
    assert issubclass(CheckpointError, RequestError)


def test_a_damaged_cache_is_named(tmp_path):
    open_cache(tmp_path, 3, 64, 1, str)
    images = next(tmp_path.glob("*.images.npy"))
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_cache(tmp_path, 3, 64, 1, str)
