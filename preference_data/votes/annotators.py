"""What each annotator's own record says: with whom he agrees, and signs of not reading.

Every measure is a count out of a count. None is a verdict: few judgements tell little, which is
what the intervals are for, and an annotator who disagrees with the others may be right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from math import sqrt
from statistics import median

import numpy as np

from preference_data.records import Judgement, Ranks
from preference_data.votes.agreement import Interval
from preference_data.votes.table import UNKNOWN, Ints, Votes, takes_part, votes_of

_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Proportion:
    """So many of so many."""

    hits: int
    of: int

    @property
    def interval(self) -> Interval | None:
        """The share and Wilson's 95 % interval around it (1927); None of nothing."""
        if self.of == 0:
            return None
        share, z2 = self.hits / self.of, _NORMAL_95**2
        centre = (share + z2 / (2 * self.of)) / (1 + z2 / self.of)
        spread = sqrt(share * (1 - share) / self.of + z2 / (4 * self.of**2))
        half = _NORMAL_95 * spread / (1 + z2 / self.of)
        return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0))


@dataclass(frozen=True, slots=True)
class AnnotatorQuality:
    """One annotator. Pairs are pairs of responses: a judgement of K has up to K(K-1)/2."""

    annotator: str
    judgements: int
    """Of two responses or more, abstentions too, control items not."""
    consensus: Proportion
    """Pairs on which he agrees with the most frequent verdict of the others, where one is."""
    left: Proportion
    """Decided judgements of two responses won by the one shown first, where that is known."""
    ties: Proportion
    """Judgements, abstentions apart, that rank all responses alike."""
    repeats: Proportion
    """Of every two times he judged a pair, in whichever order, those with the same verdict."""
    control: Proportion
    """Control items answered as expected; an abstention is not."""
    longest_run: int
    """The most times in a row, by `created_at` or else as given, that he gave the same answer by
    where the responses were shown. Of n answers to two responses, whoever reads has about log2(n).
    """
    median_seconds: float | None


def annotators(judgements: Sequence[Judgement]) -> list[AnnotatorQuality]:
    """Every named annotator of two responses or more, the most judgements first, then by name.

    Aggregates are no annotators. Judgements of a single response are left out.
    """
    by_annotator: dict[str, list[Judgement]] = defaultdict(list)
    for row in judgements:
        named = row.annotator is not None and row.annotator_kind != "human_aggregate"
        if named and len(row.responses) > 1:
            by_annotator[row.annotator or ""].append(row)
    votes = votes_of(judgements)
    consensus, repeats = _consensus(votes.once()), _repeats(votes)
    found = [
        _quality(name, rows, consensus.get(name, _NONE), repeats.get(name, _NONE))
        for name, rows in by_annotator.items()
    ]
    return sorted(found, key=lambda one: (-one.judgements, one.annotator))


_NONE = Proportion(0, 0)


def _quality(
    name: str, rows: list[Judgement], consensus: Proportion, repeats: Proportion
) -> AnnotatorQuality:
    usual = [row for row in rows if row.gold is None]
    voting = [row for row in usual if takes_part(row)]
    seconds = [row.duration for row in rows if row.duration is not None]
    firsts = [won for row in voting if (won := _first_shown_won(row)) is not None]
    control = [_as_expected(row.ranks, row.gold) for row in rows if row.gold is not None]
    return AnnotatorQuality(
        annotator=name,
        judgements=len(usual),
        consensus=consensus,
        left=Proportion(sum(firsts), len(firsts)),
        ties=Proportion(sum(row.is_tie for row in voting), len(voting)),
        repeats=repeats,
        control=Proportion(sum(control), len(control)),
        longest_run=_longest_run(rows),
        median_seconds=float(median(seconds)) if seconds else None,
    )


def _consensus(votes: Votes) -> dict[str, Proportion]:
    """Against the others' most frequent verdict; where several are, or nobody else, not counted."""
    others = votes.counts()[votes.pair]
    others[np.arange(len(others)), votes.verdict] -= 1
    most = others.max(axis=1, initial=0.0, keepdims=True)
    clear = ((others == most).sum(axis=1) == 1) & (votes.annotator != UNKNOWN)
    agrees = others.argmax(axis=1) == votes.verdict
    return _by_annotator(votes, votes.annotator[clear & agrees], votes.annotator[clear])


def _repeats(votes: Votes) -> dict[str, Proportion]:
    known = votes.annotator != UNKNOWN
    key = votes.annotator[known] * len(votes.pairs) + votes.pair[known]
    keys, place = np.unique(key, return_inverse=True)
    counts = np.bincount(place * 3 + votes.verdict[known], minlength=3 * len(keys)).reshape(-1, 3)
    whose = keys // max(len(votes.pairs), 1)
    same = (counts * (counts - 1) // 2).sum(axis=1)
    size = counts.sum(axis=1)
    return _by_annotator(votes, np.repeat(whose, same), np.repeat(whose, size * (size - 1) // 2))


def _by_annotator(votes: Votes, hits: Ints, of: Ints) -> dict[str, Proportion]:
    size = len(votes.annotators)
    counts = zip(np.bincount(hits, minlength=size), np.bincount(of, minlength=size), strict=True)
    return {
        name: Proportion(int(hit), int(all_))
        for name, (hit, all_) in zip(votes.annotators, counts, strict=True)
    }


def _first_shown_won(row: Judgement) -> bool | None:
    """None for a tie, for more than two responses, and where the places are not known."""
    first, *rest = row.ranks
    if len(rest) != 1 or row.position is None or first is None or rest[0] is None or row.is_tie:
        return None
    return (first < rest[0]) == (row.position[0] == 0)


def _as_expected(ranks: Ranks, gold: Ranks) -> bool:
    """Whether every pair with a better one is ranked so; if all are alike, whether all are."""
    ranked = [place for place, rank in enumerate(gold) if rank is not None]
    alike = len({gold[place] for place in ranked}) == 1
    for i, j in combinations(ranked, 2):
        expected = _order(gold[i], gold[j])
        if (expected or alike) and _order(ranks[i], ranks[j]) != expected:
            return False
    return True


def _order(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return None
    return (one > other) - (one < other)


def _longest_run(rows: list[Judgement]) -> int:
    if all(row.created_at is not None for row in rows):
        rows = sorted(rows, key=lambda row: row.created_at or "")
    return max((len(list(run)) for _, run in groupby(rows, key=_as_shown)), default=0)


def _as_shown(row: Judgement) -> tuple[int | None, ...]:
    """The places the responses took, by where each was shown: 0 for the best."""
    levels = sorted({rank for rank in row.ranks if rank is not None})
    order = range(len(row.ranks))
    if row.position is not None:
        order = sorted(order, key=row.position.__getitem__)
    ranks = (row.ranks[place] for place in order)
    return tuple(None if rank is None else levels.index(rank) for rank in ranks)
