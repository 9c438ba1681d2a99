"""One cell, from its spec to its record: train, evaluate what selections are made on, keep what was best.

During training `best` evaluates the test split (that is the paper's number, and optimistic) and `val` held-out training images;
`last` evaluates at the end alone.
"""

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from bench.errors import DataError, DivergedError
from bench.grid.files import write_together
from bench.grid.metrics import ImageRow, Images, image_iou, pooled_dice, pooled_iou, scores
from bench.grid.protocol import Settings
from bench.grid.registry import METHODS, third_party
from bench.grid.spec import RunSpec, check_files
from bench.grid.store import RESUME, Record
from bench.model.method import Method, build_parts
from bench.model.precision import products_of
from bench.model.products import choose_product, keep_product
from bench.model.sam import Sam
from bench.model.segmenter import PromptableSegmenter
from bench.running.estimate import Amount
from bench.training.conditions import Condition
from bench.training.evaluation import evaluate
from bench.training.prepared import Prepared
from bench.training.process_group import SINGLE_PROCESS, ProcessGroup
from bench.training.train import Step, optimizer_of, parameter_groups, repeats_one_sample, samples_of, steps_of
from bench.types import COMPILE_MODES, STEP_GRAPH, WHOLE, Dataset, Memory, ProgressCallback, Split, hash_order

Tensors = dict[str, Tensor]
IN_RESUME_FILE = {"evaluated_epoch": "looked", "evaluations": "looks"}  # the resume file's names where they differ
HistoryCallback = Callable[[Sequence[Mapping[str, Any]], bool], None]


class Stopped(Exception):
    """The user or the system asked the run to stop; what was done is kept in the cell's resume file."""


@dataclass
class TrainingState:
    """How far a cell's training is, in values that `torch.load(weights_only=True)` reads back.

    evaluated_epoch: the last one. kept: selection -> (score, weights, rows of the evaluated images). evaluations: how many.
    """

    step: int = 0
    evaluated_epoch: int = 0
    kept: dict[str, tuple[float, Tensors, list[tuple[Any, ...]]]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "evaluation": 0.0})
    evaluations: int = 0
    images: int = 0  # evaluated so far


@dataclass(frozen=True)
class Result:
    """What a finished cell hands to the store."""

    record: Record
    images: pd.DataFrame
    history: pd.DataFrame
    tuned: bytes


class Cell:
    """Runs one cell on a loaded backbone and an open data set, going on where `folder/resume.pt` stands.

    on_progress: is told the progress, and may raise Stopped; then the resume file is written first. save_every: seconds between two
    resume files. memory: how a training step is cut to fit the device. prepared: what earlier cells on this data set left to use again.
    process_group: the processes that run this cell together; rank 0 alone writes, and its on_progress alone may stop them.
    adapted: a model that is evaluated as it is, and nothing is trained; condition: of the test images, where it is not the settings'.
    compile: torch.compile's mode for the encoder, STEP_GRAPH for steps that are captured instead, "" for neither.
    fingerprint: of the data set's files; a resume file of others is not used.
    on_history: is given the training curve after each step, and whether it is whole.
    """

    def __init__(
        self,
        spec: RunSpec,
        sam: Sam,
        dataset: Dataset,
        folder: Path,
        on_progress: ProgressCallback,
        save_every: float = 60.0,
        memory: Memory = WHOLE,
        prepared: Prepared | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
        adapted: PromptableSegmenter | None = None,
        condition: Condition | None = None,
        compile: str = "",
        fingerprint: str | None = None,
        on_history: HistoryCallback = lambda rows, whole: None,
    ) -> None:
        self.process_group, self.fingerprint, self.on_history = process_group, fingerprint, on_history
        self.spec, self.settings, self.dataset, self.memory = spec, spec.settings, dataset, memory
        self.resume_file, self.on_progress, self.save_every = folder / RESUME, on_progress, save_every
        self.prepared = prepared or Prepared(dataset)
        self.compile, self.condition = compile, condition
        self.model = adapted or self._built(sam)
        trains = adapted is None and bool(self.model.tuned())
        self.support = dataset.support(spec.shots, spec.draw, hold_out_val=self.settings.uses_val) if trains else ()
        self.optimizer = optimizer_of(self.model, self.settings) if trains else None
        self.state = self._resumed()
        splits: set[Split] = {self.settings.evaluation_split, "val"}  # no other one is asked for its names
        images: dict[str, int] = {split: len(self._names(split)) for split in splits}
        self.work = Work.of(self.settings, len(self.support), images, self.optimizer is not None)
        self._saved_at = time.monotonic()
        self._saved = self._position()  # a resume file changes only where something was trained or looked at since
        self._latest: tuple[Tensors, list[ImageRow]] | None = None
        self._started: Step | None = None  # the last step, until its losses are in the history

    def run(self, provenance: Mapping[str, Any]) -> Result:
        """The cell's result, its method's and data set's origin noted if they are a third party's. DivergedError, DataError and Stopped
        pass through."""
        with products_of(self.settings):
            reset_peak_memory(self.model.device)
            if self.optimizer is not None:
                try:
                    self._train(self.optimizer)
                    self.on_history(self.state.history, True)
                except Stopped:
                    self._save_state()
                    raise
                self._save_state()  # the selections that follow change the model's weights
            outside = third_party(self.spec.method.name, self.spec.dataset)
            said = {**provenance, **self._only_sample(), **({"third_party": outside} if outside else {})}
            return self._result(self._selected_rows(), said)

    def _only_sample(self) -> dict[str, str]:
        """What the one sample is, in a few words, that all of the training shows; nothing where there is more than one."""
        if self.optimizer is None or not repeats_one_sample(self.support, self.settings):
            return {}
        (sample,) = samples_of(self.dataset, self.support, self.settings, self.spec.seed, 0, 0, self.model.sam.config.grid)
        return {"only_training_sample": f"{sample.augmentation}, prompt: {sample.kind}"}

    def _built(self, sam: Sam) -> PromptableSegmenter:
        model = build_model(self.spec, sam)
        if self.compile in COMPILE_MODES:
            model.encoder.compile_walk(self.compile)
        return model

    def _train(self, optimizer: torch.optim.Optimizer) -> None:
        state, started = self.state, time.monotonic()
        self.on_history(state.history, False)
        self._evaluate_if_due()
        what = self.model, optimizer, self.dataset, self.support, self.settings, self.spec.seed, state.step
        how = self.memory, self.process_group, self.prepared, self.compile == STEP_GRAPH
        for step in steps_of(*what, *how):
            self._note_losses()  # of the step before, while the device computes this one
            self._started, state.step = step, step.number
            if is_evaluation_due(vars(step), self.settings):
                self._note_losses()
            state.seconds["training"] += time.monotonic() - started
            loss = f", loss {state.history[-1]['loss']:.3f}" if state.history else ""
            self._report(f"epoch {step.epoch}/{self.settings.epochs}{loss}")
            self._evaluate_if_due()
            self.on_history(self.state.history, False)
            if time.monotonic() - self._saved_at > self.save_every:
                self._save_state()
            started = time.monotonic()
        self._note_losses()
        if not all(torch.isfinite(tensor).all() for tensor in self._weights().values()):
            raise DivergedError(f"The weights became NaN or infinite at the last step, {state.step}.")

    def _note_losses(self) -> None:
        """Enters the last step into the history, when the device has computed it."""
        if self._started is not None:
            step, self._started = self._started, None
            self.state.history.append(asdict(step.log(self.state.history[-1]["loss"] if self.state.history else math.nan)))

    def _evaluate_if_due(self) -> None:
        """Evaluates the images that `best` and `val` are chosen on, if this is the end of an epoch that asks for it."""
        log = self.state.history[-1] if self.state.history and self._started is None else None
        if log is None or not is_evaluation_due(log, self.settings) or self.state.evaluated_epoch == log["epoch"]:
            return
        found = {}
        for selection in [s for s in ("best", "val") if s in self.settings.selections]:
            doing = f"evaluation for {selection} after epoch {log['epoch']}"
            found[selection] = self._test_rows(doing) if selection == "best" else self._evaluate("val", doing)
        for selection, rows in found.items():
            log[f"{selection}_miou"] = score = pooled_iou(rows)
            kept = self.state.kept.get(selection, (math.nan,))[0]
            if math.isnan(kept) or score > kept:
                self.state.kept[selection] = (score, self._weights(), [astuple(row) for row in rows])
        self.state.evaluated_epoch = log["epoch"]
        self.state.evaluations += len(found)

    def _selected_rows(self) -> dict[str, list[ImageRow]]:
        """selection -> rows of the test images; the first selection's weights are what remains in the model."""
        last = self._weights()
        chosen = {selection: self.state.kept.get(selection, (0.0, last, [])) for selection in self.settings.selections}
        found: dict[str, list[ImageRow]] = {}
        for selection, (_, weights, rows) in chosen.items():
            if selection == "best" and rows:  # chosen on the test images: they were evaluated then
                found[selection] = [ImageRow(*row) for row in rows]
            else:
                self.model.load_tuned(weights)
                found[selection] = self._test_rows(f"test with the {selection} weights")
        self.model.load_tuned(chosen[self.settings.selections[0]][1])
        return found

    def _test_rows(self, doing: str) -> list[ImageRow]:
        """The test images' rows under the current weights; evaluated once if they are the latest that were."""
        weights = self._weights()
        if self._latest is None or not all(torch.equal(self._latest[0][name], weights[name]) for name in weights):
            self._latest = (weights, self._evaluate(self.settings.evaluation_split, doing))
        return self._latest[1]

    def _evaluate(self, split: Split, doing: str) -> list[ImageRow]:
        rows: list[ImageRow] = []
        started = time.monotonic()
        names, before = self._names(split), self.state.images
        shard = self.process_group.shard(names)
        for row in evaluate(self.model, self.dataset, split, self.settings, self.prepared, shard, self.condition):
            rows.append(row)
            self.state.images = before + min(len(names), len(rows) * self.process_group.size)
            self._report(doing)
        rows = self.process_group.gather(rows)
        self.state.seconds["evaluation"] += time.monotonic() - started
        if not any(row.truth for row in rows):
            raise DataError(f"None of the {len(rows)} images of the {split} split has any foreground, so that no score is defined.")
        return rows

    def _names(self, split: Split) -> tuple[str, ...]:
        """The images of a split that are evaluated: all, or so many of those held out as the protocol says."""
        names, few = self.dataset.names(split), self.settings.val_images
        return tuple(sorted(hash_order(names, self.dataset.name, "val")[:few])) if split == "val" and few else names

    def _weights(self) -> Tensors:
        return {name: p.detach().cpu().clone() for name, p in self.model.tuned().items()}

    def _report(self, doing: str) -> None:
        self.on_progress(self.work.share(self.state), doing)

    def _save_state(self) -> None:
        """Writes the resume file by rename. The weights and the optimizer are those after `state.step` steps."""
        self._note_losses()
        if self.process_group.rank or (self._saved == self._position() and self.resume_file.is_file()):
            return
        optimizer = self.optimizer.state_dict() if self.optimizer else {}
        content = {
            "key": self.spec.key,
            "fingerprint": self.fingerprint,
            "course": {IN_RESUME_FILE.get(k, k): v for k, v in vars(self.state).items()},
            "weights": self._weights(),
            "optimizer": optimizer,
            "products": choose_product(self.model.device.type),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_together(self.resume_file.parent, {RESUME: buffer.getvalue()}, durable=False)  # two copies of a cell may write at once
        self._saved_at, self._saved = time.monotonic(), self._position()

    def _position(self) -> tuple[int, int]:
        return self.state.step, self.state.evaluated_epoch

    def _resumed(self) -> TrainingState:
        """The state in the resume file, its weights and optimizer taken over; a new one without a usable file."""
        keep_product("")
        if self.optimizer is None or not self.resume_file.is_file():
            return TrainingState()
        try:
            content = torch.load(self.resume_file, map_location="cpu", weights_only=True)
            if content["key"] != self.spec.key:
                raise ValueError(f"it belongs to {content['key']}")
            if content.get("fingerprint", self.fingerprint) != self.fingerprint:  # an older version did not note it
                raise ValueError("the data set's files were others")
            self.model.load_tuned(content["weights"])
            self.optimizer.load_state_dict(content["optimizer"])
            state = TrainingState(**{name: content["course"][IN_RESUME_FILE.get(name, name)] for name in vars(TrainingState())})
            keep_product(content.get("products", ""))  # last: a file that cannot be used changes nothing
            return state
        except Exception as error:  # a damaged file costs the work it held, nothing else
            print(f"{self.resume_file} cannot be used ({error}): the cell starts from the beginning.", file=sys.stderr)
            self.model = self._built(self.model.sam)
            self.optimizer = optimizer_of(self.model, self.settings)
            return TrainingState()

    def _result(self, rows: Mapping[str, Sequence[ImageRow]], provenance: Mapping[str, Any]) -> Result:
        tuned = save({name: tensor.contiguous() for name, tensor in self._weights().items()})
        cost = {
            "trainable_parameters": sum(p.numel() for p in self.model.tuned().values()),
            "total_parameters": self.model.size,
            "tuned_bytes": len(tuned),
            "training_seconds": round(self.state.seconds["training"], 3),
            "evaluation_seconds": round(self.state.seconds["evaluation"], 3),
            **({"peak_memory_mb": round(peak_memory_mb(self.model.device), 1)} if self.model.device.type == "cuda" else {}),
            "execution": self.model.execution + f", step={STEP_GRAPH}" * (self.compile == STEP_GRAPH),
            "devices": self.process_group.size,
            "micro_batch": self.memory.micro_batch,
            "activation_checkpointing": self.memory.checkpointing,
            "steps": self.state.step,
            "looks": self.state.evaluations,
            **({"optimizer": "; ".join(map(str, parameter_groups(self.model, self.settings)))} if self.optimizer else {}),
            "train_images": len(self.support) if self.optimizer else 0,
            "test_images": len(next(iter(rows.values()))),
        }
        record = Record(self.spec, {selection: scores(Images.of(of)) for selection, of in rows.items()}, cost, provenance)
        return Result(record, images_table(rows), pd.DataFrame(self.state.history), tuned)


@dataclass(frozen=True)
class Work:
    """How much a cell is: a step of one image counts as three evaluated images (forward, and backward twice as long)."""

    step: int
    total: int

    @classmethod
    def of(cls, settings: Settings, support: int, images: Mapping[str, int], trains: bool) -> "Work":
        """The work of a cell with so many support images and images by split."""
        amount = Amount.of(settings, support, images, trains)
        step = 3 * amount.batch
        return cls(step, max(1, amount.steps * step + amount.images))

    def share(self, state: TrainingState) -> float:
        """The share that is done, 0 to 1."""
        return min(1.0, (state.step * self.step + state.images) / self.total)


def build_model(spec: RunSpec, sam: Sam) -> PromptableSegmenter:
    """The untrained model of a spec."""
    cls = METHODS.get(spec.method.name)
    check_files(cls, spec.method)
    method: Method = cls(**spec.method.arguments)
    return build_parts(method, sam, spec.seed, spec.settings.normalise_native_size, spec.settings.resize)


def is_evaluation_due(log: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the step of this log ends an epoch after which selections are evaluated."""
    return bool(log["ends_epoch"]) and (log["epoch"] % settings.evaluate_every == 0 or log["epoch"] == settings.epochs)


def images_table(rows: Mapping[str, Sequence[ImageRow]]) -> pd.DataFrame:
    """One row a selection and test image: what `ImageRow` has, IoU and Dice in percent."""
    table = [
        {"selection": selection, **asdict(row), "iou": image_iou(row), "dice": pooled_dice([row])}
        for selection, of_selection in rows.items()
        for row in of_selection
    ]
    later = ("pixels", "boundary_intersection", "boundary_union", "boundary_truth")
    frame = pd.DataFrame(table).astype(dict.fromkeys(later, "Int64"))  # integers also where an older resume file has none
    return frame.drop(columns=[name for name in ("confusion", "instances") if frame[name].isna().all()])


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed everywhere; the peak is then that of the process so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """The peak since the reset in MB (10⁶ bytes): allocated on the GPU, or resident on the CPU (the whole process)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
