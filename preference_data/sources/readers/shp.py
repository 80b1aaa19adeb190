"""Stanford Human Preferences (SHP, SHP-2): two replies to a post, and which got more votes.

https://huggingface.co/datasets/stanfordnlp/SHP-2. Nobody compared the two: a reply that was
written later and yet has more votes counts as preferred.
"""

from __future__ import annotations

from collections.abc import Mapping

from preference_data.quarantine import RowFault
from preference_data.records import Judgement, Split
from preference_data.sources.carriers.rows import Row
from preference_data.sources.cells import prompt_of, response_of, short_text_of
from preference_data.sources.readers.pairs import ranks_of, verdict_of
from preference_data.sources.readers.ratings import number_of

_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test"}


def recognises(values: Mapping[str, object]) -> bool:
    """The post, the two replies and the label."""
    return values.keys() >= {"history", "human_ref_A", "human_ref_B", "labels"}


def judgement(row: Row) -> Judgement:
    """A label of 1 prefers A, and 0 prefers B.

    The scores are net votes and `votes` is their sum; the strength is (r - 1) / (r + 1) for a
    `score_ratio` of r, so that 3 times the votes are 0.5. The split is the end of `domain`.
    """
    values = row.values
    verdict = verdict_of(values, "labels", {1: "first", 0: "second"})
    responses = (response_of(values, "human_ref_A"), response_of(values, "human_ref_B"))
    ranks, _ = ranks_of(verdict, responses)
    scores = number_of(values, "score_A"), number_of(values, "score_B")
    domain = short_text_of(values, "domain") or ""
    return Judgement(
        prompt=prompt_of(values, "history"),
        responses=responses,
        ranks=ranks,
        strength=_strength(values),
        annotator_kind="implicit",
        scores=None if None in scores else scores,
        scale=None if None in scores else "net votes",
        votes=_votes(scores, first_won=verdict == "first"),
        group=short_text_of(values, "post_id"),
        split=_SPLITS.get(domain.rpartition("_")[2]),
        source=row.source("shp"),
    )


def _strength(values: Mapping[str, object]) -> float | None:
    ratio = number_of(values, "score_ratio")
    if ratio is None:
        return None
    if ratio < 1:
        raise RowFault("strength_invalid", f"score_ratio is {ratio:g}, not 1 or more.")
    return (ratio - 1) / (ratio + 1)


def _votes(scores: tuple[float | None, float | None], first_won: bool) -> int | None:
    a, b = scores
    if a is None or b is None:
        return None
    if (a > b) != first_won or a == b:
        raise RowFault(
            "scores_contradict",
            f"score_A is {a:g} and score_B {b:g}, but labels prefers {'A' if first_won else 'B'}.",
        )
    return max(int(a), 0) + max(int(b), 0) or None
