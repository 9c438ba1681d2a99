"""How every command reads its words: its docstring is its help, and a word that is not known is answered with the nearest one."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from bench import ROOT
from bench.errors import unknown

COMMON: dict[str, dict[str, Any]] = {  # flags that several commands have
    "data": {"type": Path, "default": Path("data"), "help": "folder of the data sets"},
    "pretrained": {"type": Path, "default": ROOT / "pretrained", "help": "folder of SAM's checkpoints"},
    "out": {"type": Path, "default": Path("results"), "help": "folder of the results"},
    "device": {"choices": ["auto", "cpu", "cuda"], "default": "auto", "help": "auto: a GPU where there is one"},
    "checkpoint": {"type": Path, "metavar": "FILE", "help": "in place of the backbone's own; of its architecture"},
    "profile": {"default": "", "help": "with --launcher slurm: the name of a file in slurm/, or the path of one"},
    "workers": {"type": int, "default": 1, "help": "processes side by side, one thread (or one GPU) each"},
}


def command_parser(command: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m command`. about: the module's docstring; what it is for, then its calls, which are indented, and notes."""
    first, _, rest = (about or "").partition("\n\n")
    return _Parser(prog=f"python -m {command}", description=first, epilog=rest)


def add_common(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds flags of COMMON."""
    for name in names:
        parser.add_argument(f"--{name}", **COMMON[name])


class _Parser(argparse.ArgumentParser):
    """One sentence and exit code 2 for what it does not know."""

    def __init__(self, **words: Any) -> None:
        super().__init__(formatter_class=_Formatter, **words)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(self._of_extra(extra[0].partition("=")[0]))
        return given, extra

    def _of_extra(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} is a word too many: names stand together, 'lora,vpt_deep', and what has blanks in it needs quotes."
        near = difflib.get_close_matches(word, self._option_string_actions, n=1)
        return f"{word} is no flag here.{f' Did you mean {near[0]}?' if near else ''}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(None, str(unknown(action.dest, value, map(str, action.choices))))

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message[:1].upper()}{message[1:]}{end} All flags: {self.prog} --help\n")


class _Formatter(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal, calls as they are written, and defaults."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_lines(text, width))

    def _get_help_string(self, action: argparse.Action) -> str:
        said, default = action.help or "", action.default
        if default in (None, False, "", [], argparse.SUPPRESS) or "default" in said or not action.option_strings:
            return said
        value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{said}; default: {value.replace('%', '%%')}".removeprefix("; ")


def _lines(text: str, width: int) -> Iterator[str]:
    for calls, group in groupby(text.splitlines(), lambda line: line.startswith("    ")):
        if calls:
            yield from (part for line in group for part in _call(line, width))
        else:
            yield from (textwrap.fill(part.strip(), width) for part in re.split(r"^$", "\n".join(group), flags=re.MULTILINE))


def _call(line: str, width: int) -> list[str]:
    """A call, its remark above it and its flags on several lines where one line has no room."""
    if len(line) <= width:
        return [line]
    words, _, remark = re.sub(r"\s{2,}# ", "\0", line.strip()).partition("\0")
    above = textwrap.wrap(remark, width - 6, initial_indent="    # ", subsequent_indent="    # ")
    flags = re.sub(" (?!-)", "\xa0", words)  # a flag stays with its value
    wrapped = textwrap.wrap(flags, width - 10, break_long_words=False, break_on_hyphens=False)
    return [*above, ("    " + f" \\\n{' ' * 8}".join(wrapped)).replace("\xa0", " ")]
