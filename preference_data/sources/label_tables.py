"""Labelled rows of a table or JSONL file: a prompt, its answers, and a label or ranks.

Either `prompt, response_a, response_b, label`, or `prompt, response_1.. response_k,
rank_1.. rank_k` with blank cells where a row has fewer answers, or any names through `Columns`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from preference_data.quarantine import DataError, RowFault
from preference_data.records import Judgement, Outcome, Ranks, Response
from preference_data.sources.cells import prompt_of, response_of, short_text_of, text_of
from preference_data.sources.files import Reading
from preference_data.sources.mapping import Columns, Verdict
from preference_data.sources.rows import Row

VERDICTS: dict[Verdict, tuple[Ranks, Outcome | None]] = {
    "first": ((1, 2), None),
    "second": ((2, 1), None),
    "tie": ((1, 1), "tie"),
    "both_good": ((1, 1), "both_good"),
    "both_bad": ((1, 1), "both_bad"),
    "unsure": ((None, None), "unsure"),
}

_USUAL_LABELS: dict[str, Verdict] = {
    "A": "first",
    "B": "second",
    "tie": "tie",
    "both_bad": "both_bad",
    "both_good": "both_good",
}
_EXCEL_CELL = 32_767


class LabelTable:
    """Turns rows into judgements under one mapping, completed from the columns it meets."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._columns = reading.columns or Columns()
        self._completed: dict[tuple[str, ...], Columns] = {}
        labels = self._columns.labels or _USUAL_LABELS
        self._labels: dict[str, Verdict] = {_plain(key): labels[key] for key in labels}

    def judgement(self, row: Row) -> Judgement:
        """Raises RowFault for a row that cannot be used, DataError where no row can be."""
        columns = self._columns_of(row)
        system = text_of(row.values, columns.system) if columns.system else ""
        prompt = prompt_of(row.values, columns.prompt or "prompt", system)
        if columns.ranks:
            responses, ranks, outcome = self._ranked(row, columns)
        else:
            responses, ranks, outcome = self._labelled(row, columns)
        _check_distinct(responses, ranks)
        self._look_for_cut_cells(row)
        return Judgement(
            prompt=prompt,
            responses=responses,
            ranks=ranks,
            annotator=short_text_of(row.values, columns.annotator),
            outcome=outcome,
            strength=_strength(row.values, columns.strength),
            comment=short_text_of(row.values, columns.comment),
            source=row.source("table"),
        )

    def _columns_of(self, row: Row) -> Columns:
        found = tuple(row.values)
        if found not in self._completed:
            try:
                self._completed[found] = self._columns.completed(found, row.file)
            except DataError as error:
                # Objects of a JSONL file may differ; if even the first lacks a column, all will.
                if self._completed:
                    raise RowFault("column_missing", str(error)) from None
                raise
        return self._completed[found]

    def _labelled(
        self, row: Row, columns: Columns
    ) -> tuple[tuple[Response, ...], Ranks, Outcome | None]:
        responses = tuple(response_of(row.values, name) for name in columns.responses)
        column = columns.label or "label"
        label = short_text_of(row.values, column)
        if label is None:
            raise RowFault("label_missing", f"{column} is empty.")
        verdict = self._labels.get(_plain(label))
        if verdict is None:
            raise self._unknown_label(row, label)
        ranks, outcome = VERDICTS[verdict]
        return responses, ranks, outcome

    def _unknown_label(self, row: Row, label: str) -> Exception:
        if not self._columns.labels and re.fullmatch(r"[-+]?[0-9.]+", label):
            return DataError(
                f"{row.file}, row {row.row} (line {row.line}): the label {label!r} has no agreed "
                'meaning. Give it one with columns.labels, such as {"0": "first", "1": "second"}.'
            )
        allowed = ", ".join(self._columns.labels or _USUAL_LABELS)
        return RowFault("label_unknown", f"the label {label!r} is not one of {allowed}.")

    def _ranked(
        self, row: Row, columns: Columns
    ) -> tuple[tuple[Response, ...], Ranks, Outcome | None]:
        responses: list[Response] = []
        ranks: list[int | None] = []
        for response, rank_column in zip(columns.responses, columns.ranks, strict=True):
            rank = _rank(row.values, rank_column)
            if rank is None and row.values.get(response) in (None, ""):
                continue  # this row has fewer answers
            responses.append(response_of(row.values, response))
            ranks.append(rank)
        ranked = [rank for rank in ranks if rank is not None]
        if len(ranked) < 2:
            raise RowFault("too_few_ranks", f"{len(ranked)} of {len(ranks)} answers are ranked.")
        tie = len(ranked) == len(ranks) and len(set(ranked)) == 1
        return tuple(responses), tuple(ranks), "tie" if tie else None

    def _look_for_cut_cells(self, row: Row) -> None:
        if any(isinstance(cell, str) and len(cell) == _EXCEL_CELL for cell in row.values.values()):
            self._reading.note(
                f"{row.file} has cells of exactly {_EXCEL_CELL:,} characters: Excel cuts longer "
                "text there."
            )


def _plain(label: str) -> str:
    return label.strip().casefold().replace(" ", "_")


def _check_distinct(responses: tuple[Response, ...], ranks: Ranks) -> None:
    first_rank: dict[Response, int] = {}
    for response, rank in zip(responses, ranks, strict=True):
        if rank is not None and first_rank.setdefault(response, rank) != rank:
            raise RowFault(
                "identical_responses", "two identical answers are ranked one above the other."
            )


def _rank(values: Mapping[str, object], column: str) -> int | None:
    value = values.get(column)
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    # pandas writes 1.0 into a column that has blanks.
    match = re.fullmatch(r"0*([1-9][0-9]{0,8})(\.0*)?", text, re.ASCII)
    if match is None:
        raise RowFault(
            "rank_invalid", f"{column} is {text!r}, not a whole number from 1 (best) up."
        )
    return int(match.group(1))


def _strength(values: Mapping[str, object], column: str | None) -> float | None:
    value = values.get(column) if column is not None else None
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    try:
        strength = float(text)
    except ValueError:
        strength = -1.0
    if not 0.0 <= strength <= 1.0:
        raise RowFault("strength_invalid", f"{column} is {text!r}, not a number from 0 to 1.")
    return strength
