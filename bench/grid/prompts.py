"""The words for prompts, in protocols and for re-evaluation.

box               the tight box of every object
box(jitter=0.25)  each of its sides moved by U(-0.25, 0.25) of the box's width or height, and kept in the image
point, points(3)  random pixels of every object, foreground
mask              every object's mask at the decoder's size, with the noise that HQ-SAM trains with
none              no prompt at all: one mask, of all objects together
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from bench.errors import RequestError
from bench.grid.toml_reader import Kinds
from bench.types import Range

KNOWN: Mapping[str, Kinds] = {
    "box": {"jitter": Annotated[float, Range(0.0, 0.5)]},
    "point": {},
    "points": {"count": Annotated[int, Range(1, 64)]},
    "mask": {},
    "none": {},
}
USUAL_COUNT = 3  # of `points`


@cache
def prompt_value(text: str) -> tuple[str, Any]:
    """A prompt's word and its one value, None where none is given; RequestError for what there is not."""
    from bench.grid.spec import choose_call  # whose specs have protocols

    kind, values = choose_call(text, KNOWN, "prompt")
    return kind, next(iter(values.values()), None)


def canonical_prompt(text: str) -> str:
    """A prompt in the one form that keys are made of: what is the same has the same. RequestError for what there is not."""
    kind, value = prompt_value(text)
    if kind == "points":
        count = value or USUAL_COUNT
        return f"points({count})" if count > 1 else "point"
    return f"{kind}(jitter={value:g})" if value else kind


def is_prompt(text: str) -> str:
    """Why a text is no prompt, as the end of a sentence; "" where it is one."""
    try:
        canonical_prompt(text)
    except RequestError as error:
        return f"is no prompt: {str(error).rstrip('.')}"
    return ""
