"""Rows of JSONL files: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.files import Reading, open_text
from preference_data.sources.rows import Row


def read_json_lines(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each line that is not blank.

    Raises DataError for an empty file, and for one that is a JSON array.
    """
    number = 0
    with open_text(path, reading) as stream:
        for line, text in enumerate(stream, start=1):
            if text.isspace():
                continue
            number += 1
            if number == 1 and text.lstrip().startswith("["):
                raise DataError(f"{path} is a JSON array. Write one object a line (JSONL).")
            yield _row(path, number, line, text)
    if not number:
        raise DataError(f"{path} is empty.")


def _row(path: Path, number: int, line: int, text: str) -> Row | Rejected:
    try:
        values: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason, fault = "json_invalid", f"is not JSON: {error}"
    else:
        if isinstance(values, dict):
            return Row(str(path), number, line, cast(dict[str, object], values))
        reason, fault = "json_not_object", "is JSON, but not an object"
    detail = f"row {number} (line {line}) {fault}."
    return Rejected(number, line, reason, detail, text.rstrip("\r\n"), str(path))
