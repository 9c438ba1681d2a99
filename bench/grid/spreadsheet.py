"""CSV for people: no text of it is a formula that a spreadsheet would run."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pandas takes longer to load than most commands take
    import pandas as pd

FORMULA = re.compile(r"[=+@\t\r-].")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")


def spreadsheet(frame: "pd.DataFrame", float_format: str | None = None) -> bytes:
    """A frame as CSV in UTF-8, its texts by `no_formula`."""
    from pandas.api.types import is_numeric_dtype

    texts = [name for name in frame if not is_numeric_dtype(frame[name])]
    safe = frame.assign(**{str(n): frame[n].map(lambda value: no_formula(value) if isinstance(value, str) else value) for n in texts})
    heads = [no_formula(str(name)) for name in frame]
    content: str = safe.to_csv(index=False, lineterminator="\n", header=heads, float_format=float_format)
    return content.encode()


def no_formula(text: str) -> str:
    """A text with a quote before what a spreadsheet would take for a formula; numbers and a lone dash stay."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text
