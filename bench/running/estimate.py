"""How long a grid will take and how large it will be, before anything of it runs: counts of its steps and images, times costs that were
measured once (`bench.perf cost`), on this machine or on the nearest one of which some are known. These are estimates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.errors import RequestError, counted
from bench.grid.protocol import Settings, load_protocol
from bench.grid.provenance import cpu_model
from bench.grid.spec import RunSpec
from bench.grid.store import method_id, read_cost
from bench.model.backbones import read_backbone
from bench.types import FULL, SPLITS, Dataset

SHIPPED = ROOT / "results" / "perf" / "costs"
ONCE = "clean"  # the protocol that is named where one evaluates the test images again and again
GPU_FACTS = Path("/proc/driver/nvidia/gpus")
ROW_BYTES, STEP_BYTES, FOLDER_BYTES = 60, 70, 12_000  # of images.csv, of history.csv, and of a record with the rest


@dataclass(frozen=True)
class Amount:
    """How much a cell computes: training steps, of so many images each, and images that are evaluated."""

    steps: int
    batch: int
    images: int

    @classmethod
    def of(cls, settings: Settings, support: int, images: Mapping[str, int], trains: bool) -> "Amount":
        """Of a cell with so many support images and images by split. What is evaluated last is not evaluated again at the end."""
        last, kept = images[settings.evaluation_split], set(settings.selections)
        if not trains:
            return cls(0, 0, last)
        each = sum(images[split] for selection, split in (("best", settings.evaluation_split), ("val", "val")) if selection in kept)
        evaluations = -(-settings.epochs // settings.evaluate_every)
        after = last * (len(kept - {"best"}) - ("best" in kept and "last" in kept))
        return cls(-(-support // settings.batch) * settings.epochs, min(settings.batch, support), evaluations * each + after)


@dataclass(frozen=True)
class Cost:
    """A measured cost: of which method on which backbone and machine, when, and its numbers by name (`COST_FIELDS`, `tuned_bytes`)."""

    backbone: str
    method_id: str
    label: str
    machine: str
    time: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """Of a grid: seconds, bytes of disk, the largest memory of a cell in bytes (0: not known), cells without
    a known cost, and the measurements behind it in words."""

    seconds: float
    disk: float
    memory: float
    unknown: int
    by: tuple[str, ...]


def known_costs(out: Path) -> list[Cost]:
    """Those of backbones that there are: what was measured into a results folder, then what comes with the project."""
    paths = (path for folder in (out / "costs", SHIPPED) for path in sorted(folder.glob("*.json")))
    costs = [Cost(**of, numbers=numbers) for of, numbers in filter(None, map(read_cost, paths))]
    return [cost for cost in costs if _is_backbone(cost.backbone)]


def _is_backbone(text: str) -> bool:
    """Whether there still is a backbone that was measured once."""
    with suppress(RequestError):
        return bool(read_backbone(text))
    return False


def machine_here(device: str) -> str | None:
    """The name of the GPU, as its driver says it, or of the processor; asked without torch. device: as `bench.run` has it; "" where the
    cells run elsewhere, on nobody knows what."""
    for path in sorted(GPU_FACTS.glob("*/information")) if device in ("auto", "cuda") else ():
        named = [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("Model:")]
        if named:
            return named[0]
    return cpu_model() if device in ("auto", "cpu") else None


def nearest(costs: Sequence[Cost], spec: RunSpec, machine: str | None) -> Cost | None:
    """The cost that says most of a cell: of this machine, then of its backbone or the one nearest in size, then of its method, or else of
    the slowest; a method that is trained is not judged by one that is not."""
    able = [cost for cost in costs if "step_seconds" in cost.numbers or not spec.method.trains]
    mine = method_id(spec.method)

    def rank(cost: Cost) -> tuple[Any, ...]:
        apart = operations(cost.backbone) / operations(spec.backbone)
        return cost.machine == machine, -max(apart, 1 / apart), cost.method_id == mine, -cost.numbers["images_per_second"]

    return max(able, key=rank, default=None)


def operations(backbone: str) -> float:
    """Multiplications of an encoder's forward for one image, roughly: its layers, and attention in windows and over the whole image."""
    of = read_backbone(backbone).config
    each = ((i, block.grid**2, block.width) for i, block in enumerate(of.blocks))
    return sum(tokens * width * (12 * width + 2 * (tokens if i in of.global_blocks else of.window**2)) for i, tokens, width in each)


def estimate(
    specs: Iterable[RunSpec], datasets: Mapping[str, Dataset], costs: Sequence[Cost], machine: str | None, at_once: int = 1
) -> Estimate:
    """Of these cells, whose data sets are open, so many at once. Time is scaled from one backbone to another by `operations`; memory is
    not."""
    seconds = longest = disk = memory = 0.0
    unknown, by = 0, dict[str, dict[str, None]]()
    for spec, count in Counter(replace(spec, draw=0, seed=0) for spec in specs).items():
        amount, cost = amount_of(spec, datasets[spec.dataset]), nearest(costs, spec, machine)
        if cost is None:
            unknown += count
            continue
        rows = ROW_BYTES * len(datasets[spec.dataset].names(spec.settings.evaluation_split)) * len(spec.settings.selections)
        disk += count * (FOLDER_BYTES + rows + STEP_BYTES * amount.steps + cost.numbers.get("tuned_bytes", 0))
        scale = operations(spec.backbone) / operations(cost.backbone)
        step = cost.numbers.get("step_seconds", 0) * amount.batch
        of_cell = scale * (amount.steps * step + amount.images / cost.numbers["images_per_second"])
        seconds, longest = seconds + count * of_cell, max(longest, of_cell)
        if scale == 1:
            memory = max(memory, 1e6 * cost.numbers["peak_memory_mb"])
        label, where = _in_words(cost, spec, machine)
        by.setdefault(where, {})[label] = None
    return Estimate(
        max(seconds / at_once, longest), disk, memory, unknown, tuple(f"{where}: {', '.join(labels)}" for where, labels in by.items())
    )


def amount_of(spec: RunSpec, dataset: Dataset) -> Amount:
    """What a cell computes on its opened data set."""
    support = len(dataset.support(FULL, 0, spec.settings.uses_val)) if spec.shots == FULL else spec.shots
    images: dict[str, int] = {split: len(dataset.names(split)) for split in SPLITS}
    return Amount.of(spec.settings, support, images, spec.method.trains)


def _in_words(cost: Cost, spec: RunSpec, machine: str | None) -> tuple[str, str]:
    """Of which method the cost is, and where it was measured."""
    where = "this machine" if cost.machine == machine else "the nearest of which costs are known"
    of = "" if cost.method_id == method_id(spec.method) else f" by {cost.label}"
    scaled = "" if cost.backbone == spec.backbone else f", by {cost.backbone} × {operations(spec.backbone) / operations(cost.backbone):.3g}"
    return f"{spec.method.label}{of}{scaled}", f"{cost.machine} ({where}), {cost.time[:10]}"


def estimate_in_words(specs: Sequence[RunSpec], datasets: Mapping[str, Dataset], out: Path, device: str, at_once: int) -> list[str]:
    """What `bench.run --dry-run` says of cells that are to be run, so many at once; nothing of none."""
    if not specs:
        return []
    costs, machine, at_once = known_costs(out), machine_here(device), min(at_once, len(specs))
    found = estimate(specs, datasets, costs, machine, at_once)
    if found.unknown:
        kinds = ", ".join(sorted({spec.backbone for spec in specs}))
        cells = counted(found.unknown, "cell")
        return [f"How long: not known for {cells}; `python -m bench.perf cost --backbone {kinds}` measures it, once."]
    memory = f"at most {_bytes(found.memory)} of memory a cell" if found.memory else "memory not known for this backbone"
    many = f", {at_once} cells at once" if at_once > 1 else ""
    lines = [f"Estimate: {hours(found.seconds)}{many}; {_bytes(found.disk)} of disk; {memory}. By measured costs of"]
    lines += [f"  {text}" for text in found.by]
    return [*lines, *_again_and_again(specs, datasets, costs, machine, found.seconds, at_once)]


def _again_and_again(
    specs: Sequence[RunSpec], datasets: Mapping[str, Dataset], costs: Sequence[Cost], machine: str | None, seconds: float, at_once: int
) -> list[str]:
    """A sentence for each data set whose test images a cell evaluates many times, and what ONCE would take."""
    lines, names = [], dict.fromkeys(spec.dataset for spec in specs)
    for name in names:
        test = len(datasets[name].names("test"))
        most, spec = max(((amount_of(spec, datasets[name]).images, spec) for spec in specs if spec.dataset == name), key=lambda of: of[0])
        if most > 2 * test:
            how = f"{most:,} images on {spec.backbone} for each cell that is trained, of {test:,}"
            lines.append(f"Protocol {spec.protocol} evaluates the test images of {name} again and again: {how}.")
    if lines:
        resolve = load_protocol(ONCE).resolve
        found = ((spec, spec.method, spec.dataset, spec.shots) for spec in specs)
        once = [replace(spec, settings=resolve(of.name, dataset, shots, of.groups, of.trains)) for spec, of, dataset, shots in found]
        less = estimate(once, datasets, costs, machine, at_once).seconds
        if less < seconds:  # a protocol of a few steps takes less all the same
            lines.append(f"Protocol {ONCE}, which evaluates each of them once, would take {hours(less)} instead of {hours(seconds)}.")
    return lines


def hours(seconds: float) -> str:
    """A time as people plan it: "40 s", "5 min", "3.2 h" or "12 days"."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72)):
        if seconds < until * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:,.0f} days"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
