"""Many votes, one verdict: a soft label for every item that annotators judged.

Three methods give each pair of responses the shares of first, tie and second:

- majority: of the votes;
- dawid_skene: of what is true, given how each annotator errs;
- bradley_terry: from the strengths of the responses, which other pairs of the prompt tell too.

Two responses are ranked by the largest share. Where the largest is shared it is a tie, never what
was seen first. More than two are ranked by their Borda count: how many others each is preferred to,
in expectation, a tie counting half.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, cast

import numpy as np

from preference_data.records import AnnotatorKind, Judgement, Outcome, Ranks, Split
from preference_data.votes.agreement import alpha_ordinal
from preference_data.votes.bradley_terry import bradley_terry
from preference_data.votes.dawid_skene import dawid_skene
from preference_data.votes.table import ContentIds, Floats, Pair, Votes, takes_part, votes_of

Method = Literal["majority", "dawid_skene", "bradley_terry"]

_SAME = 1e-6
"""Shares and counts this close are equal: a tie must not hang on rounding."""
_LEAST_ALPHA = 0.01
_STRICTEST: tuple[Split, ...] = ("test", "validation", "train")


def aggregate(judgements: Sequence[Judgement], method: Method) -> list[Judgement]:
    """One judgement for each item and criterion, in the order in which they come up.

    Its responses are ordered by id. `votes` is how many annotators stand behind it (of more than
    two responses: behind the pair that most compared), `annotator` the method, and `probability`,
    of two responses, the share of first plus half that of tie. `weight` is the reliability of the
    mean of n votes, n a / (1 + (n - 1) a) after Spearman and Brown, where a is the ordinal alpha
    of all the votes under the criterion, at least 0.01; it is 1 if there is no alpha. The kind is
    "human_aggregate", or that of the annotators if they were all models or all implicit.

    Control items, abstentions and single responses take no part, and neither do two responses of
    the same text. An aggregate that came with the data is passed on if nobody else judged its
    item. An item whose judgements name different splits is on the strictest side of them. Raises
    ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"A method is one of {', '.join(METHODS)}, not {method!r}.")
    by_criterion: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_criterion[judgement.criterion].append(judgement)
    return [
        found for rows in by_criterion.values() for found in _Aggregation(rows, method).judgements()
    ]


def majority(votes: Votes) -> Floats:
    """[I, 3]: the share of the votes for FIRST, TIE and SECOND of each pair."""
    counts = votes.counts()
    return counts / counts.sum(axis=1, keepdims=True)


def _posterior(votes: Votes) -> Floats:
    return dawid_skene(votes).posterior


def _preference(votes: Votes) -> Floats:
    first = bradley_terry(votes).probability
    return np.column_stack([first, np.zeros_like(first), 1 - first])


METHODS: dict[Method, Callable[[Votes], Floats]] = {
    "majority": majority,
    "dawid_skene": _posterior,
    "bradley_terry": _preference,
}
"""Each gives [I, 3], the shares of FIRST, TIE and SECOND, of votes without repeats."""


class _Aggregation:
    """The judgements under one criterion, by item, and the shares of their pairs."""

    def __init__(self, judgements: Sequence[Judgement], method: Method) -> None:
        self._method = method
        self._ids = ContentIds()
        votes = votes_of(judgements, self._ids).once()
        counts = votes.counts()
        self._places = {pair: place for place, pair in enumerate(votes.pairs)}
        self._shares = METHODS[method](votes)
        self._first = self._shares @ np.array([1.0, 0.5, 0.0])
        self._votes = counts.sum(axis=1)
        self._alpha = alpha_ordinal(counts)
        self._items: dict[tuple[str, ...], list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            if judgement.gold is None and len(judgement.responses) > 1:
                names = sorted(self._ids.of(response) for response in judgement.responses)
                self._items[self._ids.of(judgement.prompt), *names].append(judgement)

    def judgements(self) -> list[Judgement]:
        found: list[Judgement] = []
        for (prompt, *names), rows in self._items.items():
            voting = [row for row in rows if takes_part(row)]
            pairs = self._pairs(prompt, names, rows[0].criterion)
            if voting and pairs:
                found.append(self._judgement(voting, names, pairs))
            else:
                found += [row for row in rows if row.annotator_kind == "human_aggregate"]
        return found

    def _pairs(self, prompt: str, names: list[str], criterion: str) -> dict[tuple[str, str], int]:
        pairs = ((one, other) for one, other in combinations(names, 2))
        return {
            pair: self._places[key]
            for pair in pairs
            if (key := Pair(prompt, criterion, *pair)) in self._places
        }

    def _judgement(
        self, rows: list[Judgement], names: list[str], pairs: dict[tuple[str, str], int]
    ) -> Judgement:
        one = rows[0]
        ordered = sorted(one.responses, key=self._ids.of)
        votes = int(max(self._votes[place] for place in pairs.values()))
        two = len(names) == 2
        (place, *_) = pairs.values()
        ranks = _ranks_of_two(self._shares[place]) if two else self._borda(names, pairs)
        tie = len({rank for rank in ranks if rank is not None}) == 1
        groups = {row.group for row in rows}
        return Judgement(
            prompt=one.prompt,
            responses=tuple(ordered),
            ranks=ranks,
            annotator=self._method,
            outcome=_outcome(rows) if tie else None,
            weight=_reliability(votes, self._alpha),
            criterion=one.criterion,
            annotator_kind=_kind(rows),
            probability=min(max(float(self._first[place]), 0.0), 1.0) if two else None,
            votes=votes,
            group=groups.pop() if len(groups) == 1 else None,
            split=next((side for side in _STRICTEST if side in {row.split for row in rows}), None),
        )

    def _borda(self, names: list[str], pairs: dict[tuple[str, str], int]) -> Ranks:
        """Ranks by the sum, over the others, of how far preference goes beyond one half.

        A pair that nobody compared then counts for neither; a response in no pair is not ranked.
        """
        beyond: dict[str, float] = defaultdict(float)
        for (one, other), place in pairs.items():
            lean = float(self._first[place]) - 0.5
            beyond[one] += lean
            beyond[other] -= lean
        rank_of: dict[str, int] = {}
        rank, last = 0, math.inf
        for name, value in sorted(beyond.items(), key=lambda found: -found[1]):
            rank += last - value > _SAME
            rank_of[name], last = rank, value
        return tuple(rank_of.get(name) for name in names)


def _ranks_of_two(shares: Floats) -> Ranks:
    first, tie, second = (bool(share > shares.max() - _SAME) for share in shares)
    if first + tie + second > 1 or tie:
        return (1, 1)
    return (1, 2) if first else (2, 1)


def _outcome(rows: list[Judgement]) -> Outcome:
    """Why nobody won, if all who said so say the same."""
    said: set[Outcome] = {row.outcome for row in rows if row.outcome is not None}
    return said.pop() if len(said) == 1 else "tie"


def _kind(rows: list[Judgement]) -> AnnotatorKind:
    kinds = {row.annotator_kind for row in rows}
    return cast("AnnotatorKind", kinds.pop()) if kinds in _NOT_HUMAN else "human_aggregate"


_NOT_HUMAN: tuple[set[AnnotatorKind], ...] = ({"model"}, {"implicit"})


def _reliability(votes: int, alpha: float) -> float:
    if math.isnan(alpha):
        return 1.0
    alpha = max(alpha, _LEAST_ALPHA)
    return votes * alpha / (1 + (votes - 1) * alpha)
