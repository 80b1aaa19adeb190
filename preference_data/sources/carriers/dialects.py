"""How a table of text is written: what a reader may pass over, and who writes it again keeps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preference_data.sources.carriers.files import Reading, has_mark, open_text
from preference_data.sources.carriers.tables import SEP_LINE, find_delimiter

_SAMPLE = 1 << 16
"""Characters of which the quotes are looked at."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the cells and lines of one file are written."""

    delimiter: str
    line_end: str
    """After the header, and taken for that of every row"""
    marked: bool
    """It begins with a byte order mark."""
    says_delimiter: bool
    """It begins with Excel's line "sep=;"."""
    header: tuple[str, ...]
    """Its cells as they stand, those without a name too"""
    header_quoted: tuple[bool, ...]
    quoted: tuple[bool, ...]
    """The columns of which every cell is in quotes, whether it needs them or not"""

    def start(self, more: Sequence[str]) -> str:
        """What stands above the rows, with `more` columns at the end of the header."""
        said = f"sep={self.delimiter}{self.line_end}" if self.says_delimiter else ""
        header = self._line([*self.header, *more], self.header_quoted)
        return ("\ufeff" if self.marked else "") + said + header

    def row(self, cells: Sequence[str]) -> str:
        """A line of cells; those of new columns are in quotes where those of all others are."""
        return self._line(cells, self.quoted)

    def _line(self, cells: Sequence[str], quoted: tuple[bool, ...]) -> str:
        always = [*quoted, *[all(quoted)] * (len(cells) - len(quoted))]
        return self.delimiter.join(map(self._cell, cells, always)) + self.line_end

    def _cell(self, cell: str, always: bool) -> str:
        if always or any(mark in cell for mark in (self.delimiter, '"', "\r", "\n")):
            return _in_quotes(cell)
        return cell


def find_dialect(path: Path, reading: Reading) -> Dialect:
    """Of a table with a header. Raises csv.Error for one whose header is no CSV."""
    with open_text(path, reading) as stream:
        text = stream.read(_SAMPLE)
        text += stream.readline() if text.endswith("\r") else ""
    first = next(io.StringIO(text, newline=""), "")
    said = SEP_LINE.fullmatch(first)
    delimiter = reading.delimiter or (said and said.group(1)) or find_delimiter(path, reading)
    rows = _rows(text[len(first) :] if said else text, delimiter)
    header, raw = next(rows)
    body = [row for row in rows if len(row[0]) == len(header)]
    if len(text) >= _SAMPLE:  # which may end within a cell of its last row
        del body[-1:]
    quoted = [True] * len(header)
    for cells, line in body:
        quoted = [a and b for a, b in zip(quoted, _quotes(cells, line), strict=True)]
    return Dialect(
        delimiter=delimiter,
        line_end=raw[len(raw.rstrip("\r\n")) :] or "\n",
        marked=has_mark(path),
        says_delimiter=said is not None,
        header=tuple(header),
        header_quoted=tuple(_quotes(header, raw)),
        quoted=tuple(quoted) if body else tuple(_quotes(header, raw)),
    )


def _rows(text: str, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """The rows that are CSV, up to the first that is not: cells, and the text that they are of."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    begun = False
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            if not begun:
                raise
            return
        if cells is None:
            return
        if cells:
            begun = True
            yield cells, "".join(taken)
        taken.clear()


def _quotes(cells: Sequence[str], raw: str) -> Iterator[bool]:
    """Whether each cell of a row stands in quotes in its text."""
    place = 0
    for cell in cells:
        quoted = raw.startswith('"', place)
        yield quoted
        place += len(_in_quotes(cell) if quoted else cell) + 1


def _in_quotes(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'
