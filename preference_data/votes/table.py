"""Votes: what each annotator said about each pair of responses, as arrays.

A judgement of K responses is a vote on each of its pairs. Every pair is written one way round,
the response with the smaller id first, so that it makes no difference who saw what on which side,
and so that a pair that was judged again in reversed order is met again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preference_data.records import Judgement, Message, Prompt, Response

FIRST, TIE, SECOND = 0, 1, 2
UNKNOWN = -1
"""In place of an annotator: the judgement does not say whose it is."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Pair(NamedTuple):
    """Two responses by their ids, the smaller id first, and what they were compared under."""

    prompt: str
    criterion: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Votes:
    """V votes on I pairs by A annotators."""

    pairs: tuple[Pair, ...]
    """I, in the order in which they come up."""
    annotators: tuple[str, ...]
    """A, likewise."""
    pair: Ints
    """[V] place in `pairs`."""
    annotator: Ints
    """[V] place in `annotators`, or UNKNOWN."""
    verdict: Ints
    """[V] FIRST, TIE or SECOND."""
    judgement: Ints
    """[V] place of the judgement in the list that was read."""

    def counts(self) -> Floats:
        """[I, 3]: how many said FIRST, TIE and SECOND of each pair."""
        flat = np.bincount(self.pair * 3 + self.verdict, minlength=3 * len(self.pairs))
        return flat.reshape(-1, 3).astype(np.float64)

    def once(self) -> Votes:
        """The same votes, those of one annotator on one pair merged into one.

        It goes to the side taken more often, and is a tie if neither was: an annotator who
        contradicts himself has no more say than another. Those of unknown annotators all stay.
        """
        known = np.flatnonzero(self.annotator != UNKNOWN)
        key = self.pair[known] * len(self.annotators) + self.annotator[known]
        keys, first, place = np.unique(key, return_index=True, return_inverse=True)
        if len(keys) == len(known):
            return self
        lean = np.sign(np.bincount(place, weights=self.verdict[known] - TIE)).astype(np.int64)
        verdict = self.verdict.copy()
        verdict[known[first]] = TIE + lean
        kept = np.sort(np.concatenate([known[first], np.flatnonzero(self.annotator == UNKNOWN)]))
        return replace(
            self,
            pair=self.pair[kept],
            annotator=self.annotator[kept],
            verdict=verdict[kept],
            judgement=self.judgement[kept],
        )


class ContentIds:
    """The ids of prompts and responses, hashed once for each text and not once for each use."""

    def __init__(self) -> None:
        self._known: dict[tuple[Message, ...], str] = {}

    def of(self, part: Prompt | Response) -> str:
        found = self._known.get(part.messages)
        if found is None:
            found = self._known[part.messages] = part.id
        return found


def takes_part(judgement: Judgement) -> bool:
    """Whether it is a vote: an annotator's opinion of two responses or more.

    Control items, abstentions ("unsure"), single responses and aggregates of others' votes are
    none.
    """
    return (
        len(judgement.responses) > 1
        and judgement.gold is None
        and judgement.outcome != "unsure"
        and judgement.annotator_kind != "human_aggregate"
    )


def votes_of(judgements: Sequence[Judgement], ids: ContentIds | None = None) -> Votes:
    """Every vote in the judgements that take part, repeats too.

    Unranked responses, the losers of a best-of and two responses of the same text are not
    compared. `ids` is for a caller who needs the same ids again.
    """
    ids = ids or ContentIds()
    pairs: dict[Pair, int] = {}
    annotators: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for place, judgement in enumerate(judgements):
        if not takes_part(judgement):
            continue
        name = judgement.annotator
        who = UNKNOWN if name is None else annotators.setdefault(name, len(annotators))
        prompt = ids.of(judgement.prompt)
        for first, second, verdict in _verdicts(judgement, ids):
            pair = Pair(prompt, judgement.criterion, first, second)
            rows.append((pairs.setdefault(pair, len(pairs)), who, verdict, place))
    columns: NDArray[Any] = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Votes(tuple(pairs), tuple(annotators), *columns.T.copy())


def _verdicts(judgement: Judgement, ids: ContentIds) -> Iterator[tuple[str, str, int]]:
    """(smaller id, larger id, verdict) of each pair that was compared."""
    names = [ids.of(response) for response in judgement.responses]
    for i, j in combinations(range(len(names)), 2):
        rank_i, rank_j = judgement.ranks[i], judgement.ranks[j]
        if rank_i is None or rank_j is None or names[i] == names[j]:
            continue
        if rank_i == rank_j and judgement.kind == "best_of":
            continue
        lean = (rank_i > rank_j) - (rank_i < rank_j)
        if names[i] < names[j]:
            yield names[i], names[j], TIE + lean
        else:
            yield names[j], names[i], TIE - lean
