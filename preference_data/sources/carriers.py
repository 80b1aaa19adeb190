"""What a file is made of, whatever its rows mean: a table, JSON lines or blocks of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from preference_data.quarantine import Rejected
from preference_data.sources.files import Reading, data_suffix, open_text
from preference_data.sources.json_lines import read_json_lines
from preference_data.sources.rows import Row
from preference_data.sources.tables import read_table
from preference_data.sources.text_blocks import read_text_blocks

Carrier = Callable[[Path, Reading], Iterator[Row | Rejected]]

CARRIERS: dict[str, Carrier] = {
    ".csv": read_table,
    ".tsv": read_table,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".txt": read_text_blocks,
}


def read_rows(files: Sequence[Path], reading: Reading) -> Iterator[Row | Rejected]:
    """The rows of all files, in order; rows and lines count from 1 in each file."""
    for path in files:
        carrier = CARRIERS.get(data_suffix(path)) or _by_first_character(path, reading)
        yield from carrier(path, reading)


def _by_first_character(path: Path, reading: Reading) -> Carrier:
    with open_text(path, reading) as stream:
        first = next((line for line in stream if line.strip()), "")
    return read_json_lines if first.lstrip().startswith(("{", "[")) else read_table
