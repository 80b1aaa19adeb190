"""What a file is made of, whatever its rows mean: a table, JSON, Parquet or blocks of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading, bad_character, data_suffix, open_text
from preference_data.sources.carriers.json_arrays import read_json
from preference_data.sources.carriers.parquet_rows import read_parquet_rows
from preference_data.sources.carriers.rows import Row
from preference_data.sources.carriers.tables import read_table
from preference_data.sources.carriers.text_blocks import read_text_blocks

Carrier = Callable[[Path, Reading], Iterator[Row | Rejected]]

CARRIERS: dict[str, Carrier] = {
    ".csv": read_table,
    ".tsv": read_table,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".parquet": read_parquet_rows,
    ".txt": read_text_blocks,
}


def read_rows(files: Sequence[Path], reading: Reading) -> Iterator[Row | Rejected]:
    """The rows of all files, in order; rows and lines count from 1 in each file."""
    for path in files:
        carrier = CARRIERS.get(data_suffix(path)) or _by_first_character(path, reading)
        rows = carrier(path, reading)
        if carrier is not read_parquet_rows and reading.is_damaged(path):
            rows = _without_bad_bytes(rows)
        yield from rows


def _without_bad_bytes(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    for row in rows:
        yield _checked(row) if isinstance(row, Row) else row


def _checked(row: Row) -> Row | Rejected:
    for name, value in row.values.items():
        if bad_character(json.dumps([name, value], ensure_ascii=False)):
            shown = ascii(name) if bad_character(name) else name
            detail = f"row {row.row} (line {row.line}): {shown} holds bytes that are not UTF-8."
            return Rejected(row.row, row.line, "bad_bytes", detail, row.values, row.file)
    return row


def _by_first_character(path: Path, reading: Reading) -> Carrier:
    with open_text(path, reading) as stream:
        first = next((line for line in stream if line.strip()), "")
    return read_json if first.lstrip().startswith(("{", "[")) else read_table
