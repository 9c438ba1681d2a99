"""Names of methods and data sets."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import RequestError
from bench.grid.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of methods on the import path; its own registry lies in it as `names`."""
    folder = tmp_path / "toymethods"
    folder.mkdir()
    (folder / "__init__.py").write_text("from bench.grid.registry import Registry\nNAMES = Registry('method', 'toymethods', 'none.such')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toymethods"]:
        del sys.modules[name]


def _write(folder: Path, file: str, *names: str) -> None:
    classes = "\n".join(f"@NAMES.register({name!r})\nclass C{i}: pass" for i, name in enumerate(names))
    (folder / file).write_text(f"from toymethods import NAMES\n{classes}\n")


def _names() -> Registry:
    import toymethods  # type: ignore[import-not-found]

    return toymethods.NAMES


def test_a_file_in_the_folder_is_enough(package: Path) -> None:
    _write(package, "lora.py", "lora", "dora")
    _write(package, "adapter.py", "adaptformer")
    assert _names().names() == ["adaptformer", "lora", "dora"]
    assert _names().get("dora").name == "dora"


def test_an_unknown_name_gets_the_nearest_known_ones(package: Path) -> None:
    _write(package, "all.py", "cat_sam_t", "cat_sam_a", "lora")
    with pytest.raises(RequestError) as error:
        _names().get("cat_sam")
    said = str(error.value)
    assert said.startswith("Unknown method 'cat_sam'. Did you mean cat_sam_")
    assert said.endswith("Known: cat_sam_a, cat_sam_t, lora.")


def test_nothing_near_nothing_suggested(package: Path) -> None:
    _write(package, "all.py", "lora")
    with pytest.raises(RequestError, match=r"^Unknown method 'zzzz'\. Known: lora\.$"):
        _names().get("zzzz")


def test_a_taken_name_is_refused() -> None:
    registry = Registry("method", "methods", "none.such")
    registry.register("lora")(type("First", (), {}))
    with pytest.raises(RequestError, match=r"The method name 'lora' is taken by .*First; .*Second needs another\."):
        registry.register("lora")(type("Second", (), {}))


def test_the_same_class_may_be_entered_again() -> None:
    """A module that is run as a script and imported as well defines its class twice."""
    registry = Registry("method", "methods", "none.such")
    for _ in range(2):
        registry.register("lora")(type("Same", (), {}))


def test_what_came_first_from_outside_comes_last_and_has_no_right_to_a_name(package: Path) -> None:
    _write(package, "lora.py", "lora")
    names = _names()
    for name in ("outside", "lora"):
        names.register(name)(type("Mine", (), {"__module__": "elsewhere"}))
    with pytest.raises(RequestError, match=r"'lora' is taken by toymethods\.lora\.C0; elsewhere\.Mine needs another\."):
        names.names()
    assert names.names() == ["lora", "outside"]
    assert names.origin("outside") == "the module elsewhere" and names.origin("lora") is None
