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
Reader = Callable[[Rows, Reading], Iterator[Record | Rejected]]


@dataclass(frozen=True, slots=True)
class Format:
    """What a format's rows can be read as, and whether a row looks like one of its own."""

    readers: Mapping[Kind, Reader]
    recognises: Callable[[Mapping[str, object]], bool]


def row_by_row(convert: Callable[[Row], Record]) -> Reader:
    """The reader of a format in which each row is one record, whatever the rest says."""
    return lambda rows, reading: convert_rows(rows, convert)


def _read_label_table(rows: Rows, reading: Reading) -> Iterator[Record | Rejected]:
    return convert_rows(rows, LabelTable(reading).judgement)


def _any_row(values: Mapping[str, object]) -> bool:
    return True


# The first that recognises the first row is taken, so the particular ones stand before the
# general ones, and each kind's last takes any row: its errors then say what is missing.
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
    "table": Format({"preferences": _read_label_table}, _any_row),
    "demonstrations": Format({"demonstrations": row_by_row(trl.demonstration)}, _any_row),
    "prompts": Format({"prompts": row_by_row(trl.prompt)}, _any_row),
    "text": Format({"text": row_by_row(trl.text)}, _any_row),
}


def sniff(path: str, kind: Kind, reading: Reading | None = None) -> str:
    """The name of the format of the first readable row, among those that hold `kind`.

    Raises DataError for a missing or empty file.
    """
    rows = read_rows(find_files(path), reading or Reading())
    # A few broken rows may open a file; where all are broken, any format says so.
    first = next((row for row in rows if isinstance(row, Row)), None)
    values: Mapping[str, object] = first.values if first else {}
    return next(
        name
        for name, format in FORMATS.items()
        if kind in format.readers and format.recognises(values)
    )


def read_records(
    path: str, kind: Kind, format: str, reading: Reading
) -> tuple[str, Iterator[Record | Rejected]]:
    """The format's name and one thing for each row of the data: a record or a reject.

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
