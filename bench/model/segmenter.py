"""PromptableSegmenter: a frozen SAM, a tuner and a decoder as one model that encodes images and decodes prompts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import CheckpointError, InputError, RequestError, need_known
from bench.grid.protocol import Resize
from bench.model.attention import choose
from bench.model.decoder import Decoded, Decoder
from bench.model.implementation import implementation
from bench.model.inputs import image_files, prompts_from, read_picture
from bench.model.products import choose_product
from bench.model.retuned import used_parameters
from bench.model.sam import ImageEncoder, Prefix, Sam, Tuner
from bench.model.transfer import uploaded
from bench.model.upsampling import interpolated, resized, smoothly_resized, union
from bench.types import Features, Prompts

if TYPE_CHECKING:
    from bench.model.inputs import Picture

ALL_ONE_GROUP: Mapping[str, str] = {"": "encoder"}
KINDS = ("box", "boxes", "point", "points", "labels", "mask", "masks")  # of what `predict` takes as prompts


class PromptMasks(NamedTuple):
    """What each of n prompts gave, at the image's size.

    masks: (n, H, W) bool, where its logits are above 0; logits: (n, H, W) float32.
    """

    masks: np.ndarray
    logits: np.ndarray


class PromptableSegmenter(nn.Module):
    """A promptable segmentation model on a shared frozen backbone.

    tuner, decoder: hold all that is trained. normalise_native_size: False takes images of exactly the model's size raw, with
    their prompts unrounded, as the reference does (see configs/protocols/paper.toml). groups, rate_factor, decays: as of
    `bench.model.method.Method`. resize: how any other image becomes the model's input, see `bench.grid.protocol.Settings`.
    """

    def __init__(
        self,
        sam: Sam,
        tuner: Tuner,
        decoder: Decoder,
        normalise_native_size: bool = True,
        groups: Mapping[str, str] = ALL_ONE_GROUP,
        resize: Resize = "square",
        rate_factor: Callable[[str], float] = lambda name: 1.0,
        decays: Callable[[str], bool] = lambda name: True,
    ) -> None:
        super().__init__()
        self.groups, self.rate_factor, self.decays = groups, rate_factor, decays
        self.sam, self.decoder = sam, decoder
        self.encoder = ImageEncoder(sam.image_encoder, tuner)
        self.normalise_native_size, self.resize = normalise_native_size, resize
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
        """How this model computes here and now, as a cell's record says it: "attention=…, products=…, encoder=…, decoder=…, loss=…"."""
        kernel, products = (
            (choose(self.device, self.sam.config.grid**2), choose_product(self.device.type))
            if implementation() == "fast"
            else ("reference", "torch")
        )
        encoder = "compiled" if self.encoder.is_compiled else implementation()
        return f"attention={kernel}, products={products}, encoder={encoder}, decoder={implementation()}, loss={implementation()}"

    @property
    def size(self) -> int:
        """The parameters that the model computes with: a frozen tensor that has a tuned copy in its place does not count."""
        walked, decoding = self.tuner.walked(self.sam.image_encoder), self.decoder.mask_decoder(self.sam)
        return used_parameters(walked, decoding, self.sam.prompt_encoder, self.tuner, self.decoder)

    def encode(self, images: Sequence[Tensor], checkpointing: bool = False, known: Prefix | None = None) -> Features:
        """Encodes images (3, H, W), RGB in 0–255 of any number type; sizes may differ. checkpointing: see `ImageEncoder`. known: what
        `prefix` said of them."""
        if known:
            embedding, first_global, penalty, high_res = self.encoder.after(known, checkpointing)
        else:
            embedding, first_global, penalty, high_res = self.encoder.with_penalty(self._inputs(images), checkpointing)
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        return Features(embedding, first_global, sizes, tuple(map(self._is_native, sizes)), penalty, high_res)

    def prefix(self, images: Sequence[Tensor]) -> Prefix:
        """What the frozen parts of the encoder say of images, as `encode` takes them."""
        return self.encoder.prefix(self._inputs(images))

    def decode(self, features: Features, prompts: Sequence[Prompts]) -> list[Tensor]:
        """Logits (n_i, H_i, W_i) of each image's prompts, at the image's own size; one Prompts an image."""
        maps = self.decode_low(features, prompts).logits
        return [resized(low, size) for low, size in zip(maps, features.sizes, strict=True)]

    def decode_low(self, features: Features, prompts: Sequence[Prompts]) -> Decoded:
        """As `decode`, but at the decoder's size (n_i, 4g, 4g), with SAM's IoU estimates; where `resize` keeps the aspect ratio, at the
        input's size, without what was padded."""
        if len(prompts) != len(features.sizes):
            raise ValueError(f"There are {len(prompts)} Prompts for {len(features.sizes)} images: one for each image is needed.")
        placed = map(self._placed, prompts, features.sizes, features.native)
        decoded: Decoded = self.decoder(self.sam, features, list(placed))
        if self.resize == "square":
            return decoded
        return Decoded([self._unpadded(low, size) for low, size in zip(decoded.logits, features.sizes, strict=True)], decoded.iou)

    def placed(self, prompts: Prompts, size: tuple[int, int]) -> Prompts:
        """Prompts in pixels of an image (H, W) as the decoder takes them, which may be done before the image is encoded: a device that is
        busy would get them late."""
        return self._placed(prompts, size, self._is_native(size))

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
        masks: Any = None,
        return_each: bool = False,
    ) -> np.ndarray | PromptMasks:
        """The union of the masks that the prompts ask for, (H, W) bool; with `return_each` the mask and logits of every prompt.

        image: (H, W, 3) array RGB 0–255, (3, H, W) tensor, PIL image or path (see `bench.model.inputs.read_picture`). In pixels of the
        image: box [x0, y0, x1, y1] or boxes (n, 4); point [x, y], or points (n, 2), one for each prompt, or (n, k, 2), k for each;
        labels (n, k) of the points: 1 foreground (the default), 0 background, -1 padding; mask (H, W) or masks (n, H, W) of 0/1.
        The i-th box, points and mask are one prompt together. Nothing given: no prompt, one mask. Not one box (0, 4): no mask.
        InputError or DataError, in one sentence, for what is no image, or a prompt that is not finite, ordered and inside of it.
        """
        given = dict(zip(KINDS, (box, boxes, point, points, labels, mask, masks), strict=True))
        return self._predicted([self._read(image, given)], return_each)[0]

    def predict_many(
        self,
        images: "Iterable[Picture] | str | PathLike[str]",
        prompts: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        return_each: bool = False,
        batch: int = 0,
    ) -> Iterator[np.ndarray | PromptMasks]:
        """Yields what `predict` returns, image by image.

        images: any iterable of what `predict` takes, read as they are needed; or a folder: its images, sorted by name. prompts: for
        each image the prompts by `predict`'s names, {"boxes": …}, or None for no prompt. batch: images that are encoded
        together; 0: as many as the device has memory for. The errors are `predict`'s; what comes before is yielded first.
        """
        pictures = image_files(Path(images)) if isinstance(images, str | PathLike) else images
        pairs = ((image, None) for image in pictures) if prompts is None else _paired(pictures, prompts)
        waiting: list[tuple[Tensor, Prompts]] = []
        size = batch or at_once(self)[0]
        try:
            for image, given in pairs:
                waiting.append(self._read(image, given or {}))
                if len(waiting) == size:
                    waiting, ready = [], waiting
                    yield from self._predicted(ready, return_each)
        except RequestError:
            yield from self._predicted(waiting, return_each)
            raise
        yield from self._predicted(waiting, return_each)

    def _read(self, image: "Picture", given: Mapping[str, Any]) -> tuple[Tensor, Prompts]:
        """A picture (3, H, W) and its prompts, checked."""
        need_known("kind of prompt", KINDS, *given)
        tensor = read_picture(image)
        return tensor, prompts_from((tensor.shape[-2], tensor.shape[-1]), self.sam.config.grid, **given)

    @torch.inference_mode()
    def _predicted(self, pairs: Sequence[tuple[Tensor, Prompts]], return_each: bool) -> list[np.ndarray | PromptMasks]:
        """What `predict` returns for images that are encoded as one batch, in evaluation mode."""
        if not pairs:
            return []
        training = self.training
        self.eval()
        try:
            features = self.encode([image for image, _ in pairs])
            return [self._decoded(features.only([i]), prompts, return_each) for i, (_, prompts) in enumerate(pairs)]
        finally:
            self.train(training)

    def _decoded(self, features: Features, prompts: Prompts, return_each: bool) -> np.ndarray | PromptMasks:
        """What `predict` returns of one image's features; some prompts at a time, so that many of them take no more memory."""
        size, side = features.sizes[0], 4 * self.sam.config.grid
        asked = any(x is not None for x in (prompts.boxes, prompts.points, prompts.masks))
        low = features.embedding.new_zeros(0, side, side)
        if not asked or prompts.count:
            step = at_once(self)[1]
            parts = [prompts.part(start, start + step) for start in range(0, len(prompts), step)]
            low = torch.cat([self.decode_low(features, [part]).logits[0] for part in parts])
        if not return_each:
            return union(low.float(), size).cpu().numpy()
        logits = resized(low.float(), size).cpu().numpy() if len(low) else np.zeros((0, *size), np.float32)
        return PromptMasks(logits > 0, logits)

    def tuned(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; one that tuner and decoder share stands once, under the tuner."""
        named = [(f"tuner.{n}", p) for n, p in self.tuner.named_parameters()]
        named += [(f"decoder.{n}", p) for n, p in self.decoder.named_parameters()]
        found: dict[nn.Parameter, str] = {}
        for name, parameter in named:
            found.setdefault(parameter, name)
        return {name: parameter for parameter, name in found.items() if parameter.requires_grad}

    def group_of(self, name: str) -> str:
        """The group of one of `tuned`'s parameters: that of the longest name among `groups` which it is, or is a part of. RequestError
        where there is none."""
        found = [above for above in self.groups if not above or name == above or name.startswith(f"{above}.")]
        if not found:
            raise RequestError(f"The trained tensor {name} is in no group: the method has groups for {', '.join(self.groups)} alone.")
        return self.groups[max(found, key=len)]

    @torch.no_grad()
    def load_tuned(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over tensors that `tuned` named; CheckpointError where names or shapes differ."""
        own = self.tuned()
        if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in tensors.items()}:
            wrong = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
            raise CheckpointError(f"The tuned weights do not fit this model: {len(wrong)} differ ({', '.join(wrong[:3])}).")
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    def _inputs(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._input(image) for image in images])  # (B, 3, S, S)

    def _input(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (3, S, S): resized and normalised, then padded at the right and below where the image does not fill it."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"An image of shape {tuple(image.shape)} cannot be encoded: (3, H, W) is needed.")
        size = image.shape[-2], image.shape[-1]
        if self._is_native(size):
            return uploaded(image, self.device).to(torch.float32)
        (height, width), side = self._inside(size), self.sam.config.image_size
        if self.resize == "longest_side":
            return F.pad(
                self.sam.normalised(uploaded(smoothly_resized(image, (height, width)), self.device)), (0, side - width, 0, side - height)
            )
        return self.sam.normalised(interpolated(uploaded(image, self.device).to(torch.float32)[None], (side, side))[0])

    def _inside(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that an image (H, W) has in the model's input, rounded as SAM's predictor does."""
        side = self.sam.config.image_size
        if self.resize == "square":
            return side, side
        scale = side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _unpadded(self, low: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (n, 4g, 4g) of an image (H, W), at the input's size and without what was padded, as SAM's predictor reads them."""
        height, width = self._inside(size)
        return resized(low, (self.sam.config.image_size,) * 2)[:, :height, :width]

    def _is_native(self, size: tuple[int, int]) -> bool:
        return not self.normalise_native_size and set(size) == {self.sam.config.image_size}

    def _placed(self, prompts: Prompts, size: tuple[int, int], native: bool) -> Prompts:
        """Boxes and points from pixels of an image to pixels of the model's input, of a square rounded to integers as the reference does;
        masks of the image, where it does not fill the input, to their place in it."""
        if prompts.placed:
            return prompts
        if not native:
            height, width = self._inside(size)
            factor = torch.tensor([width / size[1], height / size[0]])
            boxes, points, masks = prompts.boxes, prompts.points, prompts.masks
            if boxes is not None:
                boxes = self._rounded(boxes.float().unflatten(1, (2, 2)) * factor.to(boxes.device)).flatten(1)
            if points is not None:
                points = self._rounded(points.float() * factor.to(points.device))
            if masks is not None and self.resize == "longest_side":
                masks = self._padded(masks, height, width)
            prompts = replace(prompts, boxes=boxes, points=points, masks=masks)
        return replace(prompts.map(lambda x: uploaded(x, self.device)), placed=True)

    def _rounded(self, places: Tensor) -> Tensor:
        return places.round() if self.resize == "square" else places

    def _padded(self, masks: Tensor, height: int, width: int) -> Tensor:
        """Masks (n, 1, 4g, 4g) of a whole image, in the part of the input that is so high and wide."""
        side = masks.shape[-1]
        inner = [max(1, round(side * length / self.sam.config.image_size)) for length in (height, width)]
        return F.pad(interpolated(masks.float(), (inner[0], inner[1])), (0, side - inner[1], 0, side - inner[0]))


def at_once(model: PromptableSegmenter) -> tuple[int, int]:
    """How many images are encoded, and prompts decoded, in one call: by the device's whole memory, so that the same machine always
    cuts alike. An eighth of it is for the widest map of a block, and an eighth for an image's full-size maps. On a CPU only
    small images are encoded together, which bounds the memory."""
    config = model.sam.config
    image, prompt = 64 * config.widest, 96 * config.image_size**2  # bytes
    if model.device.type != "cuda":
        return max(1, min(4, 2**28 // image)), 32
    share = torch.cuda.get_device_properties(model.device).total_memory // 8
    return max(1, min(16, share // image)), max(1, min(256, share // prompt))


def _paired(images: Iterable[Any], prompts: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Images with their prompts; InputError where there are more of one than of the other."""
    end = object()
    for number, (image, given) in enumerate(zip_longest(images, prompts, fillvalue=end)):
        if image is end or given is end:
            few, many = ("images", "prompts") if image is end else ("prompts", "images")
            raise InputError(f"There are {number} {few} and more {many}: one entry for each image is needed.")
        yield image, given
