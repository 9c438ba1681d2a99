"""Tuners that compute some of a block's linear layers otherwise: its q, k and v, which are thirds of one, its output's and its MLP's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.model.hugging_face import PeftAdapter
from bench.model.implementation import implementation
from bench.model.placement import PlacedTuner
from bench.model.products import Projection, is_stock, product, project
from bench.model.sam import Sam, attend, feed_forward
from bench.model.sam_modules import Block, ImageEncoderViT

THIRDS = ("q", "k", "v")
LAYERS = {
    **dict.fromkeys(("qkv", *THIRDS), "attn.qkv"),
    "proj": "attn.proj",
    "lin1": "mlp.lin1",
    "lin2": "mlp.lin2",
}  # their names in a block
Blocks = tuple[int, ...]  # numbers
Layers = tuple[str, ...]  # names in LAYERS
WHOLE = ("qkv", "proj", "lin1", "lin2")
Prepared = Mapping[str, Sequence[Any]]  # of layers, by name: something for each tuned block


def part(of_layer: Tensor, name: str) -> Tensor:
    """A view of what one of LAYERS is of the weight (o, c), bias or output's channels (o,) of its whole layer."""
    return of_layer.chunk(3)[THIRDS.index(name)] if name in THIRDS else of_layer


def weight_of(block: Block, name: str) -> Tensor:
    """The frozen weight (o, c) of one of LAYERS."""
    return part(block.get_submodule(LAYERS[name]).weight, name)


def bias_of(block: Block, name: str) -> Tensor:
    """The frozen bias (o,) of one of LAYERS."""
    return part(block.get_submodule(LAYERS[name]).bias, name)


def whole_layers(targets: Layers) -> Layers:
    """The layers of some targets: q, k and v together are one."""
    together = set(THIRDS) <= set(targets)
    return ("qkv",) * together + tuple(target for target in targets if not together or target not in THIRDS)


class LinearTuner(PlacedTuner):
    """Computes `layers` otherwise in every tuned block.

    layers: by their names in LAYERS, either "qkv" or thirds of it, what is trained for each, an nn.ModuleDict; of a tuner that has
    `prepared`, `layer` and `merged_layer` of its own their names are enough. `prepared()` has something for every tuned block, with which
    it is called, with the block's weight (o, c) and bias (o,), for what stands in for the layer; `merged(i, weight)` is the weight with
    which a linear layer does that.
    peft_layers: those of LAYERS that an adapter of Hugging Face's peft may have it for. peft_axes: the adapter's tensors of a layer, and
    which of their axes are outputs, "o", or ranks, "r".
    """

    layers: Any
    peft_layers: ClassVar[Layers] = ()
    peft_axes: ClassVar[Mapping[str, str]] = {}

    def prepared(self, vit: ImageEncoderViT) -> Prepared:
        return {name: layer.prepared() for name, layer in self.layers.items()}

    def step(self, i: int, block: Block, x: Tensor, carry: Prepared) -> tuple[Tensor, Prepared]:
        known = {name: of_blocks[i] for name, of_blocks in carry.items()}
        x, _ = attend(block, x, qkv=self.qkv(block, known), proj=self.layer(block, "proj", known))
        return feed_forward(block, x, self.layer(block, "lin1", known), self.layer(block, "lin2", known)), carry

    def layer(self, block: Block, name: str, known: Mapping[str, Any]) -> Projection | None:
        """What stands in for a block's layer, by what was prepared of the block's; None where it stays as it is."""
        return self.layers[name](known[name], weight_of(block, name), bias_of(block, name)) if name in known else None

    def qkv(self, block: Block, known: Mapping[str, Any]) -> Projection | None:
        """The same of q, k and v together, (…, C) -> (…, 3C)."""
        if not any(name in known for name in THIRDS):
            return self.layer(block, "qkv", known)
        thirds = [
            self.layer(block, name, known) or partial(product, weight=weight_of(block, name), bias=bias_of(block, name)) for name in THIRDS
        ]
        return lambda tokens: torch.cat([third(tokens) for third in thirds], -1)

    def whole(self, vit: ImageEncoderViT) -> Iterator[tuple[int, str, list[str]]]:
        """Of each tuned block its number and each layer's name in `vit`, with those of `layers` that the layer holds."""
        for i, (above, _) in enumerate(self.of(vit)):
            for path in dict.fromkeys(LAYERS[name] for name in self.layers):
                yield i, f"{above}.{path}", [name for name in self.layers if LAYERS[name] == path]

    @torch.no_grad()
    def merged(self, vit: ImageEncoderViT) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, path, names in self.whole(vit):
            frozen = vit.get_submodule(path).weight
            found[f"{path}.weight"] = frozen.clone()
            for name in names:
                part(found[f"{path}.weight"], name).copy_(self.merged_layer(i, name, part(frozen, name).double()))
        return found

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        """The weight (o, c), as precise as the frozen one that is given, with which a linear layer does what this one does."""
        merged: Tensor = self.layers[name].merged(i, weight)
        return merged

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The configuration of such an adapter, and the tensors that all its layers share."""
        raise NotImplementedError

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        """What `peft_axes` names, of one of `layers` of tuned block i: views of what is trained."""
        raise NotImplementedError

    def peft(self, vit: ImageEncoderViT) -> PeftAdapter | None:
        if not {*self.layers} <= {*self.peft_layers}:
            return None
        config, tensors = self.peft_whole()
        for i, path, names in self.whole(vit):
            parts = {name: self.peft_part(i, name) for name in names}
            for key, axes in self.peft_axes.items():
                tensors[f"{path}.{key}"] = together({name: own[key] for name, own in parts.items()}, axes)
        return PeftAdapter(config, tensors)

    @classmethod
    def like_peft(cls, sam: Sam, blocks: Blocks, layers: Layers, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A new tuner of whole `layers` in these blocks, by an adapter's configuration and tensors."""
        raise NotImplementedError

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        tuner = cls.like_peft(sam, *places(adapter), *adapter)
        for i, path, names in tuner.whole(sam.image_encoder):
            for key, axes in cls.peft_axes.items():
                for j, name in enumerate(names):
                    tuner.peft_part(i, name)[key].copy_(own_of(adapter.tensors[f"{path}.{key}"], axes, name, j, len(names)))
        return tuner


def together(parts: Mapping[str, Tensor], axes: str) -> Tensor:
    """One layer's tensor of those that some of q, k and v have, or of the layer's only one: each reads ranks "r" and writes outputs "o" of
    its own, and zeros are elsewhere."""
    if "o" not in axes or not {*parts} & {*THIRDS}:
        return torch.cat(list(parts.values()))
    rows = [[part if name == third else torch.zeros_like(part) for name, part in parts.items()] for third in THIRDS]
    return torch.cat([torch.cat(row, 1) if axes == "or" else torch.stack(row).sum(0) for row in rows])


def own_of(whole: Tensor, axes: str, name: str, j: int, count: int) -> Tensor:
    """What `together` had of `name`, the j-th of so many."""
    own = part(whole, name) if "o" in axes else whole
    return own.chunk(count, axes.index("r"))[j] if "r" in axes else own


class AddingTuner(LinearTuner):
    """Adds up·down·x to what layers give: low-rank, and one pass over a wide map."""

    def added(self, i: int, name: str) -> tuple[Tensor, Tensor]:
        """What is added to a whole layer of tuned block i, "qkv", "proj", "lin1" or "lin2": down (R, c), and up transposed, (R, o)."""
        raise NotImplementedError

    def added_to_all(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """The same of every tuned block."""
        return [self.added(i, name) for i in range(len(self.sizes))]

    def prepared(self, vit: ImageEncoderViT) -> Prepared:
        return {name: self.added_to_all(name) for name in dict.fromkeys("qkv" if own in THIRDS else own for own in self.layers)}

    def layer(self, block: Block, name: str, known: Mapping[str, Any]) -> Projection | None:
        return self.around(block.get_submodule(LAYERS[name]), *known[name]) if name in known else None

    def around(self, layer: nn.Linear, down: Tensor, up: Tensor, *more: Tensor) -> Projection:
        """What stands in for a whole layer to which these are added; more: what `prepared` has besides."""

        def projection(tokens: Tensor) -> Tensor:
            frozen, low = lowered(layer, tokens, down.T)
            return torch.addmm(frozen.flatten(0, -2), low.flatten(0, -2), up).view(frozen.shape)

        return projection

    def merged_layer(self, i: int, name: str, weight: Tensor) -> Tensor:
        down, up = (term.to(weight.dtype) for term in self.added(i, "qkv" if name in THIRDS else name))
        return weight + part(up.T, name) @ down


def lowered(layer: nn.Linear, tokens: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """A frozen layer of tokens (…, c), and tokens·down, for a trained down (c, r); both gradients of the tokens are one map."""
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    device = tokens.device.type
    if weight.requires_grad or not torch.is_grad_enabled() or not is_stock(layer, nn.Linear) or implementation() == "reference":
        return project(layer, tokens), tokens @ down
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # which does not look into what follows
        kind = torch.get_autocast_dtype(device)
        tokens, weight, down, bias = tokens.to(kind), weight.to(kind), down.to(kind), None if bias is None else bias.to(kind)
    flat: tuple[Tensor, Tensor] = _Lowered.apply(tokens.flatten(0, -2), weight, bias, down)
    frozen, low = (of_tokens.view(*tokens.shape[:-1], -1) for of_tokens in flat)
    return frozen, low


class _Lowered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens if ctx.needs_input_grad[3] else None, weight, down)
        return product(tokens, weight, bias), tokens @ down

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_low: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, down = ctx.saved_tensors
        d_tokens = product(grad, weight.T).addmm_(of_low, down.T) if ctx.needs_input_grad[0] else None
        return d_tokens, None, None, tokens.T @ of_low if ctx.needs_input_grad[3] else None


def places(adapter: PeftAdapter) -> tuple[Blocks, Layers]:
    """The numbers of the blocks, and the names in LAYERS, that an adapter has tensors for."""
    parts = [name.split(".") for name in adapter.tensors if name.startswith("blocks.")]  # blocks, 0, attn, qkv, oft_R, weight
    return tuple(sorted({int(words[1]) for words in parts})), tuple(sorted({words[3] for words in parts}))


def thirds_in(tensors: Iterable[Tensor]) -> Layers:
    """Those of q, k and v for which tensors of their whole layer, (3·C, …), are not all zero."""
    whole = list(tensors)
    return tuple(name for name in THIRDS if any(part(tensor, name).any() for tensor in whole))
