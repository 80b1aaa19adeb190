"""Rows of JSON files: the elements of an array, or objects one after the other, over many lines.

A file is never held as a whole: each element is decoded from a window that moves over the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from preference_data.quarantine import DataError, Rejected
from preference_data.sources.carriers.files import Reading, data_suffix, open_text
from preference_data.sources.carriers.json_lines import JsonRows, read_json_lines
from preference_data.sources.carriers.rows import Row

BROKEN_LIMIT = 64 << 20
"""Characters that are searched for the next element after a broken one."""

_CHUNK = 1 << 16
_PEEK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_LINE_END = re.compile(r"\r\n?|\n")
_NEXT_OBJECT = re.compile(r"[\r\n]([ \t]*(?:,[ \t]*)?)\{")
_BETWEEN_OBJECTS = re.compile(r"\}\s*,\s*\{")
# What a decoder complains of last when the text ends too early: an escape, or a constant.
_LONGEST_TOKEN = len("-Infinity")


def read_json(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each row, by what the file holds, however it is named.

    JSON lines are often called .json, and arrays .jsonl. Raises DataError as the two readers do.
    """
    return (read_json_lines if _is_lines(path, reading) else read_json_values)(path, reading)


def read_json_values(path: Path, reading: Reading) -> Iterator[Row | Rejected]:
    """Yields one thing for each element of an array, or for each object of a file of objects.

    A broken element is one reject, up to the next line that opens an object no deeper than it.

    Raises DataError for no elements, and where nothing tells what follows a broken one apart.
    """
    number = 0
    with open_text(path, reading) as stream:
        elements = _Elements(path, reading, stream)
        while elements.find():
            number += 1
            yield elements.take(number)
    if elements.in_array:
        reading.note(f"{path} ends before its JSON array is closed; its end may be missing.")
    if not number:
        raise DataError(f"{path} holds no rows.")


def _is_lines(path: Path, reading: Reading) -> bool:
    with open_text(path, reading) as stream:
        first = ""
        while not first and (line := stream.readline(_PEEK)):
            first = line.strip(" \t\r\n\ufeff")
        more = any(line.strip() for line in iter(lambda: stream.readline(_PEEK), ""))
    if not first:
        return True
    try:
        value: object = json.loads(first)
    except json.JSONDecodeError as error:
        # The first line of something longer is JSON as far as it goes.
        return not first.startswith("[") and error.pos < len(first)
    except (ValueError, RecursionError):
        return not first.startswith("[")
    # A list alone is an array of rows; as the first of many lines, only if the name says so.
    return not isinstance(value, list) or (more and data_suffix(path) != ".json")


class _Elements:
    """The elements of a JSON text, one at a time."""

    def __init__(self, path: Path, reading: Reading, stream: TextIO) -> None:
        self._path = path
        self._rows = JsonRows(path, reading)
        self._window = _Window(stream)
        self.in_array = False

    def find(self) -> bool:
        """Goes to where the next element begins; False at the end of the file."""
        window = self._window
        while True:
            window.skip(window.next_character(0)[0])
            character = window.text[window.at : window.at + 1]
            if character == "[" and not self.in_array:
                self.in_array = True
            elif character == "]":
                self.in_array = False
            elif character != ",":
                return bool(character)
            window.skip(1)

    def take(self, number: int) -> Row | Rejected:
        """The element here, as the row of this number."""
        line = self._window.line
        try:
            value, length = self._decoded()
        except ValueError as error:
            return self._broken(number, line, error)
        text = self._window.text[self._window.at : self._window.at + length]
        self._window.skip(length)
        return self._rows.checked(number, line, text, value)

    def _decoded(self) -> tuple[object, int]:
        """The element here and its length. Raises ValueError for a broken one."""
        window = self._window
        while True:
            try:
                value, end = self._rows.decode(window.text, window.at)
            except json.JSONDecodeError as error:
                if not _may_go_on(error, window.text):
                    raise
                if window.more():
                    continue
                if _is_cut_off(error, window.text):
                    raise ValueError("the file ends inside it") from None
                raise
            if end == len(window.text) and window.more():
                continue  # "12" may go on as "123"
            length = end - window.at
            after, character = window.next_character(length)
            # A comma that is missing between two objects costs nothing; anything else is a sign
            # that this element ended too early.
            if character not in ("", ",", "]", "{", "["):
                raise json.JSONDecodeError("Expecting ','", window.text, window.at + after)
            return value, length

    def _broken(self, number: int, line: int, error: ValueError) -> Rejected:
        window = self._window
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg} on line {window.line_of(error.pos)}"
        length = window.next_object()
        if length is None:
            length = len(window.text) - window.at
            if not window.ended or _BETWEEN_OBJECTS.search(window.text, window.at):
                raise DataError(
                    f"The JSON of {self._path} breaks in row {number} (line {line}): {why}. "
                    "Mend it there; where the next row begins cannot be told."
                )
        text = window.text[window.at : window.at + length]
        window.skip(length)
        return self._rows.broken(number, line, text, why)


class _Window:
    """The part of a text from `at` on that has been read, and where in the file it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""
        self.at = 0
        self.line = 1
        self.column = 0
        self.ended = False

    def more(self) -> bool:
        """Reads on, at least as much again; False where there is nothing more."""
        new = self._stream.read(max(_CHUNK, len(self.text) - self.at))
        # A line end of two characters stays in one piece, or it would count twice.
        if new.endswith("\r"):
            new += self._stream.read(1)
        if new:
            self.text, self.at = self.text[self.at :] + new, 0
        self.ended = not new
        return bool(new)

    def next_character(self, offset: int) -> tuple[int, str]:
        """The offset of the first character from there that is no space; "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.at + offset)
            offset = (found.end() if found else len(self.text)) - self.at
            if self.at + offset < len(self.text):
                return offset, self.text[self.at + offset]
            if not self.more():
                return offset, ""

    def skip(self, length: int) -> None:
        """Goes on by so many characters of the window."""
        end = self.at + length
        last = self.at
        for found in _LINE_END.finditer(self.text, self.at, end):
            self.line += 1
            self.column, last = 0, found.end()
        self.column += end - last
        self.at = end

    def line_of(self, position: int) -> int:
        """The line of a place in `text` at or after `at`."""
        return self.line + sum(1 for _ in _LINE_END.finditer(self.text, self.at, position))

    def next_object(self) -> int | None:
        """The offset of the next line that opens an object no deeper than here, if there is one.

        None, too, if it is more than BROKEN_LIMIT characters away.
        """
        searched = 1
        while True:
            for found in _NEXT_OBJECT.finditer(self.text, self.at + searched):
                if len(found.group(1)) <= self.column:
                    return found.start() + 1 - self.at
            # An indentation may go on in what has not been read.
            searched = max(1, self.text.rfind("\n", self.at) - self.at)
            if len(self.text) - self.at > BROKEN_LIMIT or not self.more():
                return None


def _may_go_on(error: json.JSONDecodeError, text: str) -> bool:
    """Whether it may only be that the window ends too early."""
    # A string ends in its line, or else at the end of the text; nothing else reports that.
    return error.msg.startswith("Unterminated") or error.pos >= len(text) - _LONGEST_TOKEN


def _is_cut_off(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text is JSON as far as it goes."""
    return error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
