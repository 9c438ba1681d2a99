"""The methods that a grid names, chosen without loading torch: a child process reads them once, and a cache remembers what it said.

python -m bench.grid.catalogue "lora(rank=8),sam"          # what the child prints, as JSON
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.errors import RequestError, last_words
from bench.grid.files import remember, remembered
from bench.grid.kept import Frozen
from bench.grid.plan import choose_methods, groups_by_method
from bench.grid.plugins import plugin_files
from bench.grid.published import PUBLISHED
from bench.grid.registry import METHODS
from bench.grid.spec import MethodChoice
from bench.grid.store import fields_of, method_from_json

CACHE = "methods"


@dataclass(frozen=True)
class Catalogue:
    """The chosen methods in the order they were named, and every registered method with its groups of parameters. frozen: what is kept
    of the chosen ones' encoders on the backbone that was asked for."""

    choices: tuple[MethodChoice, ...]
    groups: Mapping[str, tuple[str, ...]]
    frozen: Frozen = field(default_factory=dict)

    def registered(self) -> Mapping[str, tuple[str, ...]]:
        """The groups by method; `specs_of` asks for them."""
        return self.groups


def catalogue(text: str, cache_dir: Path, backbone: str = "") -> Catalogue:
    """The methods of `text` as a user writes them; the same choices, and the same errors, as `plan.choose_methods`. backbone: on which it
    is said what is kept of their encoders.

    What a child process found is kept in `cache_dir/methods/` under a hash of the text and of every file that methods are made
    of. A cache that cannot be read or written is passed over.
    """
    path = cache_dir / CACHE / f"{_state(text, backbone)}.json"
    try:
        return _read(remembered(path))
    except (ValueError, KeyError, TypeError, AttributeError):
        said, warnings = _ask(text, backbone)
    if warnings or any(choice["files"] for choice in said["choices"]):  # it may be another tomorrow without any of this code changing
        print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)
    else:
        remember(path, said)
    return _read(said)


def _ask(text: str, backbone: str) -> tuple[dict[str, Any], list[str]]:
    """What the child prints last, and its warnings; its RequestError is raised here."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # it stays here, where paths in `text` are meant
    command = [sys.executable, "-P", "-m", "bench.grid.catalogue", text, backbone]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        last, shown = last_words(done.returncode, done.stderr), f"`{Path(sys.executable).name} -m bench.grid.catalogue` shows it in full"
        raise RequestError(last if done.returncode == 2 else f"The methods cannot be loaded: {last}; {shown}.")
    return json.loads(done.stdout.strip().splitlines()[-1]), [line for line in done.stderr.splitlines() if line.startswith("warning: ")]


def _read(said: Mapping[str, Any]) -> Catalogue:
    groups = {name: tuple(groups) for name, groups in said["groups"].items()}
    return Catalogue(tuple(map(method_from_json, said["choices"])), groups, {name: tuple(kept) for name, kept in said["frozen"].items()})


def _state(text: str, backbone: str) -> str:
    """A hash of the text, the interpreter, the published tables, and all code that methods are made of, third-party packages and plugins
    included."""
    digest = sha256(f"{text}\0{backbone}\0{sys.version}".encode())
    published = [path for path in PUBLISHED.values() if path.is_file()]  # they say what the group "paper" is
    for path in sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "methods").rglob("*.py"), *published]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for point in sorted(entry_points(group=METHODS.group)):
        digest.update(f"\0{point.name}={point.value}".encode())
        for path in sorted(_files(point.module.partition(".")[0])):
            digest.update(f"\0{path}\0".encode() + path.read_bytes())
    for path in plugin_files():
        digest.update(f"\0{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(package: str) -> Iterator[Path]:
    """The Python files of a package, found without importing it."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        yield from Path(folder).rglob("*.py")
    if found and found.origin and not found.submodule_search_locations:
        yield Path(found.origin)


def _frozen(choice: MethodChoice, backbone: str) -> tuple[int, dict[str, int]]:
    """See Frozen; nothing of a method that files say, or that is built otherwise than ours are. RequestError for one whose parameters the
    backbone's widths do not allow."""
    if choice.files:
        return 0, {}
    try:
        found: tuple[int, dict[str, int]] = METHODS.get(choice.name)(**choice.arguments).frozen(backbone)
    except RequestError:
        raise
    except Exception:  # a third party's code: its cells say what is wrong with it
        return 0, {}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the choices of a text of methods; 2 where it is wrong."""
    text, *backbones = sys.argv[1:] if arguments is None else arguments
    try:
        choices = choose_methods(text, *backbones)
        frozen = {choice.label: _frozen(choice, backbone) for choice in choices for backbone in backbones if backbone}
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"choices": list(map(fields_of, choices)), "groups": groups_by_method(), "frozen": frozen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
