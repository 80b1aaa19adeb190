"""Argilla's exports: FeedbackDataset rows (version 1) and records (version 2, flat or nested).

https://docs.argilla.io. A record holds the answers of several people to several questions. Each
person's answers are one row here, and each of their questions one judgement, whose criterion is
the question's name. Only submitted answers count. Suggestions are a model's and are never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Judgement
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows, rejected
from preference_data.sources.cells import prompt_of, response_of
from preference_data.sources.columns.verdicts import check_distinct
from preference_data.sources.readers.annotation_tasks import (
    Opinion,
    TaskFields,
    annotator_of,
    object_of,
    objects_of,
    opinion_of_choice,
    opinion_of_scores,
    place_of,
    rated_field,
)
from preference_data.sources.readers.ratings import tie_of

COLUMNS = ("prompt", "responses")
"""The options of a mapping that are read."""

_ANSWER_KEYS = frozenset({"user_id", "value", "status"})
_NOT_SUBMITTED = ("draft", "discarded", "pending")
_RESPONSES = ".responses"
_OF_USER = re.compile(r"(.+)\.response\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_ABOUT_V1 = frozenset({"external_id", "metadata", "vectors"})
_ABOUT_V2 = frozenset({"id", "status", "_server_id", "inserted_at", "updated_at"})


@dataclass(frozen=True, slots=True)
class _Given:
    """One person's answer to one question. `status` is None where the export leaves it out."""

    question: str
    user: str | None
    place: int
    """Among the answers to the question; tells people without an id apart."""
    value: object
    status: str | None


def recognises(values: Mapping[str, object]) -> bool:
    """A record of either version, by the keys that only Argilla writes."""
    return _is_nested(values) or _is_flat(values) or _is_v1(values)


def read(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """Yields one thing for each person who answered a record; one without answers is set aside.

    Raises DataError if the prompt's or the answers' fields cannot be told.
    """
    return convert_rows(_people(rows), _Dataset(reading).judgements)


def _is_nested(values: Mapping[str, object]) -> bool:
    return isinstance(values.get("fields"), dict) and isinstance(values.get("responses"), dict)


def _is_flat(values: Mapping[str, object]) -> bool:
    if {"id", "status", "_server_id"} <= values.keys():
        return True
    return any(key.endswith(f"{_RESPONSES}.users") or _OF_USER.fullmatch(key) for key in values)


def _is_v1(values: Mapping[str, object]) -> bool:
    return "external_id" in values and any(_is_question_v1(values, key) for key in values)


def _is_question_v1(values: Mapping[str, object], name: str) -> bool:
    if f"{name}-suggestion" in values:
        return True
    answers = values[name]
    if record := object_of(answers):
        return record.keys() == _ANSWER_KEYS
    found = objects_of(answers)
    return bool(found) and found[0].keys() == _ANSWER_KEYS  # pyright: ignore[reportOptionalSubscript]


def _people(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    """Each row once for every person, as `{"id", "fields", "user_id", "responses"}`."""
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield from _people_of(row)
        except RowFault as fault:
            yield rejected(row, fault)


def _people_of(row: Row) -> list[Row]:
    if _is_nested(row.values):
        fields, given = object_of(row.values["fields"]), _given_nested(row.values)
    elif _is_flat(row.values):
        given = _given_flat(row.values)
        fields = {
            key: value
            for key, value in row.values.items()
            if key not in _ABOUT_V2 and not key.endswith(_SIDES) and not _OF_USER.fullmatch(key)
        }
    else:
        questions = [key for key in row.values if _is_question_v1(row.values, key)]
        extra = {f"{key}-suggestion{end}" for key in questions for end in ("", "-metadata")}
        given = [one for key in questions for one in _given_v1(key, row.values[key])]
        fields = {
            key: value
            for key, value in row.values.items()
            if key not in _ABOUT_V1 and key not in extra and key not in questions
        }
    if not given:
        raise SetAside("not_annotated", "the record has no response.")
    people: dict[str | int, list[_Given]] = {}
    for one in given:
        people.setdefault(one.place if one.user is None else one.user, []).append(one)
    return [
        replace(
            row,
            values={
                "id": row.values.get("external_id") or row.values.get("id"),
                "fields": fields,
                "user_id": answers[0].user,
                "responses": {
                    one.question: {"value": one.value, "status": one.status} for one in answers
                },
            },
        )
        for answers in people.values()
    ]


_SIDES = (
    _RESPONSES,
    f"{_RESPONSES}.users",
    f"{_RESPONSES}.status",
    ".suggestion",
    ".suggestion.score",
    ".suggestion.agent",
)


def _given_nested(values: Mapping[str, object]) -> list[_Given]:
    given: list[_Given] = []
    for question, answers in object_of(values["responses"]).items():
        found = objects_of(answers)
        if found is None:
            raise RowFault("bad_responses", f"the responses to {question} are no list of objects.")
        for place, one in enumerate(found):
            status = one.get("status")
            given.append(_Given(question, _user(one), place, one.get("value"), _status(status)))
    return given


def _given_flat(values: Mapping[str, object]) -> list[_Given]:
    given: list[_Given] = []
    for key, value in values.items():
        if key.endswith(_RESPONSES) and value is not None:
            given.extend(_given_in_parallel(values, key.removesuffix(_RESPONSES)))
        elif (match := _OF_USER.fullmatch(key)) and value is not None:
            given.append(_Given(match.group(1), match.group(2), 0, value, None))
    return given


def _given_in_parallel(values: Mapping[str, object], question: str) -> list[_Given]:
    key = f"{question}{_RESPONSES}"
    answers = _list(values[key], key)
    users = _list(values.get(f"{key}.users") or [None] * len(answers), f"{key}.users")
    states = _list(values.get(f"{key}.status") or [None] * len(answers), f"{key}.status")
    if not len(answers) == len(users) == len(states):
        raise RowFault("bad_responses", f"{key}, its users and its status differ in length.")
    return [
        _Given(question, _user({"user_id": user}), place, answer, _status(status))
        for place, (answer, user, status) in enumerate(zip(answers, users, states, strict=True))
    ]


def _given_v1(question: str, answers: object) -> list[_Given]:
    if turned := object_of(answers):  # a sequence of structs comes back as a struct of sequences
        columns = {key: _list(value, question) for key, value in turned.items()}
        if len({len(column) for column in columns.values()}) != 1:
            raise RowFault("bad_responses", f"the lists in {question} differ in length.")
        found = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    else:
        found = objects_of(answers or [])
    if found is None:
        raise RowFault("bad_responses", f"{question} is no list of responses.")
    return [
        _Given(question, _user(one), place, one.get("value"), _status(one.get("status")))
        for place, one in enumerate(found)
    ]


def _user(answer: Mapping[str, Any]) -> str | None:
    user = annotator_of(answer.get("user_id"))
    return None if user == "None" else user  # the exporter writes str(None)


def _status(value: object) -> str | None:
    return None if value is None else str(value)


class _Dataset:
    """Turns one person's answers into judgements under one mapping."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._fields = TaskFields(reading.columns, "argilla", COLUMNS)

    def judgements(self, row: Row) -> tuple[Judgement, ...]:
        """Raises RowFault for answers that cannot be used, SetAside for a draft or discarded."""
        fields = object_of(row.values["fields"])
        answers = self._submitted(object_of(row.values["responses"]))
        prompt = prompt_of(fields, self._fields.prompt(tuple(fields), row.file))
        names = tuple(
            name
            for name in self._fields.responses(tuple(fields), row.file)
            if fields[name] not in (None, "")  # an optional field
        )
        preferences = self._preferences(answers, names)
        opinions = [*preferences.items(), *self._ratings(answers, names).items()]
        if not opinions:
            asked = ", ".join(answers) or "none"
            raise RowFault("no_verdict", f"no question compares or rates the answers ({asked}).")
        responses = tuple(response_of(fields, name) for name in names)
        for _, opinion in opinions:
            check_distinct(responses, opinion.ranks)
        record = row.values["id"]
        written = [
            value
            for question, value in answers.items()
            if isinstance(value, str) and question not in preferences
        ]
        return tuple(
            Judgement(
                prompt=prompt,
                responses=responses,
                ranks=opinion.ranks,
                annotator=cast(str | None, row.values["user_id"]),
                outcome=opinion.outcome,
                criterion=criterion,
                comment="\n".join(written) or None,
                source=row.source("argilla"),
                kind=opinion.kind,
                scores=opinion.scores,
                group=None if record is None else str(record),
            )
            for criterion, opinion in opinions
        )

    def _submitted(self, responses: Mapping[str, Any]) -> dict[str, Any]:
        states = [answer["status"] for answer in responses.values()]
        if None in states:
            self._reading.note(
                "The export leaves out whether answers were submitted: drafts and discarded ones "
                "count, too. An export of flat records has it."
            )
        submitted = {
            question: answer["value"]
            for question, answer in responses.items()
            if answer["status"] in (None, "submitted")
        }
        if not submitted:
            if states[0] not in _NOT_SUBMITTED:
                raise RowFault("status_unknown", f"the response's status is {states[0]!r:.60}.")
            raise SetAside(states[0], f"the response is {states[0]}, not submitted.")
        return {question: value for question, value in submitted.items() if value is not None}

    def _preferences(self, answers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Opinion]:
        found: dict[str, Opinion] = {}
        for question, value in answers.items():
            if isinstance(value, str):
                opinion = opinion_of_choice(value, names)
            else:
                opinion = self._ranking(question, value, names)
            if opinion is not None:
                found[question] = opinion
        return found

    def _ranking(self, question: str, value: object, names: Sequence[str]) -> Opinion | None:
        order = _order(value)
        places = [place_of(name, names) for name, _ in order]
        if all(place is None for place in places):
            return None  # no ranking, or one of something else
        if None in places:
            unknown = order[places.index(None)][0]
            raise RowFault("response_unknown", f"{question} ranks {unknown!r}, which is no answer.")
        if len(set(places)) != len(places):
            raise RowFault("bad_ranking", f"{question} ranks an answer twice.")
        if isinstance(value, list) and isinstance(cast(list[object], value)[0], str):
            self._reading.note(
                f"The export gives the order of {question!r} without the ranks, so that answers "
                "that were ranked alike cannot be told from others."
            )
        ranks: list[int | None] = [None] * len(names)
        for place, (_, rank) in zip(places, order, strict=True):
            ranks[cast(int, place)] = rank
        if sum(rank is not None for rank in ranks) < 2:
            raise RowFault("too_few_ranks", f"{question} ranks fewer than two answers.")
        return Opinion(tuple(ranks), tie_of(tuple(ranks)))

    def _ratings(self, answers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Opinion]:
        scores: dict[str, list[float | None]] = {}
        for question, value in answers.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            rated = (names[0], question) if len(names) == 1 else rated_field(question, names)
            if rated is None:
                self._reading.note(
                    f"The rating {question!r} is of no single answer and was left out."
                )
                continue
            field, aspect = rated
            scores.setdefault(aspect, [None] * len(names))[names.index(field)] = float(value)
        return {aspect: opinion_of_scores(given) for aspect, given in scores.items()}


def _order(value: object) -> list[tuple[str, int | None]]:
    """The ranked names with their ranks, empty for what is no ranking."""
    if columns := object_of(value):
        names, ranks = columns.get("value"), columns.get("rank")
        if not isinstance(names, list) or not isinstance(ranks, list):
            return []
        pairs = list(zip(cast(list[object], names), cast(list[object], ranks), strict=False))
    elif isinstance(value, list):
        items = cast(list[object], value)
        if items and all(isinstance(item, str) for item in items):
            return [(cast(str, item), rank) for rank, item in enumerate(items, start=1)]
        pairs = [(object_of(item).get("value"), object_of(item).get("rank")) for item in items]
    else:
        return []
    return [
        (name, rank if isinstance(rank, int) else None)
        for name, rank in pairs
        if isinstance(name, str)
    ]


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise RowFault("bad_responses", f"{name} is no list.")
    return cast(list[object], value)
