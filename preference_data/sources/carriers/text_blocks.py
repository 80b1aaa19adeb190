"""Rows of plain text files: one document a block, blank lines between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preference_data.quarantine import DataError
from preference_data.sources.carriers.files import Reading, open_text
from preference_data.sources.carriers.rows import Row


def read_text_blocks(path: Path, reading: Reading) -> Iterator[Row]:
    """Yields each block as a row with the one value "text". Raises DataError for an empty file."""
    number, began = 0, 0
    block: list[str] = []
    with open_text(path, reading) as stream:
        for line, text in enumerate(stream, start=1):
            # Files joined with cat have the second one's byte order mark in the middle.
            text = text if block else text.removeprefix("\ufeff")
            if text.strip():
                began = began if block else line
                block.append(text)
            elif block:
                number += 1
                yield _row(path, number, began, block)
                block = []
    if block:
        number += 1
        yield _row(path, number, began, block)
    if not number:
        raise DataError(f"{path} is empty.")


def _row(path: Path, number: int, line: int, block: list[str]) -> Row:
    return Row(str(path), number, line, {"text": "".join(block).rstrip("\r\n")})
