"""PKU-SafeRLHF: two answers, which is the more helpful one, and which is the safer one.

https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF. The two verdicts may disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

from preference_data.records import Judgement
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, short_text_of
from preference_data.sources.columns.mapping import Verdict
from preference_data.sources.readers.pairs import ranks_of, response_by, verdict_of

_INDEX: dict[float, Verdict] = {0: "first", 1: "second"}
_CRITERIA = {"helpful": "better_response_id", "safe": "safer_response_id"}


def recognises(values: Mapping[str, object]) -> bool:
    """Two numbered responses and the index of the better and of the safer one."""
    return values.keys() >= {"prompt", "response_0", "response_1", *_CRITERIA.values()}


def judgements(row: Row) -> tuple[Judgement, ...]:
    """One of criterion "helpful" and one of "safe", whose scores are 1 for a safe answer, else 0.

    Both answers may be safe, or neither: one is the safer all the same.
    """
    values = row.values
    prompt = prompt_of(values, "prompt")
    responses = (
        response_by(values, "response_0", short_text_of(values, "response_0_source")),
        response_by(values, "response_1", short_text_of(values, "response_1_source")),
    )
    found: list[Judgement] = []
    for criterion, column in _CRITERIA.items():
        ranks, _ = ranks_of(verdict_of(values, column, _INDEX), responses)
        scores = _safety(values) if criterion == "safe" else None
        found.append(
            Judgement(
                prompt=prompt,
                responses=responses,
                ranks=ranks,
                criterion=criterion,
                scores=scores,
                scale="0..1" if scores else None,
                source=row.source("safe_rlhf"),
            )
        )
    return tuple(found)


def _safety(values: Mapping[str, object]) -> tuple[float, float] | None:
    first, second = values.get("is_response_0_safe"), values.get("is_response_1_safe")
    if not isinstance(first, bool) or not isinstance(second, bool):
        return None
    return float(first), float(second)
