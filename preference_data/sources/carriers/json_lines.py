"""Rows of JSONL files: one object a line. And what is refused of any JSON, wherever it stands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.files import Reading, bad_character, open_text
from preference_data.sources.carriers.rows import Row

MAX_DEPTH = 100
"""Objects and lists within each other in one row; far more would exhaust Python's stack."""


def read_json_lines(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each line that is not blank. Raises DataError for an empty file."""
    number = 0
    rows = JsonRows(path, reading)
    with open_text(path, reading) as stream:
        for line, text in enumerate(stream, start=1):
            # Files joined with cat have the second one's byte order mark in the middle.
            text = text.lstrip("\ufeff")
            if not text or text.isspace():
                continue
            number += 1
            yield rows.row(number, line, text)
    if not number:
        raise DataError(f"{path} is empty.")


class JsonRows:
    """Makes rows of JSON texts, strictly where a decoder is lenient without a word.

    A key that is there twice, half a surrogate pair, and nesting beyond MAX_DEPTH are refused.
    NaN, which is no JSON but is what Python writes for a missing number, is read as null.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        self._repeated: str | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )

    def row(self, number: int, line: int, text: str) -> Row | Rejected:
        """The text as a row, or why it is none."""
        try:
            value, end = self.decode(text, _after_space(text, 0))
            rest = _after_space(text, end)
            if rest < len(text):
                raise json.JSONDecodeError("Extra data", text, rest)
        except ValueError as error:
            return self.broken(number, line, text, str(error))
        return self.checked(number, line, text, value)

    def decode(self, text: str, start: int) -> tuple[object, int]:
        """The value that begins at `start`, and where it ends. Raises ValueError for no JSON."""
        self._repeated = None
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None

    def checked(self, number: int, line: int, text: str, value: object) -> Row | Rejected:
        """The value that was decoded last, from `text`, as a row."""
        at = f"row {number} (line {line})"
        if not isinstance(value, dict):
            detail = f"{at} is JSON, but not an object."
            return self._rejected(number, line, "json_not_object", detail, text.rstrip("\r\n"))
        values = cast(dict[str, object], value)
        if self._repeated is not None:
            detail = f"{at} has the key {self._repeated!r} twice, so that one value would be lost."
            return self._rejected(number, line, "json_repeated_key", detail, text.rstrip("\r\n"))
        if text.count("{") + text.count("[") > MAX_DEPTH and _is_deep(values):
            return self.broken(number, line, text, _TOO_DEEP)
        # A surrogate can only come from an escape: no file that was decoded holds one.
        if ("\\ud" in text or "\\uD" in text) and (name := _half_a_pair(values)) is not None:
            detail = f"{at}: {name} holds half of a surrogate pair, which no file can hold."
            return self._rejected(number, line, "invalid_record", detail, values)
        return Row(str(self._path), number, line, values)

    def broken(self, number: int, line: int, text: str, why: str) -> Rejected:
        """The text as a row that is no JSON."""
        detail = f"row {number} (line {line}) is not JSON: {why}."
        return self._rejected(number, line, "json_invalid", detail, text.rstrip("\r\n"))

    def _rejected(self, number: int, line: int, reason: str, detail: str, raw: object) -> Rejected:
        return Rejected(number, line, reason, detail, raw, str(self._path))

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = Counter(name for name, _ in pairs)
            self._repeated = names.most_common(1)[0][0]
        return values

    def _constant(self, name: str) -> float | None:
        if name != "NaN":
            return float(name)
        self._reading.note(f"{self._path} has NaN, which is no JSON; it was read as null.")
        return None


_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _is_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast(dict[str, object], value).values())
    return cast(list[object], value) if isinstance(value, list) else []


def _half_a_pair(values: dict[str, object]) -> str | None:
    """The name of the first value with half of a surrogate pair in it."""
    for name, value in values.items():
        if bad_character(json.dumps([name, value], ensure_ascii=False)):
            return ascii(name) if bad_character(name) else name
    return None
