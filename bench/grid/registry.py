"""Names of methods and data sets: a decorator enters a class, and every module of the folder is loaded on first use.

After the folder come the entry points of installed packages, one of which may fail without harm to the others, and the plugin files
that the user named (`bench.grid.plugins`), which must not.
"""

import importlib
import multiprocessing
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from bench.errors import RequestError, unknown
from bench.grid.plugins import line_of, load_plugins, plugin_of, reason

T = TypeVar("T", bound=type)


class Registry:
    """name -> class. `package` ("methods") is loaded whole on first use, and the entry points of `group` with it.

    problems: what is to be known of entry points that could not be loaded, a sentence each. finders: of the package, each registers
    what a folder of the user's describes. hint: what else to say of an unknown name.
    """

    def __init__(self, kind: str, package: str, group: str, hint: str = "") -> None:
        self.kind, self.package, self.group, self.hint = kind, package, group, hint
        self.problems: list[str] = []
        self.finders: list[Callable[[Path], None]] = []
        self._classes: dict[str, type] = {}
        self._unlisted: set[str] = set()
        self._installed: dict[str, str] = {}  # top module of an entry point -> distribution and version
        self._loaded = False

    def register(self, name: str, listed: bool = True) -> Callable[[T], T]:
        """Enters the decorated class under `name`, which becomes its attribute `name`; RequestError if the name is taken. listed: False for
        one that means nothing without parameters, so that it is not among `names`."""

        def enter(cls: T) -> T:
            held = self._classes.get(name)
            if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
                raise RequestError(f"The {self.kind} name {name!r} is taken by {_where(held)}; {_where(cls)} needs another.")
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            self._unlisted |= set() if listed else {name}
            return cls

        return enter

    def names(self) -> list[str]:
        """The registered names, in the order of their files and, in a file, of their definition; those from outside come last."""
        self._load()
        return [name for name in self._classes if name not in self._unlisted]

    def get(self, name: str) -> type:
        """The class behind a name; RequestError with the nearest known names otherwise."""
        self._load()
        if name not in self._classes:
            error = unknown(self.kind, name, self._classes)
            raise RequestError(" ".join(filter(None, [str(error), self.hint, *self.problems])))
        return self._classes[name]

    def find_in(self, folder: Path) -> None:
        """Registers what files in a folder of the user's describe, as TOML files in the data folder describe data sets."""
        self._load()
        for find in self.finders:
            find(folder)

    def origin(self, name: str) -> str | None:
        """Where a class from outside this project comes from, as a record says it; None for the project's own, and for no class."""
        self._load()
        module = self._classes[name].__module__ if name in self._classes else self.package
        top = module.partition(".")[0]
        if top == self.package:
            return None
        return str(plugin_of(module) or self._installed.get(top) or f"the module {module}")

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            outside = self._take_outside()
            try:
                self._import_own()
            except RequestError:
                self._loaded, self._classes = False, {**self._classes, **outside}
                raise
            self._classes = dict(sorted(self._classes.items(), key=lambda item: item[1].__module__))  # whichever was imported first
            for name, cls in outside.items():
                self.register(name)(cls)
            for point in entry_points(group=self.group):
                self._load_point(point)
        load_plugins()

    def _import_own(self) -> None:
        """Imports every module of the package; RequestError, in one sentence, for one that cannot be imported."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            try:
                if not module.ispkg:
                    importlib.import_module(f"{self.package}.{module.name}")
            except Exception as error:
                path = Path(package.__path__[0]) / f"{module.name}.py"
                raise RequestError(f"{path} cannot be loaded: {reason(error, line_of(error, path))}") from error

    def _take_outside(self) -> dict[str, type]:
        """Removes, and returns, what was entered from outside before the project's own, which has the older right to its names."""
        outside = {name: cls for name, cls in self._classes.items() if cls.__module__.partition(".")[0] != self.package}
        self._classes = {name: cls for name, cls in self._classes.items() if name not in outside}
        return outside

    def _load_point(self, point: EntryPoint) -> None:
        """Imports an entry point's module, which registers its classes. Told of on stderr, once, where that fails."""
        name = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        top = point.module.partition(".")[0]
        before = dict(self._classes)
        try:
            point.load()
            if all(cls.__module__.partition(".")[0] != top for cls in self._classes.values()):
                raise RequestError(f"it registers no {self.kind}.")
        except Exception as error:
            self._classes = before
            self.problems.append(f"The entry point {point.name} = {point.value} of {name} is left out: {reason(error)}")
            if multiprocessing.parent_process() is None:
                print(f"warning: {self.problems[-1]}", file=sys.stderr)
        else:
            self._installed[top] = name


def _where(cls: type) -> str:
    """A class and the file or module that it is in."""
    plugin = plugin_of(cls.__module__)
    return f"{plugin.path}'s {cls.__qualname__}" if plugin else f"{cls.__module__}.{cls.__qualname__}"


METHODS = Registry("method", "methods", "sam_peft_bench.methods")
OWN = "Your own is described by NAME.toml in the data folder (datasets/README.md)."
DATASETS = Registry("data set", "datasets", "sam_peft_bench.datasets", OWN)


def third_party(method: str, dataset: str) -> dict[str, str]:
    """Where a cell's method and data set come from, by "method" and "dataset", if they are not the project's own."""
    found = {"method": METHODS.origin(method), "dataset": DATASETS.origin(dataset)}
    return {what: origin for what, origin in found.items() if origin is not None}
