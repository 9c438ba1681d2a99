"""A training step as one CUDA graph: where shapes repeat, what a GPU is asked is recorded once and sent again as one, instead of thousands
of kernels one by one. Has not been run on a GPU yet."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
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

Backward = Callable[[Sequence["Example"], int | None], Tensor]  # examples on the device, dropout's seed -> losses, and gradients


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
    from where those of the recorded step lie, draws by the seed of now, and leaves losses and gradients where it left them."""

    def __init__(self, model: PromptableSegmenter, compute: Backward) -> None:
        self.model, self.compute = model, compute
        self._shapes: object = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._examples: list[Example] = []
        self._losses = torch.empty(0)
        self._gradients: list[Tensor | None] = []
        self._indices: dict[Hashable, Tensor] = {}

    def __call__(self, examples: "Sequence[Example]", dropout_seed: int) -> Tensor:
        """The losses of a step, whose gradients are the parameters' alone."""
        placed = [_placed(self.model, example) for example in examples]
        repeats, self._shapes = self._shapes == (now := shapes_of(placed, self.model.training)), now
        if not repeats or _computes_again(self.model, placed):
            self._graph = None
            return self.compute(placed, dropout_seed)
        if self._graph is None:
            self._capture(placed, dropout_seed)
        for mine, given in zip(_tensors(self._examples), _tensors(placed), strict=True):
            mine.copy_(given, non_blocking=True)
        torch.manual_seed(dropout_seed)
        assert self._graph
        self._graph.replay()
        for parameter, gradient in zip(self.model.tuned().values(), self._gradients, strict=True):
            parameter.grad = gradient
        return self._losses

    def _capture(self, examples: "list[Example]", dropout_seed: int) -> None:
        """Records a step, after one on the side that makes what is made once: tables, plans, indices."""
        parameters, side, here = list(self.model.tuned().values()), torch.cuda.Stream(), torch.cuda.current_stream()
        self._examples, self._graph = examples, torch.cuda.CUDAGraph()
        with held_indices() as self._indices:
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.compute(examples, dropout_seed)
            here.wait_stream(side)
            _forget(parameters)
            with torch.cuda.graph(self._graph):
                self._losses = self.compute(examples, None)  # each replay is seeded
        self._gradients = [parameter.grad for parameter in parameters]


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
