"""UltraFeedback: an instruction, several models' completions, and GPT-4's ratings of each.

https://huggingface.co/datasets/openbmb/UltraFeedback. The ratings are text ("3", or "N/A"). The
column fine-grained_score is their mean and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from preference_data.quarantine import RowFault, SetAside
from preference_data.records import Judgement, Prompt, Response
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, response_of, short_text_of
from preference_data.sources.readers.ratings import number_of, ranks_by_score, tie_of, without_twins

_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_OVERALL = "overall"
_SCALES = {**dict.fromkeys(_ASPECTS, "1..5"), _OVERALL: "1..10"}


def recognises(values: Mapping[str, object]) -> bool:
    """An instruction with a list of completions."""
    return "instruction" in values and isinstance(values.get("completions"), list)


def judgements(row: Row) -> tuple[Judgement, ...]:
    """One rating of all completions for each aspect that was rated, and overall_score as "overall".

    An aspect of which one completion alone was rated gives a rating of that one. Raises SetAside
    for a row without any rating.
    """
    prompt = prompt_of(row.values, "instruction")
    completions = _completions(row.values)
    responses = [_response(completion) for completion in completions]
    found: list[Judgement] = []
    for criterion in (*_ASPECTS, _OVERALL):
        scores = [_score(completion, criterion) for completion in completions]
        if any(score is not None for score in scores):
            found += _rating(row, prompt, responses, scores, criterion)
    if not found:
        raise SetAside("no_rating", "no completion has a rating.")
    return tuple(found)


def prompt(row: Row) -> Prompt:
    """The instruction."""
    return prompt_of(row.values, "instruction")


def _rating(
    row: Row,
    prompt: Prompt,
    responses: list[Response],
    scores: list[float | None],
    criterion: str,
) -> tuple[Judgement, ...]:
    rated = [(r, s) for r, s in zip(responses, scores, strict=True) if s is not None]
    if len(rated) == 1:
        responses, scores = [rated[0][0]], [rated[0][1]]
    ranks = ranks_by_score(scores) if len(scores) > 1 else (None,)
    judgement = Judgement(
        prompt,
        tuple(responses),
        ranks,
        annotator="gpt-4",
        outcome=tie_of(ranks),
        criterion=criterion,
        annotator_kind="model",
        source=row.source("ultrafeedback"),
        kind="rating",
        scores=tuple(scores),
        scale=_SCALES[criterion],
    )
    return without_twins(judgement)


def _completions(values: Mapping[str, object]) -> list[Mapping[str, object]]:
    found = values.get("completions")
    if not isinstance(found, list):
        raise RowFault("wrong_type", "completions is not a list.")
    return [_object(item, "a completion") for item in cast(list[object], found)]


def _response(completion: Mapping[str, object]) -> Response:
    response = response_of(completion, "response")
    return Response(response.messages, short_text_of(completion, "model"))


def _score(completion: Mapping[str, object], criterion: str) -> float | None:
    if criterion == _OVERALL:
        return number_of(completion, "overall_score")
    annotations = _object(completion.get("annotations") or {}, "annotations")
    return number_of(_object(annotations.get(criterion) or {}, criterion), "Rating")


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RowFault("wrong_type", f"{what} is not an object.")
    return cast(dict[str, object], value)
