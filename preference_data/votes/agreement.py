"""How far annotators agree: percent, Cohen's and Fleiss' kappa and Krippendorff's alpha.

An item is a pair of responses (under one criterion), a value one of first, tie and second. "First"
means nothing across pairs, so what is expected by chance is computed with first and second equally
frequent: no coefficient depends on which response of a pair is written first. Intervals are 95 %
percentiles of a bootstrap over items; the pairs of one ranking are drawn together, since they are
not independent.

Cohen, Educational and Psychological Measurement 20 (1960); Fleiss, Psychological Bulletin 76
(1971); Krippendorff, Computing Krippendorff's Alpha-Reliability (2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from preference_data.records import Judgement
from preference_data.votes.table import UNKNOWN, Floats, Ints, Votes, votes_of

_CLASSES = 3
_DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of all annotators; None where a coefficient is not defined.

    No coefficient is, without an item that two annotators judged; kappas and alphas also need
    two different verdicts.
    """

    items: int
    """Pairs of responses that somebody judged."""
    shared: int
    """Items that two annotators or more judged: all that is said below is about these."""
    annotators: int
    """Different ones that are named."""
    judgements: int
    """That took part: no control items, abstentions, single responses or aggregates."""
    percent: Interval | None
    """Share, in [0, 1], of the pairs of annotators of an item that agree; the mean over items."""
    kappa: Interval | None
    """Cohen's; only of two annotators."""
    fleiss: Interval | None
    """Fleiss'; only where all items were judged equally often."""
    alpha_nominal: Interval | None
    alpha_ordinal: Interval | None
    """With a tie between first and second."""


def agreement(judgements: Sequence[Judgement], samples: int = 1000, seed: int = 0) -> Agreement:
    """Agreement and its intervals, from `samples` bootstrap samples.

    An annotator who judged a pair more than once counts once (`Votes.once`).
    """
    every = votes_of(judgements)
    votes = every.once()
    counts = votes.counts()
    shared = counts.sum(axis=1) >= 2
    rows = _Totals.rows(votes, counts, shared)
    grouped = np.zeros((0, rows.shape[1]))
    if shared.any():
        groups = _drawn_together(every)[shared]
        groups = np.unique(groups, return_inverse=True)[1]
        grouped = np.zeros((int(groups.max()) + 1, rows.shape[1]))
        np.add.at(grouped, groups, rows)
    whole = _Totals(grouped.sum(axis=0))
    drawn = _Totals(_bootstrap(grouped, samples, np.random.default_rng(seed)))

    def interval(coefficient: Callable[[_Totals], Floats], applies: bool = True) -> Interval | None:
        return _interval(coefficient(whole), coefficient(drawn)) if applies else None

    return Agreement(
        items=len(votes.pairs),
        shared=int(shared.sum()),
        annotators=len(votes.annotators),
        judgements=len(np.unique(every.judgement)),
        percent=interval(_Totals.percent),
        kappa=interval(_Totals.kappa, _are_two(votes)),
        fleiss=interval(_Totals.fleiss, len(np.unique(counts.sum(axis=1))) == 1),
        alpha_nominal=interval(_Totals.alpha_nominal),
        alpha_ordinal=interval(_Totals.alpha_ordinal),
    )


# --- coefficients ---------------------------------------------------------------------------------


def coincidences(counts: Floats) -> Floats:
    """[I, C, C] of counts [I, C]: the pairs of values in each item, one value counted once.

    A pair weighs 1 / (m - 1) in an item of m values (Krippendorff 2011, section C, step 2); items
    of fewer than two values have none.
    """
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(counts.shape[1])
    pairs[:, diagonal, diagonal] -= counts
    return pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None]


def krippendorff_alpha(coincidence: Floats, ordinal: bool) -> Floats:
    """[...] of a summed coincidence matrix [..., C, C]; NaN where all values are alike.

    Ordinal takes the classes in their order. Its distance, the values from c to k with half of
    those at both ends, is the difference of the mid-ranks.
    """
    values = coincidence.sum(axis=-1)
    total = values.sum(axis=-1)
    if ordinal:
        middle = np.cumsum(values, axis=-1) - values / 2
        distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        distance = 1.0 - np.eye(values.shape[-1])
    observed = (coincidence * distance).sum(axis=(-2, -1))
    expected = (values[..., :, None] * values[..., None, :] * distance).sum(axis=(-2, -1))
    return 1.0 - _ratio((total - 1) * observed, expected)


def fleiss_kappa(percent: Floats, values: Floats) -> Floats:
    """[...] of the mean agreement [...] and all values by class [..., C]; NaN if all are alike."""
    share = _ratio(values, values.sum(axis=-1, keepdims=True))
    return _above_chance(percent, (share**2).sum(axis=-1))


def cohen_kappa(table: Floats) -> Floats:
    """[...] of [..., C, C], one annotator's class by the other's; NaN if all are alike."""
    share = _ratio(table, table.sum(axis=(-2, -1), keepdims=True))
    expected = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    return _above_chance(np.trace(share, axis1=-2, axis2=-1), expected)


def _above_chance(observed: Floats, expected: Floats) -> Floats:
    return 1.0 - _ratio(1.0 - observed, 1.0 - expected)


def _ratio(above: Floats, below: Floats) -> Floats:
    below = np.where(np.abs(below) < 1e-12, np.nan, below)
    return above / below


# --- sums over items ------------------------------------------------------------------------------

_COLUMNS = np.cumsum([1, 1, _CLASSES, _CLASSES**2])
"""Where the columns of `_Totals.rows` part."""


class _Totals:
    """Sums over items, of which every coefficient is a function: the last axis of `sums`."""

    def __init__(self, sums: Floats) -> None:
        square = (*sums.shape[:-1], _CLASSES, _CLASSES)
        items, agreeing, values, coincidence, table = np.split(sums, _COLUMNS, axis=-1)
        self._items, self._agreeing = items[..., 0], agreeing[..., 0]
        self._values = (values + values[..., ::-1]) / 2
        self._coincidence = _both_ways(coincidence.reshape(square))
        self._table = _both_ways(table.reshape(square))

    @staticmethod
    def rows(votes: Votes, counts: Floats, shared: NDArray[np.bool_]) -> Floats:
        """[shared items, 23], to be summed: 1, agreement, values, coincidences, table of two."""
        counts = counts[shared]
        size = counts.sum(axis=1)
        agreeing = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))
        found = coincidences(counts).reshape(len(counts), _CLASSES**2)
        table = np.zeros((len(votes.pairs), _CLASSES**2))
        if _are_two(votes):
            said = np.zeros((2, len(votes.pairs)), dtype=np.int64)
            said[votes.annotator, votes.pair] = votes.verdict
            table[np.arange(len(table)), said[0] * _CLASSES + said[1]] = 1
        return np.column_stack([np.ones(len(counts)), agreeing, counts, found, table[shared]])

    def percent(self) -> Floats:
        return _ratio(self._agreeing, self._items)

    def fleiss(self) -> Floats:
        return fleiss_kappa(self.percent(), self._values)

    def kappa(self) -> Floats:
        return cohen_kappa(self._table)

    def alpha_nominal(self) -> Floats:
        return krippendorff_alpha(self._coincidence, ordinal=False)

    def alpha_ordinal(self) -> Floats:
        return krippendorff_alpha(self._coincidence, ordinal=True)


def alpha_ordinal(counts: Floats) -> float:
    """Ordinal alpha of counts [I, 3] as `agreement` gives it, without an interval; maybe NaN."""
    return float(krippendorff_alpha(_both_ways(coincidences(counts).sum(axis=0)), ordinal=True))


def _both_ways(matrix: Floats) -> Floats:
    """The mean of the pairs written one way round and the other."""
    return (matrix + matrix[..., ::-1, ::-1]) / 2


def _are_two(votes: Votes) -> bool:
    return len(votes.annotators) == 2 and UNKNOWN not in votes.annotator


# --- bootstrap ------------------------------------------------------------------------------------


def _drawn_together(votes: Votes) -> Ints:
    """[I]: the same number for pairs that were ever judged in one ranking."""
    items = len(votes.pairs)
    size = items + int(votes.judgement.max(initial=-1)) + 1
    edges = coo_array(
        (np.ones(len(votes.pair)), (votes.pair, items + votes.judgement)), shape=(size, size)
    )
    return connected_components(edges, directed=False)[1][:items]


def _bootstrap(rows: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """[samples, D]: the sums of as many rows [G, D] as there are, drawn with replacement.

    Equal rows are drawn by their number at once, and there are few different ones.
    """
    if not len(rows):
        return np.zeros((samples, rows.shape[1]))
    distinct, times = np.unique(rows.round(9), axis=0, return_counts=True)
    step = max(1, _DRAWS_AT_ONCE // len(distinct))
    drawn: list[Any] = [
        rng.multinomial(len(rows), times / len(rows), size=min(step, samples - done)) @ distinct
        for done in range(0, samples, step)
    ]
    return np.concatenate(drawn)


def _interval(value: Floats, drawn: Floats) -> Interval | None:
    if np.isnan(value):
        return None
    # A sample may happen to hold one verdict alone, and then has no coefficient.
    low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
