"""What an encoder method's `decoder` may be: SAM's own, the HQ decoder, or SAM's own with a tuning method for it, as "lora(rank=8)"."""

import math
import re
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Annotated, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.grid.spec import choose_call
from bench.model.decoder import Decoder, HQDecoder
from bench.model.retuned import RetunedDecoder
from bench.model.sam import Sam
from bench.model.targets import LINEAR, meant, one_spelling
from bench.types import Range

NORMS = re.compile(r"(^|\.)(norm\d|norm_final_attn|output_upscaling\.1)\.")
LAYERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "out_proj", "lin1": "lin1", "lin2": "lin2"}


def layers_of(targets: str) -> set[str]:
    """The last names of the linear layers that targets name, "q+v" or "qkv+mlp"; KeyError for another word."""
    return {LAYERS[word] for word in meant(targets, LINEAR)}


def _no_layers(targets: str) -> str:
    return "" if {*targets.split("+")} <= {*LINEAR} else f"is no list of layers: {', '.join(LINEAR)}, joined by +, are allowed"


class LowRankLinear(nn.Module):
    """A frozen linear layer whose weight is W + s·BA: a (r, in), b (out, r). Whoever reads the weight gets the sum."""

    def __init__(self, layer: Any, rank: int, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.a, self.b = nn.Parameter(torch.empty(rank, layer.in_features)), nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        weight: Tensor = self.layer.weight + self.scale * (self.b @ self.a)
        return weight

    @property
    def bias(self) -> Tensor:
        """(out,)."""
        bias: Tensor = self.layer.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LowRankDecoder(RetunedDecoder):
    """SAM's mask decoder with low-rank additions to layers of its two-way transformer, those of these last names; the rest is frozen."""

    def __init__(self, sam: Sam, rank: int, scale: float, names: set[str]) -> None:
        super().__init__(sam, lambda name: False)
        for module in list(self.own.transformer.modules()):
            for name, layer in list(module.named_children()):
                if name in names:
                    setattr(module, name, LowRankLinear(layer, rank, scale))

    @torch.no_grad()
    def merged(self, sam: Sam) -> dict[str, Tensor]:
        return {f"{name}.weight": layer.weight for name, layer in self.own.named_modules() if isinstance(layer, LowRankLinear)}


def lora(
    sam: Sam,
    rank: Annotated[int, Range(1, 1024)] = 4,
    alpha: Annotated[float, Range(0)] = 0.0,
    targets: Annotated[str, _no_layers] = "q+v",
) -> Decoder:
    """LoRA (Hu et al., ICLR 2022) in the self-attention and both cross-attentions of each layer, and the last attention; on q and v, as
    in SAMed's variant for the mask decoder (Zhang and Liu, arXiv 2304.13785), whose other parts are fine-tuned.

    alpha: the sum is scaled by alpha/rank; 0 means alpha = rank. targets: q, k, v, proj, lin1, lin2, qkv and mlp, joined by "+".
    """
    return LowRankDecoder(sam, rank, (alpha or rank) / rank, layers_of(targets))


def bitfit(sam: Sam) -> Decoder:
    """The biases alone (Ben Zaken et al., ACL 2022)."""
    return RetunedDecoder(sam, lambda name: name.endswith(".bias"))


def layernorm(sam: Sam) -> Decoder:
    """The norms alone (Basu et al., AAAI 2024)."""
    return RetunedDecoder(sam, lambda name: bool(NORMS.search(name)))


DECODERS: Mapping[str, Callable[..., Decoder]] = {
    "sam": lambda sam: Decoder(),
    "hq": lambda sam: HQDecoder(sam),
    "tuned": lambda sam: RetunedDecoder(sam),
    "lora": lora,
    "bitfit": bitfit,
    "layernorm": layernorm,
}
GROUPS = {"sam": "", "hq": "hq", "tuned": "decoder"}
PEFT = "decoder_peft"  # of the others: protocols give SAM's fine-tuned decoder a low rate, at which these few numbers hardly move


class DecoderChoice(NamedTuple):
    """A decoder's word, and those of its values that are not the default."""

    name: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, text: str) -> Self:
        """The choice that a user writes as "lora(rank=8)". RequestError for an unknown word or value."""
        name, given = choose_call(text, {word: {key: p.annotation for key, p in _parameters(word)} for word in DECODERS}, "decoder")
        given = {key: one_spelling(value, LINEAR) if key == "targets" else value for key, value in given.items()}
        return cls(name, {key: given[key] for key, p in _parameters(name) if given.get(key, p.default) != p.default})

    @property
    def text(self) -> str:
        """As keys and labels have it: without what is the default."""
        values = ",".join(f"{key}={value}" for key, value in self.values.items())
        return f"{self.name}({values})" if values else self.name

    @property
    def groups(self) -> Mapping[str, str]:
        """As of `Method.groups`."""
        group = GROUPS.get(self.name, PEFT)
        return {"decoder": group} if group else {}

    def build(self, sam: Sam) -> Decoder:
        """The decoder, newly initialised."""
        return DECODERS[self.name](sam, **self.values)


def _parameters(word: str) -> list[tuple[str, Parameter]]:
    """Of a decoder, the parameters beside the backbone."""
    return list(signature(DECODERS[word]).parameters.items())[1:]
