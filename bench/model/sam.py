"""The frozen backbone, a SAM, SAM 2 or SAM 3: the only walk through its image encoder, and the seam at which a method takes part in it."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.model.attention import KeyValues, attention
from bench.model.backbones import BackboneSpec, Normalisation
from bench.model.dropout import show_part_to_compiler
from bench.model.hugging_face import PeftAdapter
from bench.model.implementation import implementation
from bench.model.mask_maps import normed
from bench.model.plain_attention import PlainBlock, attend_plain
from bench.model.products import Projection, is_stock, perceptron
from bench.model.pyramid import HieraEncoder, HighResMaskDecoder, PaddedPromptEncoder, Sam3Encoder
from bench.model.sam_modules import (
    Attention,
    Block,
    ImageEncoderViT,
    LayerNorm2d,
    MaskDecoder,
    PromptEncoder,
    StockSam,
    TwoWayTransformer,
    add_decomposed_rel_pos,
)
from bench.model.sizes import HieraConfig, PyramidConfig, Sam3Config, SamConfig
from bench.model.windows import apart, together

VARIANTS = 1000  # of a compiled encoder: of each method, with gradients and without, of some sizes of batch


class Sam(StockSam):
    """A backbone, frozen: segment_anything's Sam with its key layout, or the SAM 2 or SAM 3 that `config` is of, in the same three parts.
    No gradients, evaluation mode. Starts with random weights.

    image_encoder: has `embed`, `placed`, `blocks` (see `attend`), `taken` and `features`. config: its sizes, block by block. sha256: of the
    checkpoint file it was loaded from, "" for weights that came otherwise. normalisation: of its input, see `BackboneSpec`. hq: what SAM-HQ
    adds to its mask decoder, by `bench.model.decoder.HQDecoder`'s names, where the checkpoint has it.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__(
            image_encoder=_image_encoder(config),
            prompt_encoder=(PaddedPromptEncoder if isinstance(config, PyramidConfig) else PromptEncoder)(
                embed_dim=config.decoder_width,
                image_embedding_size=(config.grid, config.grid),
                input_image_size=(config.image_size, config.image_size),
                mask_in_chans=config.mask_channels,
            ),
            mask_decoder=_mask_decoder(config),
            pixel_mean=list(BackboneSpec.pixel_mean),
            pixel_std=list(BackboneSpec.pixel_std),
        )
        self.config = config
        self.sha256 = ""
        self.hq: Mapping[str, Tensor] = {}
        self._positions: tuple[Tensor, int, Tensor] | None = None
        self.normalise_by(BackboneSpec)
        self.requires_grad_(False).eval()

    def normalise_by(self, spec: BackboneSpec | type[BackboneSpec]) -> None:
        """Takes over how a backbone's input is normalised; the class has SAM's own way."""
        self.normalisation: Normalisation = spec.normalisation
        self.pixel_mean = torch.tensor(spec.pixel_mean, device="cpu").view(3, 1, 1)  # real even if the rest is on "meta"
        self.pixel_std = torch.tensor(spec.pixel_std, device="cpu").view(3, 1, 1)

    def normalised(self, image: Tensor) -> Tensor:
        """An image (3, H, W) of RGB in 0–255 as the encoder takes it."""
        if self.normalisation == "min_max":
            low, high = image.aminmax()
            return (image - low) / (high - low).clamp_min(1e-8)
        return (image - self.pixel_mean) / self.pixel_std

    def train(self, mode: bool = True) -> "Sam":
        """A frozen backbone stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def dense_positions(self) -> Tensor:
        """The positional encoding of the grid's places, (g², decoder width), computed once for the weights that it follows from."""
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        if self._positions is None or self._positions[0] is not matrix or self._positions[1] != matrix._version:
            with torch.inference_mode(False), torch.no_grad():  # so that training may use what an evaluation computed
                positions = dense_positions(self.prompt_encoder)[0].flatten(1).T.contiguous()
            self._positions = matrix, matrix._version, positions
        return self._positions[2]


def dense_positions(encoder: PromptEncoder) -> Tensor:
    """`encoder.get_dense_pe()`, (1, d, g, g), bit for bit; that adds up ones, for which a GPU has no repeatable kernel."""
    h, w = encoder.image_embedding_size
    layer = encoder.pe_layer
    y, x = ((torch.arange(n, device=layer.positional_encoding_gaussian_matrix.device) + 0.5) / n for n in (h, w))
    positions: Tensor = layer._pe_encoding(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1))
    return positions.permute(2, 0, 1)[None]


class SamEncoder(ImageEncoderViT):
    """SAM's image encoder, as the parts of the walk.

    taken: the blocks whose output `features` reads, beside the last one's.
    """

    taken: tuple[int, ...] = ()

    def embed(self, image: Tensor) -> Tensor:
        """The patch embedding (B, g, g, C) of a normalised image (B, 3, S, S)."""
        embedded: Tensor = self.patch_embed(image)
        return embedded

    def placed(self, x: Tensor) -> Tensor:
        """The patch embedding with its positions: what the first block gets."""
        positioned: Tensor = x + self.pos_embed
        return positioned

    def features(self, x: Tensor, taken: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The neck's output (B, d, g, g) of the last block's, and what else the decoder reads: nothing."""
        stock = all(is_stock(part, kind) for part, kind in zip(self.neck, (nn.Conv2d, LayerNorm2d) * 2, strict=True))
        if x.device.type == "cpu" or not stock or implementation() == "reference":  # a CPU's sums stay those of cells that are stored
            return self.neck(x.permute(0, 3, 1, 2)), ()
        return neck_in_few_kernels(self.neck, x), ()


def neck_in_few_kernels(neck: Any, x: Tensor) -> Tensor:
    """SAM's neck of (B, g, g, C), (B, d, g, g), by norms of channels that lie together, each of which is one pass."""
    narrow, first, mix, last = neck
    x = normed(first, F.linear(x, narrow.weight.flatten(1), narrow.bias))
    return normed(last, mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def _image_encoder(config: SamConfig) -> nn.Module:
    if isinstance(config, HieraConfig):
        return HieraEncoder(config)
    if isinstance(config, Sam3Config):
        return Sam3Encoder(config)
    return SamEncoder(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.global_blocks,
        window_size=config.window,
        out_chans=config.decoder_width,
    )


def _mask_decoder(config: SamConfig) -> nn.Module:
    transformer = TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.decoder_width,
        mlp_dim=config.decoder_mlp,
        num_heads=config.decoder_heads,
    )
    if isinstance(config, PyramidConfig):
        return HighResMaskDecoder(config.decoder_width, transformer, config.iou_width)
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=transformer,
        transformer_dim=config.decoder_width,
        iou_head_depth=3,
        iou_head_hidden_dim=config.iou_width,
    )


class Tuner(nn.Module):
    """What a method adds to the frozen encoder. This base class adds nothing: with it the encoder is stock SAM, bit for bit.

    A tuner holds its own parameters only. It never changes a block: it gets one, and computes with it.
    tuned_blocks: the blocks that `step` is asked for, in rising order, where these are not all (`bench.model.placement`).
    first_block: the first block that `step` computes otherwise than the block as it is; what comes before it says the same of an image
    for ever and is kept. Counts only where the base class's `walked` and `begin` are used.
    """

    tuned_blocks: tuple[int, ...] | None = None
    first_block = 0

    def walked(self, vit: ImageEncoderViT) -> ImageEncoderViT:
        """The encoder whose parts are walked: the frozen `vit`, or one that shares its tensors but for those that are tuned
        themselves (`bench.model.retuned`)."""
        return vit

    def begin(self, image: Tensor, x: Tensor) -> Any:
        """Called once, with the normalised image (B, 3, S, S) and its patch embedding (B, g, g, C), positions not yet added; g and C are
        the first block's (`sam.config.blocks`).

        Returns the carry: whatever the tuner wants to hand from block to block.
        """
        return None

    def prepared(self, vit: ImageEncoderViT) -> Any:
        """What does not depend on the image, computed once a walk for all tuned blocks of `vit`, which is fewer kernels: the first carry,
        where `begin` gives none."""
        return None

    def first_carry(self, vit: ImageEncoderViT, image: Tensor, x: Tensor) -> Any:
        """What `begin` gives or, where that is nothing, what is `prepared`."""
        begun = self.begin(image, x)
        return self.prepared(vit) if begun is None else begun

    def step(self, i: int, block: Block, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """Block i, in place of `block(x)`; x is (B, g, g, C), g and C as `sam.config.blocks[i]` says. Returns the block's output and the
        carry for the next one. Where there are `tuned_blocks`, i counts those.

        The block as it is, is `feed_forward(block, attend(block, x)[0])`, which computes `block(x)` without its waste.
        """
        return feed_forward(block, attend(block, x)[0]), carry

    def walk(self, i: int, block: Block, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """Block i of all: by `step` if it is tuned, else as it is."""
        if self.tuned_blocks is None:
            return self.step(i, block, x, carry)
        if i in self.tuned_blocks:
            return self.step(self.tuned_blocks.index(i), block, x, carry)
        return Tuner.step(self, i, block, x, carry)

    def penalty(self, carry: Any) -> Tensor | None:
        """What training adds to each image's loss, (B,), told from the carry that the last block leaves; None for nothing.

        Each image's own, so that it does not depend on how a batch is cut into parts.
        """
        return None

    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor] | None:
        """The tensors of `vit`, under its own names, with which a stock SAM computes what this tuner does; None where none do."""
        return {} if type(self) is Tuner else None

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        """What this tuner does to `vit` as an adapter of Hugging Face's peft; None where that has none. Called without gradients."""
        return None


class Prefix(NamedTuple):
    """What the first `parts` of an encoder, its blocks and then its neck, say of B images.

    x: (B, g, g, C), or the neck's output (B, d, g, g); first_global: see `bench.types.Features`, None where it is not reached or not read.
    maps: what the neck will read of earlier blocks, or the finer maps that it gave.
    """

    x: Tensor
    first_global: Tensor | None
    parts: int
    maps: tuple[Tensor, ...] = ()


class Encoded(NamedTuple):
    """What an encoder says of B images: see `bench.types.Features`."""

    embedding: Tensor
    first_global: Tensor
    penalty: Tensor | None
    high_res: tuple[Tensor, ...] = ()


class Walked(NamedTuple):
    """Where a walk through the blocks is: x, the first global block's output, the outputs that the neck reads, and the carry."""

    x: Tensor
    first_global: Tensor | None = None
    taken: tuple[Tensor, ...] = ()
    carry: Any = None


class ImageEncoder(nn.Module):
    """The only walk through the ViT: the frozen `vit` with a method's `tuner`."""

    def __init__(self, vit: ImageEncoderViT, tuner: Tuner) -> None:
        super().__init__()
        self.vit, self.tuner = vit, tuner
        self._compiled: Callable[..., Encoded] | None = None
        self._batch = {True: 0, False: 0}  # the largest one so far, with gradients and without

    @property
    def is_frozen(self) -> bool:
        """Whether the tuner adds nothing, so that what the encoder says of an image never changes."""
        return all(getattr(type(self.tuner), part) is getattr(Tuner, part) for part in ("walked", "begin", "step"))

    @property
    def frozen_parts(self) -> int:
        """How many parts, blocks and then the neck, come before the first that is tuned: what they say of an image never changes."""
        if self.is_frozen:
            return len(self.vit.blocks) + 1
        own = any(getattr(type(self.tuner), part) is not getattr(Tuner, part) for part in ("walked", "begin"))
        return 0 if own or self.is_compiled else min(self.tuner.first_block, len(self.vit.blocks))  # a walk is compiled as a whole

    def reaches_global(self, parts: int) -> bool:
        """Whether the first global-attention block is among so many parts."""
        return parts > next((i for i, block in enumerate(self.vit.blocks) if block.window_size == 0), len(self.vit.blocks))

    def maps_after(self, parts: int) -> int:
        """How many maps beside x are known after so many parts: see `Prefix.maps`."""
        if parts > len(self.vit.blocks):
            return len(getattr(self.vit.neck, "high_res", ()))
        return sum(i < parts for i in self.vit.taken)

    def forward(self, image: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """`image`: normalised, (B, 3, S, S). Returns the neck's output (B, d, g, g) and the output of the first
        global-attention block (B, g, g, C).

        checkpointing: backward computes each block again instead of keeping what is inside it; the numbers are the same.
        """
        said = self.with_penalty(image, checkpointing)
        return said.embedding, said.first_global

    def with_penalty(self, image: Tensor, checkpointing: bool = False) -> Encoded:
        """As `forward`, with the tuner's penalty of each image, (B,), if it has one, and the finer maps that the decoder reads."""
        if self._compiled is None or implementation() != "fast" or checkpointing:
            return self._walk(image, checkpointing)
        images, work = len(image), torch.is_grad_enabled()
        size = self._batch[work] = max(images, self._batch[work])
        show_part_to_compiler(images, size)
        whole = image if size == images else torch.cat([image, image.new_zeros(size - images, *image.shape[1:])])
        embedding, first_global, penalty, high_res = (_rows(said, images) for said in self._compiled(whole))
        return Encoded(embedding, first_global, penalty, high_res)

    @property
    def is_compiled(self) -> bool:
        """Whether the walk is compiled, but where blocks are computed again in backward."""
        return self._compiled is not None

    def compile_walk(self, mode: str, backend: str = "inductor") -> None:
        """Compiles the walk with a mode of bench.types.COMPILE_MODES and a backend of torch.compile. A batch is compiled at its size, a
        smaller one that comes later is padded to that. A model of the same kind takes what was compiled for an earlier one.
        """
        for limit in ("recompile_limit", "accumulated_recompile_limit"):  # of variants of a function, after which it runs uncompiled
            setattr(torch._dynamo.config, limit, VARIANTS)
        self._compiled = torch.compile(self._walk, dynamic=False, mode=mode if backend == "inductor" else None, backend=backend)

    def pad_training_to(self, images: int) -> None:
        """Pads compiled batches that have gradients to so many images, from the first one on: what dropout draws for a batch depends on its
        padding, and training that goes on may begin with the last, shorter batch."""
        self._batch[True] = images

    def prefix(self, image: Tensor) -> Prefix:
        """What the frozen parts say of `image`: normalised, (B, 3, S, S)."""
        parts = self.frozen_parts
        if parts > len(self.vit.blocks):
            said = self.with_penalty(image)
            return Prefix(said.embedding, said.first_global, parts, said.high_res)
        x, first_global, taken, _ = self._blocks(self.vit, self._begun(self.vit, image), range(parts))
        return Prefix(x, first_global, parts, taken)

    def after(self, known: Prefix, checkpointing: bool = False) -> Encoded:
        """What `with_penalty` says, from where the frozen parts ended."""
        x, first_global, parts, maps = known
        if parts > len(self.vit.blocks):
            return Encoded(x, x.new_empty(len(x), 0) if first_global is None else first_global, self.tuner.penalty(None), maps)
        rest = range(parts, len(self.vit.blocks))
        return self._ended(
            self.vit, self._blocks(self.vit, Walked(x, first_global, maps, self.tuner.prepared(self.vit)), rest, checkpointing)
        )

    def _walk(self, image: Tensor, checkpointing: bool = False) -> Encoded:
        vit = self.tuner.walked(self.vit)
        return self._ended(vit, self._blocks(vit, self._begun(vit, image), range(len(vit.blocks)), checkpointing))

    def _begun(self, vit: ImageEncoderViT, image: Tensor) -> Walked:
        x = vit.embed(image)  # (B, g, g, C)
        carry = self.tuner.first_carry(vit, image, x)
        x = vit.placed(x)
        if implementation() == "fast":
            x = x.contiguous()  # the convolution left the channels outside, and every block's sums and norms would go across them
        return Walked(x, carry=carry)

    def _blocks(self, vit: ImageEncoderViT, at: Walked, which: range, checkpointing: bool = False) -> Walked:
        walk = partial(_checkpointed, self.tuner.walk) if checkpointing and torch.is_grad_enabled() else self.tuner.walk
        x, first_global, taken, carry = at
        for i in which:
            x, carry = walk(i, vit.blocks[i], x, carry)
            if first_global is None and vit.blocks[i].window_size == 0:
                first_global = x
            if i in vit.taken:
                taken = (*taken, x)
        return Walked(x, first_global, taken, carry)

    def _ended(self, vit: ImageEncoderViT, at: Walked) -> Encoded:
        embedding, high_res = vit.features(at.x, at.taken)
        return Encoded(embedding, at.x if at.first_global is None else at.first_global, self.tuner.penalty(at.carry), high_res)


def _rows(said: Any, images: int) -> Any:
    """A copy of the first rows: a CUDA graph writes its next results over what it gave."""
    return tuple(_rows(each, images) for each in said) if isinstance(said, tuple) else None if said is None else said[:images].clone()


def _checkpointed(walk: Callable[..., tuple[Tensor, Any]], i: int, block: Block, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
    """A tuner's block, computed again in backward with the random numbers and context variables of now (it may be another thread)."""
    out: tuple[Tensor, Any] = checkpoint(copy_context().run, walk, i, block, x, carry, use_reentrant=False)
    return out


def attend(
    block: Block,
    x: Tensor,
    prompts: Tensor | None = None,
    qkv: Projection | None = None,
    by_window: bool = False,
    prompt_qkv: Projection | None = None,
    proj: Projection | None = None,
    besides: KeyValues | None = None,
    normed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The block's first half: x + attention(norm1(x)), where every window also sees `prompts`.

    On a block that widens its tokens or pools its queries (`bench.model.plain_attention`), what is added to is x widened and pooled, and
    what comes back has the block's width and grid; qkv goes from (…, C) to three times that width.

    x: (B, g, g, C). prompts: (B, P, C), taken as they are (not through norm1); they have no position, so no relative-position
    bias. qkv: stands in for the block's own projection (…, C) -> (…, 3C), which stays as it is. It must treat all tokens alike, which
    come in any number and order: padding may reach it once for all windows. prompt_qkv: the same for the prompts, which it gets by
    themselves, (B or B·windows, P, C); None leaves them to qkv. proj: stands in for the output's projection (…, C) -> (…, C), of image
    tokens and prompts alike.
    besides: learned keys and values, of the width that the block gives, which every window sees as well. normed: norm1(x), where that is
    known.
    by_window: qkv is given every window by itself, with its padding, row by row, (B·windows, side², C), as a layer in SAM's place
    would be; prompts need a prompt_qkv then.
    Returns x and what the attention made of the prompts, (B, P, C), averaged over the windows of an image.
    """
    prompts = x.new_empty(len(x), 0, x.shape[-1]) if prompts is None else prompts
    prompt_qkv, y = prompt_qkv if prompts.shape[1] else None, block.norm1(x) if normed is None else normed
    if by_window and prompts.shape[1] and prompt_qkv is None:
        raise ValueError("attend(by_window=True) gives qkv the image tokens of a window alone: prompts need a prompt_qkv.")
    if isinstance(block, PlainBlock):
        return attend_plain(block, x, y, prompts, qkv, by_window, prompt_qkv, proj, besides)
    if by_window or implementation() == "reference":
        inner: Callable[..., tuple[Tensor, Tensor]] = _attention if implementation() == "reference" else partial(attention, window=0)
        of_tokens = partial(inner, qkv=qkv or block.attn.qkv, prompt_qkv=prompt_qkv, proj=proj)
        return _attend_by_window(block, x, y, prompts, besides, of_tokens)
    return attention(block.attn, y, block.window_size, prompts, qkv, x, prompt_qkv, proj, besides)


def residual(block: Block, tokens: Tensor) -> Tensor:
    """What a block's attention is added to, for tokens (…, C) that are not pooled: themselves, or as wide as the block makes them."""
    return block.residual(tokens) if isinstance(block, PlainBlock) else tokens


def shortcut(block: Block, x: Tensor) -> Tensor:
    """The same of a map (B, g, g, C), of the block's width and grid."""
    return block.shortcut(x) if isinstance(block, PlainBlock) else x


def feed_forward(
    block: Block, x: Tensor, lin1: Projection | None = None, lin2: Projection | None = None, normed: Tensor | None = None
) -> Tensor:
    """The block's second half: x + mlp(norm2(x)), for any (…, C). lin1, lin2: stand in for the MLP's layers, (…, C) to its width inside
    and back. normed: norm2(x), where that is known."""
    return perceptron(block.mlp, block.norm2(x) if normed is None else normed, x, lin1, lin2)


def _attend_by_window(
    block: Block, x: Tensor, y: Tensor, prompts: Tensor, besides: KeyValues | None, inner: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """`attend` as SAM writes it, window by window; with `_attention` it is the reference that `bench.model.attention` is tested and timed
    against."""
    b, h, w, _ = x.shape
    padded = h, w
    if block.window_size:
        y, padded = apart(y, block.window_size)  # zero-padded to whole windows: (B·windows, side, side, C)
    windows = y.shape[0] // b
    besides = besides.repeated(windows) if besides else None
    y, p = inner(block.attn, y, prompts=prompts.repeat_interleave(windows, 0), besides=besides)
    if block.window_size:
        y = together(y, block.window_size, padded, (h, w))
    return x + y, p.unflatten(0, (b, windows)).mean(1)


def _attention(
    attn: Attention,
    x: Tensor,
    prompts: Tensor,
    qkv: Projection,
    prompt_qkv: Projection | None,
    besides: KeyValues | None,
    proj: Projection | None,
) -> tuple[Tensor, Tensor]:
    """SAM's attention over x (B, H, W, C) with P tokens in front of it; relative positions between image tokens only."""
    b, h, w, _ = x.shape
    n, heads = prompts.shape[1], attn.num_heads
    image = x.flatten(1, 2)
    projected = qkv(torch.cat([prompts, image], 1)) if prompt_qkv is None else torch.cat([prompt_qkv(prompts), qkv(image)], 1)
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)  # each (B·heads, P + H·W, c)
    if besides and besides.gate is None:
        seen = besides.pairs.unflatten(-1, (heads, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)  # (2, B·heads, K, c)
        k, v = (torch.cat(both, 1) for both in zip((k, v), seen, strict=True))
    logits = (q * attn.scale) @ k.transpose(-2, -1)
    places = slice(n, n + h * w)
    between = logits[:, places, places].contiguous()
    logits[:, places, places] = add_decomposed_rel_pos(between, q[:, n:], attn.rel_pos_h, attn.rel_pos_w, (h, w), (h, w))
    out = (logits.softmax(-1) @ v).unflatten(0, (b, heads)).transpose(1, 2).flatten(2)  # (B, P + H·W, C)
    read = besides.read(projected[:, n:].unflatten(-1, (3, heads, -1))[:, :, 0], attn.scale) if besides else None
    out = out if read is None else torch.cat([out[:, :n], out[:, n:] + read], 1)
    out = (proj or attn.proj)(out)
    return out[:, n:].unflatten(1, (h, w)), out[:, :n]
