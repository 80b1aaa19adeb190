"""Rows of CSV and TSV files, strictly: nothing is guessed from the values, nothing is converted.

The standard library's reader in strict mode, because the fast ones change text without a word:
pyarrow loses a byte of a CRLF in a quoted field (apache/arrow#51368), pandas shifts the columns
when the first row is too long and turns "NA" into nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO, cast

from preference_data.counts import counted
from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.files import Reading, bad_character, open_text
from preference_data.sources.carriers.rows import Row

FIELD_LIMIT = 64 << 20
"""Characters in one field; a quote that is never closed would swallow the file otherwise."""

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 1 << 16
SEP_LINE = re.compile(r"sep=(.)\r?\n?$")
_ROUNDED = re.compile(r"[0-9]\.[0-9]+E\+[0-9]+")
_LONGEST_ROUNDED = len("1.23456789012345E+307")


def read_table(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each row after the header; blank lines are no rows.

    A row that is no CSV, or whose quote is never closed, is one reject, up to the line where the
    rows fit the header again.

    Raises DataError for an empty file, a header that names a column twice, and, in a table of one
    column, a quoted field that is never closed or is longer than FIELD_LIMIT.
    """
    # The limit is the csv module's global; every table of ours is read under the same one.
    csv.field_size_limit(FIELD_LIMIT)
    with open_text(path, reading) as stream:
        lines = _Lines(stream)
        said = lines.sep_line()  # left behind also where the delimiter is given
        delimiter = reading.delimiter or said or find_delimiter(path, reading)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(path, reader)
        number = 0
        while True:
            lines.start_row()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                number += 1
                yield _broken_row(path, number, lines, error, delimiter, len(header))
                continue
            if cells:
                number += 1
                row = row_of(path, number, lines.row_line, header, cells)
                if isinstance(row, Row):
                    _look_for_rounded_numbers(row, reading)
                yield row
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
        self._ahead: deque[str] = deque()
        self.last_line = 0
        self.row_line = 1
        self.row_text: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._stream)
        self.last_line += 1
        # Files joined with cat have the second one's byte order mark in the middle, where it
        # would make a quoted field a bare one.
        if not self.row_text and line.startswith('\ufeff"'):
            line = line[1:]
        self.row_text.append(line)
        return line

    def start_row(self) -> None:
        self.row_line = self.last_line + 1
        self.row_text.clear()

    def sep_line(self) -> str | None:
        """The delimiter of Excel's opening "sep=;" line, which is then left behind."""
        first = next(self._stream, "")
        match = SEP_LINE.fullmatch(first)
        if match is None:
            self._ahead.extend([first] if first else [])
            return None
        self.last_line += 1
        return match.group(1)

    def back_to_second_line(self) -> None:
        """Keeps the first line of the row that is being read, and gives the others back."""
        self._ahead.extendleft(reversed(self.row_text[1:]))
        self.last_line = self.row_line
        del self.row_text[1:]

    def look_ahead(self) -> Iterator[str]:
        """The lines to come, which stay to come."""
        index = 0
        while True:
            if index == len(self._ahead):
                line = next(self._stream, None)
                if line is None:
                    return
                self._ahead.append(line)
            yield self._ahead[index]
            index += 1


def _read_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        cells = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise DataError(f"The header of {path} is not readable as CSV ({error}).") from None
    if cells is None:
        raise DataError(f"{path} is empty.")
    names = _names(cells)
    for name in names:
        if bad_character(name):
            raise DataError(f"The header of {path} has bytes that are no text. Name its encoding.")
        if names.count(name) > 1:
            raise DataError(f'The header of {path} names "{name}" twice. Rename one of the two.')
    return names


def _names(cells: list[str]) -> list[str]:
    # A trailing comma makes a column without a name; two of them must not become one. A byte
    # order mark is that of the second of two files joined with cat.
    stripped = [cells[0].removeprefix("\ufeff").strip(), *(cell.strip() for cell in cells[1:])]
    return [name or f"column {place}" for place, name in enumerate(stripped, start=1)]


def row_of(
    path: Path, number: int, line: int, header: list[str], cells: list[str]
) -> Row | Rejected:
    at = f"row {number} (line {line})"
    if len(cells) != len(header):
        reason = "fields_extra" if len(cells) > len(header) else "fields_missing"
        detail = f"{at} has {counted(len(cells), 'field')} where the header has {len(header)}."
        return Rejected(number, line, reason, detail, cells, str(path))
    if cells[-1].strip() in (header[-1], "") and _names(cells) == header:
        detail = f"{at} repeats the header."
        return Rejected(number, line, "header_repeated", detail, cells, str(path), expected=True)
    if not any(cell and not cell.isspace() for cell in cells):
        # Spreadsheets write these below the last row.
        detail = f"{at} has nothing in any column."
        return Rejected(number, line, "row_empty", detail, cells, str(path), expected=True)
    return Row(str(path), number, line, dict(zip(header, cells, strict=True)))


def _look_for_rounded_numbers(row: Row, reading: Reading) -> None:
    for name, cell in cast(Mapping[str, str], row.values).items():
        if len(cell) <= _LONGEST_ROUNDED and _ROUNDED.fullmatch(cell):
            reading.note(
                f'{row.file} has numbers such as 1.23E+15 in "{name}": Excel rounds long ids so.'
            )


def _broken_row(
    path: Path, number: int, lines: _Lines, error: csv.Error, delimiter: str, width: int
) -> Rejected:
    line, what = lines.row_line, _in_words(error)
    if width > 1:
        lines.back_to_second_line()
        while not _fits_again(lines, delimiter, width):
            next(lines)
    elif "expected after" not in str(error):
        # In a table of one column any line fits, so nothing tells a text's lines from rows.
        raise DataError(f"{path}: {what} in the row that begins on line {line}. {_MEND}.")
    detail = f"row {number} (lines {line} to {lines.last_line}) is not CSV: {what}. {_MEND}."
    return Rejected(number, line, "csv_syntax", detail, "".join(lines.row_text), str(path))


_MEND = "Close every quoted field, and write a quote inside one twice"


def _in_words(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quoted field is never closed"
    if "field larger" in text:
        return f"a field is longer than {FIELD_LIMIT:,} characters"
    return text


def _fits_again(lines: _Lines, delimiter: str, width: int) -> bool:
    """Whether the next two rows are as wide as the header, or the file ends.

    One alone might be a line inside a text.
    """
    fitting = 0
    try:
        for cells in csv.reader(lines.look_ahead(), delimiter=delimiter, strict=True):
            if cells and len(cells) != width:
                return False
            fitting += bool(cells)
            if fitting == 2:
                return True
    except csv.Error:
        return False
    return True


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
