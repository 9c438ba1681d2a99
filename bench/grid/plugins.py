"""Plugin files: methods and data sets of a Python file that the user names, known to every command and process that follows.

Their paths stand in the environment variable SAM_PEFT_BENCH_PLUGINS, which worker processes inherit; `--plugin FILE.py` adds to it.
A job of a snapshot takes the copies that lie in it instead, so that edits made while it waits change nothing.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import ROOT
from bench.errors import RequestError

VARIABLE = "SAM_PEFT_BENCH_PLUGINS"
SNAPSHOT = "snapshot.json"  # in a copy of the code that jobs run from: the commit that it was made at
COPIES = "plugins"  # and beside it a folder with a numbered folder for each plugin


@dataclass(frozen=True)
class Plugin:
    """A plugin that this process runs: its file and the sha256 of what was read from it."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        """As a record names it."""
        return f"{self.path.name}, sha256 {self.sha256}"


_loaded: dict[str, Plugin] = {}  # by the module's name


def add_option(parser: argparse.ArgumentParser) -> None:
    """Gives a command the flag `--plugin FILE.py`."""
    text = "a file that registers methods or data sets; may be repeated"
    parser.add_argument("--plugin", action=_UsePlugin, metavar="FILE.py", help=text)


class _UsePlugin(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, space: argparse.Namespace, values: Any, option: str | None = None) -> None:
        try:
            use_plugin(Path(values))
        except RequestError as error:
            parser.error(str(error))


def use_plugin(path: Path) -> None:
    """Makes a plugin known to this process and those that it starts. It is run when a name is first looked up."""
    path = _checked(path.absolute())
    others = [str(other) for other in _named() if other != path]
    os.environ[VARIABLE] = os.pathsep.join([*others, str(path)])


def plugin_files() -> list[Path]:
    """The plugins in use, as whole paths; RequestError for a path that is no Python file."""
    if (ROOT / SNAPSHOT).is_file():
        return sorted((ROOT / COPIES).glob("*/*.py"), key=lambda path: int(path.parent.name))  # in the order in which they were named
    return [_checked(path) for path in _named()]


def load_plugins() -> None:
    """Runs the plugins in use that this process has not run yet; RequestError, in one sentence, for one that cannot be run."""
    for path in plugin_files():
        _load(path)


def plugin_of(module: str) -> Plugin | None:
    """The plugin that a module is, by the module's name."""
    return _loaded.get(module)


def _named() -> list[Path]:
    return [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]


def _checked(path: Path) -> Path:
    if not path.is_absolute():
        raise RequestError(f"{VARIABLE} names {path}: whole paths are needed there.")
    if path.suffix != ".py" or not path.is_file():
        raise RequestError(f"The plugin {path} is no Python file.")
    return path


def _load(path: Path) -> None:
    name = f"plugin_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name in _loaded:
        return
    content = path.read_bytes()
    _loaded[name] = Plugin(path, sha256(content).hexdigest())
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name], _loaded[name]
        raise RequestError(f"The plugin {path} cannot be loaded: {reason(error, line_of(error, path))}") from None


def reason(error: Exception, place: str = "") -> str:
    """Why somebody's code failed, in one sentence; with the place, if it is given, that `line_of` or `place_in` tells."""
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__} in line {error.lineno}: {error.msg}."
    first = (str(error).splitlines() or ["no reason was given"])[0].rstrip(".")
    return f"{type(error).__name__}{f' in {place}' if place else ''}: {first}."


def line_of(error: Exception, path: Path) -> str:
    """The line of a file that an error was last in, "line 3"; empty where it never was."""
    lines = [line for file, line in _frames(error) if file == str(path)]
    return f"line {lines[-1]}" if lines else ""


def place_in(error: Exception, cls: type) -> str:
    """Where an error was last in the code of a class or the files beside it: "methods/mine.py, line 3"; empty where it never was."""
    home = Path(getattr(sys.modules[cls.__module__], "__file__", None) or "").absolute().parent
    places = [(Path(file), line) for file, line in _frames(error) if Path(file).parent == home]
    if not places:
        return ""
    file, line = places[-1]
    return f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}, line {line}"


def _frames(error: Exception) -> Sequence[tuple[str, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found
