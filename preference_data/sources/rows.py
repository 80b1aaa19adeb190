"""Rows of any file, and the loop that turns them into records or rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from preference_data.quarantine import DataError, Rejected, RowFault
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
    rows: Iterator[Row | Rejected], convert: Callable[[Row], T]
) -> Iterator[T | Rejected]:
    """Yields one thing for each row: its record, or the row rejected with the reason."""
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield convert(row)
        except DataError:
            raise
        except RowFault as fault:
            yield _rejected(row, fault.reason, fault.detail)
        except ValueError as error:
            # A record refused its values.
            yield _rejected(row, "invalid_record", str(error))


def _rejected(row: Row, reason: str, detail: str) -> Rejected:
    detail = f"row {row.row} (line {row.line}): {detail}"
    return Rejected(row.row, row.line, reason, detail, row.values, row.file)
