"""What may be tuned: the range of the learning rates, and the values of a parameter that a method lets be tried."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import RequestError


@dataclass(frozen=True)
class LogUniform:
    """Numbers from `low` to `high`, each factor as likely as the next; RequestError for a range that is empty or infinite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise RequestError(f"A log-uniform range from {self.low:g} to {self.high:g}: 0 < low < high, both finite, is needed.")

    def at(self, share: float) -> float:
        """The number at a share of the range, 0 to 1, in three digits, which a protocol's name can be read with."""
        return float(f"{self.low * (self.high / self.low) ** share:.3g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log-uniform"


@dataclass(frozen=True)
class OneOf:
    """One of a few values, each as likely as the next; RequestError where there is none."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise RequestError("A list of values to try is empty: at least one is needed.")

    def at(self, share: float) -> Any:
        """The value at a share of the list, 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Dimension = LogUniform | OneOf
Space = Mapping[str, Dimension]  # parameter -> what it may be
RATES = LogUniform(3e-5, 1e-1)  # of every group of parameters of every method, unless --rates says otherwise


def read_range(text: str) -> LogUniform:
    """The range of "3e-5:1e-1"; RequestError for what is none."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise RequestError(f"--rates {text!r} cannot be read: two numbers with a colon between them, as 3e-5:1e-1, are needed.") from None
    return LogUniform(low, high)
