"""A tuned model as encoder.onnx and decoder.onnx, each with its description, checked against torch before it is called written.

With onnxruntime: `encoder.run(None, {"image": x})` once an image, `decoder.run(None, {…})` as often as there are prompts. What goes in
and out, and how to prepare it, is DESCRIPTION; it is part of the files as their metadata, with the numbers of the model.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import RequestError
from bench.exporting.onnx_graphs import DecoderGraph, EncoderGraph, Graph, no_masks, traced
from bench.grid.files import make_room
from bench.model.segmenter import PromptableSegmenter
from bench.types import Features, Prompts

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest difference from torch, relative where numbers are larger than 1
ONE_FILE_BYTES = 1_500_000_000  # ONNX files end at 2 GiB; larger weights stand beside the graph, in `<name>.onnx.data`
DESCRIPTION: Mapping[str, Mapping[str, str]] = {
    "encoder": {
        "image": "(1, 3, S, S) RGB 0-255, resized to S x S bilinearly with half-pixel centres (no antialias, aspect ratio not kept), "
        "then minus pixel_mean, over pixel_std; where native_size_is_raw is true, an image of exactly S x S goes in as it is; "
        "where resize is longest_side, scaled so that the longer side is S, with antialias, and after normalisation padded with 0 at the "
        "right and below; where normalisation is min_max, to 0-1 by the image's own least and largest value",
        "image_embedding": "(1, d, g, g), for the decoder",
        "first_global": "(1, g, g, C), for the decoder",
    },
    "decoder": {
        "image_embedding": "(1, d, g, g), of the encoder",
        "first_global": "(1, g, g, C), of the encoder",
        "point_coords": "(n, k, 2) x y of n prompts in pixels of the S x S input: those of the image times S / width and S / height, "
        "rounded (unrounded where native_size_is_raw is true and the image is S x S); where resize is longest_side, both times "
        "S / the longer side, unrounded; k may be 0: no point and no box",
        "point_labels": "(n, k) 1 foreground, 0 background, 2 and 3 a box's upper left and lower right corner, -1 padding; "
        "points come first, then the box; points without a box end with one padding point (0, 0)",
        "mask_input": "(n, 1, 4g, 4g) mask prompts, 0/1 or logits; zeros without",
        "has_mask": "(n) 1 where mask_input is to be used, 0 where not",
        "masks": "(n, 4g, 4g) logits; resize them bilinearly with half-pixel centres to the image's size (where resize is longest_side "
        "to S x S, and what is not padding to the image's size), foreground is > 0, several prompts of an image make the union",
        "iou": "(n) SAM's own estimate of each mask's IoU",
    },
}


def write_onnx(model: PromptableSegmenter, label: str, folder: Path) -> list[Path]:
    """Writes both files into a new folder and returns their paths, larger weights beside them included.

    RequestError where a package is missing, or where onnxruntime and torch differ by more than TOLERANCE; then nothing is written.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RequestError(f"--format onnx needs packages that are not installed: pip install {' '.join(missing)}.")
    make_room(folder)
    graphs: dict[str, Graph] = {"encoder": EncoderGraph(model), "decoder": DecoderGraph(model)}
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        for name, graph in graphs.items():
            _write(graph, Path(partial) / f"{name}.onnx", {**_facts(model, label), **DESCRIPTION[name]})
        worst = difference(model, Path(partial))
        if not worst <= TOLERANCE:
            raise RequestError(f"{label} as ONNX differs from torch by {worst:.1e} under onnxruntime: {TOLERANCE} is allowed.")
        folder.mkdir()
        return [Path(shutil.move(path, folder)) for path in sorted(Path(partial).iterdir())]


def _write(graph: Graph, path: Path, facts: Mapping[str, str]) -> None:
    program = traced(graph)
    program.model.metadata_props.update(facts)
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    program.save(path, external_data=size > ONE_FILE_BYTES)


def _facts(model: PromptableSegmenter, label: str) -> dict[str, str]:
    config = model.sam.config
    sizes = {"S": config.image_size, "g": config.grid, "d": config.decoder_width, "C": config.width}
    mean, std = (tensor.flatten().tolist() for tensor in (model.sam.pixel_mean, model.sam.pixel_std))
    facts = {"model": label, "sizes": sizes, "pixel_mean": mean, "pixel_std": std, "native_size_is_raw": not model.normalise_native_size}
    facts |= {"resize": model.resize, "normalisation": model.sam.normalisation}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


@torch.no_grad()
def difference(model: PromptableSegmenter, folder: Path) -> float:
    """The largest difference of the files under onnxruntime from the model in torch, over one image with a box and a point.

    Relative to the largest number of an output where that is above 1; features of large encoders have numbers of a hundred.
    """
    encoder, decoder = (session(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
    config, generator = model.sam.config, torch.Generator().manual_seed(0)
    side = config.image_size
    image = torch.randn(1, 3, side, side, generator=generator)
    box, point = torch.tensor([[[0.1, 0.2], [0.7, 0.6]]]) * side, torch.tensor([[[0.4, 0.5], [0.0, 0.0]]]) * side
    embedding, first_global = model.encoder(image)
    features = Features(embedding, first_global, ((side, side),), (True,))
    parts = encoder.run(None, {"image": image.numpy()})
    found = [_largest_difference(a, b) for a, b in zip(parts, features[:2], strict=True)]
    given = Prompts(boxes=box.flatten(1)), Prompts(points=point[:, :1], labels=torch.ones(1, 1))
    for prompts, coords, labels in zip(given, (box, point), (torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, -1.0]])), strict=True):
        low = model.decoder(model.sam, features, [prompts])
        inputs = (*parts, *(tensor.numpy() for tensor in no_masks(coords, labels, config.grid)))
        out = decoder.run(None, dict(zip(DecoderGraph.names[0], inputs, strict=True)))
        found += [_largest_difference(out[0], low.logits[0]), _largest_difference(out[1], low.iou[0])]
    return max(found)


def _largest_difference(a: np.ndarray, b: Tensor) -> float:
    return float(np.abs(a - b.numpy()).max() / max(1.0, b.abs().max().item()))


def session(path: Path) -> Any:
    """A file opened by onnxruntime on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
