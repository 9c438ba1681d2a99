"""Many rows as one table, without a dict for each."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas takes longer to load than most commands take
    import pandas as pd


class Columns:
    """Rows gathered column by column, equal texts held once: a hundred thousand dicts of sixty would take a gigabyte and more."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._texts: dict[str, str] = {}
        self._rows = 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; what it has no value for is NaN."""
        for name, value in row.items():
            column = self._values.get(name)
            if column is None:
                column = self._values[name] = [math.nan] * self._rows
            column.append(self._texts.setdefault(value, value) if type(value) is str else value)
        self._rows += 1
        if len(row) < len(self._values):
            for column in self._values.values():
                column.extend([math.nan] * (self._rows - len(column)))

    def table(self, order: str) -> "pd.DataFrame":
        """The rows as a table, in the order of a column of texts."""
        import pandas as pd

        if not self._rows:
            return pd.DataFrame()
        texts = self._values[order]
        at = sorted(range(self._rows), key=texts.__getitem__)
        with pd.option_context("mode.string_storage", "python"):  # whether or not there is an Arrow, whose texts are slower to look through
            return pd.DataFrame({name: [values[i] for i in at] for name, values in self._values.items()})
