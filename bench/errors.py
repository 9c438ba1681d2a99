"""The errors a user can cause: each message is one sentence that names the thing, the value and what is allowed."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps


class RequestError(Exception):
    """The request was wrong: nothing was started (exit code 2)."""


class DataError(RequestError):
    """A data set's folder, list, image or mask is not as it must be."""


class InputError(RequestError, ValueError):
    """A picture or a prompt that a caller gave is not as it must be."""


class CheckpointError(RequestError):
    """A checkpoint is absent, damaged, of another architecture or unsafe to load."""


class DivergedError(Exception):
    """The training loss became NaN or infinite; fails its cell alone."""


class ProcessGroupError(Exception):
    """One of the processes that run a cell together failed, which ends them all; empty where another process says why."""


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not known: names the nearest known ones, and all of them.

    `kind` is what was looked up ("method", "protocol", …).
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return RequestError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def one_sentence(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """A command's `main` for which a wrong request, or a file or disk that fails, is one sentence and exit code 2. Where the reader
    has seen enough (`| head`) it ends quietly."""

    @wraps(main)
    def command(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except BrokenPipeError:  # nothing may be flushed to it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (RequestError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return command
