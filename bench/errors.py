"""The errors a user can cause: each message is one sentence that names the thing, the value and what is allowed."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps

STOPPED = 130  # the exit code after Ctrl-C


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
    names, name = sorted(known), str(name)[:200]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return RequestError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def need_known(kind: str, known: Collection[str], *names: str) -> None:
    """RequestError, as `unknown` says it, for the first of the names that is not known."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def last_words(code: int, error: str) -> str:
    """Why a process failed: its last line, or, of one without any, how it ended."""
    killed = " (killed, as where memory runs out)" if code == -signal.SIGKILL else ""
    return (error.strip().splitlines() or [f"it ended with {code}{killed} and said nothing"])[-1]


def counted(count: int, what: str) -> str:
    """A number of things: "1 seed", "10 seeds"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def one_sentence(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """A command's `main` for which a wrong request, or a file or disk that fails, is one sentence and exit code 2, and Ctrl-C is one
    and 130. Where the reader has seen enough (`| head`) it ends quietly."""

    @wraps(main)
    def command(arguments: Sequence[str] | None = None) -> int:
        if arguments is None and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # until here it was `bench`'s
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            for word in (os.getcwd(), *(sys.argv[1:] if arguments is None else arguments)):
                if not is_text(word):
                    raise RequestError(f"{word!a} is not UTF-8, so no record could name it: rename it.")
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has a ±
            code = main(arguments)
            sys.stdout.flush()  # here, where a pipe that is closed is nothing to complain of
            return code
        except BrokenPipeError:  # nothing may be flushed to it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            return STOPPED
        except OSError as error:
            print(f"error: {f'{error.filename}: {error.strerror}.' if error.filename else error}", file=sys.stderr)
            return 2
        except RuntimeError as error:
            if "Symlink loop" not in str(error):  # of pathlib
                raise
            print(f"error: {error}.", file=sys.stderr)
            return 2
        except RequestError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        finally:
            if arguments is None:  # Python is closing, where Ctrl-C would be a traceback
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    return command


@contextmanager
def untouched_by_interrupts() -> Iterator[None]:
    """Processes that are started in it do not hear a terminal's Ctrl-C: this one does, when it is left, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_text(word: str) -> bool:
    """Whether a text can be written as UTF-8; a path whose bytes are not, as Python holds it, cannot."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
