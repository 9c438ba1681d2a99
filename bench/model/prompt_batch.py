"""The prompts of many images as one batch for the decoder: kinds encoded together, lengths made equal, sources shared."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model.sam import Sam
from bench.model.transfer import indices
from bench.types import Prompts


class PromptBatch(NamedTuple):
    """N prompts, those of image i in `rows[i]`.

    sparse: (N, t, d), with lengths (N,) of which are real; sources: (U, g², d), what the transformer starts from: one for all prompts of
    an image, but one for each mask; which: (N,), the source of each prompt.
    """

    rows: list[slice]
    sparse: Tensor
    lengths: list[int]
    sources: Tensor
    which: Tensor

    def visible(self, own: int) -> Tensor | None:
        """(N, 1, 1, own + t): which tokens are real, `own` output tokens in front; None if all are."""
        if len(set(self.lengths)) <= 1:
            return None
        longest = self.sparse.shape[1]
        lengths = indices(self.lengths, self.sparse.device)
        return (torch.arange(-own, longest, device=lengths.device) < lengths[:, None])[:, None, None]


def batched(sam: Sam, embedding: Tensor, prompts: Sequence[Prompts], no_mask: Tensor) -> PromptBatch:
    """The batch of the prompts of images whose embeddings are (B, d, g, g). no_mask: (1, d), in place of a mask's encoding."""
    rows = [slice(0)] * len(prompts)
    sparse: list[Tensor] = []
    sources: list[Tensor] = []
    which: list[int] = []
    shapes = [(p.boxes is None, -1 if p.points is None else p.points.shape[1], p.masks is None) for p in prompts]
    for images in indices_by(shapes):
        joined = _joined([prompts[i] for i in images])
        counts = [prompts[i].count for i in images] if joined else [1] * len(images)
        start, known = len(which), sum(map(len, sources))
        tokens, of_images, shared = _encoded(sam, embedding, joined or Prompts(), images, counts, no_mask)
        sparse.append(tokens.expand(sum(counts), -1, -1))  # images without any prompt are encoded as one
        sources.append(of_images)
        which += [known + k for k, n in enumerate(counts) for _ in range(n)] if shared else range(known, known + sum(counts))
        for i, n in zip(images, counts, strict=True):
            rows[i], start = slice(start, start + n), start + n
    lengths = [x.shape[1] for x in sparse for _ in range(len(x))]
    longest = max(x.shape[1] for x in sparse)
    even = torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in sparse])
    return PromptBatch(rows, even, lengths, torch.cat(sources).flatten(2).mT.contiguous(), indices(which, embedding.device))


def _encoded(
    sam: Sam, embedding: Tensor, joined: Prompts, images: Sequence[int], counts: Sequence[int], no_mask: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """The sparse tokens of images whose prompts are of one kind, their sources (U, d, g, g), and whether an image's prompts share one."""
    tokens, dense = encode_prompts(sam, replace(joined, points=None, labels=None), no_mask)
    if joined.points is not None and joined.labels is not None:
        points = _points(sam, joined.points, joined.labels, pad=joined.boxes is None)
        tokens = points if joined.boxes is None else torch.cat([points, tokens.expand(len(points), -1, -1)], 1)
    of_images = embedding[indices(images, embedding.device)]
    if joined.masks is None:
        return tokens, of_images + no_mask[..., None, None], True
    repeated = indices([i for i, count in enumerate(counts) for _ in range(count)], embedding.device)
    return tokens, of_images.index_select(0, repeated) + dense, False


def _points(sam: Sam, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
    """SAM's encoding of points (n, k, d), without its indexing by a mask: a GPU's host would wait to hear how many that picks."""
    encoder = sam.prompt_encoder
    points, labels = points + 0.5, labels[..., None]  # to the pixel's centre
    if pad:
        points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 0, 0, 1), value=-1)
    places: Tensor = encoder.pe_layer.forward_with_coords(points, encoder.input_image_size)
    background, foreground = (places + encoder.point_embeddings[i].weight for i in (0, 1))
    marked = torch.where(labels == 0, background, torch.where(labels == 1, foreground, places))
    return torch.where(labels == -1, encoder.not_a_point_embed.weight, marked).to(places.dtype)


def encode_prompts(sam: Sam, prompts: Prompts, no_mask: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's prompt encoder: sparse (n, t, d) and dense (n, d, g, g), which without masks is `no_mask` (1, d) at every place."""
    points = None if prompts.points is None else (prompts.points, prompts.labels)
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
    return sparse, no_mask[..., None, None].expand_as(dense) if prompts.masks is None else dense


def indices_by(keys: Iterable[Hashable]) -> list[list[int]]:
    """The indices of equal keys together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return list(groups.values())


def _joined(prompts: Sequence[Prompts]) -> Prompts | None:
    """The prompts of images, all of one kind, as those of one; None where that is no prompt at all."""

    def together(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in prompts]
        return None if values[0] is None else torch.cat(values)

    fields = [together(name) for name in ("boxes", "points", "labels", "masks")]
    return None if all(field is None for field in fields) else Prompts(*fields)
