"""Label Studio's exports: JSON (tasks with annotations), JSON_MIN, CSV and TSV.

https://labelstud.io/guide/export. JSON alone keeps everything: CSV, TSV and JSON_MIN drop skipped
and ground-truth marks, and a comment of one paragraph cannot be told from the task's own text.
`<Pairwise>` says "left" or "right" and not which field that is: the first of the answers' fields
is taken for the left one, or `columns.responses` names left and right.

A task that has a ground-truth annotation is a control item: its annotations carry the expected
ranks as `gold`. Predictions are never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preference_data.quarantine import DataError, Rejected, RowFault, SetAside
from preference_data.records import Judgement, Ranks
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows, rejected
from preference_data.sources.cells import plain_label, prompt_of, short_text_of
from preference_data.sources.columns.mapping import Columns, Graded, Verdict
from preference_data.sources.columns.verdicts import check_distinct
from preference_data.sources.readers.annotation_tasks import (
    TaskFields,
    annotator_of,
    number_of,
    object_of,
    objects_of,
    time_of,
)
from preference_data.sources.readers.label_studio_controls import (
    CONTROL_TYPES,
    Control,
    Statement,
    chosen,
    pairwise,
    ranked,
    rated,
    rating_of,
    values_of_cell,
)

COLUMNS = ("prompt", "responses", "label", "labels", "strength", "comment")
"""The options of a mapping that are read; the last four name controls, not fields."""

_FLAT = frozenset({"annotation_id", "annotator", "lead_time"})
_ABOUT = _FLAT | {"id", "created_at", "updated_at"}
_STARS = (1.0, 5.0)
"""Label Studio's own scale of ratings; a project's maxRating is in no export."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One annotation of one task, whatever the export."""

    task: object
    data: Mapping[str, Any]
    controls: tuple[Control, ...]
    annotator: str | None
    duration: float | None
    created_at: str | None
    flat: bool = False
    """From a row in which choices, paragraphs and the task's own text look alike."""


def recognises(values: Mapping[str, object]) -> bool:
    """A task with its data and annotations, or a flat row with what the converter adds."""
    if values.keys() >= _FLAT:
        return True
    annotations = values.get("annotations", values.get("completions"))
    return isinstance(values.get("data"), dict) and isinstance(annotations, list)


def read(
    rows: Iterator[Row | Rejected], reading: Reading
) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """Yields one thing for each annotation; a task without one is set aside.

    Raises DataError if the prompt's or the answers' fields cannot be told.
    """
    return convert_rows(_annotations(rows), _Project(reading).judgements)


def _annotations(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    for row in rows:
        if isinstance(row, Rejected) or row.values.keys() >= _FLAT:
            yield row
        else:
            yield from _annotations_of(row)


def _annotations_of(row: Row) -> Iterator[Row | Rejected]:
    annotations = objects_of(row.values.get("annotations", row.values.get("completions")))
    if annotations is None or not isinstance(row.values.get("data"), dict):
        fault = "the task has no object of data and no list of annotations."
        yield rejected(row, RowFault("bad_task", fault))
        return
    if not annotations:
        yield rejected(row, SetAside("not_annotated", "the task has no annotation."))
    lists = ("annotations", "completions")
    task = {key: value for key, value in row.values.items() if key not in lists}
    truth = next((one for one in annotations if one.get("ground_truth") is True), None)
    if truth is not None:
        task["ground_truth"] = truth
    for annotation in annotations:
        yield replace(row, values={**task, "annotations": [annotation]})


class _Project:
    """Turns annotations into judgements under one mapping."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._columns = reading.columns or Columns()
        self._fields = TaskFields(reading.columns, "label_studio", COLUMNS)
        labels = self._columns.labels
        self._labels: dict[str, Verdict] = {plain_label(words): labels[words] for words in labels}

    def judgements(self, row: Row) -> tuple[Judgement, ...]:
        """Raises RowFault or SetAside for an annotation that cannot be used."""
        flat = row.values.keys() >= _FLAT
        answer = self._flat_answer(row) if flat else _raw_answer(row.values)
        prompt = prompt_of(answer.data, self._fields.prompt(tuple(answer.data), row.file))
        names = self._answer_fields(answer.controls, answer.data, row.file)
        statements = self._statements(answer, names)
        for statement in statements:
            check_distinct(statement.responses, statement.opinion.ranks)
        preferred = any(statement.prefers for statement in statements)
        strength, scale = self._strength(answer, names) if preferred else (None, None)
        expected = self._expected(row, names)
        return tuple(
            Judgement(
                prompt=prompt,
                responses=statement.responses,
                ranks=statement.opinion.ranks,
                annotator=answer.annotator,
                outcome=statement.opinion.outcome,
                strength=strength if statement.prefers else None,
                criterion=statement.criterion or "overall",
                comment=self._comment(answer),
                source=row.source("label_studio"),
                kind=statement.opinion.kind,
                scores=statement.opinion.scores,
                scale=scale if statement.prefers else None,
                group=short_text_of(answer.data, "group")
                or (None if answer.task is None else str(answer.task)),
                position=statement.position,
                gold=_gold(statement, expected),
                duration=answer.duration,
                created_at=answer.created_at,
            )
            for statement in statements
        )

    def _flat_answer(self, row: Row) -> _Answer:
        own = {key: value for key, value in row.values.items() if key not in _ABOUT}
        # A control of a field's name takes the column, and the field moves to "_data_".
        moved = {key.removeprefix("_data_"): key for key in own if key.startswith("_data_")}
        data = {key: own[moved.get(key, key)] for key in own if not key.startswith("_data_")}
        controls = [Control(key, "", value) for key in data for value in values_of_cell(own[key])]
        names = self._answer_fields(controls, data, row.file)
        taken = {self._fields.prompt(tuple(data), row.file), *names} - moved.keys()
        return _Answer(
            task=row.values.get("id"),
            data=data,
            controls=tuple(control for control in controls if control.name not in taken),
            annotator=annotator_of(row.values["annotator"]),
            duration=number_of(row.values["lead_time"]),
            created_at=time_of(row.values.get("created_at")),
            flat=True,
        )

    def _answer_fields(
        self, controls: Sequence[Control], data: Mapping[str, Any], file: str
    ) -> tuple[str, ...]:
        """The fields that are compared or rated; none where a list of items is ranked."""
        if any("ranker" in control.value for control in controls):
            return ()
        paired = [control for control in controls if "selected" in control.value]
        if not self._columns.responses:
            for control in paired:
                told = tuple(name.strip() for name in control.target.split(","))
                if len(told) == 2 and set(told) <= data.keys():
                    return told
        names = self._fields.responses(tuple(data), file)
        if paired:
            self._check_pair(names, file)
        return names

    def _check_pair(self, names: Sequence[str], file: str) -> None:
        if len(names) != 2:
            raise DataError(
                f"{file} compares a left with a right answer and has {', '.join(names)}. Name "
                "the two, left first, with columns.responses and the format label_studio."
            )
        if not self._columns.responses:
            self._reading.note(
                f'"{names[0]}" was taken for the left answer and "{names[1]}" for the right one, '
                "by their names; if it was the other way round, name them with columns.responses."
            )

    def _statements(self, answer: _Answer, names: Sequence[str]) -> list[Statement]:
        """Those of the pairwise controls, else rankers, else choices; and the answers' ratings."""
        label, data = self._columns.label, answer.data
        deciding = [control for control in answer.controls if label in (None, control.name)]
        preferences = pairwise(deciding, data, names) or ranked(deciding, data)
        if not preferences:
            preferences = chosen(deciding, data, names, self._labels)
            self._note_columns(answer, preferences)
        if len(preferences) > 1:
            preferences = [replace(one, criterion=one.criterion or one.name) for one in preferences]
        statements = preferences + rated(answer.controls, data, names)
        if not statements:
            answered = ", ".join(dict.fromkeys(control.name for control in answer.controls))
            raise RowFault(
                "no_verdict",
                f"no control says which answer is better (answered: {answered or 'none'}).",
            )
        return statements

    def _note_columns(self, answer: _Answer, choices: Sequence[Statement]) -> None:
        if answer.flat and not self._columns.label:
            for choice in choices:
                self._reading.note(
                    f'The column "{choice.name}" was taken for a choice between the answers; if '
                    "it is text of the task, name the control that decides with columns.label."
                )

    def _expected(self, row: Row, names: Sequence[str]) -> Sequence[Statement]:
        truth = row.values.get("ground_truth")
        if truth is None or row.values.keys() >= _FLAT:
            return ()
        try:
            return self._statements(_raw_answer({**row.values, "annotations": [truth]}), names)
        except RowFault:
            return ()  # said where the ground truth is the row

    def _strength(
        self, answer: _Answer, names: Sequence[str]
    ) -> tuple[float, str] | tuple[None, None]:
        """The one rating of the whole task on its scale, from 0 to 1, and the scale."""
        wanted = self._columns.strength
        name, (lowest, highest) = wanted, _STARS
        if isinstance(wanted, Graded):
            name, lowest, highest = wanted.column, wanted.lowest, wanted.highest
        ratings = [
            control
            for control in answer.controls
            if "rating" in control.value
            and name in (None, control.name)
            and rating_of(control, names) is None
        ]
        if len(ratings) != 1:
            return None, None
        (control,) = ratings
        scale = f"{lowest:g}..{highest:g}"
        strength = (control.rating - lowest) / (highest - lowest)
        if not isinstance(wanted, Graded):
            self._reading.note(
                f'The rating "{control.name}" was taken for the strength of the preference, on '
                f"{scale}, Label Studio's own scale; if it has another, give its ends with "
                "columns.strength."
            )
        if not 0.0 <= strength <= 1.0:
            raise RowFault(
                "strength_invalid", f"{control.name} is {control.rating:g}, outside {scale}."
            )
        return strength, scale

    def _comment(self, answer: _Answer) -> str | None:
        wanted = self._columns.comment
        written: list[str] = []
        for control in answer.controls:
            if wanted in (None, control.name):
                written += control.paragraphs
                if wanted and answer.flat and control.choice:
                    written.append(control.choice)  # one paragraph looks like one choice
        return "\n".join(written) or None


def _raw_answer(task: Mapping[str, Any]) -> _Answer:
    (annotation,) = task["annotations"]
    name = f"annotation {annotation.get('id', 'without an id')}"
    if annotation.get("was_cancelled") or annotation.get("skipped"):
        raise SetAside("skipped", f"{name} was skipped.")
    results = objects_of(annotation.get("result"))
    if results is None:
        raise RowFault("bad_annotation", f"{name} has no list of results.")
    if not results:
        raise SetAside("not_annotated", f"{name} is empty.")
    controls = tuple(
        Control(str(result.get("from_name")), str(result.get("to_name")), object_of(value))
        for result in results
        if result.get("type") in CONTROL_TYPES and (value := result.get("value"))
    )
    return _Answer(
        task=task.get("id"),
        data=object_of(task["data"]),
        controls=controls,
        annotator=_completed_by(annotation.get("completed_by")),
        duration=number_of(annotation.get("lead_time")),
        created_at=time_of(annotation.get("created_at")),
    )


def _completed_by(value: object) -> str | None:
    if person := object_of(value):
        # The address where there is one: tables have nothing else, and the two must meet.
        return annotator_of(person.get("email") or person.get("id"))
    return annotator_of(value)


def _gold(statement: Statement, expected: Sequence[Statement]) -> Ranks | None:
    """The ranks that the ground truth gives the same answers under the same criterion."""
    for truth in expected:
        known = sum(rank is not None for rank in truth.opinion.ranks) > 1
        same = (truth.criterion, truth.responses) == (statement.criterion, statement.responses)
        if known and same:
            return truth.opinion.ranks
    return None
