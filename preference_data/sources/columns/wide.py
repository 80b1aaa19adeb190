"""Web forms' tables, one row a person and one column an item, as one row a person and item."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from preference_data.counts import counted, verb
from preference_data.quarantine import DataError, Rejected, SetAside
from preference_data.sources.carriers import read_rows
from preference_data.sources.carriers.files import Reading, find_files
from preference_data.sources.carriers.rows import Row, rejected
from preference_data.sources.cells import is_blank
from preference_data.sources.columns.mapping import Wide

Items = Mapping[str, Mapping[str, object]]
_CELL = "label"
"""The column of a long row that holds the cell."""


def long_rows(
    rows: Iterator[Row | Rejected], wide: Wide, reading: Reading
) -> Iterator[Row | Rejected]:
    """For each row, one row a question: the person's columns, the item's, and the cell as `label`.

    The cells that are blank are set aside. Raises DataError if no column is a question, an item
    is not known, or two columns of a long row would have one name.
    """
    questions: dict[tuple[str, ...], dict[str, Mapping[str, object]]] = {}
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        header = tuple(row.values)
        if header not in questions:
            questions[header] = _questions(header, row.file, wide, reading)
        asked = questions[header]
        person = {name: cell for name, cell in row.values.items() if name not in asked}
        for name, facts in asked.items():
            cell = row.values[name]
            if is_blank(cell):
                unanswered = replace(row, values={**person, name: cell})
                yield rejected(unanswered, SetAside("not_answered", f"{name} is empty."))
            else:
                yield replace(row, values={**person, **facts, _CELL: cell})


def _questions(
    header: Sequence[str], file: str, wide: Wide, reading: Reading
) -> dict[str, Mapping[str, object]]:
    """The columns that hold labels, each with what is known of its item."""
    matches = {name: match for name in header if (match := re.fullmatch(wide.columns, name))}
    if not matches:
        raise DataError(
            f"{file} has no column that matches columns.wide.columns, {wide.columns!r}; "
            f"it has {', '.join(header)}."
        )
    items = _items(wide, file)
    known: dict[str, Mapping[str, object]] = {}
    for name, match in matches.items():
        facts: dict[str, object] = {key: text or "" for key, text in match.groupdict().items()}
        if wide.items is not None:
            facts.update(_item(str(facts["item"]).strip(), items, name, file))
        _check_names([other for other in header if other not in matches], facts, file)
        known[name] = facts
    _note_unasked(items, known, reading, file)
    return known


def _item(item: str, items: Items, name: str, file: str) -> Mapping[str, object]:
    if item not in items:
        raise DataError(
            f"{file}: the column {name!r} asks for the item {item!r}, which columns.wide.items "
            "does not have. Add it, or narrow columns.wide.columns."
        )
    return items[item]


def _items(wide: Wide, file: str) -> Items:
    if not isinstance(wide.items, str):
        return {str(item).strip(): facts for item, facts in (wide.items or {}).items()}
    path = Path(wide.items).expanduser()
    beside = Path(file).parent / path
    place = beside if not path.exists() and beside.exists() else path
    items: dict[str, Mapping[str, object]] = {}
    for row in read_rows(find_files(str(place)), Reading()):
        if isinstance(row, Rejected):
            raise DataError(f"{place} cannot be used: {row.detail}")
        if "item" not in row.values:
            raise DataError(f"{place} has no column item; it has {', '.join(row.values)}.")
        item = str(row.values["item"]).strip()
        if item in items:
            raise DataError(f"{place} has the item {item!r} twice, the second in row {row.row}.")
        items[item] = {key: value for key, value in row.values.items() if key != "item"}
    return items


def _check_names(person: Sequence[str], facts: Mapping[str, object], file: str) -> None:
    double = sorted((set(person) & set(facts)) | ({_CELL} & (set(person) | set(facts))))
    if double:
        raise DataError(
            f"{file}: {', '.join(double)} would be the name of two columns of one row (a person's, "
            f"an item's, or {_CELL}, which is the cell). Rename one of them."
        )


def _note_unasked(
    items: Items, known: Mapping[str, Mapping[str, object]], reading: Reading, file: str
) -> None:
    asked = {str(facts.get("item", "")).strip() for facts in known.values()}
    unasked = [item for item in items if item not in asked]
    if unasked:
        named = ", ".join(unasked[:5]) + (", …" if len(unasked) > 5 else "")
        reading.note(
            f"{counted(len(unasked), 'item')} of columns.wide.items "
            f"{verb(len(unasked), 'has', 'have')} no column in {file}: {named}."
        )
