"""Rows of CSV and TSV files, strictly: nothing is guessed from the values, nothing is converted.

The standard library's reader in strict mode, because the fast ones change text without a word:
pyarrow loses a byte of a CRLF in a quoted field (apache/arrow#51368), pandas shifts the columns
when the first row is too long and turns "NA" into nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.files import Reading, open_text
from preference_data.sources.rows import Row

FIELD_LIMIT = 16 << 20
"""Characters in one field; a quote that is never closed would swallow the file otherwise."""

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 1 << 16
_SEP_LINE = re.compile(r"sep=(.)\r?\n?$")


def read_table(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each row after the header; blank lines are no rows.

    Raises DataError for an empty file, a header that names a column twice, and a quoted field
    that is never closed or is longer than FIELD_LIMIT.
    """
    # The limit is the csv module's global; every table of ours is read under the same one.
    csv.field_size_limit(FIELD_LIMIT)
    with open_text(path, reading) as stream:
        lines = _Lines(stream)
        said = lines.sep_line()  # left behind also where the delimiter is given
        delimiter = reading.delimiter or said or find_delimiter(path, reading)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(path, reader, lines)
        number = 0
        while True:
            lines.start_row()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                number += 1
                yield _broken_row(path, number, lines, error)
                continue
            if cells:
                number += 1
                yield _row(path, number, lines.row_line, header, cells)
    if not number:
        raise DataError(f"{path} has a header but no rows.")


def find_delimiter(path: Path, reading: Reading) -> str:
    """The delimiter under which the first 64 K characters have one width above 1.

    Where a ragged row spoils that for all, the one with the most rows as wide as the header.
    """
    with open_text(path, reading) as stream:
        sample = stream.read(_SAMPLE)
    best, best_fit = ",", (0.0, 1)
    for delimiter in _DELIMITERS:
        widths = _widths(sample, delimiter)
        if widths and widths[0] > 1:
            fit = (widths.count(widths[0]) / len(widths), widths[0])
            if fit > best_fit:
                best, best_fit = delimiter, fit
    return best


class _Lines:
    """The physical lines, counted, with those of the row that is being read kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._read = 0
        self._waiting: str | None = None
        self.row_line = 1
        self.row_text: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream) if self._waiting is None else self._waiting
        self._waiting = None
        self._read += 1
        self.row_text.append(line)
        return line

    def start_row(self) -> None:
        self.row_line = self._read + 1
        self.row_text.clear()

    @property
    def last_line(self) -> int:
        return self._read

    def sep_line(self) -> str | None:
        """The delimiter of Excel's opening "sep=;" line, which is then left behind."""
        first = next(self._stream, "")
        match = _SEP_LINE.fullmatch(first)
        if match is None:
            self._waiting = first or None
            return None
        self._read += 1
        return match.group(1)


def _read_header(path: Path, reader: Iterator[list[str]], lines: _Lines) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise DataError(f"The header of {path} is not readable as CSV ({error}).") from None
    if header is None:
        raise DataError(f"{path} is empty.")
    names = [name.strip() for name in header]
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f'The header of {path} names "{name}" twice. Rename one of the two.')
    return names


def _row(path: Path, number: int, line: int, header: list[str], cells: list[str]) -> Row | Rejected:
    if len(cells) == len(header) and [cell.strip() for cell in cells] != header:
        return Row(str(path), number, line, dict(zip(header, cells, strict=True)))
    at = f"row {number} (line {line})"
    if len(cells) == len(header):
        reason, detail = "header_repeated", f"{at} repeats the header"
    else:
        reason = "fields_extra" if len(cells) > len(header) else "fields_missing"
        detail = f"{at} has {len(cells)} fields where the header has {len(header)}"
    return Rejected(number, line, reason, detail + ".", cells, str(path))


def _broken_row(path: Path, number: int, lines: _Lines, error: csv.Error) -> Rejected:
    line, text = lines.row_line, str(error)
    if "unexpected end of data" in text:
        raise DataError(
            f"{path}: a quoted field in the row that begins on line {line} is never closed. "
            "Close it, and double every quote inside it."
        ) from None
    if "field larger" in text:
        raise DataError(
            f"{path}: a field in the row that begins on line {line} is longer than "
            f"{FIELD_LIMIT:,} characters. Look for a quote that is never closed."
        ) from None
    detail = (
        f"row {number} (lines {line} to {lines.last_line}) is not CSV: {text}; "
        "a quote inside a quoted field is written twice."
    )
    return Rejected(number, line, "csv_syntax", detail, "".join(lines.row_text), str(path))


def _widths(sample: str, delimiter: str) -> list[int]:
    widths: list[int] = []
    try:
        for cells in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True):
            if cells:
                widths.append(len(cells))
    except csv.Error:
        return widths  # the sample ends inside a quoted field, or a row is broken
    # The sample may end inside a row.
    return widths if len(sample) < _SAMPLE or len(widths) < 2 else widths[:-1]
