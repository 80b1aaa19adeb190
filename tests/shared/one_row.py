"""A file of one row, read as a user's is: its format is recognised first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records


def read_row(
    folder: Path, row: dict[str, object], expected: str, reading: Reading | None = None
) -> Any:
    """The judgements of a row of this format, or why there are none."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    format, items = read_records(str(path), "preferences", "auto", reading or Reading())
    assert format == expected
    (item,) = items
    return item


def read_judgement(
    folder: Path, row: dict[str, object], expected: str, reading: Reading | None = None
) -> Any:
    """The first judgement of the row, or why there is none."""
    item = read_row(folder, row, expected, reading)
    return item if isinstance(item, Rejected) else item[0]
