"""Every format that can be read, and how an unnamed one is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from preference_data.quarantine import DataError, Rejected
from preference_data.records import Demonstration, Judgement, Prompt
from preference_data.sources import hh, trl
from preference_data.sources.carriers import read_rows
from preference_data.sources.files import Reading, find_files
from preference_data.sources.label_tables import LabelTable
from preference_data.sources.rows import Row, convert_rows

Kind = Literal["preferences", "demonstrations", "prompts", "text"]
Record = Judgement | Demonstration | Prompt | str
Rows = Iterator[Row | Rejected]
Records = tuple[Record, ...]
"""What one row holds: one record, or several (two criteria, three annotators)."""
Reader = Callable[[Rows, Reading], Iterator[Records | Rejected]]


@dataclass(frozen=True, slots=True)
class Format:
    """What a format's rows can be read as, and whether a row looks like one of its own."""

    readers: Mapping[Kind, Reader]
    recognises: Callable[[Mapping[str, object]], bool] | None = None
    """None: whatever no other format recognises; its errors then say what is missing."""


def row_by_row(convert: Callable[[Row], Record]) -> Reader:
    """The reader of a format in which each row is one record, whatever the rest says."""
    return lambda rows, reading: convert_rows(rows, lambda row: (convert(row),))


def several_a_row(convert: Callable[[Row], tuple[Record, ...]]) -> Reader:
    """The reader of a format whose rows hold several records each."""
    return lambda rows, reading: convert_rows(rows, convert)


def _read_label_table(rows: Rows, reading: Reading) -> Iterator[Records | Rejected]:
    return row_by_row(LabelTable(reading).judgement)(rows, reading)


# No two of one kind may recognise the same row: `sniff` refuses what it cannot tell apart.
FORMATS: dict[str, Format] = {
    "hh": Format(
        {
            "preferences": row_by_row(hh.judgement),
            "demonstrations": row_by_row(hh.demonstration),
            "prompts": row_by_row(hh.prompt),
            "text": row_by_row(hh.text),
        },
        hh.recognises,
    ),
    "trl": Format({"preferences": row_by_row(trl.judgement)}, trl.recognises),
    "table": Format({"preferences": _read_label_table}),
    "demonstrations": Format({"demonstrations": row_by_row(trl.demonstration)}),
    "prompts": Format({"prompts": row_by_row(trl.prompt)}),
    "text": Format({"text": row_by_row(trl.text)}),
}


def sniff(path: str, kind: Kind, reading: Reading | None = None) -> str:
    """The name of the format of the first readable row, among those that hold `kind`.

    Raises DataError for a missing or empty file, and where two formats recognise the row.
    """
    rows = read_rows(find_files(path), reading or Reading())
    # A few broken rows may open a file; where all are broken, any format says so.
    first = next((row for row in rows if isinstance(row, Row)), None)
    fitting = {name: format for name, format in FORMATS.items() if kind in format.readers}
    found = [
        name
        for name, format in fitting.items()
        if first and format.recognises and format.recognises(first.values)
    ]
    if len(found) > 1:
        raise DataError(
            f"{path} looks like {' and like '.join(found)}. Say which it is with the format option."
        )
    return found[0] if found else next(n for n, f in fitting.items() if f.recognises is None)


def read_records(
    path: str, kind: Kind, format: str, reading: Reading
) -> tuple[str, Iterator[Records | Rejected]]:
    """The format's name and one thing for each row of the data: its records or a reject.

    `format` "auto" takes what `sniff` finds; a mapping of columns means "table". Raises
    DataError for a missing or empty file, a format that is unknown or does not hold `kind`, and
    a mapping that the format does not use.
    """
    if format == "auto":
        format = "table" if reading.columns else sniff(path, kind, reading)
    reader = _reader(kind, format)
    if reading.columns and format != "table":
        raise DataError(f"columns has no effect on the format {format!r}. Leave one of them out.")
    return format, reader(read_rows(find_files(path), reading), reading)


def _reader(kind: Kind, format: str) -> Reader:
    if format not in FORMATS:
        nearest = get_close_matches(format, FORMATS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise DataError(f"{format!r} is no format; there are auto, {', '.join(FORMATS)}.{hint}")
    reader = FORMATS[format].readers.get(kind)
    if reader is None:
        fitting = [name for name, known in FORMATS.items() if kind in known.readers]
        raise DataError(f"The format {format!r} holds no {kind}; {', '.join(fitting)} can.")
    return reader
