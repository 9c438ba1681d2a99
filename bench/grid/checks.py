"""What a dataclass says of its fields, checked: types of every form that a file can hold, and the ranges of numbers."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from bench.errors import is_text
from bench.types import Range

LONGEST = 10_000  # characters of a text


WHOLE = Range(-(2**31), 2**31 - 1)  # of a method's parameters
DRAWS, SEEDS = Range(0, 2**32 - 1), Range(0, 2**32 - 1)
COUNT = Range(0, 2**53)  # what a float holds exactly
Scalar = None | bool | str | float


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """A dataclass's fields with their types, ranges included."""
    found = get_type_hints(cls, include_extras=True)
    return {field.name: found[field.name] for field in fields(cls)}


def range_of(cls: type, name: str) -> Range | None:
    """The range of a field, where it has one."""
    return next((extra for extra in get_args(hints(cls)[name])[1:] if isinstance(extra, Range)), None)


def misfit(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> str | None:
    """The first of these values that is not of its type, in words; None where all are, or are absent."""
    for name, kind in kinds.items():
        if name in values and not fits(values[name], kind):
            return f"{name} = {str(values[name])[:60]!a} is not allowed"
    return None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as dataclasses write it. Numbers are finite, a whole one may stand for a float, and texts are UTF-8."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, inner[0]) and all(not extra(value) for extra in inner[1:] if isinstance(extra, Range))
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            return False
        return all(fits(item, inner[0] if inner[-1] is ... else one) for item, one in zip(value, inner * len(value), strict=False))
    if origin is not None:
        return isinstance(value, origin)
    if kind is float:
        return type(value) in (int, float) and abs(value) < 2**1023 and math.isfinite(value)
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST and is_text(value)
    return type(value) is (NoneType if kind is None else kind)
