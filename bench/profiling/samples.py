"""What preparing images and keeping frozen work saves on a CPU, against the plain way, by turns in one process; `bench.perf samples`."""

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Self

import cv2
import numpy as np
import pandas as pd
import torch

from bench.data.objects import Integers, mask_objects, tight_boxes
from bench.errors import RequestError
from bench.grid.protocol import Settings, load_protocol
from bench.grid.spec import parse_call
from bench.model.backbones import read_backbone
from bench.model.checkpoints import load_sam
from bench.model.method import build
from bench.model.sam import Sam
from bench.profiling.model import works
from bench.training.embedding_files import EmbeddingFiles
from bench.training.evaluation import evaluate
from bench.training.prepared import Prepared
from bench.training.train import backward, batch_of, optimizer_of, steps_of
from bench.types import Dataset, ObjectRule, Sample, Split

RULE = ObjectRule(min_area=0)
STEPS = 6  # a turn
CELLS = ("decoder", "decoder(how=lora)")
ON_ONE_PICTURE = "clean(random_crop=False,flips=False,epochs=12)"  # nothing changes an image, so that each is encoded once


def compare_samples(side: int, objects: int, threads: int, methods: Sequence[str], backbone: str, rounds: int) -> int:
    """Prints seconds and peak memory of a large mask's boxes, one and a thread each, and the processor's seconds of a one-shot step, and of
    small cells of frozen encoders, whose embeddings stay in a folder."""
    if side < (least := 2 * _across(objects)):
        raise RequestError(f"--side {side}: {objects} objects apart from each other need {least} pixels or more.")
    if untrained := [method for method in methods if "train" not in works(method)]:
        raise RequestError(f"--methods {untrained[0]}: it trains nothing, and steps are what is compared.")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [_boxes(_squares(side, objects), at_once) for at_once in sorted({1, threads})]
    print(f"Boxes of {objects} objects in {side}×{side} pixels; `plain`: read off a map of each\n\n{_table(rows)}", flush=True)
    rows = [_steps(method, backbone, protocol, rounds) for protocol in ("paper", "clean") for method in methods]
    print(f"\nOne-shot steps of {backbone}; `plain`: all made again in each step\n\n{_table(rows)}", flush=True)
    rows = [_cells(method, backbone, rounds) for method in CELLS]
    print(f"\nCells of {backbone}, 12 steps and 4 test images; `plain`: encoded whenever they are shown\n\n{_table(rows)}")
    return 0


def _table(rows: Sequence[dict[str, object]]) -> str:
    return str(pd.DataFrame(rows).to_markdown(index=False))


class Squares(Dataset):
    """One training image, and four to test on."""

    name, title, rule = "squares", "Squares", RULE

    @classmethod
    def open(cls, data: Path) -> Self:
        return cls()

    def names(self, split: Split) -> tuple[str, ...]:
        return ("9",) if split == "train" else ("1", "4", "16", "25") if split == "test" else ()

    def load(self, split: Split, name: str) -> Sample:
        mask = _squares(512, int(name))
        return Sample(name, np.dstack([200 * mask] * 3), mask)


def _squares(side: int, objects: int) -> np.ndarray:
    """A mask of so many squares on a grid."""
    mask, across = np.zeros((side, side), np.uint8), _across(objects)
    pitch = side // across
    for y, x in [divmod(i, across) for i in range(objects)]:
        mask[y * pitch : y * pitch + pitch // 2, x * pitch : x * pitch + pitch // 2] = 1
    return mask


def _across(objects: int) -> int:
    """In a row of the grid."""
    return int(np.ceil(objects**0.5))


def plain_boxes(mask: np.ndarray, rule: ObjectRule) -> Integers:
    """The boxes of a mask's objects, read off a map (n, H, W) of them."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=rule.connectivity)
    maps = labels[None] == (1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] > rule.min_area))[:, None, None]
    boxes: Integers = tight_boxes(maps[np.argsort(maps.reshape(len(maps), -1).argmax(1))])
    return boxes


def _boxes(mask: np.ndarray, threads: int) -> dict[str, object]:
    """One row: a mask in each thread."""
    plain, plain_gb = _measured(lambda: plain_boxes(mask, RULE), threads)
    now, now_gb = _measured(lambda: mask_objects(mask, RULE).boxes, threads)
    row = {"masks at once": threads, "plain s": round(plain, 3), "now s": round(now, 3), "ratio": round(plain / now, 1)}
    return {**row, "plain GB": round(plain_gb, 2), "now GB": round(now_gb, 2)}


def _measured(call: Callable[[], Integers], threads: int) -> tuple[float, float]:
    """Seconds until all threads are done, and the peak of what they allocated in GB."""
    tracemalloc.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for made in [pool.submit(call) for _ in range(threads)]:
            made.result()
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak / 1e9


def _steps(call: str, backbone: str, protocol: str, rounds: int) -> dict[str, object]:
    """One row: a method's steps, by turns."""
    settings = load_protocol(protocol).resolve(parse_call(call)[0], "whu", 1)
    sam = load_sam(read_backbone(backbone).config)
    found: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds):
        for keeps in (False, True) if turn % 2 == 0 else (True, False):
            found[keeps].append(_seconds_of_a_step(call, sam, settings, keeps))
    plain, now = median(found[False]), median(found[True])
    row = {"protocol": protocol, "method": call, "plain ms": round(1e3 * plain, 1), "now ms": round(1e3 * now, 1)}
    return {**row, "ratio": round(plain / now, 2)}


def _seconds_of_a_step(call: str, sam: Sam, settings: Settings, keeps: bool) -> float:
    """The processor's seconds of a step after a first one, threads included."""
    data, model = Squares(), build(call, sam, seed=0)
    support, optimizer = data.support(1), optimizer_of(model, settings)

    def plainly(epoch: int) -> None:
        optimizer.zero_grad()
        losses = backward(model, batch_of(data, support, settings, 0, epoch, 0, sam.config.grid), epoch)
        optimizer.step()
        losses.tolist()

    def kept() -> Iterator[None]:
        return (step.losses.read() for step in steps_of(model, optimizer, data, support, settings, 0, prepared=Prepared(data)))

    course = kept() if keeps else map(plainly, range(settings.epochs))
    next(course)
    began = time.process_time()
    for _ in range(STEPS):
        next(course)
    return (time.process_time() - began) / STEPS


def _cells(call: str, backbone: str, rounds: int) -> dict[str, object]:
    """One row: a cell whose images are encoded whenever they are shown, once, and not at all, as an earlier run's embeddings are read."""
    sam, found = load_sam(read_backbone(backbone).config), {"plain s": 0.0, "first run s": 0.0, "later run s": 0.0}
    for _ in range(rounds):
        with TemporaryDirectory() as folder:
            files = EmbeddingFiles(Path(folder), backbone, sam.device)
            for how in found:
                found[how] += _seconds_of_a_cell(call, sam, None if how == "plain s" else Prepared(Squares(), files=files)) / rounds
    plain, first, later = found.values()
    row = {"method": call, **{how: round(seconds, 2) for how, seconds in found.items()}}
    return {**row, "first ratio": round(plain / first, 1), "later ratio": round(plain / later, 1)}


def _seconds_of_a_cell(call: str, sam: Sam, prepared: Prepared | None) -> float:
    """The processor's seconds of training and evaluation."""
    name, changes = parse_call(ON_ONE_PICTURE)
    data, settings = Squares(), load_protocol(name, changes).resolve(parse_call(call)[0], "whu", 1)
    began = time.process_time()
    model = build(call, sam, seed=0)
    for step in steps_of(model, optimizer_of(model, settings), data, data.support(1), settings, 0, prepared=prepared):
        step.losses.read()
    list(evaluate(model, data, "test", settings, prepared or Prepared(data, 0)))
    return time.process_time() - began
