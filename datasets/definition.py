"""What a TOML file says of somebody's own data set: its keys with their types, ranges and defaults, and what of it a cell's key needs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from bench.errors import RequestError
from bench.grid.metrics import METRICS
from bench.grid.protocol import Changes
from bench.grid.toml_reader import load, not_empty
from bench.types import SHOTS, Range, Split, TrainingPrompts
from datasets.folder import ASPECT_TOLERANCE

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
UNKEYED = ("title", "skip_bad_annotations", "metric", "settings")  # settings are in the cells' own


def _can_be_read(extension: str) -> str:
    return "" if extension.lower() in EXTENSIONS else f"cannot be read: {', '.join(EXTENSIONS)} can"


def _is_metric(name: str) -> str:
    return "" if name in METRICS else f"is no metric: {', '.join(METRICS)} are"


Extensions = Annotated[tuple[Annotated[str, _can_be_read], ...], not_empty]
Words = Annotated[tuple[Annotated[str, not_empty], ...], not_empty]


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
    mask_values: "foreground"; or "ids", each an object, or "classes", whose connected parts are.
    classes: name -> id, of the masks' values or COCO's categories, where classes are told apart; metric: what tables `--like paper` show.
    settings: of a protocol, which these cells have in place of its common ones.
    bits: how many of an image's 16 are used; 0: all. skip_bad_annotations: leave them out, which `verify` counts and names.
    aspect_tolerance: by which share an image's aspect ratio and its mask's may differ.
    test_share: the share of images, chosen by a hash of their names, that are the test split where no split is named.
    """

    title: str = ""
    images: str = ""
    masks: str = ""
    annotations: str = ""
    extensions: Extensions = EXTENSIONS
    mask_extensions: Extensions = EXTENSIONS
    mask_suffix: str = ""
    mask_values: Literal["foreground", "ids", "classes"] = "foreground"
    bits: Literal[0] | Annotated[int, Range(8, 16)] = 0
    threshold: Annotated[int, Range(0, 65534)] = 0
    connectivity: Literal[4, 8] = 8
    min_area: Annotated[int, Range(0)] = 10
    relative_area: Annotated[float, Range(0, 1)] = 0.0
    aspect_tolerance: Annotated[float, Range(0, 1000)] = ASPECT_TOLERANCE
    val_images: Annotated[int, Range(0)] = 64
    test_share: Annotated[float, Range(0, 0.99)] = 0.0
    categories: Words = ()
    classes: Mapping[Annotated[str, not_empty], Annotated[int, Range(1, 255)]] = field(default_factory=dict)
    metric: Annotated[str, _is_metric] = "miou"
    settings: Changes = field(default_factory=dict)
    empty_images: bool = True
    skip_bad_annotations: bool = False
    revision: Annotated[int, Range(1)] = 1
    splits: Mapping[Split, SplitFiles] = field(default_factory=dict)
    few_shot: Mapping[Annotated[int, SHOTS], Annotated[str, not_empty] | Words] = field(default_factory=dict)
    training_prompts: TrainingPrompts = field(default_factory=TrainingPrompts)

    @property
    def is_coco(self) -> bool:
        """Whether its objects are COCO's annotations."""
        return bool(self.annotations) or any(files.annotations for files in self.splits.values())

    def split(self, name: Split) -> SplitFiles:
        """A split's files, the definition's own where it has none."""
        own = self.splits.get(name, SplitFiles())
        return SplitFiles(own.images or self.images, own.masks or self.masks, own.annotations or self.annotations, own.list)

    def lists(self) -> tuple[str, ...]:
        """The text files of names that it refers to."""
        of_shots = [names for names in self.few_shot.values() if isinstance(names, str)]
        return tuple(filter(None, [*(files.list for files in self.splits.values()), *of_shots]))

    def keyed(self) -> dict[str, Any]:
        """What can change a number, without defaults, so that a key which comes later leaves older cells what they are.

        Where bad annotations are not left out there is no number.
        """
        defaults = vars(Definition())
        own = {name: value for name, value in vars(self).items() if name not in UNKEYED and value != defaults[name]}
        if "splits" in own:
            own["splits"] = {name: {k: v for k, v in asdict(files).items() if v} for name, files in self.splits.items()}
        if "training_prompts" in own:
            own["training_prompts"] = asdict(self.training_prompts)
        return own


def read_definition(path: Path) -> Definition:
    """The definition of a file; RequestError, in one sentence that names the file and the key, where it is not as it must be."""
    definition = load(path, Definition)
    _check(path, definition)
    return definition


def _check(path: Path, definition: Definition) -> None:
    """What the keys must be together."""
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
    if definition.mask_values != "foreground" and definition.is_coco:
        raise RequestError(f"{path}: `mask_values` belongs to `masks`; annotations have categories.")
    if definition.classes and not definition.is_coco and definition.mask_values != "classes":
        raise RequestError(f'{path}: `classes` need masks whose values are their ids, `mask_values = "classes"`, or annotations.')
    if twice := [number for number, count in Counter(definition.classes.values()).items() if count > 1]:
        raise RequestError(f"{path}: the class id {twice[0]} stands twice in `classes`; ids must be unique.")


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
