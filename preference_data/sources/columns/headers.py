"""A mapping completed for one table: the usual names filled in, patterns as the columns they find.

What is missing is named with the columns that are there and the nearest of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from preference_data.quarantine import DataError
from preference_data.sources.columns.mapping import ColumnGroup, Columns, Matching

_USUAL_RESPONSES = ("response_a", "response_b")
_USUAL_EXTRAS = (
    "annotator", "strength", "comment", "system", "duration", "created_at", "split", "criterion",
)  # fmt: skip
_NUMBERED = Matching(r"response_([0-9]+)")


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
        raise DataError(_missing_columns(missing, found, file))
    _check_json(full)
    return full


def _with_extras(columns: Columns, found: Sequence[str]) -> Columns:
    extras: dict[str, str] = {"prompt": columns.prompt or "prompt"}
    for name in _USUAL_EXTRAS:
        graded = name == "strength" and columns.scale  # the scale gives the strength
        if getattr(columns, name) is None and name in found and not graded:
            extras[name] = name
    return replace(columns, **extras)


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
    if not responses:
        responses = _NUMBERED if len(_matches(_NUMBERED, found)) > 1 else _USUAL_RESPONSES
    keys: tuple[str, ...] = ("a", "b") if responses == _USUAL_RESPONSES else ()
    ranks = columns.ranks
    if isinstance(responses, Matching):
        names = _matches(responses, found)
        if not names:
            raise DataError(_no_match("responses", responses, found, file))
        ranks = ranks or (_ranked_by_number(columns, found) if responses is _NUMBERED else ())
        keys, responses = tuple(names), tuple(names.values())
    groups: dict[str, object] = {"responses": responses}
    for option in ("ranks", "scores", "models", "position", "gold"):
        group = ranks if option == "ranks" else getattr(columns, option)
        groups[option] = _aligned(option, group, keys, responses, found, file)
    return _with_label(replace(columns, **groups), file)


def _ranked_by_number(columns: Columns, found: Sequence[str]) -> tuple[str, ...]:
    """The ranks beside numbered responses, unless a label compares them."""
    way = columns.label, columns.labels, columns.label_is, columns.scale, columns.one_hot
    if any(way) or columns.ranks or columns.scores:
        return ()
    ranks = tuple(f"rank_{number}" for number in _matches(_NUMBERED, found))
    return () if len(ranks) == 2 and "label" in found and ranks[0] not in found else ranks


def _with_label(columns: Columns, file: str) -> Columns:
    """With a label, unless something else says which answer is better."""
    if columns.ranks or columns.scores or columns.one_hot:
        return columns
    k = len(columns.responses) if isinstance(columns.responses, tuple) else 2
    if k != 2 and not columns.label_is:
        raise DataError(
            f"{file} has {k} columns of responses, and a label compares two. "
            "Map columns.ranks, or two columns.responses."
        )
    return replace(columns, label=columns.label or "label")


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
            f"{len(group)} columns of {option} do not fit {len(responses)} of responses in {file}."
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


def _missing_columns(missing: Mapping[str, str], found: Sequence[str], file: str) -> str:
    named: list[str] = []
    for column in missing:
        nearest = get_close_matches(column, found, n=1)
        named.append(f'"{column}"' + (f' (nearest: "{nearest[0]}")' if nearest else ""))
    plural = "s" if len(named) > 1 else ""
    options = ", ".join(dict.fromkeys(missing.values()))
    return (
        f"{file} has no column{plural} {', '.join(named)}; it has {', '.join(found)}. "
        f"Rename the column{plural}, or map with {options}."
    )
