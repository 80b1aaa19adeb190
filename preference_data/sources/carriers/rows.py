"""Rows of any file, and the loop that turns them into records or rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from preference_data.quarantine import DataError, Rejected, RowFault, SetAside
from preference_data.records import Source

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read. `row` counts from 1 without the header, `line` is physical.

    The values are text in a CSV file, and any JSON in a JSONL file.
    """

    file: str
    row: int
    line: int
    values: Mapping[str, object]

    def source(self, format: str) -> Source:
        return Source(format, self.file, self.row, self.line)


def convert_rows(
    rows: Iterator[Row | Rejected], convert: Callable[[Row], tuple[T, ...]]
) -> Iterator[tuple[T, ...] | Rejected]:
    """Yields one thing for each row: its records, or the row rejected with the reason.

    A row of which one record cannot be made is rejected as a whole.
    """
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield convert(row)
        except DataError:
            raise
        except RowFault as fault:
            yield rejected(row, fault)
        except ValueError as error:
            # A record refused its values.
            yield rejected(row, RowFault("invalid_record", str(error)))


def rejected(row: Row, fault: RowFault) -> Rejected:
    """The row, set aside for this reason."""
    detail = f"row {row.row} (line {row.line}): {fault.detail}"
    expected = isinstance(fault, SetAside)
    return Rejected(row.row, row.line, fault.reason, detail, row.values, row.file, expected)
