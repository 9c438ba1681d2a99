"""CAT-SAM (Xiao et al., ECCV 2024): a prompt bridge from the decoder's token T into the encoder, as tokens or as adapters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.grid.registry import METHODS
from bench.model.by_block import by_width, of_width, regridded
from bench.model.decoder import Decoder, HQDecoder, Init
from bench.model.method import LATER, Count, Method
from bench.model.placement import Placed, PlacedTuner
from bench.model.sam import Sam, Tuner, attend, feed_forward
from bench.model.sam_modules import Block

GROUPS = {"tuner": "encoder", "decoder": "hq"}  # the shared token is named, and trained, with the encoder's
SOURCE = "Xiao et al., CAT-SAM, ECCV 2024 (arXiv 2402.03631)"


class TokenTuner(PlacedTuner):
    """CAT-SAM-T. P_i = Linear(GELU(Linear(T))), (1, C), joins block i's attention as it is, not through norm1."""

    def __init__(self, sam: Sam, blocks: tuple[int, ...], token: nn.Embedding, hidden: int) -> None:
        super().__init__(sam, blocks)
        self.token = token  # shared with the decoder
        d = sam.config.decoder_width
        self.bridges = nn.ModuleList(nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, size.before)) for size in self.sizes)

    def step(self, i: int, block: Block, x: Tensor, carry: None) -> tuple[Tensor, None]:
        x, _ = attend(block, x, self.bridges[i](self.token.weight).expand(len(x), 1, -1))
        return feed_forward(block, x), None


class AdapterTuner(PlacedTuner):
    """CAT-SAM-A. u_i = Shared(GELU(Linear_i(F_e + F_h + F_b))) is added to the input of block i, with F_e the embedding
    feature, F_h the hand-crafted feature and F_b the bridge feature, each (B or 1, n, e) for n patches and e = C/32.

    On a backbone whose blocks differ, the features are on the decoder's grid, and u_i is brought to the block's; blocks of one width have
    a Shared of their own.
    """

    def __init__(self, sam: Sam, blocks: tuple[int, ...], token: nn.Embedding, reduction: int, hidden: int) -> None:
        super().__init__(sam, blocks)
        config = sam.config
        self.token = token  # shared with the decoder
        e, patches = config.width // reduction, config.grid**2
        self.grid = config.grid
        self.embedding = linear(config.blocks[0].before, e)
        self.handcrafted = patch_filters(config.patch_size, e)
        self.bridge_in = nn.ModuleList(nn.Linear(config.decoder_width, hidden) for _ in range(e))
        self.bridge_out = nn.Linear(hidden, patches)
        self.light = nn.ModuleList(linear(e, e) for _ in blocks)
        self.shared = by_width(self.sizes, lambda width: linear(e, width))

    def begin(self, image: Tensor, x: Tensor) -> Tensor:
        embedded = self.embedding(regridded(x, self.grid))  # (B, g, g, e)
        handcrafted = self.handcrafted(high_pass(image)).permute(0, 2, 3, 1)  # (B, g, g, e)
        return embedded + handcrafted + self._bridge().unflatten(0, embedded.shape[1:3])

    def _bridge(self) -> Tensor:
        """(n, e). The channels' own layers, which released checkpoints name one by one, are one product."""
        weight, bias = (torch.cat([getattr(channel, name) for channel in self.bridge_in]) for name in ("weight", "bias"))
        hidden = torch.nn.functional.gelu(torch.nn.functional.linear(self.token.weight, weight, bias))
        return self.bridge_out(hidden.view(len(self.bridge_in), -1)).T

    def step(self, i: int, block: Block, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        added = of_width(self.shared, x.shape[-1])(torch.nn.functional.gelu(self.light[i](carry)))  # (B, g, g, C)
        return feed_forward(block, attend(block, x + regridded(added, x.shape[1]))[0]), carry


def high_pass(image: Tensor) -> Tensor:
    """|image| without its low frequencies: the centred square of half-side floor(sqrt(S²/4)/2) of the shifted spectrum is 0.

    image: (B, 3, S, S), normalised; the same shape comes back, non-negative.
    """
    height, width = image.shape[-2:]
    half = int(math.sqrt(height * width * 0.25) // 2)
    if torch.compiler.is_exporting():  # graphs such as ONNX's have no complex numbers; the transform is faster elsewhere
        return (image - low_pass(image, half)).abs()
    spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="forward"), dim=(-2, -1))
    low = torch.zeros(height, width, dtype=torch.bool, device=image.device)
    low[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = True
    spectrum = torch.fft.ifftshift(spectrum.masked_fill(low, 0), dim=(-2, -1))
    return torch.fft.ifft2(spectrum, norm="forward").real.abs()


def low_pass(image: Tensor, half: int) -> Tensor:
    """The real part of `image` (…, H, W) with only the frequencies -half … half-1 of rows and columns, as four real products.

    The square that is kept is a product of two projections, P X Qᵀ with P = A + iB, so its real part is A X Aᵀ - B X Bᵀ.
    """
    rows, columns = (torch.tensor(_projection(side, half), dtype=image.dtype, device=image.device) for side in image.shape[-2:])
    (a, b), (c, d) = rows, columns
    return a @ image @ c.T - b @ image @ d.T


def _projection(n: int, half: int) -> np.ndarray:
    """Real and imaginary part, (2, n, n), of the projection onto the frequencies -half … half-1 of n places."""
    wave = np.exp(2j * np.pi / n * np.outer(np.arange(n), np.arange(-half, half)))  # (n, 2·half)
    projection = wave @ wave.conj().T / n
    return np.stack([projection.real, projection.imag])


def patch_filters(patch: int, channels: int) -> nn.Conv2d:
    """A convolution of whole patches, as the prompt generators of EVP and its heirs start it."""
    layer = nn.Conv2d(3, channels, patch, stride=patch)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (patch**2 * channels)))
    nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]
    return layer


def linear(inner: int, outer: int) -> nn.Linear:
    """A linear layer as the prompt generators of EVP and its heirs start it."""
    layer = nn.Linear(inner, outer)
    nn.init.trunc_normal_(layer.weight, std=0.02)  # torch clips at ±2, as the reference does
    nn.init.zeros_(layer.bias)
    return layer


@METHODS.register("cat_sam_t")
@dataclass(frozen=True)
class CatSamT(Placed, Method):
    """The prompt bridge as one token per block, with the CAT decoder (section 3.3 of the paper)."""

    hidden: Count = 64
    init: Init = field(default="random", metadata=LATER)  # of the decoder; "released": SAM-HQ's, on a backbone such as hq_vit_l
    title: ClassVar[str] = "CAT-SAM-T"
    source: ClassVar[str] = SOURCE
    family: ClassVar[str] = "prompt"
    trained: ClassVar[str] = "the HQ decoder's parts, bridged into the encoder as tokens"
    pyramid: ClassVar[str] = "the bridge's token has the width that the block gets"
    rates: ClassVar[str] = "AdamW 1e-3, decay 1e-4"
    oracle: ClassVar[str] = "its authors' code, 1e-4"

    def groups(self) -> Mapping[str, str]:
        return GROUPS

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        decoder = HQDecoder(sam, self.init)
        return TokenTuner(sam, self.placed(sam), decoder.hf_token, self.hidden), decoder


@METHODS.register("cat_sam_a")
@dataclass(frozen=True)
class CatSamA(Placed, Method):
    """The prompt bridge as one channel-wise addition per block, with the CAT decoder (section 3.3 of the paper)."""

    reduction: Count = 32
    hidden: Count = 32
    init: Init = field(default="random", metadata=LATER)  # of the decoder; "released": SAM-HQ's, on a backbone such as hq_vit_l
    title: ClassVar[str] = "CAT-SAM-A"
    source: ClassVar[str] = SOURCE
    family: ClassVar[str] = "adapter"
    trained: ClassVar[str] = "the HQ decoder's parts, bridged into the encoder as adapters"
    pyramid: ClassVar[str] = "as `evp`"
    rates: ClassVar[str] = "AdamW 1e-3, decay 1e-4"
    oracle: ClassVar[str] = "its authors' code, 1e-4"

    def groups(self) -> Mapping[str, str]:
        return GROUPS

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        self.at_most(reduction=sam.config.width)
        decoder = HQDecoder(sam, self.init)
        return AdapterTuner(sam, self.placed(sam), decoder.hf_token, self.reduction, self.hidden), decoder
