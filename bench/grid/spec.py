"""What a cell is: one method on one data set under one protocol, and the key and folder that follow from it."""

import ast
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from bench.errors import RequestError, need_known
from bench.grid.files import file_sha256
from bench.grid.plugins import place_in, reason
from bench.grid.protocol import ONE_GROUP, CellShots, Settings
from bench.grid.toml_reader import Kinds, kinds, part
from bench.types import SEED, Range, Shots

WORD = re.compile(r"[^/\\\s()=,'\"]*")  # what can be part of a folder's name, and is read back as it was written
CALL = re.compile(r"\w+\(((\w+=)?[\w.+-]+(,\w+=[\w.+-]+)*)?\)")  # a value that is itself a call, as points(3) or lora(rank=8,alpha=4)
UNQUOTED = re.compile(r"(?<=[=|])((?:\w+[+-])*(?:global|\d+-)(?:\+[\w+-]+)?)(?=[,)|])")  # 0+3-5+8- and global are not Python: see `Placed`
LATER = ("released_sha256", "draw_revision", "reevaluation")  # fields that are no part of a key while they are empty
RELEASED = "released"  # shown with a method whose weights somebody else trained
ALWAYS_SHOWN = ("decoder",)  # among a method's parameters, also as their default: nobody published which the baselines have


def _named_values(pairs: tuple[Any, ...]) -> str:
    """Why these are no names with values; empty where they are."""
    sound = all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and not isinstance(pair[1], dict) for pair in pairs)
    return "" if sound else "are no names with values"


@dataclass(frozen=True)
class MethodChoice:
    """A method with all its hyper-parameters, defaults included.

    `shown` lists the parameters that differ from the default, and always `decoder`: "decoder=sam,rank=8". A parameter that came later
    (`bench.model.method.LATER`) is among them only where it differs, so that older cells stay what they are. groups: of its trained
    parameters, for which a protocol may have a learning rate each. trains: whether there is anything to train. files: where the
    files lie that parameters name by a hash of their content, (parameter, path) each; no part of a key. prompt_free: whether it needs no
    prompt, so that its cells are trained and evaluated without.
    """

    name: str
    parameters: Annotated[tuple[Any, ...], _named_values]
    revision: Annotated[int, Range(0)]
    shown: str
    groups: tuple[str, ...] = ONE_GROUP
    trains: bool = True
    files: tuple[tuple[str, str], ...] = ()
    prompt_free: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method's class is made with."""
        return {**dict(self.parameters), **dict(self.files)}

    @property
    def is_zero_shot(self) -> bool:
        """Whether its number is one for all shots, draws and seeds, because nobody trained anything."""
        return not self.trains and self.shown != RELEASED

    @property
    def label(self) -> str:
        """The name with the shown parameters: "lora(decoder=sam,rank=8)"; `choose_method` reads it back."""
        return f"{self.name}({self.shown})" if self.shown else self.name


@dataclass(frozen=True)
class Reevaluation:
    """What a stored cell's weights are asked once more, without training.

    parent: that cell's key; tuned_on: its data set; prompt, corruption: what test images are asked with and how they are damaged, in the
    words of `bench.training.conditions`. What else differs from the parent stands in the spec's own fields.
    """

    parent: str
    tuned_on: str
    prompt: str
    corruption: str = ""


@dataclass(frozen=True)
class RunSpec:
    """One cell: everything that can change its number.

    released_sha256: of the released checkpoint whose weights are evaluated as they are; "" where the cell trains its own. draw_revision:
    `Dataset.draw_revision`. reevaluation: of a cell that evaluates another one's weights. They came later: while they are empty, or 0,
    they are no part of the key.
    """

    backbone: str
    checkpoint_sha256: str
    dataset: str
    dataset_revision: Annotated[int, Range(0)]
    generated: bool  # the data set's files are a generated stand-in, not the real images
    method: MethodChoice
    shots: CellShots
    draw: Annotated[int, SEED]
    seed: Annotated[int, SEED]
    protocol: str
    settings: Settings
    released_sha256: str = ""
    draw_revision: Annotated[int, Range(0)] = 0
    reevaluation: Reevaluation | None = None

    def canonical(self) -> dict[str, Any]:
        """The spec as nested values for JSON, without what is only for display."""
        method = {"name": self.method.name, "parameters": dict(self.method.parameters), "revision": self.method.revision}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in LATER or getattr(self, f.name)}
        again = {"reevaluation": vars(self.reevaluation)} if self.reevaluation else {}
        return {**own, "method": method, "settings": self.settings.keyed(), **again}

    @cached_property
    def key(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """The cell's folder below `results/runs`; a method's shown parameters are part of its name."""
        of = f"_of_{self.reevaluation.parent}" if self.reevaluation else ""
        return self._folder(self.dataset, f"{of}_{self.key}")

    @property
    def parent_folder(self) -> Path | None:
        """The folder of the cell whose weights this one evaluates; None where it has its own."""
        again = self.reevaluation
        return self._folder(again.tuned_on, f"_{again.parent}") if again else None

    def _folder(self, dataset: str, end: str) -> Path:
        method = ",".join(filter(None, [self.method.name, self.method.shown]))
        method, backbone = (name.replace("(", ",").replace(")", "") for name in (method, self.backbone))
        return Path(dataset) / method / f"{backbone}_{self.shots}shot_draw{self.draw}_seed{self.seed}{end}"

    @property
    def condition(self) -> tuple[str, ...]:
        """Of a re-evaluation the data set that was tuned on, prompt, corruption and precision; empty of any other cell."""
        again = self.reevaluation
        return (again.tuned_on, again.prompt, again.corruption, self.settings.precision) if again else ()

    @property
    def condition_in_words(self) -> str:
        """The same for people: "tuned on whu: box(jitter=0.25) jpeg(3) fp32"."""
        tuned_on, *asked = self.condition or ("",)
        return f"{'' if self.method.is_zero_shot else f'tuned on {tuned_on}: '}{' '.join(filter(None, asked))}" if asked else ""


@dataclass(frozen=True)
class Grid:
    """The names whose product is asked for, as a user writes them."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[Shots, ...] = (1,)
    draws: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)

    def cells(self) -> Iterable[tuple[str, str, Shots, int, int]]:
        """(data set, method, shots, draw, seed), data sets outermost."""
        return itertools.product(self.datasets, self.methods, self.shots, self.draws, self.seeds)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Splits "lora(rank=8)" into ("lora", {"rank": 8}). Values are Python literals; a bare word, or such joined by +, is a
    string. Never evaluated."""
    call = _call(text)
    names = [word.arg for word in call.keywords]
    try:
        values = {str(word.arg): _literal(word.value) for word in call.keywords}
    except (ValueError, TypeError, MemoryError, RecursionError):
        if any(len(_alternatives(word.value)) > 1 for word in call.keywords):
            raise RequestError(f"{text!r} is a sweep, which stands for several: one is needed here.") from None
        raise _unreadable(text) from None
    if len(values) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{text!r} gives {twice} twice: once is enough.")
    return str(getattr(call.func, "id", "")), values


def expanded(text: str) -> list[str]:
    """The calls that "lora(rank=4|8)" stands for, the last value named changing first; text without alternatives is itself."""
    return [text] if "|" not in text else [ast.unparse(each) for each in _alternatives(_call(text))]


def _call(text: str) -> ast.Call:
    """A name with values by name, as Python reads it."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # Python's parser ends so on brackets in brackets
        if (quoted := UNQUOTED.sub(r"'\1'", text)) != text:
            return _call(quoted)
        raise _unreadable(text) from None
    call = ast.Call(node, [], []) if isinstance(node, ast.Name) else node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or any(not word.arg for word in call.keywords):
        raise _unreadable(text)
    return call


def _unreadable(text: str) -> RequestError:
    quotes = " A path needs quotes, file='my/folder'." if re.search(r"=[^'\"=]*/", text) else ""
    quotes += " Words in a list need quotes, ['last','val']." if re.search(r"\[[^\]'\"]*[A-Za-z_]", text) else ""
    return RequestError(f"Cannot read {text[:200]!r}: write a name, or a name with values like 'lora(rank=8)' or 'lora(rank=4|8)'.{quotes}")


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    if isinstance(node, ast.Call):
        choices = [[ast.keyword(word.arg, value) for value in _alternatives(word.value)] for word in node.keywords]
        return [ast.Call(node.func, node.args, list(chosen)) for chosen in itertools.product(*choices)]
    return [node]


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and CALL.fullmatch(text := ast.unparse(node).replace(" ", "")):
        return text
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and not isinstance(getattr(node.right, "value", 0), complex):
        return ast.unparse(node).replace(" ", "")  # words joined by +
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def choose_call(text: str, known: Mapping[str, Kinds], kind: str) -> tuple[str, dict[str, Any]]:
    """One of the `known` names with the values given, as their types have them; the value of a name that has but one needs no key:
    "points(3)". RequestError for an unknown name, key or value; `kind` is what a name is called."""
    bare = re.fullmatch(r"\s*(\w+)\(\s*(-?[\d.]+)\s*\)\s*", text)
    keys = list(known.get(bare[1], ())) if bare else []
    if bare:
        need_known(kind, known, bare[1])
    name, values = parse_call(f"{bare[1]}({keys[0]}={bare[2]})" if bare and len(keys) == 1 else text)
    need_known(kind, known, name)
    return name, part(text.strip(), values, known[name], "value of")


def split_calls(text: str) -> list[str]:
    """Splits "sam, lora(rank=8, decoder=hq)" at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def choose_method(cls: type, given: Mapping[str, Any]) -> MethodChoice:
    """The choice of a method's class and the hyper-parameters given for it.

    RequestError for a parameter that the class lacks, or a value that its annotation does not allow.
    """
    name: str = cls.name  # type: ignore[attr-defined]
    known = kinds(cls)
    words = {key: str(value) if type(value) is int and known.get(key) is str else value for key, value in given.items()}
    values = part(name, words, known, "parameter of")
    if lacking := [f.name for f in fields(cls) if f.init and f.name not in values and f.default is f.default_factory]:  # both MISSING
        raise RequestError(f"The method {name} lacks {', '.join(lacking)}: {name}({lacking[0]}=…) is needed.")
    try:
        method = cls(**values)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"The method {name} cannot be made: {reason(error, place_in(error, cls))}") from error
    files: Mapping[str, Sequence[Path]] = method.files() if hasattr(method, "files") else {}
    for key, value in ((key, getattr(method, key)) for key in values):
        if isinstance(value, str) and key not in files and not WORD.fullmatch(value) and not _is_call(value):
            allowed = "letters, digits and what else a folder's name can have, without spaces, brackets and quotes,"
            raise RequestError(f"{name}({key}={value[:60]!a}): {allowed} are allowed.")
    given_all = ((f, _by_content(getattr(method, f.name), files.get(f.name, ()))) for f in fields(cls))
    parameters = tuple((f.name, value) for f, value in given_all if value != f.default or not f.metadata.get("later"))
    defaults = {f.name: f.default for f in fields(cls)}
    shown = ",".join(f"{k}={v}" for k, v in parameters if k in ALWAYS_SHOWN or v != defaults[k])
    groups = tuple(dict.fromkeys(method.groups().values())) if hasattr(method, "groups") else ONE_GROUP
    places = tuple((key, os.path.abspath(values[key])) for key in files)
    said = getattr(cls, "trains", True), places, getattr(cls, "prompt_free", False)
    return MethodChoice(name, parameters, method.revision, shown, groups, *said)


def _is_call(text: str) -> bool:
    """Whether a value is a call that is read back as it is written."""
    return bool(CALL.fullmatch(text)) and parse_call(f"method(value={text})")[1] == {"value": text}


def _by_content(value: Any, files: Sequence[Path]) -> Any:
    """A parameter as it is; the path of files by its last part and a hash of what is in them: "my-lora@1f2e3d4c5b6a"."""
    if not files:
        return value
    digest = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(os.path.abspath(value)).name)}@{digest[:12]}"


def check_files(cls: type, choice: MethodChoice) -> None:
    """RequestError where a file that the choice names is not there any more, or has another content."""
    if choice.files and choose_method(cls, choice.arguments).parameters != choice.parameters:
        raise RequestError(
            f"{', '.join(path for _, path in choice.files)} has changed since {choice.label} was asked for: ask for it anew."
        )


def released_choice(cls: type) -> MethodChoice:
    """The choice of a method's class with its defaults whose weights are released ones: a row of its own, "cat_sam_a(released)"."""
    return replace(choose_method(cls, {}), shown=RELEASED, trains=False)
