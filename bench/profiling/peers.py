"""A training step and an evaluated image beside what users would pick instead: the package segment-anything, and transformers' SamModel,
each with peft's LoRA where it trains. Same weights, image, boxes, loss and rank; by turns, each side in a process of its own.

python -m bench.profiling.peers SIDE WORK BACKBONE, which `bench.perf peers` starts, prints one measurement as JSON. An image has the
backbone's own size, so that nobody resizes it: `Sam.forward` is then all that segment-anything's SamPredictor computes, which needs
torchvision for nothing but that. Products that are compared must agree, or there is no comparison.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import RequestError
from bench.grid.provenance import ROOT, git_state, package_version
from bench.model.backbones import BackboneSpec, read_backbone
from bench.model.checkpoints import load_sam
from bench.model.hugging_face import sam_model_config, to_hugging_face
from bench.model.method import build
from bench.model.sam import Sam
from bench.model.sizes import PyramidConfig, SamConfig
from bench.model.upsampling import union
from bench.profiling.model import timed
from bench.profiling.turns import ALLOCATOR, Found, device_label, in_subprocess, settings_in_words, slug, unwritten
from bench.running.cell import peak_memory_mb, reset_peak_memory
from bench.training.losses import segmentation_loss
from bench.training.train import AdamW, Example, backward
from bench.types import Prompts

OURS, RANK = "ours", 4
PEFT = ("transformers", "peft")  # the second imports the first
NEEDS: Mapping[str, tuple[str, ...]] = {"segment-anything": ("segment_anything", *PEFT), "transformers": PEFT}
BOXES = {"train": 1, "evaluate": 10}
APART = 1e-3  # of the largest logit, and of a loss
TARGETS = {"train": 1.15, "evaluate": 1.3}  # theirs / ours in user seconds
MEMORY_TARGET = 0.25  # ours / theirs
Call = Callable[[], Tensor]  # (n, 4g, 4g) logits of an evaluation, whose masks were made; the loss of a step


@dataclass(frozen=True)
class Task:
    """What all sides compute: an image (3, S, S) uint8, its boxes (n, 4), and where it trains their masks (n, S, S)."""

    image: Tensor
    boxes: Tensor
    masks: Tensor


def task_of(config: SamConfig, work: str) -> Task:
    """Drawn at random, always the same."""
    generator, side = torch.Generator().manual_seed(0), config.image_size
    corners = (torch.rand(BOXES[work], 2, generator=generator) * 0.6 * side).round()  # whole pixels, to which we round boxes
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 2, (BOXES[work], side, side), dtype=torch.uint8, generator=generator)
    return Task(image, torch.cat([corners, corners + side // 5], 1), masks)


def weights_of(config: SamConfig) -> Sam:
    """A SAM of random weights in which the positions, which start as zeros, are random too."""
    sam = load_sam(config)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in sam.image_encoder.named_parameters():
        if "pos" in name:
            tensor.data.normal_(0, 0.02, generator=generator)
    return sam


def ours(config: SamConfig, work: str, task: Task) -> Call:
    """This project's fast path: `sam` evaluated, `lora` trained."""
    model = build(f"lora(rank={RANK})" if work == "train" else "sam", weights_of(config), seed=0)
    prompts = Prompts(boxes=task.boxes)
    if work == "train":
        optimizer = AdamW(model.train().tuned().values())
        return _step(optimizer, lambda: backward(model, [Example(task.image, prompts, task.masks)], 0)[0])

    @torch.no_grad()
    def evaluated() -> Tensor:
        features = model.eval().encode([task.image])
        low = model.decode_low(features, [prompts]).logits[0]
        union(low, features.sizes[0])  # as `bench.training.evaluation.predicted` makes the mask
        return low

    return evaluated


def segment_anything(config: SamConfig, work: str, task: Task) -> Call:
    """The package's own modules and `Sam.forward`; peft's LoRA in every block's qkv."""
    sam = weights_of(config)
    if work == "evaluate":
        asked = {"image": task.image, "boxes": task.boxes, "original_size": task.image.shape[-2:]}

        def evaluated() -> Tensor:
            (found,) = sam([asked], multimask_output=False)
            found["masks"].any(0)
            logits: Tensor = found["low_res_logits"][:, 0]
            return logits

        return evaluated
    optimizer = _with_lora(sam)

    def loss() -> Tensor:
        embedding = sam.image_encoder(sam.preprocess(task.image)[None])
        sparse, dense = sam.prompt_encoder(points=None, boxes=task.boxes, masks=None)
        positions = sam.prompt_encoder.get_dense_pe()
        low, _ = sam.mask_decoder(embedding, positions, sparse, dense, multimask_output=False)
        side = config.image_size
        return _with_gradients(sam.postprocess_masks(low, (side, side), (side, side))[:, 0], task)

    return _step(optimizer, loss)


def transformers(config: SamConfig, work: str, task: Task) -> Call:
    """SamModel as its documentation uses it; peft's LoRA in every layer's qkv."""
    model = transformers_model(config, weights_of(config))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (BackboneSpec.pixel_mean, BackboneSpec.pixel_std))

    def logits() -> Tensor:
        pixels = ((task.image - mean) / std)[None]
        low: Tensor = model(pixel_values=pixels, input_boxes=task.boxes[None], multimask_output=False).pred_masks[0]
        return low

    def upsampled(low: Tensor) -> Tensor:
        return F.interpolate(low, (config.image_size,) * 2, mode="bilinear", align_corners=False)[:, 0]

    if work == "train":
        return _step(_with_lora(model), lambda: _with_gradients(upsampled(logits()), task))

    @torch.no_grad()
    def evaluated() -> Tensor:
        low = logits()
        (upsampled(low) > 0).any(0)
        return low[:, 0]

    return evaluated


def transformers_model(config: SamConfig, sam: Sam) -> nn.Module:
    """transformers' model of these sizes with these weights, which go by other names there."""
    from transformers import SamConfig as Config
    from transformers import SamModel

    model: nn.Module = SamModel(Config(**sam_model_config(config))).eval()
    model.load_state_dict(to_hugging_face(sam.state_dict()))
    return model.requires_grad_(False)


def _with_lora(model: nn.Module) -> torch.optim.Optimizer:
    """Puts peft's LoRA into every layer called qkv, and returns an optimizer of it."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"]), model)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def _with_gradients(logits: Tensor, task: Task) -> Tensor:
    loss = segmentation_loss([logits], [task.masks]).total
    loss.backward()
    return loss.detach()


def _step(optimizer: torch.optim.Optimizer, loss: Call) -> Call:
    """A training step, which returns its loss; its gradients are there when `loss` returns."""

    def step() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        optimizer.step()
        return found

    return step


SIDES: Mapping[str, Callable[[SamConfig, str, Task], Call]] = {
    OURS: ours,
    "segment-anything": segment_anything,
    "transformers": transformers,
}


def measure(side: str, work: str, backbone: str) -> Found:
    """One cold call in this process: `seconds` of the processor, `user_seconds` of them, `peak_mb`, of which `before_mb` were there before,
    and `said`, some of its numbers."""
    torch.set_num_threads(1)
    config = read_backbone(backbone).config
    call, found = SIDES[side](config, work, task_of(config, work)), list[Tensor]()
    reset_peak_memory(torch.device("cpu"))
    before = peak_memory_mb(torch.device("cpu"))
    times = timed(lambda: found.append(call()))
    peak, said = peak_memory_mb(torch.device("cpu")), found[0].flatten()
    return {**times, "peak_mb": round(peak, 1), "before_mb": round(before, 1), "said": said[:: max(1, len(said) // 200)].tolist()}


def compare_peers(backbone: str, rounds: int, out: Path) -> int:
    """Measures, prints, and writes <date>-<processor>-peers.json and .md; 1 where a side failed or the sides do not agree."""
    if isinstance(read_backbone(backbone).config, PyramidConfig):
        raise RequestError(f"--backbone {backbone}: the peers are of the first SAM alone, tiny, vit_b, vit_l and vit_h.")
    missing = {peer: [name for name in needs if find_spec(name) is None] for peer, needs in NEEDS.items()}
    for peer, names in missing.items():
        if names:
            print(f"{peer} is not compared: {' and '.join(names)} cannot be imported here (`pip install --no-deps` puts it beside torch).")
    peers = [peer for peer, names in missing.items() if not names]
    if not peers:
        raise RequestError("There is nobody to compare with: install transformers and peft.")
    measured: list[dict[tuple[str, str], Found]] = []
    path = unwritten(out / f"{datetime.now(UTC):%Y-%m-%d}-{slug(device_label('cpu'))}-peers")
    for turn in range(rounds):
        sides = [OURS, *peers] if turn % 2 == 0 else [*peers, OURS]
        measured.append({(side, work): _measured(side, work, backbone) for work in BOXES for side in sides})
        if failed := [f"{side} {work}: {found['failed']}" for (side, work), found in measured[-1].items() if "failed" in found]:
            raise RequestError(f"There is no comparison: {failed[0]}")
        check_agreement(measured[-1], peers)
        text = _write(path, backbone, peers, measured)
    print(f"{text}\nWritten to {path}.json and .md")
    return 0


def _measured(side: str, work: str, backbone: str) -> Found:
    found = in_subprocess("bench.profiling.peers", side, work, backbone)
    shown = {name: round(found[name], 2) for name in ("seconds", "user_seconds", "peak_mb") if name in found} or found
    print(f"{backbone} {work} {side}: {shown}", flush=True)
    return found


def check_agreement(found: Mapping[tuple[str, str], Found], peers: Sequence[str]) -> None:
    """RequestError where a peer computed something else than we did."""
    for work in BOXES:
        mine = torch.tensor(found[OURS, work]["said"])
        for peer in peers:
            apart = float((torch.tensor(found[peer, work]["said"]) - mine).abs().max() / mine.abs().max())
            if not apart <= APART:
                raise RequestError(f"There is no comparison: {peer} and this project differ by {apart:.1e} of the largest ({work}).")


def _write(path: Path, backbone: str, peers: Sequence[str], measured: Sequence[Mapping[tuple[str, str], Found]]) -> str:
    """Writes what is measured so far, and returns the table."""
    rows = [row(peer, work, [(turn[peer, work], turn[OURS, work]) for turn in measured]) for work in BOXES for peer in peers]
    about: Found = {"device": device_label("cpu"), "backbone": backbone, "rounds": len(measured), "allocator": ALLOCATOR, "threads": 1}
    about |= {name: package_version(name) for name in ("torch", "segment-anything", "transformers", "peft")}
    about |= dict(zip(("commit", "dirty"), git_state(ROOT), strict=True))
    about |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(["python", "-m", "bench.perf", *sys.argv[1:]])}
    text = pd.DataFrame(rows).to_markdown(index=False)
    turns = [{f"{side} {work}": found for (side, work), found in turn.items()} for turn in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows, "measurements": turns}, indent=1) + "\n")
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "segment-anything", "transformers", "peft"))
    head = f"{about['device']}, one thread, {backbone}, fp32, {versions}, {about['time']}, {settings_in_words()}: `{about['command']}`"
    before = [found["before_mb"] * 1e6 / 2**30 for turn in measured for found in turn.values()]
    meaning = (
        "theirs / ours: medians over the rounds, in user seconds, and with the system's, which counts the clearing of large maps. "
        "train: a step of LoRA of rank 4 with one box (ours in q and v, theirs in the whole qkv); evaluate: zero-shot, ten boxes. "
        f"GiB: the peak of the process, of which {min(before):.2f} to {max(before):.2f} are Python, the libraries and the weights."
    )
    path.with_suffix(".md").write_text(f"{head}\n\n{text}\n\n{meaning}\n")
    return str(text)


def row(peer: str, work: str, pairs: Sequence[tuple[Found, Found]]) -> dict[str, Any]:
    """A peer's row: medians of the rounds' (theirs, ours), their ratios, and whether these reach the targets."""
    theirs, mine = [median(pair[i]["user_seconds"] for pair in pairs) for i in (0, 1)]
    user, both = (median(pair[0][name] / pair[1][name] for pair in pairs) for name in ("user_seconds", "seconds"))
    memory = [median(pair[i]["peak_mb"] for pair in pairs) * 1e6 / 2**30 for i in (0, 1)]
    reached = {"speed": user >= TARGETS[work], "memory": memory[1] <= MEMORY_TARGET * memory[0]}
    return {
        "work": work,
        "peer": peer,
        "rounds": len(pairs),
        "theirs user s": round(theirs, 3),
        "ours user s": round(mine, 3),
        "theirs / ours": round(user, 2),
        "with system": round(both, 2),
        "target": TARGETS[work],
        "theirs GiB": round(memory[0], 2),
        "ours GiB": round(memory[1], 2),
        "reached": " and ".join(name for name, is_reached in reached.items() if is_reached) or "neither",
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
