"""The mask decoders: SAM's own, and the HQ decoder that CAT-SAM tunes; both decode many prompts of many images in one call."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.sam import Sam
from bench.stock import MLP, LayerNorm2d
from bench.types import Features, Prompts


class Decoded(NamedTuple):
    """Per image: mask logits (n, 4g, 4g), and SAM's own estimate of each mask's IoU, (n,)."""

    logits: list[Tensor]
    iou: list[Tensor]


class Decoder(nn.Module):
    """SAM's mask decoder with its single-mask token; nothing to train. HQDecoder adds a token and what reads it.

    The frozen modules are the caller's: a decoder holds its own parameters only.
    """

    def forward(self, sam: Sam, features: Features, prompts: Sequence[Prompts]) -> Decoded:
        """Decodes the prompts of each image; they must be in the pixels of the model's input. One Prompts an image."""
        encoded = [_encode_prompts(sam, p) for p in prompts]
        image_maps = self.image_maps(features)
        logits: list[Tensor] = [features.embedding[:0]] * len(prompts)
        iou = list(logits)
        for images in _alike([sparse for sparse, _ in encoded]):  # prompts of one length are one batch
            counts = [len(encoded[i][0]) for i in images]
            sparse, dense = (torch.cat([encoded[i][k] for i in images]) for k in (0, 1))
            index = torch.tensor(images, device=sparse.device).repeat_interleave(torch.tensor(counts, device=sparse.device))
            masks, scores = self._decode(sam, features.embedding[index], sparse, dense, image_maps, index)
            for i, mask, score in zip(images, masks.split(counts), scores.split(counts), strict=True):
                logits[i], iou[i] = mask, score
        return Decoded(logits, iou)

    def _decode(
        self, sam: Sam, embedding: Tensor, sparse: Tensor, dense: Tensor, image_maps: Tensor | None, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """N prompts: embedding and dense (N, d, g, g), sparse (N, t, d), index (N,) the image of each -> (N, 4g, 4g), (N,)."""
        frozen = sam.mask_decoder
        own = [frozen.iou_token.weight, frozen.mask_tokens.weight, *self.extra_token()]
        output_tokens = torch.cat(own)  # IoU, four masks, then the extra one
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], 1)
        source = embedding + dense
        out, source = frozen.transformer(source, sam.prompt_encoder.get_dense_pe(), tokens)
        source = source.transpose(1, 2).unflatten(2, embedding.shape[-2:])  # (N, d, g, g)
        upscaled = frozen.output_upscaling(source)  # (N, d/8, 4g, 4g)
        scores = frozen.iou_prediction_head(out[:, 0])[:, 0]
        return self.masks(sam, out[:, 1 : len(output_tokens)], upscaled, image_maps, index), scores

    def extra_token(self) -> tuple[Tensor, ...]:
        """Output tokens beside SAM's own, each (1, d)."""
        return ()

    def image_maps(self, features: Features) -> Tensor | None:
        """What is computed once an image and added to its prompts' maps, (B, d/8, 4g, 4g)."""
        return None

    def masks(self, sam: Sam, out: Tensor, upscaled: Tensor, image_maps: Tensor | None, index: Tensor) -> Tensor:
        """Mask logits (N, 4g, 4g) from the mask tokens' outputs (N, 4 + extra, d) and SAM's upscaled map (N, d/8, 4g, 4g)."""
        weights = sam.mask_decoder.output_hypernetworks_mlps[0](out[:, 0])
        return torch.einsum("nc,nchw->nhw", weights, upscaled)


class HQDecoder(Decoder):
    """The HQ-SAM decoder (Ke et al., NeurIPS 2023) as CAT-SAM tunes it: one more token T, and maps from the first
    global-attention block, the image embedding and SAM's own upscaled map. Parameter names are the released checkpoints'.

    Starts from PyTorch's default initialisation (T from N(0, 1)), as the reference does; no HQ-SAM checkpoint is loaded.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        width, d = sam.config.width, sam.config.decoder_width
        self.hf_token = nn.Embedding(1, d)
        self.hf_mlp = MLP(d, d, d // 8, 3)
        self.compress_vit_feat = nn.Sequential(*_upscale(width, d, d // 8))
        self.embedding_encoder = nn.Sequential(*_upscale(d, d // 4, d // 8))
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(d // 8, d // 4, 3, padding=1), LayerNorm2d(d // 4), nn.GELU(), nn.Conv2d(d // 4, d // 8, 3, padding=1)
        )

    def extra_token(self) -> tuple[Tensor, ...]:
        return (self.hf_token.weight,)

    def image_maps(self, features: Features) -> Tensor:
        return self.embedding_encoder(features.embedding) + self.compress_vit_feat(features.first_global.permute(0, 3, 1, 2))

    def masks(self, sam: Sam, out: Tensor, upscaled: Tensor, image_maps: Tensor | None, index: Tensor) -> Tensor:
        assert image_maps is not None
        maps = self.embedding_maskfeature(upscaled) + image_maps[index]
        return torch.einsum("nc,nchw->nhw", self.hf_mlp(out[:, -1]), maps)


def _upscale(inner: int, middle: int, outer: int) -> list[nn.Module]:
    """Four times the side: two transposed convolutions with a norm and GELU between them."""
    up = nn.ConvTranspose2d(inner, middle, 2, stride=2), nn.ConvTranspose2d(middle, outer, 2, stride=2)
    return [up[0], LayerNorm2d(middle), nn.GELU(), up[1]]


def _encode_prompts(sam: Sam, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """SAM's prompt encoder: sparse (n, t, d) and dense (n, d, g, g)."""
    points = None if prompts.points is None else (prompts.points, prompts.labels)
    return sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)


def _alike(sparse: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images whose prompts have as many tokens."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, tokens in enumerate(sparse):
        groups[tokens.shape[1]].append(i)
    return list(groups.values())
