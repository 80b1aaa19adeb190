"""Does the model agree with people as far as they agree with each other?

People differ, so no model agrees with all of them: what an annotator reaches who is compared with
the others is the ceiling. The model is put in his place, on the same pairs and against the same
others, as in the alternative annotator test (Calderon et al. 2025, arXiv:2501.10970). Ties are no
part of it: the model never gives one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preference_data.records import Judgement
from preference_data.votes.table import FIRST, TIE, UNKNOWN, Votes, votes_of
from reward_models.calibration import Array, Ints, share_intervals

MOST_ANNOTATORS = 50
"""Those with the most votes are listed; all count in the sums."""


def annotator_agreement(
    judgements: Sequence[Judgement], scores: Mapping[tuple[str, str], float], seed: int
) -> dict[str, Any] | None:
    """Agreement of the model and of the annotators with the annotators, as a JSON object.

    `scores` gives the model's score by (id of the prompt, id of the response); votes on other
    answers are left out. None if no vote is left. Intervals are over prompts, and None where there
    is nothing to agree on.

    - `votes`: decided ones; `model`: how often the model is of a vote's opinion.
    - `pairwise`, over the pairs that two people or more decided: how often two of them agree
      (`people`), and how often the model agrees with one of them.
    - `leave_one_out`, over the votes on which the others have a majority: how often the voter is
      of its opinion (`people`), and how often the model is.
    - `annotators`: the same for the votes of each.
    """
    votes = votes_of(judgements).once()
    margin = np.array([_margin(scores, *pair[:1], *pair[2:]) for pair in votes.pairs])
    used = np.flatnonzero((votes.verdict != TIE) & np.isfinite(margin[votes.pair]))
    if not len(used):
        return None
    pair, who = votes.pair[used], votes.annotator[used]
    side = np.where(votes.verdict[used] == FIRST, 1.0, -1.0)
    model = np.sign(margin)[pair]
    total = np.bincount(pair, weights=side, minlength=len(votes.pairs))
    others = np.sign(total[pair] - side)
    known = others != 0
    hits = np.stack([_alike(model, side), _alike(side, others), _alike(model, others)], axis=1)
    counted = np.stack([np.ones(len(used)), known, known], axis=1).astype(float)
    clusters = _prompts(votes)[pair]
    whole = share_intervals(hits, counted, clusters, seed)
    return {
        "votes": len(used),
        "model": _interval(whole[0]),
        "pairwise": _pairwise(votes, side, pair, margin, seed),
        "leave_one_out": {
            "votes": int(known.sum()),
            "people": _interval(whole[1]),
            "model": _interval(whole[2]),
        },
        "annotators": _by_annotator(votes, who, hits, counted, clusters, seed),
    }


def _margin(scores: Mapping[tuple[str, str], float], prompt: str, first: str, second: str) -> float:
    """Score of the first less that of the second; NaN if one is not scored."""
    unknown = float("nan")
    return scores.get((prompt, first), unknown) - scores.get((prompt, second), unknown)


def _prompts(votes: Votes) -> Ints:
    """[I] a number for the prompt of each pair."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(pair.prompt, len(numbers)) for pair in votes.pairs])


def _alike(a: Array, b: Array) -> Array:
    """1 where two signs are the same, a half where the first is 0."""
    return np.where(a == 0, 0.5, (a == b).astype(float))


def _pairwise(votes: Votes, side: Array, pair: Ints, margin: Array, seed: int) -> dict[str, Any]:
    counts = np.stack(
        [np.bincount(pair[side == s], minlength=len(margin)) for s in (1, -1)], axis=1
    ).astype(float)
    size = counts.sum(axis=1)
    shared = np.flatnonzero(size >= 2)
    counts, size = counts[shared], size[shared]
    people = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))
    first = counts[:, 0] / size
    sign = np.sign(margin[shared])
    model = np.where(sign == 0, 0.5, np.where(sign > 0, first, 1 - first))
    hits = np.stack([people, model], axis=1)
    found = share_intervals(hits, np.ones_like(hits), _prompts(votes)[shared], seed)
    return {
        "pairs": len(shared),
        "people": _interval(found[0]),
        "model": _interval(found[1]),
    }


def _by_annotator(
    votes: Votes, who: Ints, hits: Array, counted: Array, clusters: Ints, seed: int
) -> list[dict[str, Any]]:
    numbers, sizes = np.unique(who[who != UNKNOWN], return_counts=True)
    rows: list[dict[str, Any]] = []
    for number in numbers[np.argsort(-sizes, kind="stable")][:MOST_ANNOTATORS]:
        own = who == number
        found = share_intervals(hits[own], counted[own], clusters[own], seed)
        rows.append(
            {
                "annotator": votes.annotators[number],
                "votes": int(own.sum()),
                "model": _interval(found[0]),
                "shared": int(counted[own, 1].sum()),
                "with_others": _interval(found[1]),
                "model_with_others": _interval(found[2]),
            }
        )
    return rows


def _interval(found: Any) -> dict[str, float] | None:
    if not np.isfinite(found.value):
        return None
    return {"value": found.value, "low": found.low, "high": found.high}
