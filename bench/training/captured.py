"""A training step as one CUDA graph: where shapes repeat, what a GPU is asked is recorded once and sent again as one, instead of thousands
of kernels one by one. Has not been run on a GPU yet."""

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.model.decoder import maps_at_once
from bench.model.segmenter import PromptableSegmenter
from bench.model.transfer import held_indices
from bench.training.targets import LabelledMasks
from bench.types import Memory

if TYPE_CHECKING:
    from bench.training.train import Example

Place = tuple[int, int]  # of the first image in its whole batch, and that one's images
Backward = Callable[[Sequence["Example"], int | None, Place], Tensor]  # examples on the device, dropout's seed -> losses, and gradients


def may_capture(memory: Memory, images: int, keeps_prefix: bool) -> bool:
    """Whether steps of so many images are captured where their shapes repeat: parts would draw the same numbers by a seed of their own, as
    what is computed again in backward does, and what is kept of a frozen encoder lies with the host."""
    return not memory.checkpointing and (not memory.micro_batch or images <= memory.micro_batch) and not keeps_prefix


def shapes_of(examples: "Sequence[Example]", training: bool) -> Hashable:
    """What must be the same of two steps so that a GPU is asked the same for both."""
    labelled = [isinstance(example.truth, LabelledMasks) for example in examples]
    kinds = [tuple(x is None for x in (p.boxes, p.points, p.labels, p.masks)) for p in (example.prompts for example in examples)]
    sizes = [(tuple(x.shape), x.dtype) for x in _tensors(examples)]
    return training, tuple(labelled), tuple(kinds), tuple(sizes), tuple(tuple(example.truth.shape) for example in examples)


class CapturedStep:
    """Calls `compute`, and from the second step in a row of the same shapes on replays what it did. What is replayed reads the examples
    from where those of the recorded step lie, draws by the seed of now, and leaves losses and gradients where it left them.

    refused: why steps are not recorded, or no longer, "" where they are; a failed recording is also a warning, and steps go on as they
    are.
    """

    def __init__(self, model: PromptableSegmenter, compute: Backward) -> None:
        self.model, self.compute = model, compute
        self.refused = "images are resized by the host" if model.resize == "longest_side" else ""
        self._shapes: object = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._examples: list[Example] = []
        self._losses = torch.empty(0)
        self._gradients: list[Tensor | None] = []
        self._indices: dict[Hashable, Tensor] = {}

    def __call__(self, examples: "Sequence[Example]", dropout_seed: int, place: Place) -> Tensor:
        """The losses of a step, whose gradients are the parameters' alone."""
        placed = [_placed(self.model, example) for example in examples]
        repeats, self._shapes = self._shapes == (now := (place, shapes_of(placed, self.model.training))), now
        if self.refused or not repeats or _computes_again(self.model, placed):
            self._graph = None
            return self.compute(placed, dropout_seed, place)
        if self._graph is None:
            self._capture(placed, dropout_seed, place)
        if self._graph is None:
            return self.compute(placed, dropout_seed, place)
        for mine, given in zip(_tensors(self._examples), _tensors(placed), strict=True):
            mine.copy_(given, non_blocking=True)
        torch.manual_seed(dropout_seed)
        self._graph.replay()
        for parameter, gradient in zip(self.model.tuned().values(), self._gradients, strict=True):
            parameter.grad = gradient
        return self._losses

    def _capture(self, examples: "list[Example]", dropout_seed: int, place: Place) -> None:
        """Records a step, after one on the side that makes what is made once: tables, plans, indices. Where that fails, as for want of
        memory, there is no graph."""
        parameters, device = list(self.model.tuned().values()), self.model.device
        here, side, graph = torch.cuda.current_stream(device), _side(device), torch.cuda.CUDAGraph()
        gc.collect()  # what is left of a graph of gradients would bind the parameters' to the stream that it was made on
        try:
            with held_indices() as self._indices:
                side.wait_stream(here)
                with torch.cuda.stream(side):
                    self.compute(examples, dropout_seed, place)
                here.wait_stream(side)
                _forget(parameters)
                # Another thread may be preparing the next step, which pins memory: by "global" that would be an error.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    losses = self.compute(examples, None, place)  # each replay is seeded
            self._graph, self._examples, self._losses = graph, examples, losses
            self._gradients = [parameter.grad for parameter in parameters]
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # a recording that fails at its end leaves its own in force
            _forget(parameters)
            self.refused = str(error.__context__ or error).strip().splitlines()[0]  # what ends a recording may fail for what was in it
            warnings.warn(f"A training step could not be recorded as a CUDA graph, so steps go on one by one: {self.refused}", stacklevel=2)


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are recorded: one, because cuBLAS keeps memory for each that it has seen."""
    return torch.cuda.Stream(device)


def _placed(model: PromptableSegmenter, example: "Example") -> "Example":
    """An example whose prompts are on the device too, as the decoder takes them."""
    return replace(example, prompts=model.placed(example.prompts, (example.image.shape[-2], example.image.shape[-1])))


def _computes_again(model: PromptableSegmenter, examples: "Sequence[Example]") -> bool:
    """Whether the decoder computes maps again in backward, which asks for the state of random numbers."""
    config = model.sam.config
    return sum(len(example.prompts) for example in examples) > maps_at_once(model.device, config.grid**2 * config.decoder_width)


def _tensors(examples: "Sequence[Example]") -> Iterator[Tensor]:
    """All that examples are made of."""
    for example in examples:
        prompts, truth = example.prompts, example.truth
        given = (prompts.boxes, prompts.points, prompts.labels, prompts.masks)
        yield from (example.image, truth.labels if isinstance(truth, LabelledMasks) else truth, *(x for x in given if x is not None))


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
