"""What a label says: which answer is better, by how much, or why none is.

Every reader here turns a label's text into an `Opinion` of the responses beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from preference_data.counts import counted
from preference_data.quarantine import RowFault
from preference_data.records import Message, Outcome, Ranks, Response
from preference_data.sources.cells import as_number, plain_label, shown
from preference_data.sources.columns.mapping import (
    Columns,
    Ends,
    Thumb,
    Verdict,
    scale_value,
)

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
    "unsure": "unsure",
}
_REMEMBERED = 1000
"""Spellings of labels that are kept: there are few in any table, or it is no column of labels."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """The part of a judgement that its label gives; `facts` are its rarer fields."""

    ranks: Ranks
    outcome: Outcome | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


Responses = tuple[Response, ...]
LabelReader = Callable[[str, Responses], Opinion]
"""Raises RowFault for a label without a meaning, NoMeaningError where that is a plain number."""
Fallback = Callable[[str, Responses], Opinion | None]


_THUMBS: dict[Thumb, Opinion] = {
    "up": Opinion((None,), None, {"kind": "binary", "scores": (1.0,)}),
    "down": Opinion((None,), None, {"kind": "binary", "scores": (0.0,)}),
}


def opinion_of(verdict: Verdict, k: int = 2) -> Opinion:
    """Raises RowFault if more than two answers have no first or second."""
    ranks, outcome = VERDICTS[verdict]
    if k != 2:
        if outcome is None:
            raise RowFault(
                "label_unknown", f"{verdict} is said of {counted(k, 'answer')}; it compares two."
            )
        ranks = (ranks[0],) * k
    return Opinion(ranks, outcome)


def best_of(best: int, k: int) -> Opinion:
    """Response number `best`, from 0, is preferred to each of the others."""
    ranks = tuple(1 if i == best else 2 for i in range(k))
    return Opinion(ranks, None, {"kind": "best_of"} if k > 2 else {})


def label_reader(columns: Columns) -> LabelReader:
    """The reader of the label that a completed mapping describes."""
    mapped = bool(columns.labels or columns.label_is or columns.scale or columns.thumbs)
    words: dict[str, Opinion | Verdict] = {**(columns.labels if mapped else _USUAL_LABELS)}
    words.update({value: _THUMBS[thumb] for value, thumb in columns.thumbs.items()})
    otherwise: Fallback = _no_opinion
    if columns.label_is is not None:
        otherwise = _naming(columns)
    elif isinstance(columns.scale, Ends):
        otherwise = _between(columns.scale)
    elif columns.scale is not None:
        words = {**_steps(columns.scale), **words}
    option = "thumbs" if columns.thumbs else "labels"
    return _Labels(words, otherwise, option, numbers_mean=mapped).read


class NoMeaningError(Exception):
    """A label that is a number, in a table whose mapping does not say what it means."""


class _Labels:
    """Labels with a fixed meaning under every spelling met so far, and what to do with others."""

    def __init__(
        self,
        words: Mapping[str, Opinion | Verdict],
        otherwise: Fallback,
        option: str,
        *,
        numbers_mean: bool,
    ) -> None:
        self._allowed = ", ".join(words)
        self._words: dict[str, Opinion | Verdict] = {}
        self._words.update({plain_label(word): words[word] for word in words})
        self._otherwise = otherwise
        self._option = option
        self._numbers_mean = numbers_mean
        self._of_pairs: dict[str, Opinion] = {}

    def read(self, label: str, responses: Responses) -> Opinion:
        k = len(responses)
        if k == 2 and label in self._of_pairs:
            return self._of_pairs[label]
        said = self._words.get(plain_label(label))
        if said is None:
            opinion = self._otherwise(label.strip(), responses)
            if opinion is None:
                raise self._unknown(label.strip())
            return opinion
        opinion = said if isinstance(said, Opinion) else opinion_of(said, k)
        if k == 2 and len(self._of_pairs) < _REMEMBERED:
            self._of_pairs[label] = opinion
        return opinion

    def _unknown(self, label: str) -> Exception:
        if not self._numbers_mean and re.fullmatch(r"[-+]?[0-9.]+", label):
            return NoMeaningError(label)
        allowed = f" is not one of {self._allowed}" if self._allowed else " has no meaning"
        remedy = f"columns.{self._option} can say what it means"
        return RowFault("label_unknown", f"the label {shown(label)}{allowed}; {remedy}.")


def _no_opinion(label: str, responses: Responses) -> Opinion | None:
    return None


def _naming(columns: Columns) -> Fallback:
    """The label names the best response: by its model, its text, its column or its index."""

    def names(responses: Responses) -> list[str]:
        if columns.label_is == "model":
            return [response.model or "" for response in responses]
        if columns.label_is == "text":
            return [response.text.strip() for response in responses]
        if columns.label_is == "column":
            return list(cast("tuple[str, ...]", columns.responses))
        first = 0 if columns.label_is == "index_from_0" else 1
        return [str(first + i) for i in range(len(responses))]

    by_index = columns.label_is in ("index_from_0", "index_from_1")

    def read(label: str, responses: Responses) -> Opinion | None:
        known = names(responses)
        label = plain_label(label) if by_index else label
        if label not in known:
            found = ", ".join(shown(name) for name in known)
            raise RowFault("label_unknown", f"the label {shown(label)} is not one of {found}.")
        if known.count(label) > 1:
            raise RowFault("label_ambiguous", f"the label {shown(label)} fits several answers.")
        return best_of(known.index(label), len(responses))

    return read


def _between(ends: Ends) -> Fallback:
    """A number between the ends: nearer to one, that answer is better; in the middle, a tie."""
    low, high = sorted((ends.first, ends.second))
    middle, half, scale = (low + high) / 2, (high - low) / 2, f"{low:g}..{high:g}"

    def read(label: str, responses: Responses) -> Opinion | None:
        number = as_number(label, "the label", "label_unknown", f"a number on {scale}")
        if number is None or not low <= number <= high:
            raise RowFault("label_unknown", f"the label {shown(label)} is not on {scale}.")
        if number == middle:
            return Opinion((1, 1), "tie", {"scale": scale})
        verdict: Verdict = "first" if (number < middle) == (ends.first == low) else "second"
        strength = abs(number - middle) / half
        return Opinion(VERDICTS[verdict][0], None, {"strength": strength, "scale": scale})

    return read


def _steps(numbers_or_words: Sequence[str | float]) -> dict[str, Opinion]:
    """Values in order, from the first answer much better to the second: the middle is a tie.

    The strength is the distance from the middle, as a share of the farthest; of two or three
    values there is none to tell.
    """
    values = [scale_value(value) for value in numbers_or_words]
    scale, middle = f"{values[0]}..{values[-1]}", (len(values) - 1) / 2
    steps: dict[str, Opinion] = {}
    for place, value in enumerate(values):
        facts: dict[str, object] = {"scale": scale}
        if place == middle:
            steps[value] = Opinion((1, 1), "tie", facts)
            continue
        if len(values) > 3:
            facts["strength"] = abs(place - middle) / middle
        steps[value] = Opinion((1, 2) if place < middle else (2, 1), None, facts)
    return steps


def check_distinct(responses: Responses, ranks: Ranks) -> None:
    """Raises RowFault if two answers of the same words are ranked one above the other."""
    if len(ranks) == 2:
        if ranks[0] != ranks[1] and responses[0].messages == responses[1].messages:
            raise _identical()
        return
    first_rank: dict[tuple[Message, ...], int] = {}
    for response, rank in zip(responses, ranks, strict=True):
        if rank is not None and first_rank.setdefault(response.messages, rank) != rank:
            raise _identical()


def _identical() -> RowFault:
    return RowFault("identical_responses", "two identical answers are ranked one above the other.")
