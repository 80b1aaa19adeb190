"""Looking a value up in a row: by its column, or by a dotted path into JSON objects and lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import cast

from preference_data.quarantine import RowFault
from preference_data.sources.cells import shown
from preference_data.sources.columns.headers import split_path

Values = Mapping[str, object]
Getter = Callable[[Values], object]


class Paths:
    """Makes the look-ups of one table, and knows which paths have led nowhere so far."""

    def __init__(self) -> None:
        self.unseen: set[str] = set()

    def getter(self, path: str, found: Sequence[str]) -> Getter:
        """The value at the path, None where the row has none.

        Raises RowFault where the path leads through text or into a list without a number.
        """
        column, keys = split_path(path, found) or (path, ())
        if not keys:
            return itemgetter(path)
        self.unseen.add(path)

        def get(values: Values) -> object:
            value = _inside(values[column], keys, path)
            if value is not None:
                self.unseen.discard(path)
            return value

        return get

    def getters(
        self, names: Sequence[str], found: Sequence[str]
    ) -> Callable[[Values], Sequence[object]]:
        """The values of several columns at once."""
        if len(names) > 1 and all(name in found for name in names):
            return cast(Callable[[Values], Sequence[object]], itemgetter(*names))
        gets = [self.getter(name, found) for name in names]
        return lambda values: [get(values) for get in gets]


def parse_cells(values: Values, names: Sequence[str]) -> Values:
    """A copy of the row in which these cells, JSON as text, are what they stand for.

    Raises RowFault for a cell that is not JSON; blank ones are None.
    """
    parsed = dict(values)
    for name in names:
        cell = parsed.get(name)
        if isinstance(cell, str):
            try:
                parsed[name] = json.loads(cell) if cell.strip() else None
            except (ValueError, RecursionError) as error:
                raise RowFault("json_invalid", f"{name} is not JSON: {error}.") from None
    return parsed


def _inside(value: object, keys: tuple[str, ...], path: str) -> object:
    for place, key in enumerate(keys):
        if value is None:
            return None
        if isinstance(value, dict):
            value = cast(dict[str, object], value).get(key)
        elif isinstance(value, list) and key == "*":
            items = cast(list[object], value)
            return [_inside(item, keys[place + 1 :], path) for item in items]
        elif isinstance(value, list) and key.isdecimal():
            items = cast(list[object], value)
            value = items[int(key)] if int(key) < len(items) else None
        else:
            found = shown(cast(object, value))
            raise RowFault(
                "path_blocked",
                f"{path} leads through {found}, which has no {key!r}; name the column in "
                "columns.json if it holds JSON as text.",
            )
    return value
