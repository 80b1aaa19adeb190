"""What the controls of a Label Studio interface say of a task's answers.

https://labelstud.io/tags. Five are read: Pairwise, Ranker, Choices, Rating and TextArea.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from preference_data.quarantine import RowFault
from preference_data.records import Ranks, Response
from preference_data.sources.cells import plain_label, response_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.annotation_tasks import (
    Opinion,
    best_of,
    number_of,
    object_of,
    objects_of,
    opinion_of_choice,
    opinion_of_scores,
    rated_field,
    text_in,
    undecided,
)

CONTROL_TYPES = ("pairwise", "rating", "choices", "ranker", "textarea")
_VALUES = frozenset({"selected", "rating", "choices", "ranker", "text"})
"""The keys of those controls' values, one each."""


@dataclass(frozen=True, slots=True)
class Control:
    """What one control was set to, and the object that it belongs to ("" where not known)."""

    name: str
    target: str
    value: Mapping[str, Any]

    @property
    def choice(self) -> str | None:
        """The one choice that was made."""
        choices = self.value.get("choices")
        if isinstance(choices, list) and len(cast(list[object], choices)) == 1:
            choices = cast(list[object], choices)[0]
        return choices if isinstance(choices, str) else None

    @property
    def rating(self) -> float:
        """Raises RowFault if it is no number."""
        rating = number_of(self.value["rating"])
        if rating is None:
            raise RowFault(
                "rating_invalid", f"{self.name} is {self.value['rating']!r}, not a number."
            )
        return rating

    @property
    def paragraphs(self) -> list[str]:
        value = self.value.get("text")
        paragraphs = cast(list[object], value) if isinstance(value, list) else [value]
        return [text for text in paragraphs if isinstance(text, str)]


@dataclass(frozen=True, slots=True)
class Statement:
    """What one control, one bucket of a ranker, or one aspect's ratings say of the answers."""

    name: str
    responses: tuple[Response, ...]
    opinion: Opinion
    position: tuple[int, ...] | None = None
    criterion: str | None = None
    """None: overall."""

    @property
    def prefers(self) -> bool:
        return self.opinion.kind != "rating" and self.opinion.decides


def values_of_cell(cell: object) -> list[Mapping[str, Any]]:
    """The values of the control in a flat cell; bare text is a single choice or a paragraph."""
    value = _json(cell)
    if isinstance(value, str):
        return [{"choices": [value]}] if value.strip() else []
    values = objects_of(value) or [object_of(value)]
    # Lists of a task's own objects, such as a dialogue's turns, have more keys.
    return [one for one in values if len(one) == 1 and one.keys() <= _VALUES]


def pairwise(
    controls: Sequence[Control], data: Mapping[str, Any], names: Sequence[str]
) -> list[Statement]:
    """Of two fields, the left one first. Raises RowFault for anything but left or right."""
    found: list[Statement] = []
    for control in controls:
        if "selected" not in control.value:
            continue
        selected = control.value["selected"]
        if selected not in ("left", "right"):
            raise RowFault("label_unknown", f"{control.name} is {selected!r}, not left or right.")
        opinion = best_of(int(selected == "right"), 2)
        found.append(Statement(control.name, _responses(data, names), opinion, position=(0, 1)))
    return found


def ranked(controls: Sequence[Control], data: Mapping[str, Any]) -> list[Statement]:
    """The items of a list. An item that was moved nowhere is not ranked.

    Each bucket is an order of its own, under its name as the criterion: whether one bucket is
    better than another is in no export. Raises RowFault if no two items are ranked.
    """
    controls = [control for control in controls if "ranker" in control.value]
    if not controls:
        return []
    ids, responses = _items(data)
    found: list[Statement] = []
    for control in controls:
        for bucket, order in _orders(control):
            opinion = Opinion(_ranks(ids, order, control.name))
            if sum(rank is not None for rank in opinion.ranks) > 1:
                position = tuple(range(len(ids)))
                found.append(Statement(control.name, responses, opinion, position, bucket))
    if not found:
        raise RowFault("too_few_ranks", "fewer than two items are ranked.")
    return found


def chosen(
    controls: Sequence[Control],
    data: Mapping[str, Any],
    names: Sequence[str],
    labels: Mapping[str, Verdict],
) -> list[Statement]:
    """Single choices that say which answer is better, in usual words or in those of `labels`."""
    found: list[Statement] = []
    for control in controls:
        choice = control.choice
        opinion = _opinion(choice, names, labels) if choice is not None else None
        if opinion is not None:
            found.append(Statement(control.name, _responses(data, names), opinion))
    return found


def rated(
    controls: Sequence[Control], data: Mapping[str, Any], names: Sequence[str]
) -> list[Statement]:
    """One for each aspect that the answers are rated under, which is its criterion.

    Raises RowFault for a rating that is no number, or of one of several answers alone.
    """
    scores: dict[str, list[float | None]] = {}
    for control in controls:
        if "rating" in control.value and (of := rating_of(control, names)):
            field, aspect = of
            scores.setdefault(aspect, [None] * len(names))[names.index(field)] = control.rating
    return [
        Statement(aspect, _responses(data, names), opinion_of_scores(given), criterion=aspect)
        for aspect, given in scores.items()
    ]


def rating_of(control: Control, names: Sequence[str]) -> tuple[str, str] | None:
    """The answer that a rating is of, and the aspect that it rates; None if of the whole task.

    It is the answer in the control's name, or else the object that the control belongs to.
    """
    if len(names) == 1:
        return names[0], control.name
    named = rated_field(control.name, names)
    return (control.target, control.name) if control.target in names and not named else named


def _json(cell: object) -> object:
    """A table's cell that holds JSON, parsed; anything else as it is."""
    if not isinstance(cell, str) or cell[:1] not in ("[", "{"):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _responses(data: Mapping[str, Any], names: Sequence[str]) -> tuple[Response, ...]:
    return tuple(response_of(data, name) for name in names)


def _opinion(choice: str, names: Sequence[str], labels: Mapping[str, Verdict]) -> Opinion | None:
    if not labels:
        return opinion_of_choice(choice, names)
    verdict = labels.get(plain_label(choice))
    if verdict is None or len(names) != 2:
        return None
    if verdict == "first" or verdict == "second":
        return best_of(int(verdict == "second"), 2)
    return undecided(verdict, 2)


def _items(data: Mapping[str, Any]) -> tuple[list[str], tuple[Response, ...]]:
    lists = {key: found for key, value in data.items() if (found := objects_of(_json(value)))}
    lists = {"items": lists["items"]} if "items" in lists else lists
    if len(lists) != 1:
        raise RowFault("bad_items", f"{len(lists)} fields hold a list of items, not one.")
    ((name, items),) = lists.items()
    ids = [str(item.get("id")) for item in items]
    if len(set(ids)) != len(ids):
        raise RowFault("bad_items", f"two of {name} have the same id.")
    texts = [text_in(item, "body", "html", "title") for item in items]
    if None in texts:
        empty = ids[texts.index(None)]
        raise RowFault("empty_response", f"{empty} of {name} has no body, html or title.")
    return ids, tuple(Response.from_text(text) for text in texts if text is not None)


def _orders(control: Control) -> list[tuple[str | None, list[object]]]:
    """Each bucket with its ids, best first; None is the one list of a ranker without buckets."""
    ranker: object = control.value["ranker"]
    buckets = object_of(ranker) or {control.name: ranker}
    if not all(isinstance(order, list) for order in buckets.values()):
        raise RowFault("bad_ranking", f"{control.name} is no list and no object of lists.")
    return [
        (None if bucket == control.name else bucket, order)
        for bucket, order in buckets.items()
        if bucket != "_"  # what was moved into no bucket
    ]


def _ranks(ids: Sequence[str], order: Sequence[object], name: str) -> Ranks:
    placed = [str(one) for one in order]
    for one in placed:
        if one not in ids:
            raise RowFault("item_unknown", f"{name} ranks {one!r}, which is none of the items.")
    if len(set(placed)) != len(placed):
        raise RowFault("bad_ranking", f"{name} ranks an item twice.")
    return tuple(placed.index(one) + 1 if one in placed else None for one in ids)
