"""Where in the encoder a method tunes: in which blocks, and which parts of them. `lora(blocks=last6,targets=qkv+mlp)`."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import nn

from bench.errors import RequestError
from bench.model.backbones import BackboneSpec, read_backbone
from bench.model.hugging_face import PeftAdapter
from bench.model.method import LATER, Method
from bench.model.sam import Sam, Tuner
from bench.model.sam_modules import Block, ImageEncoderViT
from bench.model.sizes import SamConfig
from bench.model.targets import HALVES, LINEAR, meant, one_spelling

WORD = re.compile(r"all|global|windowed|(?P<end>first|last)(?P<count>\d{1,4})|(?P<low>\d{1,4})(?:(?P<to>-)(?P<high>\d{1,4})?)?")


@dataclass(frozen=True)
class Placed(Method):
    """A method that can be placed: put in front of the class that it is, as in `class LoRA(Placed, EncoderMethod)`.

    blocks: of the encoder, those that are tuned; the others are as they are, and what comes before the first one is computed once and
    kept. "all", "first6", "last6", "global" or "windowed" ones, numbers from 0 and ranges, "3", "3-5", "8-"; several are joined by +.
    target_words: the words that the parameter `targets` of a method may join by +, and what they stand for; without any it has none.
    """

    blocks: str = field(default="all", metadata=LATER)
    target_words: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in self.blocks.split("+"):
            if not WORD.fullmatch(word):
                raise self._unplaced("blocks", word, "all, first6, last6, global, windowed, 3, 3-5 and 8-")
        for word in self._targets.split("+") if self.target_words else ():
            if word not in self.target_words:
                raise self._unplaced("targets", word, ", ".join(self.target_words))
        # One spelling, and so one key, for words in any order: "0+3" of "3+0", "q+v" of "v+q".
        words = sorted({*self.blocks.split("+")}, key=lambda word: ([int(low) for low in re.findall(r"^\d+", word)], word))
        object.__setattr__(self, "blocks", "+".join(words))
        if self.target_words:
            object.__setattr__(self, "targets", one_spelling(self._targets, self.target_words))

    def _unplaced(self, parameter: str, word: str, allowed: str) -> RequestError:
        return RequestError(f"{self.name}({parameter}={getattr(self, parameter)}): {word!r} is not known; {allowed} are, joined by +.")

    @property
    def _targets(self) -> str:
        return str(vars(self)["targets"])

    @property
    def targeted(self) -> tuple[str, ...]:
        """What `targets` stands for, each once, in the order of `target_words`."""
        return meant(self._targets, self.target_words) if self.target_words else ()

    def placed(self, backbone: Sam | BackboneSpec) -> tuple[int, ...]:
        """The numbers of the tuned blocks, in rising order; RequestError where this backbone lacks one, or there is none."""
        config, found = backbone.config, set[int]()
        for word in self.blocks.split("+"):
            chosen = blocks_meant(word, config)
            if not chosen or chosen[0] < 0 or chosen[-1] >= config.depth:
                has = f"{config.depth} blocks, 0 to {config.depth - 1}"
                raise RequestError(f"{self.name}(blocks={self.blocks}): {word} is none of this backbone's {has}.")
            found.update(chosen)
        return tuple(sorted(found))

    def on_backbone(self, name: str) -> Self:
        """With one spelling, and so one key, for the same blocks: "last2" of "4-" and "4+5" where there are six."""
        spec = read_backbone(name)
        placed = list(self.placed(spec))
        if self.blocks == "all":
            return self
        words = ("all", "global", "windowed", f"first{len(placed)}", f"last{len(placed)}")
        return replace(self, blocks=next((word for word in words if blocks_meant(word, spec.config) == placed), _in_ranges(placed)))


class PlacedInLayers(Placed):
    """As Placed, with a parameter `targets` of a block's linear layers, "qkv+mlp"."""

    target_words = LINEAR


class PlacedInHalves(Placed):
    """As Placed, with a parameter `targets` of a block's halves, "attention+mlp"."""

    target_words = HALVES


def blocks_meant(word: str, config: SamConfig) -> list[int]:
    """The blocks that one of the words means, which need not be there."""
    found, depth = WORD.fullmatch(word), config.depth
    assert found
    if word in ("all", "global", "windowed"):
        return [i for i in range(depth) if word == "all" or (i in config.global_blocks) == (word == "global")]
    if found["end"]:
        count = int(found["count"])
        return list(range(count) if found["end"] == "first" else range(depth - count, depth))
    low = int(found["low"])
    return list(range(low, int(found["high"] or depth - 1) + 1 if found["to"] else low + 1))


def _in_ranges(blocks: Sequence[int]) -> str:
    """Rising numbers as words: "0+2-4"."""
    starts = [i for i in blocks if i - 1 not in blocks]
    ends = [i for i in blocks if i + 1 not in blocks]
    return "+".join(str(low) if low == high else f"{low}-{high}" for low, high in zip(starts, ends, strict=True))


class PlacedTuner(Tuner):
    """A tuner of some blocks: `step` is asked for these alone, and its i counts them.

    blocks: their numbers in rising order, as `Placed.placed` gives them. sizes: theirs; what is trained has one part for each.
    """

    def __init__(self, sam: Sam, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.tuned_blocks: tuple[int, ...] = blocks
        self.first_block = blocks[0]
        self.sizes = tuple(sam.config.blocks[i] for i in blocks)

    def in_halves(self, halves: Sequence[str], make: Callable[[int, int], nn.Module]) -> nn.ModuleDict:
        """For each half, "attention" or "mlp", what `make` makes of the widths that it gets and gives, a list of one for each block."""
        widths = {"attention": [(size.before, size.width) for size in self.sizes], "mlp": [(size.width, size.width) for size in self.sizes]}
        return nn.ModuleDict({half: nn.ModuleList(make(*of_block) for of_block in widths[half]) for half in halves})

    @classmethod
    def of_peft(cls, sam: Sam, adapter: PeftAdapter) -> Self:
        """The tuner that `peft` made an adapter of; whether it did is seen by making it once more."""
        raise NotImplementedError

    def of(self, vit: ImageEncoderViT) -> Iterator[tuple[str, Block]]:
        """The tuned blocks of `vit`, each with its name there: "blocks.3"."""
        return ((f"blocks.{i}", vit.blocks[i]) for i in self.tuned_blocks)
