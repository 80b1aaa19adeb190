"""What an import may do to records after their reader: keep the raw row, treat personal data."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from preference_data import personal_data
from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Judgement
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, rejected
from preference_data.sources.tally import Record

PersonalData = Literal["keep", "mask", "drop"]


@dataclass(slots=True)
class Finishing:
    """Watches the rows on their way into a reader and finishes the records that come out."""

    reading: Reading
    keep_raw: bool = False
    personal_data: PersonalData = "keep"
    pseudonym_key: bytes | None = None
    _own_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _last: Row | None = None
    _raw: dict[tuple[str, int], Row] = field(default_factory=lambda: dict[tuple[str, int], Row]())

    @property
    def does_nothing(self) -> bool:
        return not self.keep_raw and self.personal_data == "keep" and self.pseudonym_key is None

    def watch(self, rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
        """The rows, remembered until a record of a later row comes out."""
        for row in rows:
            if isinstance(row, Row):
                self._last = row
                if self.keep_raw:
                    self._raw[row.file, row.row] = row
            yield row

    def finish(
        self, items: Iterator[tuple[Record, ...] | Rejected]
    ) -> Iterator[tuple[Record, ...] | Rejected]:
        """The finished records of each row. Rows that were dropped for personal data are rejects
        without their values: the quarantine must not keep what was to go."""
        for item in items:
            if isinstance(item, Rejected):
                yield self._without_personal_data(item)
                continue
            try:
                yield tuple(self._finish(record) for record in item)
            except RowFault as fault:
                yield replace(rejected(self._place_of(item), fault), raw=None)

    def _finish(self, record: Record) -> Record:
        if self.keep_raw and isinstance(record, Judgement) and record.source is not None:
            row = self._raw.get((record.source.file, record.source.row))
            if row is not None:  # a judgement of an earlier import names a row of another file
                self._forget_before(row)
                record = replace(record, raw=json.dumps(row.values, ensure_ascii=False))
        if isinstance(record, Judgement) and record.annotator is not None:
            record = replace(record, annotator=self._annotator(record.annotator))
        if self.personal_data == "keep":
            return record
        if not isinstance(record, str):
            return personal_data.treat(cast(Any, record), self.personal_data)[0]
        if self.personal_data == "drop" and personal_data.find(record):
            raise SetAside("personal_data", "text: personal data found.")
        return personal_data.mask(record)

    def _annotator(self, name: str) -> str:
        """A pseudonym with the key; without one only for a name that is personal data itself."""
        if self.pseudonym_key is not None:
            return personal_data.pseudonym(name, self.pseudonym_key)
        if self.personal_data == "keep" or not personal_data.find(name):
            return name
        self.reading.note(
            "Names of annotators that are personal data were replaced by pseudonyms of this import "
            "alone. Give a pseudonym key to have the same ones in every import."
        )
        return personal_data.pseudonym(name, self._own_key)

    def _without_personal_data(self, item: Rejected) -> Rejected:
        if self.personal_data == "keep":
            return item
        text = json.dumps(item.raw, ensure_ascii=False)
        detail = personal_data.mask(item.detail)
        if detail == item.detail and not personal_data.find(text):
            return item
        raw = personal_data.masked_json(item.raw) if self.personal_data == "mask" else None
        return replace(item, detail=detail, raw=raw)

    def _place_of(self, records: tuple[Record, ...]) -> Row:
        assert self._last is not None
        for record in records:
            source = record.source if isinstance(record, Judgement) else None
            if source is not None and source.file == self._last.file:
                return Row(source.file, source.row, source.line, {})
        return self._last  # readers of other records give one row after the other

    def _forget_before(self, row: Row) -> None:
        """Readers give the records of a file in the order of its rows."""
        for file, number in list(self._raw):
            if file == row.file and number >= row.row:
                break
            del self._raw[file, number]
