"""The answers of one row and the opinion on them, in the way that the mapping says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from preference_data.counts import counted, verb
from preference_data.quarantine import RowFault
from preference_data.records import Ranks
from preference_data.sources.cells import (
    as_flag,
    as_label,
    as_number,
    as_rank,
    as_response,
    as_short_text,
    as_word,
    is_blank,
    plain_label,
    shown,
)
from preference_data.sources.columns.mapping import Columns, Shown
from preference_data.sources.columns.paths import Paths, Values
from preference_data.sources.columns.verdicts import (
    Opinion,
    Responses,
    best_of,
    label_reader,
    opinion_of,
)

Kept = Sequence[int] | None
"""The places of the answers that the row has, where some are blank."""
AnswerReader = Callable[[Values], tuple[Responses, Opinion, Kept]]
Series = Callable[[Values], Sequence[object]]
"""One value an answer."""


def answer_reader(columns: Columns, found: Sequence[str], paths: Paths) -> AnswerReader:
    """The reader of a completed mapping. It raises RowFault for a row that cannot be used."""
    if columns.ranks:
        return _numbered_answers(columns, "ranks", found, paths)
    if columns.scores:
        return _numbered_answers(columns, "scores", found, paths)
    read_responses = _response_reader(columns, found, paths)
    if columns.one_hot:
        read_opinion = _one_hot(columns, found, paths)
    elif columns.best:
        read_opinion = _always(columns.best)
    else:
        read_opinion = _label(columns, columns.label or "label", found, paths)

    def read(values: Values) -> tuple[Responses, Opinion, Kept]:
        responses = read_responses(values)
        return responses, read_opinion(values, responses), None

    return read


def gold_reader(
    columns: Columns, found: Sequence[str], paths: Paths
) -> Callable[[Values, Responses, Kept], Ranks | None]:
    """The ranks that a control item should get; None in rows that are no control items."""
    if columns.ranks:
        series = _series(columns.gold, found, paths)

        def read_ranks(values: Values, responses: Responses, kept: Kept) -> Ranks | None:
            cells = _kept(series(values), kept)
            ranks = tuple(as_rank(cell, "gold") for cell in cells)
            return ranks if any(ranks) else None

        return read_ranks
    column = cast(str, columns.gold)
    get, read = paths.getter(column, found), _label(columns, column, found, paths)

    def read_label(values: Values, responses: Responses, kept: Kept) -> Ranks | None:
        cell = get(values)
        if is_blank(cell):
            return None
        ranks = read(values, responses).ranks
        if None in ranks:
            raise RowFault("gold_unsure", f"{column} is {shown(cell)}, which is no right answer.")
        return ranks

    return read_label


def position_reader(
    columns: Columns, found: Sequence[str], paths: Paths
) -> Callable[[Values, Responses, Kept], tuple[int, ...] | None]:
    """Where each answer was shown, from 0; None where the row does not say."""
    if columns.shown_first:
        return _shown_first(columns.shown_first, found, paths)
    series = _series(columns.position, found, paths)

    def read(values: Values, responses: Responses, kept: Kept) -> tuple[int, ...] | None:
        cells = _kept(series(values), kept)
        numbers = [as_number(cell, "position", "position_invalid", "a number") for cell in cells]
        if all(number is None for number in numbers):
            return None
        for first in (0, 1):
            if sorted(numbers, key=lambda n: -1 if n is None else n) == list(
                range(first, first + len(responses))
            ):
                return tuple(int(number or 0) - first for number in numbers)
        raise RowFault("position_invalid", f"{shown(list(cells))} are no places of the answers.")

    return read


def _shown_first(
    shown_first: Shown, found: Sequence[str], paths: Paths
) -> Callable[[Values, Responses, Kept], tuple[int, ...] | None]:
    get = paths.getter(shown_first.column, found)
    places = {
        plain_label(value): (0, 1) if which == "first" else (1, 0)
        for value, which in shown_first.values.items()
    }

    def read(values: Values, responses: Responses, kept: Kept) -> tuple[int, ...] | None:
        cell = get(values)
        word = as_word(cell, shown_first.column)
        if word is None:
            return None
        place = places.get(plain_label(word))
        if place is None:
            known = ", ".join(shown_first.values)
            raise RowFault(
                "position_invalid", f"{shown_first.column} is {shown(cell)}, not one of {known}."
            )
        return place

    return read


# --- answers -------------------------------------------------------------------------------------


def _series(group: object, found: Sequence[str], paths: Paths) -> Series:
    if not isinstance(group, str):
        return paths.getters(cast(tuple[str, ...], group), found)
    get = paths.getter(group, found)

    def read(values: Values) -> Sequence[object]:
        value = get(values)
        if not isinstance(value, list):
            raise RowFault(
                "not_a_list",
                f"{group} is {shown(value)}, not a list; name the column in columns.json if it "
                "holds JSON as text.",
            )
        return cast(list[object], value)

    return read


def _names(group: object, k: int) -> Sequence[str]:
    return (
        [f"{group}[{i}]" for i in range(k)]
        if isinstance(group, str)
        else cast("tuple[str, ...]", group)
    )


def _response_reader(
    columns: Columns, found: Sequence[str], paths: Paths
) -> Callable[[Values], Responses]:
    """Of all the answers; none may be blank."""
    group, series = columns.responses, _series(columns.responses, found, paths)
    if columns.models:
        read_models = _series(columns.models, found, paths)

        def read_with_models(values: Values) -> Responses:
            cells, models = series(values), read_models(values)
            _check_lengths(cells, models, "models")
            names = _names(group, len(cells))
            return tuple(
                as_response(cell, name, _model(model))
                for cell, name, model in zip(cells, names, models, strict=True)
            )

        return read_with_models
    if isinstance(group, tuple) and len(group) == 2:
        name_a, name_b = group

        def read_pair(values: Values) -> Responses:
            a, b = series(values)
            return as_response(a, name_a), as_response(b, name_b)

        return read_pair

    def read(values: Values) -> Responses:
        cells = series(values)
        return tuple(map(as_response, cells, _names(group, len(cells))))

    return read


def _numbered_answers(
    columns: Columns, option: str, found: Sequence[str], paths: Paths
) -> AnswerReader:
    """Answers with a rank or a score each; one without either is not in the row."""
    series = _series(columns.responses, found, paths)
    read_numbers = _series(getattr(columns, option), found, paths)
    read_models = _series(columns.models, found, paths) if columns.models else None
    opinion_on = _on_ranks if option == "ranks" else _on_scores(columns)

    def read(values: Values) -> tuple[Responses, Opinion, Kept]:
        cells, numbers = series(values), read_numbers(values)
        _check_lengths(cells, numbers, option)
        models = read_models(values) if read_models else (None,) * len(cells)
        _check_lengths(cells, models, "models")
        names = _names(columns.responses, len(cells))
        kept = [i for i, cell in enumerate(cells) if not (is_blank(cell) and is_blank(numbers[i]))]
        responses = tuple(as_response(cells[i], names[i], _model(models[i])) for i in kept)
        number_names = _names(getattr(columns, option), len(cells))
        opinion = opinion_on([(numbers[i], number_names[i]) for i in kept])
        return responses, opinion, kept

    return read


def _on_ranks(cells: Sequence[tuple[object, str]]) -> Opinion:
    ranks = tuple(as_rank(cell, name) for cell, name in cells)
    ranked = [rank for rank in ranks if rank is not None]
    if len(ranked) < 2:
        raise RowFault(
            "too_few_ranks",
            f"{len(ranked)} of {counted(len(ranks), 'answer')} {verb(len(ranked), 'is', 'are')} "
            "ranked.",
        )
    tie = len(ranked) == len(ranks) and len(set(ranked)) == 1
    return Opinion(ranks, "tie" if tie else None)


def _on_scores(columns: Columns) -> Callable[[Sequence[tuple[object, str]]], Opinion]:
    sign = -1.0 if columns.better == "lower" else 1.0
    within = columns.tie_within or 0.0

    def read(cells: Sequence[tuple[object, str]]) -> Opinion:
        numbers = [as_number(cell, name, "score_invalid", "a number") for cell, name in cells]
        # Adding 0.0 makes -0.0 a plain zero.
        scores = tuple(None if n is None else sign * n + 0.0 for n in numbers)
        scored = [score for score in scores if score is not None]
        if len(scored) < min(2, max(len(scores), 1)):
            raise RowFault(
                "too_few_scores",
                f"{len(scored)} of {counted(len(scores), 'answer')} "
                f"{verb(len(scored), 'has', 'have')} a score.",
            )
        facts = {"kind": "rating", "scores": scores}
        if len(scores) == 1:
            return Opinion((None,), None, facts)
        ranks = _ranks_of(scores, within)
        tie = len(scored) == len(scores) and len(set(ranks)) == 1
        return Opinion(ranks, "tie" if tie else None, facts)

    return read


def _ranks_of(scores: Sequence[float | None], within: float) -> Ranks:
    """Equal from the best of a rank down to `within` below it; the next one starts a new rank."""
    rank_of: dict[float, int] = {}
    best, rank = float("inf"), 0
    for score in sorted({score for score in scores if score is not None}, reverse=True):
        if rank == 0 or best - score > within:
            best, rank = score, rank + 1
        rank_of[score] = rank
    return tuple(None if score is None else rank_of[score] for score in scores)


def _model(cell: object) -> str | None:
    model = as_short_text(cell, "a model's name")
    if model is not None and not model.isascii():
        model.encode()  # half a surrogate pair, which no file can hold, is a ValueError
    return model


def _kept(cells: Sequence[object], kept: Kept) -> Sequence[object]:
    if kept is None:
        return cells
    if kept and kept[-1] >= len(cells):
        raise RowFault("lengths_differ", f"{shown(list(cells))} has too few for the answers.")
    return [cells[i] for i in kept]


def _check_lengths(cells: Sequence[object], others: Sequence[object], option: str) -> None:
    if len(cells) != len(others):
        raise RowFault(
            "lengths_differ",
            f"{counted(len(cells), 'answer')} {verb(len(cells), 'has', 'have')} {len(others)} "
            f"{option}.",
        )


# --- opinions ------------------------------------------------------------------------------------


def _label(
    columns: Columns, column: str, found: Sequence[str], paths: Paths
) -> Callable[[Values, Responses], Opinion]:
    get, read = paths.getter(column, found), label_reader(columns)
    return lambda values, responses: read(as_label(get(values), column), responses)


def _always(best: Literal["first", "second"]) -> Callable[[Values, Responses], Opinion]:
    place = 0 if best == "first" else 1
    return lambda values, responses: best_of(place, len(responses))


def _one_hot(
    columns: Columns, found: Sequence[str], paths: Paths
) -> Callable[[Values, Responses], Opinion]:
    names, verdicts = tuple(columns.one_hot), tuple(columns.one_hot.values())
    series = paths.getters(names, found)

    def read(values: Values, responses: Responses) -> Opinion:
        flags = [as_flag(cell, name) for cell, name in zip(series(values), names, strict=True)]
        if sum(flags) != 1:
            raise RowFault(
                "one_hot_invalid", f"{sum(flags)} of {', '.join(names)} are 1; it must be one."
            )
        return opinion_of(verdicts[flags.index(True)], len(responses))

    return read
