"""Scores as numbers, and the ranks that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from preference_data.quarantine import RowFault
from preference_data.records import Judgement, Outcome, Ranks, Source
from preference_data.sources.cells import as_number

_NOT_RATED = ("n/a", "na", "none", "null", "nan")


def number_of(values: Mapping[str, object], name: str) -> float | None:
    """The number, also from text; None where blank or "N/A". Raises RowFault for anything else."""
    value = values.get(name)
    if isinstance(value, str) and value.strip().casefold() in _NOT_RATED:
        return None
    return as_number(value, name, "score_invalid", "a number")


def rank_of(values: Mapping[str, object], name: str, *, best: int) -> int | None:
    """The rank counted from 1, where the file counts from `best`; None where there is none.

    Raises RowFault for anything but a whole number from `best` up; 2.0 is one.
    """
    number = number_of(values, name)
    if number is None:
        return None
    if number != int(number) or number < best:
        raise RowFault(
            "rank_invalid", f"{name} is {values[name]!r}, not a whole number from {best} (best) up."
        )
    return int(number) - best + 1


def ranks_by_score(scores: Sequence[float | None]) -> Ranks:
    """Rank 1 for the highest score, equal ranks for equal scores, None for None."""
    order = sorted({score for score in scores if score is not None}, reverse=True)
    return tuple(None if score is None else order.index(score) + 1 for score in scores)


def tie_of(ranks: Ranks) -> Outcome | None:
    """ "tie" where all are ranked alike."""
    return "tie" if None not in ranks and len(set(ranks)) == 1 else None


def without_twins(judgement: Judgement, sources: Sequence[Source] = ()) -> tuple[Judgement, ...]:
    """The judgement, or its pairs where one text stands at two ranks.

    A text that beats itself says nothing, but the rest of the ranking does: the other pairs are
    given one by one, with the judgement's weight shared among them. Aligned to the responses,
    `sources` says where each came from; a pair then takes the later one's. Raises RowFault if no
    pair is left.
    """
    placed = [i for i, rank in enumerate(judgement.ranks) if rank is not None]
    texts = [response.messages for response in judgement.responses]
    pairs = list(combinations(placed, 2))
    left = [(i, j) for i, j in pairs if texts[i] != texts[j]]
    if all(texts[i] != texts[j] or judgement.ranks[i] == judgement.ranks[j] for i, j in pairs):
        return (judgement,)
    if not left:
        raise RowFault(
            "identical_responses", "two identical answers are ranked one above the other."
        )
    return tuple(
        _pair(judgement, i, j, judgement.weight / len(left), sources[j] if sources else None)
        for i, j in left
    )


def _pair(judgement: Judgement, i: int, j: int, weight: float, source: Source | None) -> Judgement:
    ranks = ranks_by_score([-(judgement.ranks[k] or 0) for k in (i, j)])
    return replace(
        judgement,
        responses=(judgement.responses[i], judgement.responses[j]),
        ranks=ranks,
        outcome=tie_of(ranks),
        scores=judgement.scores and (judgement.scores[i], judgement.scores[j]),
        weight=weight,
        source=source or judgement.source,
    )
