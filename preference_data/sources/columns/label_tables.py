"""Labelled rows of a table or JSONL file: a prompt, its answers, and what was said of them.

Either `prompt, response_a, response_b, label`, or `prompt, response_1.. response_k,
rank_1.. rank_k` with blank cells where a row has fewer answers, or anything through `Columns`.
A converter is made once for each header, so that a row costs little more than its records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from preference_data.quarantine import DataError, Rejected, RowFault
from preference_data.records import Judgement, Prompt, Source, Split
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import (
    EXCEL_CELL,
    as_date,
    as_number,
    as_prompt,
    as_short_text,
    as_text,
    as_word,
    plain_label,
    shown,
)
from preference_data.sources.columns.answers import (
    AnswerReader,
    answer_reader,
    gold_reader,
    position_reader,
)
from preference_data.sources.columns.headers import completed, unread
from preference_data.sources.columns.mapping import Columns, Constant, Dated, Graded
from preference_data.sources.columns.paths import Getter, Paths, Values, parse_cells
from preference_data.sources.columns.verdicts import VERDICTS, NoMeaningError, check_distinct
from preference_data.sources.columns.wide import long_rows

__all__ = ["VERDICTS", "LabelTable", "read_label_table"]

_HEADERS = 1000
"""Converters that are kept: objects of a JSONL file may each have keys of their own."""
_NAMED = 10
"""Columns that are named in a note."""
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip

Convert = Callable[[Row], Judgement]


def read_label_table(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """One judgement a row, or one a person and item where the mapping says that rows are wide."""
    if reading.columns and reading.columns.wide:
        rows = long_rows(rows, reading.columns.wide, reading)
    table = LabelTable(reading)
    yield from convert_rows(rows, lambda row: (table.judgement(row),))
    table.close()


class LabelTable:
    """Turns rows into judgements under one mapping, completed from the columns it meets."""

    def __init__(self, reading: Reading, *, tells_unread: bool = True) -> None:
        """`tells_unread` notes the columns that are left alone: not where the caller adds some."""
        self._reading = reading
        self._tells_unread = tells_unread
        self._columns = reading.columns or Columns()
        if self._columns.wide:
            self._columns = replace(self._columns, wide=None, label="label")
        self._paths = Paths()
        self._converters: dict[tuple[str, ...], Convert] = {}
        # What the first header has and is not read, and what only later ones have.
        self._unread: tuple[set[str], list[str]] | None = None

    def judgement(self, row: Row) -> Judgement:
        """Raises RowFault for a row that cannot be used, DataError where no row can be."""
        found = tuple(row.values)
        convert = self._converters.get(found) or self._converter(found, row.file)
        try:
            return convert(row)
        except NoMeaningError as error:
            raise DataError(
                f"{row.file}, row {row.row} (line {row.line}): the label {str(error)!r} has no "
                f"agreed meaning. Say with columns.labels whether {str(error)!r} is first, second "
                "or tie, with columns.scale that it is a grade, or with columns.label_is that it "
                "is the better answer's number."
            ) from None

    def close(self) -> None:
        """After the last row: notes what was mapped but is in none of them."""
        for path in sorted(self._paths.unseen):
            option = self._columns.named().get(path, "columns")
            self._reading.note(f"{path}, which {option} names, has no value in any row.")
        if self._unread is not None and self._unread[1]:
            self._reading.note(_not_read("in some rows", self._unread[1]))

    def _converter(self, found: tuple[str, ...], file: str) -> Convert:
        try:
            columns = completed(self._columns, found, file)
        except DataError as error:
            # Objects of a JSONL file may differ; if even the first lacks a column, all will.
            if self._converters:
                raise RowFault("column_missing", str(error)) from None
            raise
        if self._tells_unread:
            self._note_unread(unread(columns, found), file)
        if len(self._converters) >= _HEADERS:
            self._converters.pop(next(iter(self._converters)))
        self._converters[found] = _converter(columns, found, self._paths, self._reading)
        return self._converters[found]

    def _note_unread(self, names: Sequence[str], file: str) -> None:
        """At once for the first header: that is the only one of a table."""
        wide = self._reading.columns and self._reading.columns.wide
        names = [name for name in names if not (wide and name == "item")]  # finds the item
        if self._unread is None:
            self._unread = set(names), []
            if names:
                self._reading.note(_not_read(f"in {file}", names))
            return
        first, later = self._unread
        later += [name for name in names if name not in first and name not in later]


def _converter(columns: Columns, found: Sequence[str], paths: Paths, reading: Reading) -> Convert:
    read_prompt = _prompt_reader(columns, found, paths)
    read_answers: AnswerReader = answer_reader(columns, found, paths)
    constants, fields = _fields(columns, found, paths)
    aligned: dict[str, Any] = {}
    if columns.position or columns.shown_first:
        aligned["position"] = position_reader(columns, found, paths)
    if columns.gold:
        aligned["gold"] = gold_reader(columns, found, paths)
    plain = not (constants or fields or aligned)

    def convert(row: Row) -> Judgement:
        values = parse_cells(row.values, columns.json) if columns.json else row.values
        prompt = read_prompt(values)
        responses, opinion, kept = read_answers(values)
        check_distinct(responses, opinion.ranks)
        facts = opinion.facts
        if not plain:
            facts = {**constants, **facts}
            for name, read in fields:
                facts[name] = read(values)
            for name, read in aligned.items():
                facts[name] = read(values, responses, kept)
        if _is_cut(row.values):
            reading.note(
                f"{row.file} has cells of exactly {EXCEL_CELL:,} characters: Excel cuts longer "
                "text there."
            )
        return Judgement(
            prompt,
            responses,
            opinion.ranks,
            outcome=opinion.outcome,
            source=Source("table", row.file, row.row, row.line),
            **facts,
        )

    return convert


def _prompt_reader(
    columns: Columns, found: Sequence[str], paths: Paths
) -> Callable[[Values], Prompt]:
    name = columns.prompt or "prompt"
    get, system = paths.getter(name, found), columns.system
    if system is None:
        return lambda values: as_prompt(get(values), name)
    if isinstance(system, Constant):
        constant = system.constant
        return lambda values: as_prompt(get(values), name, constant)
    get_system = paths.getter(system, found)
    return lambda values: as_prompt(get(values), name, as_text(get_system(values), system))


def _fields(
    columns: Columns, found: Sequence[str], paths: Paths
) -> tuple[dict[str, Any], list[tuple[str, Getter]]]:
    """What all judgements share, and how the other fields are read from each row."""
    constants: dict[str, Any] = {}
    fields: list[tuple[str, Getter]] = []
    if columns.annotator_kind:
        constants["annotator_kind"] = columns.annotator_kind
    if isinstance(columns.strength, Graded):
        constants["scale"] = f"{columns.strength.lowest:g}..{columns.strength.highest:g}"
    for name, reader in _FIELDS.items():
        option = getattr(columns, name)
        if isinstance(option, Constant):
            constants[name] = option.constant
        elif option is not None:
            column = option if isinstance(option, str) else option.column
            fields.append((name, _field(paths.getter(column, found), reader(columns, column))))
    return constants, fields


def _field(get: Getter, read: Callable[[object], object]) -> Getter:
    return lambda values: read(get(values))


FieldReader = Callable[[Columns, str], Callable[[object], object]]


def _short_text(columns: Columns, column: str) -> Callable[[object], object]:
    return lambda value: as_short_text(value, column)


def _criterion(columns: Columns, column: str) -> Callable[[object], object]:
    return lambda value: as_short_text(value, column) or "overall"


def _strength(columns: Columns, column: str) -> Callable[[object], object]:
    if not isinstance(columns.strength, Graded):
        what = "a number from 0 to 1"
        return lambda value: as_number(value, column, "strength_invalid", what, 0.0, 1.0)
    lowest, highest = columns.strength.lowest, columns.strength.highest
    what = f"a number from {lowest:g} to {highest:g}"

    def read(value: object) -> float | None:
        low, high = sorted((lowest, highest))
        number = as_number(value, column, "strength_invalid", what, low, high)
        return None if number is None else (number - lowest) / (highest - lowest)

    return read


def _weight(columns: Columns, column: str) -> Callable[[object], object]:
    what, above_zero = "a positive number", 5e-324

    def read(value: object) -> float:
        number = as_number(value, column, "weight_invalid", what, above_zero)
        return 1.0 if number is None else number

    return read


def _duration(columns: Columns, column: str) -> Callable[[object], object]:
    what = "a number of seconds"
    return lambda value: as_number(value, column, "duration_invalid", what, 0.0)


def _created_at(columns: Columns, column: str) -> Callable[[object], object]:
    format = columns.created_at.format if isinstance(columns.created_at, Dated) else None
    return lambda value: as_date(value, column, format)


def _split(columns: Columns, column: str) -> Callable[[object], object]:
    known = dict(_SPLITS)
    known.update({plain_label(value): columns.splits[value] for value in columns.splits})

    def read(value: object) -> Split | None:
        word = as_word(value, column)
        if word is None:
            return None
        split = known.get(plain_label(word))
        if split is None:
            raise RowFault(
                "split_unknown",
                f"{column} is {shown(value)}, not one of {', '.join(known)}; columns.splits can "
                "say what it means.",
            )
        return split

    return read


_FIELDS: dict[str, FieldReader] = {
    "annotator": _short_text,
    "comment": _short_text,
    "group": _short_text,
    "criterion": _criterion,
    "strength": _strength,
    "weight": _weight,
    "duration": _duration,
    "created_at": _created_at,
    "split": _split,
}


def _not_read(where: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"Not read {where}: {', '.join(names[:_NAMED])}{more}; map them if they matter."


def _is_cut(values: Values) -> bool:
    """Whether a cell is as long as Excel's longest."""
    try:
        if EXCEL_CELL not in map(len, values.values()):  # pyright: ignore[reportArgumentType]
            return False
    except TypeError:
        pass  # JSON: not every value has a length
    return any(isinstance(cell, str) and len(cell) == EXCEL_CELL for cell in values.values())
