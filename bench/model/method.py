"""What a tuning method is, and how one is built on a frozen SAM."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self

import torch

from bench.errors import RequestError
from bench.grid.protocol import PRECISIONS, Resize, load_protocol
from bench.grid.registry import METHODS
from bench.grid.space import Space
from bench.grid.spec import choose_method, parse_call
from bench.model.backbones import read_backbone
from bench.model.checkpoints import WithoutNumbers
from bench.model.decoder import Decoder
from bench.model.decoder_choice import DecoderChoice
from bench.model.sam import Sam, Tuner
from bench.model.segmenter import ALL_ONE_GROUP, PromptableSegmenter
from bench.model.sizes import SamConfig, frozen_bytes
from bench.types import Range

Count = Annotated[int, Range(1, 65_536)]  # of a method's parameters: of ranks, tokens, channels and so on
Share = Annotated[float, Range(0, 1)]  # of dropout
LATER = {"later": True}  # metadata of a parameter that came after cells were stored: its default means what they have


@dataclass(frozen=True)
class Method:
    """A tuning method: a frozen dataclass of its hyper-parameters, registered with `@METHODS.register(name)`.

    title: as tables print it. source: the paper. revision: raised when the meaning of the method changes, so that cells of
    the old one are not mistaken for it. also_loads: earlier revisions that differ in training alone. trains: False where there is
    nothing to train, so that its cells are short.
    space: the parameters that `bench.tune` tries besides the learning rates, and their values.
    prompt_free: True where it needs no prompt: it learns SAM's "no prompt" embedding, and is trained and evaluated without prompts whatever
    the protocol says.

    family: of `bench.grid.families`, by which methods are asked for (`@lora`) and shown. What methods/README.md says of it, "" where there
    is nothing to say: trained: what is trained; pyramid: what that means on a block of SAM 2 that widens or pools; rates: its authors'
    learning rate and weight decay; oracle: what its tests compare it with, and the largest difference that they allow.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    revision: ClassVar[int] = 1
    also_loads: ClassVar[tuple[int, ...]] = ()
    trains: ClassVar[bool] = True
    space: ClassVar[Space] = {}
    prompt_free: ClassVar[bool] = False
    family: ClassVar[str] = ""
    trained: ClassVar[str] = ""
    pyramid: ClassVar[str] = ""
    rates: ClassVar[str] = ""
    oracle: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Checks the values: RequestError where one is not allowed."""

    def on_backbone(self, name: str) -> Self:
        """The method as cells on that backbone name it. RequestError where that cannot have it; a grid is told before its first cell."""
        return self

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        """Newly initialised parts for this backbone, drawn from torch's current random state."""
        raise NotImplementedError

    def frozen(self, backbone: str) -> tuple[int, dict[str, int]]:
        """How many parts of the encoder are frozen (`bench.model.sam.ImageEncoder.frozen_parts`), and the bytes that are kept of an image
        that they have seen, by precision; for a grid's plan, without weights."""
        config = read_backbone(backbone).config
        with WithoutNumbers(), torch.device("meta"):
            model = build_parts(self, outline(config), 0)
        parts, reads = model.encoder.frozen_parts, model.decoder.reads_first_global
        return parts, {precision: frozen_bytes(config, parts, reads, precision) for precision in PRECISIONS}

    def groups(self) -> Mapping[str, str]:
        """Which of the trained tensors belong to which group, for which a protocol may have a learning rate of its own.

        The start of a name of `PromptableSegmenter.tuned` ("decoder", "tuner.bridges") -> group; the longest start counts, and "" is that
        of all names. By convention "encoder" is what is trained in the encoder, "decoder" SAM's own decoder, "decoder_peft" what a tuning
        method trains in it, and "hq" the HQ decoder's new parts; a method may name others, which have the rate of all where a protocol
        does not know them.
        """
        return ALL_ONE_GROUP

    def rate_factor(self, name: str) -> float:
        """What the learning rate of a trained tensor is, as a multiple of its group's; name: of `PromptableSegmenter.tuned`."""
        return 1.0

    def decays(self, name: str) -> bool:
        """Whether a trained tensor has its group's weight decay; else it has none, as norms and biases where a method's authors did so."""
        return True

    def at_most(self, **most: float) -> None:
        """RequestError where a parameter is above what is given for it."""
        for parameter, limit in most.items():
            if getattr(self, parameter) > limit:
                raise RequestError(f"{self.name}({parameter}={getattr(self, parameter)}): at most {limit} is allowed.")


@dataclass(frozen=True)
class EncoderMethod(Method):
    """A method of the encoder. Nobody published which decoder the paper's baselines have, so it is a visible choice:
    `decoder` is one of `bench.model.decoder_choice`, "sam" (SAM's own, frozen), "hq" (the CAT decoder's parts are trained too),
    "tuned" (SAM's own is fine-tuned), or a method for it, "lora(rank=8)"."""

    decoder: str = "sam"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", self._decoder.text)

    @property
    def _decoder(self) -> DecoderChoice:
        return DecoderChoice.of(self.decoder)

    def tuner(self, sam: Sam) -> Tuner:
        """The part in the encoder."""
        raise NotImplementedError

    def build(self, sam: Sam) -> tuple[Tuner, Decoder]:
        return self.tuner(sam), self._decoder.build(sam)

    def groups(self) -> Mapping[str, str]:
        no_prompt = {"decoder.no_prompt": "decoder"} if self.prompt_free else {}
        return {"tuner": "encoder", **self._decoder.groups, **no_prompt}


@cache
def outline(config: SamConfig) -> Sam:
    """A SAM of these sizes on the device "meta", without numbers."""
    with WithoutNumbers(), torch.device("meta"):
        return Sam(config)


def build(name: str, sam: Sam, seed: int = 0, protocol: str = "clean") -> PromptableSegmenter:
    """The model of a method on a frozen SAM, newly initialised.

    name: a registered name, also with parameters: "lora(rank=8)". seed: of the initialisation. protocol: decides how images
    of exactly the model's size are taken. RequestError for unknown names, parameters and values.
    """
    method_name, parameters = parse_call(name)
    choice = choose_method(METHODS.get(method_name), parameters)
    protocol_name, changes = parse_call(protocol)
    settings: dict[str, Any] = {**load_protocol(protocol_name, changes).settings, **changes}
    how = settings["normalise_native_size"], settings.get("resize", "square")
    return build_parts(METHODS.get(method_name)(**choice.arguments), sam, seed, *how)


def build_parts(method: Method, sam: Sam, seed: int, normalise_native_size: bool = True, resize: Resize = "square") -> PromptableSegmenter:
    """As `build`, of a method that is chosen already."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner, decoder = method.build(sam)
    if getattr(method, "prompt_free", False):
        decoder.learn_no_prompt(sam)
    groups = method.groups() if hasattr(method, "groups") else ALL_ONE_GROUP
    own: dict[str, Any] = {part: getattr(method, part) for part in ("rate_factor", "decays") if hasattr(method, part)}
    return PromptableSegmenter(sam, tuner, decoder, normalise_native_size, groups, resize, **own)
