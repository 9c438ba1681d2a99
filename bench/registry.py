"""Names of methods and data sets: a decorator enters a class, and every module of the folder is loaded on first use."""

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from bench.errors import RequestError, unknown

T = TypeVar("T", bound=type)


class Registry:
    """name -> class. `package` ("methods") is loaded whole on first use, and the entry points of `group` with it."""

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._classes: dict[str, type] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Enters the decorated class under `name`, which becomes its attribute `name`; RequestError if the name is taken."""

        def enter(cls: T) -> T:
            held = self._classes.get(name)
            if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
                raise RequestError(f"The {self.kind} name {name!r} is taken by {held.__module__}.{held.__qualname__}.")
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return enter

    def names(self) -> list[str]:
        """The registered names, in the order of their files and, in a file, of their definition."""
        self._load()
        return list(self._classes)

    def get(self, name: str) -> type:
        """The class behind a name; RequestError with the nearest known names otherwise."""
        self._load()
        if name not in self._classes:
            raise unknown(self.kind, name, self._classes)
        return self._classes[name]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg:
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            point.load()


METHODS = Registry("method", "methods", "sam_peft_bench.methods")
DATASETS = Registry("data set", "datasets", "sam_peft_bench.datasets")
