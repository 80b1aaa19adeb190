"""WebGPT's comparisons: a question, two answers with their sources, and a score for each.

https://huggingface.co/datasets/openai/webgpt_comparisons. The passages that an answer quotes are
left out: the answers cite them by number, but only the question is common to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from preference_data.quarantine import RowFault
from preference_data.records import Judgement
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, response_of, short_text_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.pairs import ranks_of
from preference_data.sources.readers.ratings import number_of


def recognises(values: Mapping[str, object]) -> bool:
    """A question that is an object, two numbered answers and their scores."""
    columns = {"answer_0", "answer_1", "score_0", "score_1"}
    return values.keys() >= columns and isinstance(values.get("question"), dict)


def judgement(row: Row) -> Judgement:
    """The higher score wins, equal ones tie; they lie between -1 and 1 and add up to 0.

    The size of the score is the strength.
    """
    question = row.values.get("question")
    if not isinstance(question, dict):
        raise RowFault("wrong_type", "question is not a JSON object with the full_text.")
    asked = cast(dict[str, object], question)
    scores = _scores(row.values)
    verdict: Verdict = "tie" if scores[0] == 0 else "first" if scores[0] > 0 else "second"
    responses = (response_of(row.values, "answer_0"), response_of(row.values, "answer_1"))
    ranks, outcome = ranks_of(verdict, responses)
    return Judgement(
        prompt=prompt_of(asked, "full_text"),
        responses=responses,
        ranks=ranks,
        outcome=outcome,
        strength=abs(scores[0]),
        scores=scores,
        scale="-1..1",
        group=short_text_of(asked, "id"),
        source=row.source("webgpt"),
    )


def _scores(values: Mapping[str, object]) -> tuple[float, float]:
    first, second = number_of(values, "score_0"), number_of(values, "score_1")
    if first is None or second is None:
        raise RowFault("label_missing", f"score_{0 if first is None else 1} is empty.")
    if abs(first) > 1 or abs(first + second) > 1e-6:
        raise RowFault(
            "scores_contradict",
            f"score_0 is {first:g} and score_1 {second:g}, which are not opposite numbers "
            "between -1 and 1.",
        )
    return first, second
