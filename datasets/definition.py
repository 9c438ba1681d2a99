"""What a TOML file says of somebody's own data set: its keys with their types, ranges and defaults, and what of it a cell's key needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from bench.errors import RequestError, unknown
from bench.grid.protocol import read_toml
from bench.types import TrainingPrompts

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SPLITS = ("train", "val", "test")
MOST = 2**31 - 1
ALLOWED: Mapping[str, tuple[float, float]] = {  # both ends are allowed
    "threshold": (0, 254),
    "min_area": (0, MOST),
    "relative_area": (0, 1),
    "val_images": (0, MOST),
    "test_share": (0, 0.99),
    "revision": (1, MOST),
    "max_objects": (1, MOST),
    "noise_scale": (1, 256),
    "noise_threshold": (-100, 100),
}


@dataclass(frozen=True)
class SplitFiles:
    """Where a split's images and truth lie; what is empty is the definition's own. list: a text file of names, one a line."""

    images: str = ""
    masks: str = ""
    annotations: str = ""
    list: str = ""


@dataclass(frozen=True)
class Definition:
    """A TOML file's content; folders and files relative to the data folder, or absolute.

    images with masks: a mask's name is its image's and `mask_suffix` ("_mask"); brighter than `threshold` is foreground.
    images with annotations: COCO's instances, of the `categories` that are named, or all.
    test_share: the share of images, chosen by a hash of their names, that are the test split where no split is named.
    """

    title: str = ""
    images: str = ""
    masks: str = ""
    annotations: str = ""
    extensions: tuple[str, ...] = EXTENSIONS
    mask_extensions: tuple[str, ...] = EXTENSIONS
    mask_suffix: str = ""
    threshold: int = 0
    connectivity: int = 8
    min_area: int = 10
    relative_area: float = 0.0
    val_images: int = 64
    test_share: float = 0.0
    categories: tuple[str, ...] = ()
    empty_images: bool = True
    revision: int = 1
    splits: Mapping[str, SplitFiles] = field(default_factory=dict)
    few_shot: Mapping[int, str | tuple[str, ...]] = field(default_factory=dict)
    training_prompts: TrainingPrompts = field(default_factory=TrainingPrompts)

    @property
    def is_coco(self) -> bool:
        """Whether its objects are COCO's annotations."""
        return bool(self.annotations) or any(files.annotations for files in self.splits.values())

    def split(self, name: str) -> SplitFiles:
        """A split's files, the definition's own where it has none."""
        own = self.splits.get(name, SplitFiles())
        return SplitFiles(own.images or self.images, own.masks or self.masks, own.annotations or self.annotations, own.list)

    def lists(self) -> tuple[str, ...]:
        """The text files of names that it refers to."""
        of_shots = [names for names in self.few_shot.values() if isinstance(names, str)]
        return tuple(filter(None, [*(files.list for files in self.splits.values()), *of_shots]))

    def keyed(self) -> dict[str, Any]:
        """What can change a number, without defaults, so that a key which comes later leaves older cells what they are."""
        defaults = vars(Definition())
        own = {name: value for name, value in vars(self).items() if name != "title" and value != defaults[name]}
        if "splits" in own:
            own["splits"] = {name: {k: v for k, v in asdict(files).items() if v} for name, files in self.splits.items()}
        if "training_prompts" in own:
            own["training_prompts"] = asdict(self.training_prompts)
        return own


def read_definition(path: Path) -> Definition:
    """The definition of a file; RequestError, in one sentence that names the file and the key, where it is not as it must be."""
    content = dict(read_toml(path))
    splits = _table(path, "splits", content.pop("splits", {}))
    few_shot = _table(path, "few_shot", content.pop("few_shot", {}))
    prompts = _table(path, "training_prompts", content.pop("training_prompts", {}))
    for name in splits:
        if name not in SPLITS:
            raise unknown(f"split in {path}", name, SPLITS)
    known = [f.name for f in fields(Definition)]
    definition = Definition(
        **_values(str(path), content, Definition, known),
        splits={
            name: SplitFiles(**_values(f"{path} [splits.{name}]", _table(path, f"splits.{name}", files), SplitFiles))
            for name, files in splits.items()
        },
        few_shot={_shots(path, shots): _listed(f"{path} [few_shot]: {shots}", names) for shots, names in few_shot.items()},
        training_prompts=TrainingPrompts(**_values(f"{path} [training_prompts]", prompts, TrainingPrompts)),
    )
    _check(path, definition)
    return definition


def _table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{path}: {name} = {value!r} must be a table, [{name}].")
    return value


def _values(where: str, content: Mapping[str, Any], cls: type, known: list[str] | None = None) -> dict[str, Any]:
    kinds = get_type_hints(cls)
    for key in content:
        if key not in kinds:
            raise unknown(f"key in {where}", key, known or kinds)
    return {key: _typed(f"{where}: {key}", key, value, kinds[key]) for key, value in content.items()}


def _typed(where: str, key: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return _words(where, value)
    kinds = get_args(kind) or (kind,)
    if type(value) is int and float in kinds:
        value = float(value)
    if type(value) not in kinds:
        raise RequestError(f"{where} = {value!r} has the wrong type: {kinds[0].__name__} is needed.")
    low, high = ALLOWED.get(key, (-np.inf, np.inf))
    if type(value) in (int, float) and not low <= value <= high:
        raise RequestError(
            f"{where} = {value} is not allowed: {low:g} {'or more' if high == MOST and value < low else f'to {high:.10g}'} is."
        )
    return value


def _words(where: str, value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise RequestError(f"{where} = {value!r} has the wrong type: a list of words, at least one, is needed.")
    return tuple(words)


def _listed(where: str, value: Any) -> str | tuple[str, ...]:
    """A list of names, or the text file that holds them."""
    return value if isinstance(value, str) and value else _words(where, value)


def _shots(path: Path, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"{path} [few_shot]: {text!r} is no number of shots: whole numbers from 1 are allowed.")
    return int(text)


def _check(path: Path, definition: Definition) -> None:
    """What the keys must be together."""
    if definition.connectivity not in (4, 8):
        raise RequestError(f"{path}: connectivity = {definition.connectivity} is not allowed: 4 and 8 are.")
    for extension in (*definition.extensions, *definition.mask_extensions):
        if extension.lower() not in EXTENSIONS:
            raise RequestError(f"{path}: the extension {extension!r} cannot be read: {', '.join(EXTENSIONS)} can.")
    _check_splits(path, definition)
    for name in dict.fromkeys(("train", "test", *definition.splits)):
        files = definition.split(name)
        if not files.images:
            raise RequestError(f"{path}: the {name} split has no folder: `images` is needed, at the top or in [splits.{name}].")
        if bool(files.masks) == bool(files.annotations):
            raise RequestError(f"{path}: the {name} split needs either `masks`, a folder, or `annotations`, a JSON of COCO's form.")
    if definition.is_coco and any(definition.split(name).masks for name in ("train", "test", *definition.splits)):
        raise RequestError(f"{path}: `masks` of one split and `annotations` of another are not allowed together.")
    if definition.categories and not definition.is_coco:
        raise RequestError(f"{path}: `categories` belong to `annotations`; masks have none.")


def _check_splits(path: Path, definition: Definition) -> None:
    if definition.test_share:
        if definition.splits:
            raise RequestError(f"{path}: `test_share` and [splits.{next(iter(definition.splits))}] are not allowed together.")
        return
    if "test" not in definition.splits:
        raise RequestError(f"{path}: there is no test split: [splits.train] and [splits.test], or `test_share = 0.2`, are needed.")
    used = {name: definition.split(name) for name in dict.fromkeys(("train", *definition.splits))}
    for name, files in used.items():
        same = [other for other in used if other != name and used[other] == files]
        if same:
            raise RequestError(f"{path}: the splits {name} and {same[0]} are the same images; other folders or lists are needed.")
