"""HelpSteer: ratings of single answers, and preferences between two from -3 to 3.

https://huggingface.co/datasets/nvidia/HelpSteer2 and HelpSteer3. The ratings of HelpSteer and
HelpSteer2 are five attributes from 0 to 4, of several people together, or a list with each one's
(disagreements). Of a preference the sign is the direction: below 0 the first answer is better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import cast

from preference_data.quarantine import Rejected, RowFault
from preference_data.records import Judgement, Message, Prompt, Ranks, Role, Split
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows, rejected
from preference_data.sources.cells import prompt_of, response_of, short_text_of, text_of
from preference_data.sources.readers.ratings import number_of

Rows = Iterator[Row | Rejected]

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_MARKER = re.compile(r"\n?<extra_id_[01]>(System|User|Assistant)\n")
_ROLES: dict[str, Role] = {"System": "system", "User": "user", "Assistant": "assistant"}
_STRONGEST = 3
_SPLITS: dict[object, Split] = {"train": "train", "validation": "validation", "test": "test"}

# Where a row of one annotator is kept once the row of all was taken apart.
_ANNOTATOR = "_annotator"


def recognises_ratings(values: Mapping[str, object]) -> bool:
    """A prompt, a response and the five attributes."""
    return {"prompt", "response", *_ATTRIBUTES} <= values.keys()


def recognises_preferences(values: Mapping[str, object]) -> bool:
    """Two responses with the preference_strength of HelpSteer2, or 3's overall_preference."""
    second = {"prompt", "response_1", "response_2", "preference_strength"}
    third = {"context", "response1", "response2", "overall_preference"}
    return second <= values.keys() or third <= values.keys()


def read_ratings(rows: Rows, reading: Reading) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """A judgement for each attribute; a row with lists is taken apart into its annotators."""
    return convert_rows(_each_annotator(rows, _rating_rows), _ratings)


def read_preferences(rows: Rows, reading: Reading) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """A judgement for each individual_preference, or the overall one where there are none."""
    return convert_rows(_each_annotator(rows, _preference_rows), _preference)


def _each_annotator(rows: Rows, taken_apart: Callable[[Row], list[Row]]) -> Rows:
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield from taken_apart(row)
        except RowFault as fault:
            yield rejected(row, fault)


def _rating_rows(row: Row) -> list[Row]:
    lists = {name: _list(row.values[name]) for name in _ATTRIBUTES if _is_list(row, name)}
    if not lists:
        return [row]
    counts = {len(values) for values in lists.values()}
    if len(lists) < len(_ATTRIBUTES) or len(counts) > 1 or counts == {0}:
        raise RowFault(
            "uneven_ratings", f"{', '.join(_ATTRIBUTES)} are not lists of the same annotators."
        )
    return [
        _of_annotator(row, n, {name: values[n] for name, values in lists.items()})
        for n in range(counts.pop())
    ]


def _preference_rows(row: Row) -> list[Row]:
    answers = row.values.get("individual_preference") or []
    if not isinstance(answers, list):
        raise RowFault("wrong_type", "individual_preference is not a list.")
    return [
        _of_annotator(row, n, {"individual_preference": answer})
        for n, answer in enumerate(_list(answers))
    ] or [row]


def _of_annotator(row: Row, n: int, values: Mapping[str, object]) -> Row:
    # Nothing says who is the same person in another row, so nobody is.
    annotator = f"{PurePath(row.file).name.partition('.')[0]}.{row.row}.{n + 1}"
    return replace(row, values={**row.values, **values, _ANNOTATOR: annotator})


def _ratings(row: Row) -> tuple[Judgement, ...]:
    prompt, response = _prompt(row, "prompt"), response_of(row.values, "response")
    annotator = short_text_of(row.values, _ANNOTATOR)
    found: list[Judgement] = []
    for attribute in _ATTRIBUTES:
        score = number_of(row.values, attribute)
        if score is None or not 0.0 <= score <= 4.0:
            raise RowFault(
                "score_invalid", f"{attribute} is {row.values.get(attribute)!r}, not 0 to 4."
            )
        found.append(
            Judgement(
                prompt,
                (response,),
                (None,),
                annotator=annotator,
                criterion=attribute,
                annotator_kind="human" if annotator else "human_aggregate",
                source=row.source("helpsteer"),
                kind="rating",
                scores=(score,),
                scale="0..4",
            )
        )
    return tuple(found)


def _preference(row: Row) -> tuple[Judgement, ...]:
    third = "overall_preference" in row.values
    names = ("response1", "response2") if third else ("response_1", "response_2")
    responses = (response_of(row.values, names[0]), response_of(row.values, names[1]))
    annotator = short_text_of(row.values, _ANNOTATOR)
    strength, comment = _strength(row, third, annotator)
    if responses[0] == responses[1] and strength:
        raise RowFault("identical_responses", f"{names[0]} and {names[1]} are identical.")
    ranks: Ranks = (1, 1) if not strength else (1, 2) if strength < 0 else (2, 1)
    return (
        Judgement(
            _prompt(row, "context" if third else "prompt"),
            responses,
            ranks,
            annotator=annotator,
            outcome="tie" if not strength else None,
            strength=abs(strength) / _STRONGEST,
            annotator_kind="human" if annotator else "human_aggregate",
            comment=comment,
            source=row.source("helpsteer_preference"),
            scale="-3..3",
            split=_SPLITS.get(row.values.get("split")),
        ),
    )


def _strength(row: Row, third: bool, annotator: str | None) -> tuple[float, str | None]:
    """The signed strength, and the words that go with it."""
    values, name, comment = row.values, "preference_strength", "preference_statement"
    if third:
        values, name, comment = row.values, "overall_preference", ""
    if annotator:
        answer = row.values["individual_preference"]
        if not isinstance(answer, dict):
            raise RowFault("wrong_type", "an individual_preference is not an object.")
        values, name, comment = cast(dict[str, object], answer), "score", "reasoning"
    strength = number_of(values, name)
    if strength is None:
        raise RowFault("label_missing", f"{name} is empty.")
    if abs(strength) > _STRONGEST:
        raise RowFault("score_invalid", f"{name} is {values[name]!r}, not -3 to 3.")
    return strength, short_text_of(values, comment)


def _prompt(row: Row, name: str) -> Prompt:
    value = row.values.get(name)
    if not isinstance(value, str) or not _MARKER.search(value):
        return prompt_of(row.values, name)
    first, *marked = _MARKER.split(text_of(row.values, name))
    turns = [("User", first)] if first else []
    turns += zip(marked[::2], marked[1::2], strict=True)
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()  # the marker that asks for the answer
    if not turns or not turns[-1][1].strip():
        raise RowFault("empty_prompt", f"{name} has no last turn.")
    return Prompt(tuple(Message(_ROLES[speaker], words) for speaker, words in turns))


def _is_list(row: Row, name: str) -> bool:
    return isinstance(row.values.get(name), list)


def _list(value: object) -> list[object]:
    return cast(list[object], value)
