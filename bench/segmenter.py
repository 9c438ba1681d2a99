"""PromptableSegmenter: a frozen SAM, a tuner and a decoder as one model that encodes images and decodes prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.decoder import Decoded, Decoder
from bench.errors import CheckpointError, DataError
from bench.paths import chosen
from bench.prompts import check_prompts, prompts_from
from bench.retuned import used_parameters
from bench.sam import ImageEncoder, Sam, Tuner
from bench.types import Features, Prompts
from bench.upsampling import resized

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = np.ndarray | Tensor | Image | str | PathLike[str]


class PromptableSegmenter(nn.Module):
    """A promptable segmentation model on a shared frozen backbone.

    tuner, decoder: hold all that is trained. normalise_native_size: False takes images of exactly the model's size raw, with
    their prompts unrounded, as the reference does (see configs/protocols/paper.toml).
    """

    def __init__(self, sam: Sam, tuner: Tuner, decoder: Decoder, normalise_native_size: bool = True) -> None:
        super().__init__()
        self.sam, self.decoder = sam, decoder
        self.encoder = ImageEncoder(sam.image_encoder, tuner)
        self.normalise_native_size = normalise_native_size
        self.to(self.device)

    @property
    def tuner(self) -> Tuner:
        """The part in the encoder."""
        return self.encoder.tuner

    @property
    def device(self) -> torch.device:
        """Where the backbone is; images and prompts are moved there."""
        return self.sam.image_encoder.pos_embed.device

    @property
    def execution(self) -> str:
        """How this model computes here and now, as a cell's record says it: "attention=…, decoder=…, loss=…"."""
        return f"attention={chosen()}, decoder={chosen()}, loss={chosen()}"

    @property
    def size(self) -> int:
        """The parameters that the model computes with: a frozen tensor that has a tuned copy in its place does not count."""
        walked, decoding = self.tuner.walked(self.sam.image_encoder), self.decoder.mask_decoder(self.sam)
        return used_parameters(walked, decoding, self.sam.prompt_encoder, self.tuner, self.decoder)

    def encode(self, images: Sequence[Tensor], checkpointing: bool = False) -> Features:
        """Encodes images (3, H, W), RGB in 0–255 of any number type; sizes may differ. checkpointing: see `ImageEncoder`."""
        batch = torch.stack([self._input(image) for image in images])  # (B, 3, S, S)
        embedding, first_global = self.encoder(batch, checkpointing)
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        return Features(embedding, first_global, sizes, tuple(self._is_native(image) for image in images))

    def decode(self, features: Features, prompts: Sequence[Prompts]) -> list[Tensor]:
        """Logits (n_i, H_i, W_i) of each image's prompts, at the image's own size; one Prompts an image."""
        maps = self.decode_low(features, prompts).logits
        return [resized(low, size) for low, size in zip(maps, features.sizes, strict=True)]

    def decode_low(self, features: Features, prompts: Sequence[Prompts]) -> Decoded:
        """As `decode`, but at the decoder's size (n_i, 4g, 4g), with SAM's IoU estimates."""
        if len(prompts) != len(features.sizes):
            raise ValueError(f"There are {len(prompts)} Prompts for {len(features.sizes)} images: one for each image is needed.")
        return self.decoder(self.sam, features, [self._scaled(p, features, i) for i, p in enumerate(prompts)])

    @torch.inference_mode()
    def predict(
        self,
        image: "Picture",
        *,
        box: Any = None,
        boxes: Any = None,
        point: Any = None,
        points: Any = None,
        labels: Any = None,
        mask: Any = None,
    ) -> np.ndarray:
        """The union of the masks that the prompts ask for, (H, W) bool.

        image: (H, W, 3) array RGB 0–255, (3, H, W) tensor, PIL image or path. In pixels of the image: box [x0, y0, x1, y1] or
        boxes (n, 4); point [x, y] (foreground) or points (n, k, 2) with labels (n, k); mask (H, W) 0/1. None: no prompt.
        ValueError for a prompt that is not finite, not ordered or not inside the image.
        """
        tensor = read_picture(image)
        prompts = prompts_from(box=box, boxes=boxes, point=point, points=points, labels=labels, mask=mask, grid=self.sam.config.grid)
        check_prompts(prompts, *tensor.shape[-2:])
        training = self.training
        self.eval()
        try:
            logits = self.decode(self.encode([tensor]), [prompts])[0]
        finally:
            self.train(training)
        return (logits > 0).any(0).cpu().numpy()

    def tuned(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; one that tuner and decoder share stands once, under the tuner."""
        named = [(f"tuner.{n}", p) for n, p in self.tuner.named_parameters()]
        named += [(f"decoder.{n}", p) for n, p in self.decoder.named_parameters()]
        found: dict[nn.Parameter, str] = {}
        for name, parameter in named:
            found.setdefault(parameter, name)
        return {name: parameter for parameter, name in found.items() if parameter.requires_grad}

    @torch.no_grad()
    def load_tuned(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over tensors that `tuned` named; CheckpointError where names or shapes differ."""
        own = self.tuned()
        if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in tensors.items()}:
            wrong = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
            raise CheckpointError(f"The tuned weights do not fit this model: {len(wrong)} differ ({', '.join(wrong[:3])}).")
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    def _input(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, S, S): resized without keeping the aspect ratio, then normalised, as the reference does."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"An image of shape {tuple(image.shape)} cannot be encoded: (3, H, W) is needed.")
        image = image.to(self.device, torch.float32)
        if self._is_native(image):
            return image
        size = self.sam.config.image_size
        resized = F.interpolate(image[None], (size, size), mode="bilinear", align_corners=False)[0]
        return (resized - self.sam.pixel_mean) / self.sam.pixel_std

    def _is_native(self, image: Tensor) -> bool:
        return not self.normalise_native_size and set(image.shape[-2:]) == {self.sam.config.image_size}

    def _scaled(self, prompts: Prompts, features: Features, i: int) -> Prompts:
        """Boxes and points from pixels of image i to pixels of the model's input, rounded to integers as the reference does."""
        prompts = prompts.to(self.device)
        if features.native[i]:
            return prompts
        height, width = features.sizes[i]
        factor = torch.tensor([self.sam.config.image_size / width, self.sam.config.image_size / height], device=self.device)
        boxes = None if prompts.boxes is None else (prompts.boxes.float().unflatten(1, (2, 2)) * factor).round().flatten(1)
        points = None if prompts.points is None else (prompts.points.float() * factor).round()
        return replace(prompts, boxes=boxes, points=points)


def read_picture(image: "Picture") -> Tensor:
    """An image as a (3, H, W) tensor, RGB 0–255; see `predict` for what it may be."""
    if isinstance(image, Tensor):
        return image
    if isinstance(image, str | PathLike):
        read = cv2.imread(str(image), cv2.IMREAD_COLOR)
        if read is None:
            raise DataError(f"The image {image} cannot be read: a png, jpg or tif file is needed.")
        image = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
    elif hasattr(image, "convert"):  # a PIL image of any mode
        image = np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An array of shape {image.shape} is no image: (H, W, 3), RGB in 0–255, is needed.")
    return torch.tensor(image).permute(2, 0, 1)
