"""The commonest row, straight to its JSON line: two text answers, a label, perhaps an annotator.

What a label table makes of such a row by way of its records, made without them, at a fifth of the
cost. Whatever is not plain (a blank cell, identical answers, a label not met before) is left to
the label table, which also teaches this module what each label means; a test holds both to the
same lines.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from json.encoder import encode_basestring as _quoted
from json.encoder import encode_basestring_ascii as _ascii
from typing import Any

import orjson

from preference_data.records import SCHEMA_VERSION, Judgement
from preference_data.sources.cells import EXCEL_CELL
from preference_data.sources.columns.headers import completed
from preference_data.sources.columns.mapping import Columns

_READ = ("prompt", "responses", "label", "labels", "annotator", "comment")
"""The options of a mapping that leave a row plain."""


class PlainPairs:
    """Rows of one table of which nothing is read but what a plain labelled pair has."""

    def __init__(self, header: Sequence[str], file: str, columns: Columns | None = None) -> None:
        """`columns` is the mapping that the label table reads, too. Raises ValueError for a table
        that has more to read, DataError for one that lacks what is needed."""
        full = completed(columns or Columns(), header, file)
        plain = Columns(**{name: getattr(full, name) for name in _READ})
        responses = full.responses if isinstance(full.responses, tuple) else ()
        needed: list[Any] = [full.prompt, *responses, full.label]
        optional: list[Any] = [full.annotator, full.comment]
        if full != plain or len(needed) != 4 or not set(needed) | set(optional) <= {*header, None}:
            raise ValueError(f"{list(header)} is not the header of a plain table of pairs")
        self._prompt, self._first, self._second, self._label = map(header.index, needed)
        self._annotator, self._comment = (
            header.index(name) if name is not None else None for name in optional
        )
        self._width = len(header)
        self._header = list(header)
        self._file = file
        name = _ascii(file.replace("\\", "/").rpartition("/")[2])
        self._id_start = f"[{name}, "
        self._verdicts: dict[str, tuple[str, str]] = {}

    def learn(self, cells: Sequence[str], judgement: Judgement) -> None:
        """Takes the meaning of a label from what the label table made of a row with it."""
        outcome = orjson.dumps(judgement.outcome).decode()
        ranks = orjson.dumps(judgement.ranks).decode()
        text = f'"ranks":{ranks},"outcome":{outcome},"strength":null'
        self._verdicts[cells[self._label]] = (text, judgement.label)

    def line(self, cells: Sequence[str], row: int, line: int) -> tuple[bytes, str, str | None]:
        """The JSON line, the label and the annotator. Raises NotPlain."""
        if len(cells) != self._width:
            raise NotPlain
        verdict = self._verdicts.get(cells[self._label])
        prompt, first, second = cells[self._prompt], cells[self._first], cells[self._second]
        if (
            verdict is None
            or first == second
            or not (prompt.strip() and first.strip() and second.strip())
            or any(len(cell) == EXCEL_CELL for cell in cells)
            or cells == self._header
        ):
            raise NotPlain
        prompt_id, prompt = _message("user", prompt)
        first_id, first = _message("assistant", first)
        second_id, second = _message("assistant", second)
        low, high = (first_id, second_id) if first_id < second_id else (second_id, first_id)
        item_id = _hash(f'["{prompt_id}", ["{low}", "{high}"]]')
        annotator = self._short(cells, self._annotator)
        comment = self._short(cells, self._comment)
        who = "null" if annotator is None else _ascii(annotator)
        judgement_id = _hash(f'{self._id_start}{row}, "{item_id}", {who}, "overall"]')
        text = (
            f'{{"schema_version":{SCHEMA_VERSION},"prompt_id":"{prompt_id}",'
            f'"prompt":[{{"role":"user","content":{prompt}}}],'
            f'"judgement_id":"{judgement_id}","item_id":"{item_id}","responses":['
            f'{{"response_id":"{first_id}","model":null,'
            f'"messages":[{{"role":"assistant","content":{first}}}]}},'
            f'{{"response_id":"{second_id}","model":null,'
            f'"messages":[{{"role":"assistant","content":{second}}}]}}],'
            f'{verdict[0]},"weight":1.0,"kind":"ranking","criterion":"overall",'
            f'"annotator_id":{who},"annotator_kind":"human",'
            f'"comment":{"null" if comment is None else _quoted(comment)},'
            f'"source_format":"table","source_file":{_quoted(self._file)},'
            f'"source_row":{row},"source_line":{line}}}\n'
        )
        return text.encode(), verdict[1], annotator

    @staticmethod
    def _short(cells: Sequence[str], column: int | None) -> str | None:
        return cells[column].strip() or None if column is not None else None


class NotPlain(Exception):
    """The row is the label table's to convert."""


def _message(role: str, content: str) -> tuple[str, str]:
    """The id of one message alone (`records`), and its content as JSON."""
    if content.isascii():
        quoted = _ascii(content)
        return _hash(f'[["{role}", {quoted}]]'), quoted
    normal = _ascii(unicodedata.normalize("NFC", content))
    return _hash(f'[["{role}", {normal}]]'), _quoted(content)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
