"""LoRA (Hu et al., ICLR 2022) on a block's linear layers, with its later variants: rsLoRA, LoRA+ and PiSSA."""

import math
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import OneOf, Space
from bench.model.backbones import BackboneSpec
from bench.model.by_block import by_block, of_each
from bench.model.linear_layers import LAYERS, THIRDS, AddingTuner, Blocks, Layers, thirds_in
from bench.model.method import LATER, Count, EncoderMethod
from bench.model.placement import PlacedInLayers
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import ImageEncoderViT
from bench.model.targets import LINEAR
from bench.types import Range

Init = Literal["zero", "pissa"]


def uniform_rows(matrices: Tensor) -> None:
    """Fills matrices (…, r, C) as PyTorch starts a linear layer of C inputs."""
    nn.init.kaiming_uniform_(matrices.view(-1, matrices.shape[-1]), a=math.sqrt(5))


class LoRATuner(AddingTuner):
    """W x + s·BA x for each of `targets`, around the frozen layer, which is called and never replaced.

    parts: of each tuned layer, "qkv", "proj", "lin1" or "lin2", which of its parts are tuned: of "qkv" 0, 1 and 2 are q, k and v, others
    have one. a: (N, n, r, c), b: (N, n, o, r) of N blocks and n parts of "qkv", or one each block where blocks differ in width; those of
    the other layers are proj_a, proj_b and so on. With PiSSA, s·BA as it was at first is taken away again.
    """

    peft_layers = tuple(LINEAR)
    peft_axes: ClassVar = {"lora_A.weight": "r", "lora_B.weight": "or"}

    def __init__(self, sam: Sam, blocks: Blocks, rank: int, scale: float, targets: Layers = ("q", "v"), init: Init = "zero") -> None:
        super().__init__(sam, blocks)
        self.scale, self.layers = scale, targets
        thirds = tuple(THIRDS.index(name) for name in targets if name in THIRDS)
        self.parts = {"qkv": thirds} if thirds else {}
        self.parts |= {name: (0,) for name in targets if name not in THIRDS}
        for name, parts in self.parts.items():
            shapes = [by_parts(name, block.get_submodule(LAYERS[name]).weight).shape for _, block in self.of(sam.image_encoder)]
            self._add(name, "a", by_block([(len(parts), rank, c) for _, _, c in shapes], uniform_rows))
            self._add(name, "b", by_block([(len(parts), o, rank) for _, o, _ in shapes], nn.init.zeros_))
        self.has_start = init == "pissa"
        if self.has_start:
            self._start_from_principal_parts(sam.image_encoder)

    def _named(self, layer: str, name: str) -> str:
        return name if layer == "qkv" else f"{layer}_{name}"

    def _add(self, layer: str, name: str, tensors: nn.Module | nn.Parameter) -> None:
        setattr(self, self._named(layer, name), tensors)

    def own(self, layer: str, name: str, i: int) -> Tensor:
        """What is trained under a name for a layer of tuned block i: "a" (n, r, c) or "b" (n, o, r)."""
        found: Tensor = getattr(self, self._named(layer, name))[i]
        return found

    @torch.no_grad()
    def _start_from_principal_parts(self, vit: ImageEncoderViT) -> None:
        """A and B as the largest singular values and vectors of W = UΣVᵀ make them: s·BA = U_r Σ_r V_rᵀ."""
        for i, (_, block) in enumerate(self.of(vit)):
            for name, parts in self.parts.items():
                a, b = self.own(name, "a", i), self.own(name, "b", i)
                u, s, v = torch.linalg.svd(by_parts(name, block.get_submodule(LAYERS[name]).weight)[list(parts)], full_matrices=False)
                rank = a.shape[1]
                root = (s[:, :rank] / self.scale).sqrt()
                a.copy_(root[..., None] * v[:, :rank])
                b.copy_(u[..., :rank] * root[:, None])
                self.register_buffer(f"start_a_{name}_{i}", a.clone(), persistent=False)
                self.register_buffer(f"start_b_{name}_{i}", b.clone(), persistent=False)

    def terms(self, layer: str, i: int) -> tuple[Tensor, Tensor]:
        """A (n, R, c) and B (n, o, R) of all that is added to a layer of tuned block i. R is r, or 2r where BA did not start at 0."""
        a, b = self.own(layer, "a", i), self.own(layer, "b", i)
        if not self.has_start:
            return a, b
        start_a, start_b = (getattr(self, f"start_{name}_{layer}_{i}") for name in "ab")
        return torch.cat([a, start_a], 1), torch.cat([b, -start_b], 2)

    def added(self, i: int, name: str) -> tuple[Tensor, Tensor]:
        return self._joined(name, *self.terms(name, i))

    def added_to_all(self, name: str) -> list[tuple[Tensor, Tensor]]:
        if self.has_start:
            return super().added_to_all(name)
        return of_each(partial(self._joined, name), *(getattr(self, self._named(name, own)) for own in "ab"))

    def _joined(self, name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A (…, n, R, c) as (…, n·R, c), and of s·B (…, n, o, R) what each part of A adds to, (…, n·R, 3C or o)."""
        ups = (b if self.scale == 1 else self.scale * b).mT.unbind(-3)  # n of (…, R, o)
        none = torch.zeros_like(ups[0])
        rows = [[up if third == at else none for third in range(count_of(name))] for up, at in zip(ups, self.parts[name], strict=True)]
        return a.flatten(-3, -2), torch.cat([torch.cat(row, -1) for row in rows], -2)

    def _at(self, name: str) -> int:
        """Where one of the targets stands among the tuned parts of its layer."""
        return self.parts["qkv"].index(THIRDS.index(name)) if name in THIRDS else 0

    def peft_part(self, i: int, name: str) -> dict[str, Tensor]:
        a, b = (term[self._at(name)] for term in self.terms("qkv" if name in THIRDS else name, i))
        return {"lora_A.weight": a, "lora_B.weight": b}

    def peft_whole(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """On the fused projection of the rank of its tuned parts together: each reads the channels of its own, the others none."""
        ranks = {LAYERS[name]: self.terms(name, 0)[0].flatten(0, 1).shape[0] for name in self.parts}
        rank = next(iter(ranks.values()))
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank * self.scale}
        if others := {name: own for name, own in ranks.items() if own != rank}:
            config |= {"rank_pattern": others, "alpha_pattern": {name: own * self.scale for name, own in others.items()}}
        return config, {}

    @classmethod
    def like_peft(cls, sam: Sam, blocks: Blocks, layers: Layers, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        rank, fused = config["r"], "qkv" in layers
        thirds = thirds_in(tensor for name, tensor in tensors.items() if name.endswith("qkv.lora_B.weight")) or ("q", "v")
        targets = tuple(name for name in LINEAR if name in {*layers, *(thirds if fused else ())} - {"qkv"})
        return cls(sam, blocks, rank // len(thirds) if fused else rank, config["lora_alpha"] / rank, targets)


def count_of(layer: str) -> int:
    """How many parts a layer has."""
    return 3 if layer == "qkv" else 1


def by_parts(layer: str, tensor: Tensor) -> Tensor:
    """A layer's weight or bias by its parts: (3C, …) -> (3, C, …), (o, …) -> (1, o, …)."""
    return tensor.unflatten(0, (count_of(layer), -1))


@METHODS.register("lora")
@dataclass(frozen=True)
class LoRA(PlacedInLayers, EncoderMethod):
    """Rank `rank`, scaled by alpha/rank; alpha 0 means alpha = rank. Equal to Hugging Face peft's LoRA on the same layers.

    targets: q, k, v, proj (the attention's output), lin1 and lin2 (the MLP's layers), joined by +; qkv and mlp stand for theirs.
    scaling: "rslora" is alpha/√rank (Kalajdzievski, rsLoRA, 2023). init: "zero" starts BA at 0, with A as PyTorch starts a linear layer;
    "pissa" at the largest singular values and vectors of the frozen weight, and the rest of it is what stays frozen (Meng et al., PiSSA,
    NeurIPS 2024); exported for peft it is a LoRA of twice the rank. b_rate: B's learning rate is so many times A's (Hayou et al., LoRA+,
    ICML 2024, who recommend 16).
    first_block: N is the older spelling of blocks=N-, whose cells it names.
    """

    rank: Count = 4
    alpha: float = 0.0
    space: ClassVar[Space] = {"rank": OneOf((2, 4, 8, 16))}
    first_block: Annotated[int, Range(0)] = field(default=0, metadata=LATER)
    targets: str = field(default="q+v", metadata=LATER)
    scaling: Literal["lora", "rslora"] = field(default="lora", metadata=LATER)
    init: Init = field(default="zero", metadata=LATER)
    b_rate: Annotated[float, Range(1)] = field(default=1.0, metadata=LATER)
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al., LoRA, ICLR 2022"
    family: ClassVar[str] = "lora"
    trained: ClassVar[str] = "low-rank additions to q and v"
    pyramid: ClassVar[str] = "A reads the width that the block gets, B writes the one it gives"
    rates: ClassVar[str] = "AdamW 5e-4, decay 0.1 (RoBERTa on MNLI)"
    oracle: ClassVar[str] = "peft's LoRA, rsLoRA and PiSSA, 1e-5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == "pissa" and self.alpha < 0:  # A and B start with its root
            raise RequestError(f"{self.name}(alpha={self.alpha}): at least 0 is needed.")
        if self.first_block and self.blocks != "all":
            raise RequestError(
                f"{self.name}(first_block={self.first_block},blocks={self.blocks}): blocks says it all, without first_block."
            )

    @property
    def scale(self) -> float:
        """What BA is multiplied with."""
        return (self.alpha or self.rank) / (self.rank if self.scaling == "lora" else math.sqrt(self.rank))

    def placed(self, backbone: Sam | BackboneSpec) -> tuple[int, ...]:
        if not self.first_block:
            return super().placed(backbone)
        self.at_most(first_block=backbone.config.depth - 1)
        return tuple(range(self.first_block, backbone.config.depth))

    def rate_factor(self, name: str) -> float:
        """`b_rate` of B."""
        return self.b_rate if re.match(r"tuner\.(\w+_)?b(\.|$)", name) else 1.0

    def tuner(self, sam: Sam) -> Tuner:
        blocks = self.placed(sam)
        if self.init == "pissa":
            self.at_most(rank=min(sam.config.blocks[i].before for i in blocks))
        return LoRATuner(sam, blocks, self.rank, self.scale, self.targeted, self.init)
