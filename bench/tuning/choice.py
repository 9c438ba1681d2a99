"""Runs a search and writes what it chose: `results/tuned/<name>.toml`."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from bench.errors import RequestError
from bench.grid.files import write_together
from bench.grid.metrics import USUAL
from bench.grid.plan import protocol_of
from bench.grid.registry import DATASETS
from bench.grid.spec import RunSpec
from bench.grid.store import Record
from bench.grid.tuned import FOLDER, Choice, Trial, as_toml, read_tuned
from bench.running.grid import Free, Launcher, Options, run_specs
from bench.tuning.search import Place, Search, Trials

Alive = Mapping[Place, Sequence[int]]


def tune(search: Search, options: Options, launcher: Launcher | None = None, free: Free | None = None, overwrite: bool = False) -> int:
    """Runs the trials that are not stored, and writes the choice once all are; the exit codes of `bench.run`. RequestError, before anything
    runs, for a wrong request or a file of another one that it would have to overwrite."""
    DATASETS.find_in(options.data)  # those that are described there
    folder = options.out / FOLDER
    if not overwrite:
        _refuse_other_request(search, folder)
    trials = Trials(search, replace(options, out=folder / search.name))
    rungs: list[Alive] = [dict.fromkeys(search.places, range(search.trials))]
    for rung in range(search.rungs):
        specs = [spec for at, alive in enumerate(rungs) for spec in trials.specs(alive, at)]
        code = run_specs(specs, search.request.backbone, trials.checkpoint, trials.options, launcher, free)
        if options.dry_run or code > 1:
            return code
        if left := trials.open(specs):
            print(f"{len(left)} of {len(specs)} trial cells have no result yet; the same command goes on, and chooses when all have one.")
            return code
        if rung + 1 < search.rungs:
            rungs.append(trials.better_half(rungs[-1], rung))
    if why := _without_choice(trials, rungs[-1]):
        print(f"No choice was written: {why}", file=sys.stderr)
        return 1
    table = _table(trials, rungs)
    path = _write(as_toml(table), folder / f"{search.name}.toml", overwrite)
    print(_in_words(table))
    print(f'Written to {path}; it is used by --protocol "{_with_tuned(search)}".')
    return 0


def _in_words(table: Mapping[str, Any]) -> str:
    """The choices as a table in markdown, and what failed."""
    from tabulate import tabulate  # not for `--help`

    heads = ("method", "data set", "untuned", "tuned", "trial", "chosen", "learning rates")
    rows = []
    for of in table["choice"]:
        rates = ", ".join(f"{group} {rate:g}" for group, rate in of["rates"].items())
        rows.append((of["method"], of["dataset"] or "all", of["untuned"], of["score"], of["trial"], of["chosen"], rates))
    failed = sum(bool(trial["failed"]) for trial in table["trial"])
    lost = f"\n{failed} of {len(table['trial'])} trials failed, as those that diverge do; the file says why." if failed else ""
    grid = tabulate(rows, heads, tablefmt="pipe", floatfmt=("", "", ".1f", ".1f", "", "", ""), missingval="-")
    images = ", ".join(f"{count} of {name}" for name, count in table["held_out"].items())
    metrics = {name: DATASETS.get(name).metric for name in table["held_out"]}  # type: ignore[attr-defined]
    own = [f"{name} ({metric})" for name, metric in metrics.items() if metric != USUAL]
    also = f"\nIt is what trials are chosen by also where a data set has a metric of its own: {', '.join(own)}." if own else ""
    return f"\nmIoU (%) on held-out training images ({images}), the best of {table['trials']} trials:\n\n{grid}\n{also}{lost}"


def _without_choice(trials: Trials, alive: Alive) -> str:
    """A sentence for the first method of which all trials of full length failed; "" where there is none."""
    for place, numbers in alive.items():
        best = trials.ranked(place, numbers, trials.search.rungs - 1)[0]
        if math.isnan(trials.score(place, best, trials.search.rungs - 1)):
            why = [
                reason
                for name in place.datasets
                for spec in trials.cells(place.method, best, name, 1)
                if (reason := trials.store.status(spec).reason)
            ]
            return f"all trials of {place.method} on {', '.join(place.datasets)} failed: {why[0]}"
    return ""


def _with_tuned(search: Search) -> str:
    name = protocol_of(search.request.protocol).name
    return f"{name.removesuffix(')')}{',' if name.endswith(')') else '('}tuned={search.name})"


def _facts(search: Search) -> dict[str, Any]:
    """What was asked for, as the file says it."""
    request = {**vars(search.request), "protocol": protocol_of(search.request.protocol).name}
    names = ("trials", "per", "sampler", "seed", "halving", "only_rates", "images")
    return {"request": request, **{name: getattr(search, name) for name in names}, "rates": str(search.rates)}


def _refuse_other_request(search: Search, folder: Path) -> None:
    path = folder / f"{search.name}.toml"
    if not path.is_file():
        return
    before, now = read_tuned(search.name, [folder]), _facts(search)
    asked = [name for name, value in now.pop("request").items() if before.request.get(name) != value]
    other = [*asked, *(name for name, value in now.items() if getattr(before, name) != value)]
    if other:
        raise RequestError(f"{path} was chosen with other {' and '.join(other)}: --overwrite replaces it, --name keeps both.")


def _write(text: str, path: Path, overwrite: bool) -> Path:
    """Writes the file whole; RequestError where there is one that says something else, which stays; an earlier version's may say less."""
    before = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() and not overwrite else set()
    if before - set(text.splitlines()):
        raise RequestError(f"{path} has another content, from earlier results of these trials: --overwrite replaces it, --name keeps both.")
    write_together(path.parent, {path.name: text.encode()})
    return path


def _table(trials: Trials, rungs: Sequence[Alive]) -> dict[str, Any]:
    """The file's content."""
    records = {spec: trials.store.read(spec) for spec in _stored(trials, rungs)}
    choices = [choice for place in trials.search.places for choice in _choices(trials, place, rungs, records)]
    tried = [_trial(trials, *key, records) for key in _tried(rungs)]
    held_out = {spec.dataset: int(record.cost["test_images"]) for spec, record in sorted(records.items(), key=lambda item: item[0].dataset)}
    devices = sorted({str(record.provenance.get("device_name")) for record in records.values()})
    facts = {**_facts(trials.search), "held_out": held_out, "checkpoint_sha256": trials.sha256, "device": ", ".join(devices)}
    return {**facts, "choice": [asdict(choice) for choice in choices], "trial": [asdict(trial) for trial in tried]}


def _stored(trials: Trials, rungs: Sequence[Alive]) -> list[RunSpec]:
    specs = dict.fromkeys(spec for at, alive in enumerate(rungs) for spec in trials.specs(alive, at))
    return [spec for spec in specs if trials.store.status(spec).phase == "stored"]


def _tried(rungs: Sequence[Alive]) -> list[tuple[str, int, int, tuple[str, ...]]]:
    """(method, trial, rung, data sets), method by method; what is chosen for each data set has tried the same trials on several."""
    found: dict[tuple[str, int, int], tuple[str, ...]] = {}
    for rung, alive in enumerate(rungs):
        for place, numbers in alive.items():
            for number in numbers:
                key = (place.method, number, rung)
                found[key] = (*found.get(key, ()), *place.datasets)
    methods = list(dict.fromkeys(method for method, *_ in found))
    return [(*key, found[key]) for key in sorted(found, key=lambda key: (methods.index(key[0]), key[2], key[1]))]


def _trial(trials: Trials, method: str, number: int, rung: int, datasets: Sequence[str], records: Mapping[RunSpec, Record]) -> Trial:
    cells = {name: trials.cells(method, number, name, trials.part(rung)) for name in datasets}
    first = next(iter(cells.values()))[0]
    why = [trials.store.status(spec).reason for of in cells.values() for spec in of if spec not in records]
    found = {name: trials.miou(method, number, name, rung) for name in datasets}
    scores = {name: round(value, 4) for name, value in found.items() if not math.isnan(value)}
    return Trial(method, number, first.method.label, first.settings.epochs, _rates(first), scores, why[0] if why else "")


def _rates(spec: RunSpec) -> dict[str, float]:
    return dict(zip(spec.method.groups, spec.settings.rates * len(spec.method.groups), strict=False))


def _choices(trials: Trials, place: Place, rungs: Sequence[Alive], records: Mapping[RunSpec, Record]) -> list[Choice]:
    """The choice of a place; one a data set where the protocol's own rates were best and differ between its data sets."""
    last = len(rungs) - 1
    numbers = sorted(rungs[-1][place])
    scores = {number: trials.score(place, number, last) for number in numbers}
    best = trials.ranked(place, numbers, last)[0]
    cells = trials.of_place(place, rungs)
    costs = [records[spec].cost for spec in cells if spec in records]
    chosen = Choice(
        method=place.method,
        chosen=trials.search.draws[place.method][best].method.label,
        trial=best,
        rates={},
        score=round(scores[best], 4),
        best_so_far=tuple(accumulate((0.0 if math.isnan(value) else round(value, 4) for value in scores.values()), max)),
        cells=len(cells),
        steps=sum(int(cost["steps"]) for cost in costs),
        images=sum(spec.settings.epochs * int(records[spec].cost["train_images"]) for spec in cells if spec in records),
        seconds=round(sum(cost["training_seconds"] + cost["evaluation_seconds"] for cost in costs), 1),
        space={name: str(dimension) for name, dimension in trials.search.spaces[place.method].items()},
        dataset="" if trials.search.per == "grid" else place.datasets[0],
        untuned=round(scores[0], 4) if 0 in scores and not math.isnan(scores[0]) else None,
    )
    rates = {name: _rates(trials.cells(place.method, best, name, 1)[0]) for name in place.datasets}
    if all(of == rates[place.datasets[0]] for of in rates.values()):
        return [replace(chosen, rates=rates[place.datasets[0]])]
    return [replace(chosen, dataset=name, rates=of) for name, of in rates.items()]
