"""One reader for what users write, TOML files and values in `name(key=value)`: the annotations of a dataclass say what is allowed.

A key's type is its field's: bool, int, float, str, `Literal` for choices, `tuple[T, ...]` for a list, `Mapping[K, V]` or a dataclass
for a table, and unions of these. `Annotated[T, check, …]` adds checks, functions that say why a value is not allowed ("is too small"),
or nothing: `Range(1, 64)`, `not_empty`. Where `Annotated` has the kinds of a dataclass, the value is a table with any of its keys, as
rows that change some settings are. So a new key is a new field.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.errors import RequestError, unknown
from bench.grid.files import read_text

T = TypeVar("T")
Kinds = Mapping[str, Any]  # the types of a table's values, by key
NO_KEY: Final = {"key": None}  # metadata of a field that no file gives; {"key": "row"} is that of one with another name there
LARGEST, LONGEST, MOST = 2**20, 10_000, 2**53  # bytes of a file, characters of a text; of a number: up to it, a float holds an int exactly
DEEP = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")  # tomllib takes minutes for such
NO_TEXT = re.compile("[\0\ud800-\udfff]")


class WrongType(RequestError):
    """The value is of another type than the key's."""


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; RequestError, with the file and the reason, where it cannot be read."""
    try:
        if path.stat().st_size > LARGEST or DEEP.search(text := read_text(path)):
            raise ValueError(f"at most {LARGEST} bytes, and keys of at most 32 parts, are allowed")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = "its brackets are nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", None) or error
        raise RequestError(f"Cannot read {path}: {reason}.") from None


def load(path: Path, cls: type[T], **given: Any) -> T:
    """The dataclass that a file describes; given: fields that it cannot say. RequestError, naming file and key, for what is wrong."""
    return build(str(path), read_toml(path), cls, **given)


def build(where: str, table: Mapping[str, Any], cls: type[T], **given: Any) -> T:
    """The dataclass of a table's values; `where` is what a message calls the table."""
    found = part(where, table, kinds(cls))  # type: ignore[arg-type]
    keys = {f.metadata.get("key", f.name): f for f in fields(cls)}  # type: ignore[arg-type]
    if lacking := [key for key, f in keys.items() if key and key not in found and f.default is f.default_factory]:  # both MISSING
        raise RequestError(f"{where} lacks {', '.join(lacking)}.")
    try:
        return cls(**{keys[key].name: value for key, value in found.items()}, **given)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None


def part(where: str, table: Mapping[str, Any], kinds: Kinds, noun: str = "key in") -> dict[str, Any]:
    """The values of a table that need not have every key."""
    for key in table:
        if key not in kinds:
            raise unknown(f"{noun} {where}", key[:100], kinds)
    return {key: typed(where, key, value, kinds[key]) for key, value in table.items()}


@cache
def kinds(cls: type) -> Kinds:
    """What a dataclass's fields may be, by their keys."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:  # of a plugin, whose annotations may name what it imports for a type checker alone
        raise RequestError(f"The annotations of {cls.__qualname__} cannot be read: {error}.") from None
    return {f.metadata.get("key", f.name): hints[f.name] for f in fields(cls) if f.metadata != NO_KEY}


def typed(where: str, key: str, value: Any, kind: Any) -> Any:
    """A value as its type has it: lists as tuples, tables as dataclasses; reading the result again changes nothing."""
    if type(value) is kind:  # first what stores of thousands of cells have most of
        return _bounded(where, key, value + 0.0 if kind is float else value)  # -0.0 is 0.0
    _, origin, inner = _FORMS.get(id(kind)) or _FORMS.setdefault(id(kind), (kind, get_origin(kind), get_args(kind)))
    if origin is Annotated:
        return _checked(where, key, value, inner[0], inner[1:])
    if origin in (Union, UnionType):
        if value is None and type(None) in inner:
            return None
        for one in inner:
            try:
                return typed(where, key, value, one)
            except WrongType:
                continue
    elif origin is Literal and type(value) in map(type, inner):
        if value not in inner:
            raise WrongType(str(unknown(f"value of {key} in {where}", str(value)[:100], filter(None, map(str, inner)))))
        return value
    elif origin is tuple and isinstance(value, list | tuple) and (inner[-1] is ... or len(value) == len(inner)):
        names = [f"{key} {at}" if isinstance(item, dict) else key for at, item in enumerate(value, 1)]
        return tuple(typed(where, name, item, inner[0]) for name, item in zip(names, value, strict=True))
    elif isinstance(value, Mapping) and needed(kind) == "a table":
        try:
            return _table(_below(where, key), value, kind)
        except WrongType as error:  # in the table: no other type of a union can be meant
            raise RequestError(str(error)) from None
    elif kind is Any or (kind is float and type(value) is int and abs(value) <= MOST):
        return _bounded(where, key, float(value) if kind is float else value)
    raise WrongType(f"{where}: {key} = {_shown(value)} has the wrong type: {needed(kind)} is needed.")


_FORMS: dict[int, tuple[Any, Any, tuple[Any, ...]]] = {}  # a type with its origin and arguments, by its id: not all can be hashed


def not_empty(value: Any) -> str:
    """The check that a text or list has something in it. A list that must may be written as its only item."""
    return "" if value else "is empty: at least one is needed"


def _checked(where: str, key: str, value: Any, kind: Any, marks: tuple[Any, ...]) -> Any:
    if not_empty in marks and get_origin(kind) is tuple and not isinstance(value, list | tuple):
        value = [value]
    found = typed(where, key, value, kind)
    for mark in marks:
        if not callable(mark):
            found = part(_below(where, key), value, mark)
        elif fault := mark(found):
            raise RequestError(f"{where}: {key} = {_shown(value)} {fault}.")
    return found


def _table(where: str, value: Mapping[str, Any], kind: Any) -> Any:
    if is_dataclass(kind):
        return build(where, value, kind)  # type: ignore[arg-type]
    of_keys, of_values = get_args(kind)
    names = [int(name) if needed(of_keys) == "int" and re.fullmatch("[0-9]{1,19}", name) else name for name in value]
    keys = [typed(where, "a key", name, of_keys) for name in names]
    return {key: typed(where, _shown(key).strip("'"), item, of_values) for key, item in zip(keys, value.values(), strict=True)}


def _bounded(where: str, key: str, value: Any) -> Any:
    is_text = isinstance(value, str)
    if (len(value) > LONGEST or NO_TEXT.search(value)) if is_text else isinstance(value, int | float) and not abs(value) <= MOST:
        allowed = f"up to {LONGEST} characters of UTF-8 without NUL" if is_text else f"numbers from {-MOST} to {MOST}"
        raise RequestError(f"{where}: {key} = {_shown(value)} is not allowed: {allowed} are.")
    return value


def needed(kind: Any) -> str:
    """A type in words, as a message says what is needed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return needed(inner[0])
    if origin in (Union, UnionType, Literal):
        return " or ".join(filter(None, (str(one) if origin is Literal else needed(one) for one in inner)))
    if origin is tuple:
        return f"a list of {'' if inner[-1] is ... else f'{len(inner)} '}{needed(inner[0]).removeprefix('a ')}s"
    is_table = is_dataclass(kind) or (origin and issubclass(origin, Mapping))
    return "a table" if is_table else {str: "string", type(None): ""}.get(kind, getattr(kind, "__name__", str(kind)))


def _below(where: str, key: str) -> str:
    """What a message calls the table of a key: "file [key]", "file [key.inner]"."""
    return f"{where[:-1]}.{key}]" if where.endswith("]") else f"{where} [{key}]"


def _shown(value: Any) -> str:
    """A value in a message, cut to a line; Python writes no int of more than 4,300 digits."""
    try:
        text = repr(value)
    except ValueError:
        text = "a huge number"
    return text if len(text) <= 100 else f"{text[:99]}…"
