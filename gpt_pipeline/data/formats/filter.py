"""Which rows are kept by what stands in their other columns: `data.filter`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.columns import Flags, flags, int32s
from gpt_pipeline.data.config import COMPARED, as_number

FILTER = "filter "
"""How the reasons begin under which rows that a filter leaves out are counted."""

AS_SHOWN = "a value in data.filter is compared as `gpt-pipeline show` prints the column: 3, not 3.0; true, not True"
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the value of one column has to be."""

    column: str
    text: str
    """As it is written: `en`, the value itself, or `>= 3`, a bound."""

    @property
    def reason(self) -> str:
        """Under which the rows that fail are counted."""
        return f"{FILTER}{self.column}"

    def passes(self, rows: pa.RecordBatch) -> Flags:
        """Return which rows pass; one without a value, or with one that is no number where a bound is given, fails."""
        values = rows[self.column].dictionary_encode()
        passing = np.array([_passes(self.text, value) for value in values.dictionary.to_pylist()], np.bool_)
        if not len(passing):
            return np.zeros(rows.num_rows, np.bool_)
        chosen: Flags = passing[int32s(values.indices)] & flags(values.is_valid())
        return chosen


def conditions_of(filter: Mapping[str, str] | None) -> tuple[Condition, ...]:
    """Return the conditions that `data.filter` lists, by column."""
    return tuple(Condition(column=column, text=text) for column, text in sorted((filter or {}).items()))


def _passes(text: str, value: str) -> bool:
    compared = COMPARED.fullmatch(text)
    if compared is None:
        return value == text
    number, bound = as_number(value), as_number(compared[2])
    return number is not None and bound is not None and _COMPARISONS[compared[1]](number, bound)
