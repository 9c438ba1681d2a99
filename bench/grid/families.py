"""Families of methods, by which they are asked for ("@lora") and shown together.

The words are those of surveys of parameter-efficient tuning, and where these differ: what multiplies a layer's output, as (IA)³ and SSF do,
is a reparameterisation as OFT is, because it merges into the layer's weights; EVP's prompts and SAM-Adapter's adapters are much the same
and go by what their authors call them, as CAT-SAM's tokens and adapters do; full fine-tuning selects all weights.
"""

from collections.abc import Mapping

from bench.errors import unknown

FAMILIES: Mapping[str, str] = {  # in the order of tables and figures
    "lora": "low-rank and other changes of frozen weights",
    "adapter": "new layers in the blocks",
    "prompt": "tokens and maps that join the image's",
    "decoder": "the mask decoder, or new parts of it",
    "selective": "some of SAM's own weights",
}
SIGN = "@"  # begins a family's name among those of methods


def families(methods: Mapping[str, str]) -> list[str]:
    """The families of these methods (name -> family) in order; those that are not among FAMILIES come last."""
    known = {*methods.values()} - {""}
    return [*(name for name in FAMILIES if name in known), *sorted(known - {*FAMILIES})]


def members(word: str, methods: Mapping[str, str]) -> list[str]:
    """The methods (name -> family) that "@lora" stands for, in their order; RequestError for a family that none of them has."""
    if word.removeprefix(SIGN) not in (known := families(methods)):
        raise unknown("family of methods", word, (SIGN + name for name in known))
    return [name for name, family in methods.items() if SIGN + family == word]


def place(name: str, methods: Mapping[str, str]) -> tuple[int, int]:
    """Where a method stands among these (name -> family): those of no family first, then family by family; what is not known comes last."""
    order, names = ["", *families(methods)], list(methods)
    return (order.index(methods[name]), names.index(name)) if name in methods else (len(order), 0)
