"""Fine-grained RLHF's preferences: four answers to a question, and all six comparisons of them.

https://github.com/allenai/FineGrainedRLHF. `preference` holds one number for each of the pairs
12, 13, 14, 23, 24, 34: 1 = the first is better, 2 = the second, 0 = tie. They were asked one by
one, so they stay pairs, which a ranking could contradict.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import PurePath
from typing import cast

from preference_data.quarantine import RowFault
from preference_data.records import Judgement, Outcome, Prompt, Ranks
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import response_of, text_of

_ANSWERS = tuple(f"prediction {n}" for n in range(1, 5))
_PAIRS = tuple(combinations(range(len(_ANSWERS)), 2))
_VERDICTS: dict[int, tuple[Ranks, Outcome | None]] = {
    0: ((1, 1), "tie"),
    1: ((1, 2), None),
    2: ((2, 1), None),
}


def recognises(values: Mapping[str, object]) -> bool:
    """A question with four predictions and the preference among them."""
    return {"question", "preference", *_ANSWERS} <= values.keys()


def judgements(row: Row) -> tuple[Judgement, ...]:
    """The six comparisons, joined by their group. The prompt is the passages and the question."""
    prompt = _prompt(row.values)
    responses = [response_of(row.values, name) for name in _ANSWERS]
    group = f"{PurePath(row.file).name}:{row.row}"
    found: list[Judgement] = []
    for (i, j), number in zip(_PAIRS, _preference(row.values), strict=True):
        ranks, outcome = _VERDICTS[number]
        if responses[i] == responses[j] and outcome is None:
            raise RowFault("identical_responses", f"{_ANSWERS[i]} and {_ANSWERS[j]} are identical.")
        found.append(
            Judgement(
                prompt,
                (responses[i], responses[j]),
                ranks,
                outcome=outcome,
                source=row.source("fine_grained"),
                group=group,
            )
        )
    return tuple(found)


def _preference(values: Mapping[str, object]) -> list[int]:
    found = values.get("preference")
    numbers = cast(list[object], found) if isinstance(found, list) else []
    whole = [number for number in numbers if type(number) is int and number in _VERDICTS]
    if len(numbers) != len(_PAIRS) or len(whole) != len(_PAIRS):
        raise RowFault(
            "preference_invalid", f"preference is {str(found)[:60]}, not {len(_PAIRS)} of 0, 1, 2."
        )
    return whole


def _prompt(values: Mapping[str, object]) -> Prompt:
    question = text_of(values, "question")
    if not question.strip():
        raise RowFault("empty_prompt", "question is empty.")
    return Prompt.from_text("\n\n".join([*_passages(values.get("passages") or []), question]))


def _passages(value: object) -> list[str]:
    """Each passage as its title, a blank line and its sentences."""
    found: list[str] = []
    for passage in cast(list[object], value) if isinstance(value, list) else [value]:
        sentences = cast(list[object], passage) if isinstance(passage, list) else [passage]
        texts = [text for text in sentences if isinstance(text, str)]
        if not texts or len(texts) != len(sentences):
            raise RowFault("wrong_type", "passages is not a list of lists of sentences.")
        title, *body = texts
        text = " ".join(body)
        # An article's first sentence already opens with its title.
        found.append(text if text.startswith(f"{title}\n") else f"{title}\n\n{text}")
    return found
