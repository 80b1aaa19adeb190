"""A mapping completed for one table: the usual names filled in, patterns as the columns they find.

What is missing is named with the columns that are there and the nearest of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from preference_data.counts import counted, verb
from preference_data.quarantine import DataError, RowFault
from preference_data.sources.carriers.rows import Row
from preference_data.sources.columns.mapping import ColumnGroup, Columns, Matching

_USUAL_RESPONSES = ("response_a", "response_b")
_USUAL_EXTRAS = (
    "annotator", "strength", "comment", "system", "duration", "created_at", "split", "criterion",
    "weight", "group", "gold", "position",
)  # fmt: skip
_NUMBERED = (Matching(r"response_([0-9]+)"), Matching(r"(?i:response)[\s_-]*([0-9]+)"))
"""As they are usually written, and in any other way that means the same."""
_FURTHER = re.compile(r"response[c-z]")


def completed(columns: Columns, found: Sequence[str], file: str) -> Columns:
    """The mapping for a table with the columns `found`, every group a tuple or one column.

    Raises DataError if a column that is needed, or that was named, is not there.
    """
    try:
        full = _with_extras(_with_answers(columns, found, file), found)
    except DataError:
        raise
    except ValueError as error:
        # What was filled in goes ill with what was mapped.
        raise DataError(f"{file}: {error}") from None
    if full.splits and full.split is None:
        raise DataError(f"columns.splits has no effect: {file} has no column split. Map it.")
    missing = {name: option for name, option in full.named().items() if not _is_in(name, found)}
    if missing:
        raise DataError(_missing_columns(missing, found, unread(full, found), file))
    _check_json(full)
    return full


def unread(columns: Columns, found: Sequence[str]) -> list[str]:
    """The columns that a completed mapping does not read."""
    paths = (split_path(name, found) for name in columns.named())
    read = {path[0] for path in paths if path is not None}
    return [name for name in found if name not in read]


def check_columns(row: Row, *names: str) -> None:
    """For the readers without a mapping: that the row has these columns, if only with blanks.

    Raises DataError for the first row of a file, RowFault for a later one: objects of a JSONL
    file may differ, but if even the first lacks a column, all will.
    """
    missing = [name for name in names if name not in row.values]
    if not missing:
        return
    plural, quoted = "s" if len(missing) > 1 else "", ", ".join(f'"{name}"' for name in missing)
    it_has = ", ".join(row.values) or "none"
    if row.row > 1:
        raise RowFault("column_missing", f"there is no column{plural} {quoted}, only {it_has}.")
    raise DataError(
        f"{row.file} has no column{plural} {quoted}; it has {it_has}. Rename the column{plural}."
    )


def _with_extras(columns: Columns, found: Sequence[str]) -> Columns:
    extras: dict[str, str] = {"prompt": columns.prompt or _usual("prompt", found)}
    # A column that is mapped to something else means that, whatever its name.
    mapped = {name for name, option in columns.named().items() if option != "columns.json"}
    for option in _USUAL_EXTRAS:
        name = _usual(option, found)
        free = name in found and name not in mapped and not getattr(columns, option)
        if free and _fits(option, columns):
            extras[option] = name
    return replace(columns, **extras)


def _fits(option: str, columns: Columns) -> bool:
    """Whether a column of this name can be what the option takes, beside what is mapped."""
    if option == "strength":
        return not columns.scale  # the scale gives the strength
    if option == "gold":
        return columns.label is not None and not columns.thumbs
    if option == "position":
        return isinstance(columns.responses, str) and not columns.shown_first
    return True


def _usual(name: str, found: Sequence[str]) -> str:
    """The column of that name, in whatever case and with spaces or hyphens for underscores.

    The name itself if there is none, or more than one.
    """
    if name in found:
        return name
    alike = [column for column in found if _plain(column) == _plain(name)]
    return alike[0] if len(alike) == 1 else name


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _check_json(columns: Columns) -> None:
    named = columns.named()
    for cell in columns.json:
        inside = any(name.startswith(f"{cell}.") for name in named)
        if named[cell] == "columns.json" and not inside:
            raise DataError(f"columns.json names {cell!r}, which no other option reads; remove it.")


def split_path(path: str, found: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The column in which a dotted path begins, and the keys that follow; None if there is none.

    The longest column wins: a path may lead on from a column whose name has dots itself.
    """
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        column = ".".join(parts[:end])
        if column in found:
            return column, tuple(parts[end:])
    return None


def _is_in(name: str, found: Sequence[str]) -> bool:
    return name in found or split_path(name, found) is not None


def _with_answers(columns: Columns, found: Sequence[str], file: str) -> Columns:
    responses: ColumnGroup = columns.responses
    keys: tuple[str, ...] = ()
    if not responses:
        numbered = (pattern for pattern in _NUMBERED if len(_matches(pattern, found)) > 1)
        responses = next(numbered, _USUAL_RESPONSES)
    if responses == _USUAL_RESPONSES:
        keys = ("a", "b")
    if not columns.responses and responses == _USUAL_RESPONSES:
        _check_further(found, file)
        responses = tuple(_usual(name, found) for name in _USUAL_RESPONSES)
    ranks = columns.ranks
    if isinstance(responses, Matching):
        names = _matches(responses, found)
        if not names:
            raise DataError(_no_match("responses", responses, found, file))
        ranks = ranks or (() if columns.responses else _ranked_by_number(columns, names, found))
        keys, responses = tuple(names), tuple(names.values())
    groups: dict[str, object] = {"responses": responses}
    for option in ("ranks", "scores", "models", "position", "gold"):
        group = ranks if option == "ranks" else getattr(columns, option)
        groups[option] = _aligned(option, group, keys, responses, found, file)
    return _with_label(replace(columns, **groups), found, file)


def _check_further(found: Sequence[str], file: str) -> None:
    further = [name for name in found if _FURTHER.fullmatch(_plain(name))]
    if further:
        raise DataError(
            f"{file} has {', '.join(further)} beside response_a and response_b. Name the answers "
            "that were compared with columns.responses."
        )


def _ranked_by_number(
    columns: Columns, numbers: Iterable[str], found: Sequence[str]
) -> tuple[str, ...]:
    """The ranks beside numbered responses, unless a label compares them."""
    way = columns.label, columns.labels, columns.label_is, columns.scale, columns.one_hot
    if any(way) or columns.best or columns.ranks or columns.scores:
        return ()
    ranks = tuple(_usual(f"rank_{number}", found) for number in numbers)
    labelled = _usual("label", found) in found
    return () if len(ranks) == 2 and labelled and ranks[0] not in found else ranks


def _with_label(columns: Columns, found: Sequence[str], file: str) -> Columns:
    """With a label, unless something else says which answer is better."""
    if columns.ranks or columns.scores or columns.one_hot or columns.best:
        return columns
    k = len(columns.responses) if isinstance(columns.responses, tuple) else 2
    if k != 2 and not (columns.label_is or columns.thumbs):
        raise DataError(
            f"{file} has {counted(k, 'column')} of responses, and a label compares two. "
            "Map columns.ranks, or two columns.responses."
        )
    return replace(columns, label=columns.label or _usual("label", found))


def _aligned(
    option: str,
    group: ColumnGroup,
    keys: tuple[str, ...],
    responses: tuple[str, ...] | str,
    found: Sequence[str],
    file: str,
) -> ColumnGroup:
    """The group with a column for each response, where it is not one column for all."""
    if isinstance(group, Matching):
        group = _joined(option, group, keys, found, file)
    if isinstance(group, tuple) and group and len(group) != len(responses):
        raise DataError(
            f"{counted(len(group), 'column')} of {option} {verb(len(group), 'does', 'do')} not "
            f"fit {len(responses)} of responses in {file}."
        )
    return group


def _joined(
    option: str, group: Matching, keys: tuple[str, ...], found: Sequence[str], file: str
) -> tuple[str, ...]:
    """The columns of a pattern in the order of the responses, by what both patterns captured."""
    names = _matches(group, found)
    if not names:
        raise DataError(_no_match(option, group, found, file))
    if set(names) != set(keys):
        raise DataError(
            f"{file}: columns.{option} finds {', '.join(names)} and columns.responses "
            f"{', '.join(keys)}, which do not go together."
        )
    return tuple(names[key] for key in keys)


def _matches(group: Matching, found: Sequence[str]) -> dict[str, str]:
    """What the pattern captured: the column, numbers in their order, else as in the table."""
    names: dict[str, str] = {}
    for name in found:
        match = re.fullmatch(group.pattern, name)
        if match is not None:
            names.setdefault(match.group(1) or "", name)
    if all(re.fullmatch("[0-9]+", key) for key in names):
        return dict(sorted(names.items(), key=lambda item: int(item[0])))
    return names


def _no_match(option: str, group: Matching, found: Sequence[str], file: str) -> str:
    return (
        f"{file} has no column that matches columns.{option}, {group.pattern!r}; "
        f"it has {', '.join(found)}."
    )


def _missing_columns(
    missing: Mapping[str, str], found: Sequence[str], free: Sequence[str], file: str
) -> str:
    """Each column is suggested for one that is missing, those that nothing reads first."""
    named: list[str] = []
    left = {_plain(name): name for name in found}
    for column in missing:
        unused = [plain for plain, name in left.items() if name in free]
        nearest = [
            near for plain in (unused, left) for near in get_close_matches(_plain(column), plain, 1)
        ]
        hint = f' (nearest: "{left.pop(nearest[0])}")' if nearest else ""
        named.append(f'"{column}"{hint}')
    plural = "s" if len(named) > 1 else ""
    options = ", ".join(dict.fromkeys(missing.values()))
    return (
        f"{file} has no column{plural} {', '.join(named)}; it has {', '.join(found)}. "
        f"Rename the column{plural}, or map with {options}."
    )
