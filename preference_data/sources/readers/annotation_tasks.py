"""What exports of annotation tools share: fields of a task, an annotator's id, a choice in words.

A task has fields of the project's own naming. The prompt and the answers among them are known by
their usual names or by the mapping, and never by what they contain.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from math import isfinite
from typing import Any, cast

from preference_data.counts import counted
from preference_data.quarantine import DataError, RowFault
from preference_data.records import JudgementKind, Outcome, Ranks
from preference_data.sources.columns.mapping import Columns
from preference_data.sources.readers.ratings import ranks_by_score, tie_of

_PROMPTS = ("prompt", "question", "query", "instruction", "input")
_ANSWER = r"answer|response|completion|output|candidate|reply|generation|summary|option|text"
_ALONE = ("answer", "response", "completion", "output", "reply", "generation", "summary")
_NUMBERED = re.compile(rf"({_ANSWER})[-_ ]?(?:([0-9]{{1,3}})|([a-h])|(left|right))", re.I)
_SIDES = re.compile(rf"(?:(left|right)[-_ ]?({_ANSWER})?)", re.I)
_PLACE = re.compile(
    rf"(?:the )?(?:(?:{_ANSWER}|model|assistant) ?)?(a|b|c|d|e|f|g|h|left|right)"
    rf"|(?:the )?(?:{_ANSWER}|model|assistant) ?([0-9]{{1,3}})"
)
_BETTER = re.compile(r" (?:(?:is )?(?:better|preferred|best)|wins)$")
_UNDECIDED: dict[str, Outcome] = {
    "tie": "tie",
    "draw": "tie",
    "equal": "tie",
    "same": "tie",
    "about the same": "tie",
    "no preference": "tie",
    "both good": "both_good",
    "both are good": "both_good",
    "both bad": "both_bad",
    "both are bad": "both_bad",
    "unsure": "unsure",
    "not sure": "unsure",
}


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one answer says of K responses, in a judgement's own terms."""

    ranks: Ranks
    outcome: Outcome | None = None
    kind: JudgementKind = "ranking"
    scores: tuple[float | None, ...] | None = None

    @property
    def decides(self) -> bool:
        return len({rank for rank in self.ranks if rank is not None}) > 1


class TaskFields:
    """Finds the fields of the prompt and of the answers, once for each set of names.

    `used` are the options of `columns` that the format reads. Raises DataError for any other.
    """

    def __init__(self, columns: Columns | None, format: str, used: Sequence[str]) -> None:
        self._columns = columns or Columns()
        self._format = format
        self._known: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {}
        for option in fields(Columns):
            if option.name in used:
                continue
            if getattr(self._columns, option.name) != getattr(Columns(), option.name):
                allowed = ", ".join(f"columns.{name}" for name in used)
                raise DataError(
                    f"columns.{option.name} has no effect on the format {format}, which reads "
                    f"{allowed}. Leave it out."
                )
        if not isinstance(self._columns.responses, tuple):
            raise DataError(f"The format {format} reads columns.responses as a list of fields.")
        self._responses = self._columns.responses

    def prompt(self, names: Sequence[str], file: str) -> str:
        """Raises DataError where it cannot be told, RowFault if it could for earlier rows."""
        return self._found("prompt", names, file, self._find_prompt)[0]

    def responses(self, names: Sequence[str], file: str) -> tuple[str, ...]:
        """One or more, in the order of their numbers, letters or sides. Raises as `prompt` does."""
        return self._found("responses", names, file, self._find_responses)

    def _found(
        self,
        role: str,
        names: Sequence[str],
        file: str,
        find: Callable[[Sequence[str], str], tuple[str, ...]],
    ) -> tuple[str, ...]:
        known = self._known.setdefault(tuple(names), {})
        if role not in known:
            try:
                known[role] = find(names, file)
            except DataError as error:
                # Tasks may differ; if even the first lacks a field, all will.
                if any(role in found for found in self._known.values()):
                    raise RowFault("field_missing", str(error)) from None
                raise
        return known[role]

    def _find_prompt(self, names: Sequence[str], file: str) -> tuple[str, ...]:
        if self._columns.prompt:
            return _named((self._columns.prompt,), names, file, "columns.prompt")
        found = [name for name in names if name.casefold() in _PROMPTS]
        if len(found) != 1:
            raise DataError(self._untold("prompt", found, names, file))
        return tuple(found)

    def _find_responses(self, names: Sequence[str], file: str) -> tuple[str, ...]:
        if self._responses:
            return _named(self._responses, names, file, "columns.responses")
        series: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for name in names:
            if place := _place(name):
                series.setdefault(place[0], []).append((place[1], name))
        several = [members for members in series.values() if len(members) > 1]
        if len(several) == 1:
            return tuple(name for _, name in sorted(several[0]))
        alone = [name for name in names if name.casefold() in _ALONE]
        if several or len(alone) != 1:
            found = [name for members in several for _, name in members] or alone
            raise DataError(self._untold("responses", found, names, file))
        return tuple(alone)

    def _untold(self, role: str, found: Sequence[str], names: Sequence[str], file: str) -> str:
        candidates = f"{' or '.join(found)}?" if found else "none has a usual name"
        return (
            f"Which fields of {file} are the {role} cannot be told ({candidates}); it has "
            f"{', '.join(names)}. Name them with columns.{role} and the format {self._format}."
        )


def _place(name: str) -> tuple[tuple[str, str], int] | None:
    """The series that a name belongs to and its place there: "answer_b" is 1 of the answers."""
    if match := _NUMBERED.fullmatch(name):
        word, number, letter, side = match.groups()
        if number:
            return (word.casefold(), "number"), int(number)
        if letter:
            return (word.casefold(), "letter"), ord(letter.casefold()) - ord("a")
        return (word.casefold(), "side"), int(side.casefold() == "right")
    if match := _SIDES.fullmatch(name):
        side, word = match.groups()
        return ((word or "").casefold(), "side"), int(side.casefold() == "right")
    return None


def _named(
    wanted: tuple[str, ...], names: Sequence[str], file: str, option: str
) -> tuple[str, ...]:
    for name in wanted:
        if name not in names:
            nearest = get_close_matches(name, names, n=1)
            hint = f' (nearest: "{nearest[0]}")' if nearest else ""
            raise DataError(
                f'{file} has no field "{name}"{hint}; it has {", ".join(names)}. Correct {option}.'
            )
    return wanted


def opinion_of_choice(choice: str, responses: Sequence[str]) -> Opinion | None:
    """What a choice in words says of the answers in these fields; None if it says nothing known.

    "Answer A", "response 2", "left is better" or a field's own name choose that answer; "tie",
    "both bad", "both good" and "unsure" choose none. A bare number has no agreed meaning.
    """
    k = len(responses)
    plain = _plain(choice)
    if k < 2:
        return None
    if outcome := _UNDECIDED.get(plain):
        return undecided(outcome, k)
    best = place_of(_BETTER.sub("", plain), responses)
    return best_of(best, k) if best is not None else None


def place_of(words: str, responses: Sequence[str]) -> int | None:
    """The place of the answer that these words name, None if they name none."""
    plain = _plain(words)
    names = [_plain(name).replace(" ", "") for name in responses]
    if plain.replace(" ", "") in names:
        return names.index(plain.replace(" ", ""))
    match = _PLACE.fullmatch(plain)
    if match is None:
        return None
    word, number = match.groups()
    if number is None:
        place = {"left": 0, "right": 1}.get(word, ord(word[0]) - ord("a"))
    else:
        # Where the fields have numbers of their own, the choice means those.
        numbers = [re.sub(r"[^0-9]", "", name) for name in names]
        place = numbers.index(number) if number in numbers else int(number) - 1
        if number not in numbers and any(numbers):
            return None
    return place if 0 <= place < len(responses) else None


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def best_of(best: int, k: int) -> Opinion:
    """Response `best` of K won; of more than two, the others are not compared."""
    ranks = tuple(1 if place == best else 2 for place in range(k))
    return Opinion(ranks, kind="ranking" if k == 2 else "best_of")


def undecided(outcome: Outcome, k: int) -> Opinion:
    """None of K won."""
    return Opinion((None,) * k if outcome == "unsure" else (1,) * k, outcome)


def opinion_of_scores(scores: Sequence[float | None]) -> Opinion:
    """Ratings, higher is better; the ranks of two or more repeat their order.

    Raises RowFault if fewer than two of several responses are rated.
    """
    if len(scores) == 1:
        return Opinion((None,), kind="rating", scores=tuple(scores))
    if sum(score is not None for score in scores) < 2:
        raise RowFault(
            "too_few_ratings", f"fewer than two of {counted(len(scores), 'answer')} are rated."
        )
    ranks = ranks_by_score(scores)
    return Opinion(ranks, tie_of(ranks), "rating", tuple(scores))


def rated_field(question: str, responses: Sequence[str]) -> tuple[str, str] | None:
    """The answer that a rating is of, by the question's name, and the aspect that it rates.

    "quality_answer1" rates the quality of "answer1"; None where it names no answer or several.
    """
    inside = [name for name in responses if name in question]
    if len(inside) != 1:
        return None
    return inside[0], question.replace(inside[0], "").strip("-_ .") or "rating"


def annotator_of(value: object) -> str | None:
    """An opaque id, None if there is none; of an e-mail address 16 hex digits of its sha256."""
    if value is None or isinstance(value, bool) or not isinstance(value, str | int):
        return None
    name = str(value).strip()
    if "@" in name:
        return hashlib.sha256(name.casefold().encode()).hexdigest()[:16]
    return name or None


def number_of(value: object) -> float | None:
    """A finite number, also as a table's text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def time_of(value: object) -> str | None:
    """ISO 8601 as it was written, or from seconds since 1970; None if neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC).isoformat()
        except (ValueError, OverflowError, OSError):
            return None
    return value or None if isinstance(value, str) else None


def object_of(value: object) -> dict[str, Any]:
    """The JSON object, an empty one for anything else."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def objects_of(value: object) -> list[dict[str, Any]] | None:
    """The list of JSON objects, None for anything else."""
    if not isinstance(value, list):
        return None
    items = cast(list[object], value)
    if not all(isinstance(item, dict) for item in items):
        return None
    return cast(list[dict[str, Any]], items)


def text_in(values: Mapping[str, object], *names: str) -> str | None:
    """The first of these keys that holds text which is not blank."""
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None
