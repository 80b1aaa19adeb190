"""Rows that cannot be used: each one kept, with its place and its reason.

A reader yields one thing for each input row, a record or a `Rejected`, so that rows in always
equal rows out plus rows quarantined.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import BinaryIO


class DataError(ValueError):
    """The data cannot be used as a whole. One or two sentences: what, where, what to do."""


class RowFault(Exception):
    """One row cannot be used. Raised by a format's conversion, turned into a `Rejected`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class SetAside(RowFault):
    """One row that the file itself says does not count: skipped, a draft, not annotated."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that was set aside.

    `row` counts from 1 without the header; `line` is the physical line where the row begins.
    `reason` is a short stable code; `detail` a sentence that names the row and the value; `raw`
    the row as it was read (a dict, a list of cells, or the line's text).
    """

    row: int
    line: int
    reason: str
    detail: str
    raw: object
    file: str
    expected: bool = False
    """The file itself says that the row does not count; such rows are no sign of a bad file."""


class Quarantine:
    """Counts rejected rows by reason, and writes them to a stream, one JSON object a line."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream
        self.by_reason: Counter[str] = Counter()
        self.faults = 0
        self.first: Rejected | None = None

    @property
    def rows(self) -> int:
        return self.by_reason.total()

    def add(self, rejected: Rejected) -> None:
        self.by_reason[rejected.reason] += 1
        self.faults += not rejected.expected
        self.first = self.first or rejected
        if self._stream is not None:
            # ASCII escapes, since the row may be here for text that no encoding can write.
            self._stream.write(
                json.dumps({f.name: getattr(rejected, f.name) for f in fields(rejected)}).encode()
                + b"\n"
            )

    def merge(
        self, lines: bytes, by_reason: Counter[str], faults: int, first: Rejected | None
    ) -> None:
        """Adds what another quarantine has counted and written."""
        self.by_reason.update(by_reason)
        self.faults += faults
        self.first = self.first or first
        if self._stream is not None:
            self._stream.write(lines)


def reasons_in_words(by_reason: Counter[str]) -> str:
    """As in "label_unknown 12, empty_prompt 3": the most frequent first, ties by name."""
    counts = sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason} {count}" for reason, count in counts)
