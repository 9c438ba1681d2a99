"""The mask decoders: SAM's own, and the HQ decoder that CAT-SAM tunes; both decode many prompts of many images in one call."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.errors import CheckpointError
from bench.model import mask_maps
from bench.model.implementation import implementation
from bench.model.prompt_batch import PromptBatch, batched, encode_prompts, indices_by
from bench.model.pyramid import HighResMaskDecoder
from bench.model.sam import Sam, dense_positions
from bench.model.sam_modules import MLP, LayerNorm2d, MaskDecoder
from bench.model.transfer import indices
from bench.model.two_way import two_way
from bench.types import Features, Prompts

Init = Literal["random", "released"]
VALUES_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}  # of the widest map: it bounds how many prompts' maps are held together


def maps_at_once(device: torch.device, values: int) -> int:
    """Of how many prompts the maps are held together, for sources of so many values; those of more are computed again in backward."""
    return max(1, VALUES_AT_ONCE.get(device.type, 2**22) // (4 * values))


class Decoded(NamedTuple):
    """Per image: mask logits (n, 4g, 4g), SAM's own estimate of each mask's IoU, (n,), and the logit of the object being there at all,
    (n,), which SAM 2 and SAM 3 give."""

    logits: list[Tensor]
    iou: list[Tensor]
    present: list[Tensor] | None = None


class Source(NamedTuple):
    """What masks are read off: places (N, g², d) after the transformer, and the finer maps of U images, (U, g², 4, d/4) and
    (U, g², 4, 4, d/8), with the image of each prompt, (N,)."""

    places: Tensor
    high_res: tuple[Tensor, ...]
    of: Tensor


class Decoder(nn.Module):
    """SAM's mask decoder with its single-mask token; nothing to train. HQDecoder adds a token and what reads it.

    The frozen modules are the caller's: a decoder holds its own parameters only.
    has_others: whether it has SAM's three other masks as they were pre-trained. SAM 2 and SAM 3 predict the best of them where the single
    one is not stable (`HighResMaskDecoder`); training sees the single one. no_prompt: what prompt-free methods learn in place of SAM's
    embedding of no mask, (1, d).
    """

    has_others = True

    def __init__(self) -> None:
        super().__init__()
        self.no_prompt: nn.Parameter | None = None

    def learn_no_prompt(self, sam: Sam) -> None:
        """Trains the embedding of no mask, which with no points and boxes is all that a decoder is told, from SAM's own on."""
        self.no_prompt = nn.Parameter(sam.prompt_encoder.no_mask_embed.weight.detach().clone())

    def no_mask(self, sam: Sam) -> Tensor:
        """What is added to every place of an image that is asked for without a mask, (1, d)."""
        frozen: Tensor = sam.prompt_encoder.no_mask_embed.weight
        return frozen if self.no_prompt is None else self.no_prompt

    def prompt_tensors(self) -> dict[str, Tensor]:
        """The tensors of `sam.prompt_encoder`, under its own names, in whose place others were learned."""
        return {} if self.no_prompt is None else {"no_mask_embed.weight": self.no_prompt.detach()}

    def forward(self, sam: Sam, features: Features, prompts: Sequence[Prompts]) -> Decoded:
        """Decodes the prompts of each image; they must be in the pixels of the model's input. One Prompts an image."""
        if implementation() == "reference":
            return self._reference(sam, features, prompts)
        batch = batched(sam, features.embedding, prompts, self.no_mask(sam))
        out, places, before = self._transformed(sam, batch)
        of = indices([i for i, rows in enumerate(batch.rows) for _ in range(rows.stop - rows.start)], places.device)
        source = Source(places, tuple(mask_maps.in_places(each, features.embedding.shape[-1]) for each in features.high_res), of)
        weights = self.weights(sam, out)
        masks = self._masks(sam, source, weights)
        estimates = self.mask_decoder(sam).iou_prediction_head(out[:, 0])
        masks, scores = self._best(sam, out, masks, estimates, lambda other: self._masks(sam, source, other))
        fixed = self.image_places(features)
        logits = [masks[rows] for rows in batch.rows]
        if fixed is not None:
            logits = [
                low + mask_maps.masks_of_one(weights[rows, : fixed.shape[-1]], fixed[i])
                for i, (low, rows) in enumerate(zip(logits, batch.rows, strict=True))
            ]
        present = self.mask_decoder(sam).pred_obj_score_head(before[:, 0])[:, 0] if before.shape[1] else None
        each = None if present is None else [present[rows] for rows in batch.rows]
        return Decoded(logits, [scores[rows] for rows in batch.rows], each)

    halves_first_global = False  # whether all that it does with `first_global` is a product that autocast makes in half precision

    @property
    def reads_first_global(self) -> bool:
        """Whether the features' `first_global` is of use to it."""
        return any(getattr(type(self), name) is not getattr(Decoder, name) for name in ("forward", "image_maps", "image_places"))

    def _transformed(self, sam: Sam, batch: PromptBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The output tokens from SAM's IoU token on (N, 1 + 4 + extra, d), the source (N, g², d), and the token in front of them, if there
        is one, (N, 0 or 1, d)."""
        decoder = self.mask_decoder(sam)
        own, before = self._own_tokens(decoder)
        tokens = torch.cat([own.expand(len(batch.sparse), -1, -1), batch.sparse], 1)
        pe = sam.dense_positions().to(tokens.dtype)
        out, source = two_way(decoder.transformer, batch.sources, batch.which, pe, tokens, batch.visible(len(own)))
        return out[:, before : len(own)], source, out[:, :before]

    def _own_tokens(self, decoder: MaskDecoder) -> tuple[Tensor, int]:
        """The tokens in front of the prompts', and how many of them come before the IoU token."""
        before = [decoder.obj_score_token.weight] if isinstance(decoder, HighResMaskDecoder) else []
        return torch.cat([*before, decoder.iou_token.weight, decoder.mask_tokens.weight, *self.extra_token()]), len(before)

    def _best(self, sam: Sam, out: Tensor, masks: Tensor, estimates: Tensor, masks_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The single masks (N, 4g, 4g) and their estimated IoUs of estimates (N, 4); where one is not stable, the best of the others."""
        decoder, scores = self.mask_decoder(sam), estimates[:, 0]
        if self.training or not self.has_others or not isinstance(decoder, HighResMaskDecoder):
            return masks, scores
        best = estimates[:, 1:].argmax(-1)
        others = torch.stack([decoder.output_hypernetworks_mlps[1 + i](out[:, 2 + i]) for i in range(3)], 1)
        stays = decoder.is_stable(masks)
        rows = torch.arange(len(best), device=best.device)
        found = torch.where(stays[:, None, None], masks, masks_of(others[rows, best]))
        return found, torch.where(stays, scores, estimates[rows, 1 + best])

    def _masks(self, sam: Sam, source: Source, weights: Tensor) -> Tensor:
        """What is read off the upscaled sources of all prompts, some prompts at a time: (N, 4g, 4g). In training the wide
        maps of all but few prompts are computed again in backward instead of kept."""
        places = source.places
        at_once = maps_at_once(places.device, places.shape[1] * places.shape[2])
        parts = list(zip(places.split(at_once), weights.split(at_once), source.of.split(at_once), strict=True))
        again = torch.is_grad_enabled() and len(parts) > 1
        upscaling = self.mask_decoder(sam).output_upscaling

        def read(places: Tensor, weights: Tensor, of: Tensor) -> Tensor:
            return self.read(weights, mask_maps.upscaled(upscaling, places, [each[of] for each in source.high_res]))

        if not again:
            return torch.cat([read(*part) for part in parts])
        return torch.cat([checkpoint(copy_context().run, read, *part, use_reentrant=False) for part in parts])

    def _reference(self, sam: Sam, features: Features, prompts: Sequence[Prompts]) -> Decoded:
        """`forward` as SAM writes it: the reference that the fast path is tested and timed against."""
        encoded = [encode_prompts(sam, p, self.no_mask(sam)) for p in prompts]
        image_maps = self.image_maps(features)
        logits: list[Tensor] = [features.embedding[:0]] * len(prompts)
        iou = list(logits)
        for images in indices_by(sparse.shape[1] for sparse, _ in encoded):  # prompts of one length are one batch
            counts = [len(encoded[i][0]) for i in images]
            sparse, dense = (torch.cat([encoded[i][k] for i in images]) for k in (0, 1))
            index = torch.tensor(images, device=sparse.device).repeat_interleave(torch.tensor(counts, device=sparse.device))
            high_res = [each[index] for each in features.high_res]
            masks, scores = self.decode(sam, features.embedding[index], sparse, dense, image_maps, index, high_res)
            for i, mask, score in zip(images, masks.split(counts), scores.split(counts), strict=True):
                logits[i], iou[i] = mask, score
        return Decoded(logits, iou)

    def decode(
        self,
        sam: Sam,
        embedding: Tensor,
        sparse: Tensor,
        dense: Tensor,
        image_maps: Tensor | None,
        index: Tensor,
        high_res: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """N prompts: embedding and dense (N, d, g, g), sparse (N, t, d), index (N,) the image of each, high_res its finer maps
        -> (N, 4g, 4g), (N,)."""
        decoder = self.mask_decoder(sam)
        output_tokens, before = self._own_tokens(decoder)  # IoU, four masks, then the extra one
        tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], 1)  # len() would fix N in a traced graph
        source = embedding + dense
        out, source = decoder.transformer(source, dense_positions(sam.prompt_encoder), tokens)
        source = source.transpose(1, 2).unflatten(2, embedding.shape[-2:])  # (N, d, g, g)
        upscaled = _upscaled(decoder.output_upscaling, source, high_res)  # (N, d/8, 4g, 4g)
        out = out[:, before : len(output_tokens)]
        maps = self.masks(upscaled, image_maps, index)
        masks = torch.einsum("nc,nchw->nhw", self.weights(sam, out), maps)
        estimates = decoder.iou_prediction_head(out[:, 0])
        return self._best(sam, out, masks, estimates, lambda other: torch.einsum("nc,nchw->nhw", other, maps))

    def merged(self, sam: Sam) -> dict[str, Tensor] | None:
        """The tensors of `sam.mask_decoder`, under its own names, with which a stock SAM decodes as this does; None where none do."""
        return {} if type(self) is Decoder else None

    def mask_decoder(self, sam: Sam) -> MaskDecoder:
        """SAM's modules that decode: the frozen ones, or some that share their tensors but for those that are tuned themselves."""
        return sam.mask_decoder

    def extra_token(self) -> tuple[Tensor, ...]:
        """Output tokens beside SAM's own, each (1, d)."""
        return ()

    def image_maps(self, features: Features) -> Tensor | None:
        """What is computed once an image and added to its prompts' maps, (B, d/8, 4g, 4g)."""
        return None

    def masks(self, upscaled: Tensor, image_maps: Tensor | None, index: Tensor) -> Tensor:
        """What the weights are multiplied with, (N, d/8, 4g, 4g), from SAM's upscaled map of the same shape."""
        return upscaled

    def weights(self, sam: Sam, out: Tensor) -> Tensor:
        """Each prompt's weights of the channels of its map, (N, d/8), from the output tokens (N, 1 + 4 + extra, d)."""
        weights: Tensor = self.mask_decoder(sam).output_hypernetworks_mlps[0](out[:, 1])
        return weights

    def image_places(self, features: Features) -> Tensor | None:
        """`image_maps` in token layout, (B, g², 4, 4, d/8)."""
        return None

    def read(self, weights: Tensor, upscaled: Tensor) -> Tensor:
        """Masks (N, 4g, 4g), without the image maps' part, from weights (N, d/8) and SAM's upscaled map (N, g², 4, 4, d/8)."""
        return mask_maps.masks(weights, upscaled)


class HQDecoder(Decoder):
    """The HQ-SAM decoder (Ke et al., NeurIPS 2023) as CAT-SAM tunes it: one more token T, and maps from the first
    global-attention block, the image embedding and SAM's own upscaled map. Parameter names are the released checkpoints'.

    init: "random" starts from PyTorch's default initialisation (T from N(0, 1)), as the reference does; "released" from the weights of
    SAM-HQ's decoder, which the backbone's checkpoint must have.
    """

    halves_first_global, has_others = True, False

    def __init__(self, sam: Sam, init: Init = "random") -> None:
        super().__init__()
        width, d = sam.config.width, sam.config.decoder_width
        self.hf_token = nn.Embedding(1, d)
        self.hf_mlp = MLP(d, d, d // 8, 3)
        self.compress_vit_feat = nn.Sequential(*_upscale(width, d, d // 8))
        self.embedding_encoder = nn.Sequential(*_upscale(d, d // 4, d // 8))
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(d // 8, d // 4, 3, padding=1), LayerNorm2d(d // 4), nn.GELU(), nn.Conv2d(d // 4, d // 8, 3, padding=1)
        )
        if init == "released" and not self.hf_token.weight.is_meta:  # an outline, without weights, is as large without them
            self._start_from(sam.hq)

    def _start_from(self, released: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in released.items()}:
            lacks = "no weights of SAM-HQ's decoder" if not released else "an HQ decoder of other sizes"
            raise CheckpointError(f"init=released: this backbone's checkpoint has {lacks}; hq_vit_b, hq_vit_l and hq_vit_h have it.")
        self.load_state_dict({name: tensor.float() for name, tensor in released.items()})

    def extra_token(self) -> tuple[Tensor, ...]:
        return (self.hf_token.weight,)

    def image_maps(self, features: Features) -> Tensor:
        return self.embedding_encoder(features.embedding) + self.compress_vit_feat(features.first_global.permute(0, 3, 1, 2))

    def masks(self, upscaled: Tensor, image_maps: Tensor | None, index: Tensor) -> Tensor:
        assert image_maps is not None
        maps: Tensor = self.embedding_maskfeature(upscaled) + image_maps[index]
        return maps

    def weights(self, sam: Sam, out: Tensor) -> Tensor:
        weights: Tensor = self.hf_mlp(out[:, -1])
        return weights

    def image_places(self, features: Features) -> Tensor:
        embedding = mask_maps.upscaled(self.embedding_encoder, features.embedding.flatten(2).mT)
        return embedding + mask_maps.upscaled(self.compress_vit_feat, features.first_global.flatten(1, 2))

    def read(self, weights: Tensor, upscaled: Tensor) -> Tensor:
        return mask_maps.feature_masks(self.embedding_maskfeature, weights, upscaled)


def _upscaled(layers: nn.Sequential, source: Tensor, high_res: Sequence[Tensor]) -> Tensor:
    """SAM's upscaling (N, d, g, g) -> (N, d/8, 4g, 4g), with the finer maps added where their size is reached."""
    if not high_res:
        out: Tensor = layers(source)
        return out
    (finest, fine), (up, norm, activation, again, last) = high_res, layers
    out = last(again(activation(norm(up(source) + fine))) + finest)
    return out


def _upscale(inner: int, middle: int, outer: int) -> list[nn.Module]:
    """Four times the side: two transposed convolutions with a norm and GELU between them."""
    up = nn.ConvTranspose2d(inner, middle, 2, stride=2), nn.ConvTranspose2d(middle, outer, 2, stride=2)
    return [up[0], LayerNorm2d(middle), nn.GELU(), up[1]]
