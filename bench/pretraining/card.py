"""The card of a pre-trained checkpoint: how it was made, its numbers, and what it is not."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.grid.provenance import ROOT, git_state
from bench.grid.tuned import as_toml
from bench.pretraining.config import PretrainConfig

TEXT = """\
# `{name}`: a tiny SAM, pre-trained on procedural images

The default backbone of the demo: SAM's own modules ({image_size}-pixel images, patches of {patch_size} pixels,
an encoder {width} wide and {depth} deep, a decoder {decoder_width} wide; {parameters:.2f} M parameters), trained from scratch.
`bench.load_sam("tiny")` loads it.

![learning curve]({stem}_curve.png)

## Numbers

| | |
|---|---|
| held-out box IoU at home (tight boxes) | {box_iou:.2f} % |
| held-out point IoU at home (one random pixel) | {point_iou:.2f} % |
| held-out objects | {objects} in {held_out_images} images |
| images seen | {images:,} in {steps:,} steps |
| training time | {minutes:.0f} min, {rate:.1f} images/s |
| hardware | {hardware}, torch {torch} |
| commit | {commit} |
| weights | {weights}, float16, {megabytes:.1f} MB |
| sha256 | `{sha256}` |

IoU is pooled foreground IoU: the sum of all objects' intersections over the sum of their unions, of the mask at the image's size,
measured with the weights as they are in the file. The held-out images come from the same generator (`datasets/scenes/home.py`)
under another key; none is ever trained on. They did choose between the last and the averaged weights, and the lengths of the
schedule's parts were set with an eye on this curve, so the numbers are a trace optimistic. All evaluations on the way:
[{stem}_curve.csv]({stem}_curve.csv) (`averaged_…`: of the moving average of the weights; the first {half_size_steps} steps see, and
are evaluated on, images of half the size).

## How it was made

```
{command}
```

Nothing but that config, the seed in it and the code decides the weights: on the CPU of one machine, with one number of threads, a
second run gives the same bytes, also if it was interrupted and went on. The config of this run:

```toml
{config}
```

Each training image is prompted with tight boxes, with single points or with noisy masks, one mask for each prompt. The loss is BCE
(× {bce_weight:g}) plus dice on the mask at the image's size, plus the squared error of SAM's own IoU estimate. All weights train,
Muon for the matrices of the encoder's blocks and the decoder's transformer, AdamW for the rest.

## What it is not

- Not a small Segment Anything: it has seen procedural images only, and says nothing about photographs.
- Its three multi-mask tokens (1 to 3) and their hypernetworks had no loss: they hold their random initial weights. Take single masks.
- Its IoU estimate was trained for the single mask only. No prompt of several points, and none of a point with a box, was trained.

Licence: MIT, as the repository. No data set of others and no weights of others went into it.
"""


@dataclass(frozen=True)
class Facts:
    """What a card states that is not in the config. IoU in percent, on `objects` held-out objects."""

    box_iou: float
    point_iou: float
    objects: int
    images: int
    seconds: float
    parameters: int
    averaged: bool
    sha256: str
    bytes: int
    device: str


def card(out: Path, config: PretrainConfig, facts: Facts, command: str) -> str:
    """The card, in Markdown, of the checkpoint `out` that `command` made."""
    values: dict[str, Any] = {**asdict(config), **asdict(config.model), **asdict(facts)}
    on_gpu, commit = facts.device == "cuda", git_state(ROOT)[0]
    hardware = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} shared CPU cores ({platform.machine()}), no GPU"
    return TEXT.format_map(
        values
        | {
            "name": out.name,
            "stem": out.stem,
            "parameters": facts.parameters / 1e6,
            "minutes": facts.seconds / 60,
            "rate": facts.images / max(1e-9, facts.seconds),
            "megabytes": facts.bytes / 1e6,
            "weights": "moving average" if facts.averaged else "last step's",
            "hardware": hardware,
            "torch": torch.__version__,
            "commit": f"`{commit}`" if commit else "none (before the repository's first)",
            "command": command,
            "config": as_toml({name: value for name, value in asdict(config).items() if name != "model"}).rstrip(),
        }
    )
