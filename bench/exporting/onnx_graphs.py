"""A tuned model as two graphs of plain tensors, encoder and decoder, traced for ONNX.

S is the side of the model's input, g = S / patch size the side of its grid, d the decoder's width, C the encoder's; n prompts and
k points each are free.

    encoder   image (1, 3, S, S) -> image_embedding (1, d, g, g), first_global (1, g, g, C)
    decoder   image_embedding, first_global, point_coords (n, k, 2), point_labels (n, k), mask_input (n, 1, 4g, 4g), has_mask (n)
              -> masks (n, 4g, 4g), iou (n)

As in SAM's own ONNX export, a prompt is k points with labels: 1 foreground, 0 background, 2 and 3 the first and second corner of a
box, -1 padding. All inputs and outputs are float32. `bench.exporting.onnx_files.DESCRIPTION` says how to prepare them.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.model.implementation import use
from bench.model.retuned import with_tensors
from bench.model.sam import ImageEncoder, Tuner
from bench.model.segmenter import PromptableSegmenter
from bench.types import Features


class EncoderGraph(nn.Module):
    """The encoder on one image as the model takes it; both outputs are `bench.model.sam.ImageEncoder`'s. What merges into SAM's weights is
    merged: ONNX has no inverse of a matrix, which rotations follow from, and the graph is SAM's own."""

    names = ("image",), ("image_embedding", "first_global")

    def __init__(self, model: PromptableSegmenter) -> None:
        super().__init__()
        self.encoder, self.side = _merged(model) or model.encoder, model.sam.config.image_size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        with use("reference"):
            embedding, first_global = self.encoder(image)
        return embedding, first_global

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        return (torch.zeros(1, 3, self.side, self.side),)

    def free(self) -> tuple[Any, ...]:
        """Which sizes of the inputs are free: none."""
        return (None,)


class DecoderGraph(nn.Module):
    """The decoder on n prompts of one image."""

    names = (
        ("image_embedding", "first_global", "point_coords", "point_labels", "mask_input", "has_mask"),
        ("masks", "iou"),
    )

    def __init__(self, model: PromptableSegmenter) -> None:
        super().__init__()
        self.sam, self.decoder = model.sam, model.decoder

    def forward(
        self,
        image_embedding: Tensor,
        first_global: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        features = Features(image_embedding, first_global, ((1, 1),), (True,))
        sparse, dense = self._points(point_coords, point_labels), self._masks(mask_input, has_mask)
        of_image = torch.zeros_like(has_mask, dtype=torch.long)  # every prompt is of the one image
        embedding = image_embedding.expand(point_coords.shape[0], -1, -1, -1)
        masks, iou = self.decoder.decode(self.sam, embedding, sparse, dense, self.decoder.image_maps(features), of_image)
        return masks, iou

    def _points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """(n, k, d): SAM's embeddings of points and box corners, told apart by their labels alone."""
        encoder = self.sam.prompt_encoder
        places = encoder.pe_layer.forward_with_coords(coords + 0.5, encoder.input_image_size)  # the centre of a pixel
        kinds = labels[..., None]
        of_kind = sum((kinds == kind) * embedding.weight for kind, embedding in enumerate(encoder.point_embeddings))
        return torch.where(kinds == -1, encoder.not_a_point_embed.weight, places + of_kind)

    def _masks(self, masks: Tensor, has_mask: Tensor) -> Tensor:
        """(n, d, g, g)"""
        encoder = self.sam.prompt_encoder
        has = has_mask[:, None, None, None] > 0
        return torch.where(has, encoder.mask_downscaling(masks), self.decoder.no_mask(self.sam)[..., None, None])

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with: three boxes, whose numbers are nobody else's size."""
        config, n = self.sam.config, 3
        embedding = torch.zeros(1, config.decoder_width, config.grid, config.grid)
        first_global = torch.zeros(1, config.grid, config.grid, config.width)
        return embedding, first_global, *no_masks(torch.zeros(n, 2, 2), torch.tensor([[2.0, 3.0]] * n), config.grid)

    def free(self) -> tuple[Any, ...]:
        """Which sizes of the inputs are free: the number of prompts, and of points each, which may be 0."""
        n, k = torch.export.Dim("n", min=1), torch.export.Dim("k", min=0)
        return None, None, {0: n, 1: k}, {0: n, 1: k}, {0: n}, {0: n}


Graph = EncoderGraph | DecoderGraph


def no_masks(coords: Tensor, labels: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The decoder's last four inputs for points without a mask prompt."""
    return coords, labels, torch.zeros(len(coords), 1, 4 * grid, 4 * grid), torch.zeros(len(coords))


def _merged(model: PromptableSegmenter) -> ImageEncoder | None:
    """The encoder as a stock one of other weights; None where there is none, or none are other."""
    tensors = model.tuner.merged(model.sam.image_encoder)
    return ImageEncoder(with_tensors(model.sam.image_encoder, tensors), Tuner()) if tensors else None


@torch.no_grad()
def traced(graph: Graph) -> Any:
    """The graph as torch's ONNXProgram, with its names."""
    inputs, outputs = graph.names
    with _quiet():
        program = torch.export.export(graph.eval(), graph.example(), dynamic_shapes=graph.free(), strict=False)
        return torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that nothing here needs, and on what it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
