"""Checks of what a method or a data set promises: each finds it kept, broken or not promised at all, in one sentence."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from bench.grid.plugins import place_in, reason


class HasClass(Protocol):
    """What is examined: a method or data set, by its class."""

    cls: type


Subject = TypeVar("Subject", bound=HasClass)
Check = Callable[[Subject], str]  # says what it found; raises Broken or NotPromised
Verdict = Literal["pass", "broken", "not promised"]


class Broken(AssertionError):
    """What every method or data set must keep is broken; the message says how, with the numbers."""


class NotPromised(Exception):
    """What some methods or data sets offer, this one does not; the message says what is so instead."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    said: str


def examined(checks: Iterable[Check[Subject]], subject: Subject) -> Iterator[Finding]:
    """What the checks find of a subject, one after the other; a check that fails otherwise is broken too. The same error is told once."""
    errors: dict[str, str] = {}
    for check in checks:
        verdict: Verdict = "pass"
        try:
            said = check(subject)
        except NotPromised as lack:
            verdict, said = "not promised", str(lack)
        except Broken as fault:
            verdict, said = "broken", str(fault)
        except Exception as error:
            verdict, said = "broken", reason(error, place_in(error, subject.cls))
            before = errors.setdefault(said, title(check))
            said = said if before == title(check) else f"It fails as the check above it, “{before}”."
        yield Finding(title(check), verdict, said)


def title(check: Check[Subject]) -> str:
    """A check's name in words: the function's own."""
    return check.__name__.replace("_", " ")


def need(holds: object, fault: str) -> None:
    """Broken, with this sentence, unless it holds."""
    if not holds:
        raise Broken(fault)
