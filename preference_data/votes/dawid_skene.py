"""Dawid-Skene: what is true of each pair, and how each annotator errs, found from each other.

Dawid and Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm,
Applied Statistics 28 (1979). The classes are first, tie and second. Two things are added. Which
response is first is a matter of ids, so the first and the second class share their parameters:
no position can be learnt. And an annotator's error rates start from everybody's, as if he had
given one more vote of each class the way the crowd does, since most give too few to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preference_data.votes.table import UNKNOWN, Floats, Ints, Votes

_CLASSES = 3
_CROWD_VOTES = 1.0
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """What EM found for I pairs and A annotators."""

    posterior: Floats
    """[I, 3] probability of FIRST, TIE and SECOND."""
    prior: Floats
    """[3] how frequent each class is."""
    confusion: Floats
    """[A, 3, 3] probability that an annotator says the last axis where the middle one is true.

    Unknown annotators, if there are any, are one more annotator at the end."""
    steps: int
    converged: bool


def dawid_skene(votes: Votes, max_steps: int = 500, tolerance: float = 1e-5) -> DawidSkene:
    """Starts from the shares of the votes; stops when no posterior moves by `tolerance`.

    Repeats should be merged before (`Votes.once`).
    """
    annotator = np.where(votes.annotator == UNKNOWN, len(votes.annotators), votes.annotator)
    annotators = len(votes.annotators) + int(UNKNOWN in votes.annotator)
    counts = votes.counts()
    posterior = counts / counts.sum(axis=1, keepdims=True)
    prior, confusion = _maximise(votes, annotator, annotators, posterior)
    for step in range(1, max_steps + 1):
        before = posterior
        posterior = _expect(votes, annotator, prior, confusion)
        prior, confusion = _maximise(votes, annotator, annotators, posterior)
        if np.abs(posterior - before).max(initial=0.0) < tolerance:
            return DawidSkene(posterior, prior, confusion, step, True)
    return DawidSkene(posterior, prior, confusion, max_steps, False)


def _maximise(
    votes: Votes, annotator: Ints, annotators: int, posterior: Floats
) -> tuple[Floats, Floats]:
    """(prior [3], confusion [A, 3, 3]) that make the votes most likely (1979, eq. 2.3, 2.4)."""
    prior = posterior.sum(axis=0)
    prior = (prior + prior[::-1]) / max(2.0 * len(posterior), 1.0)
    said = annotator * _CLASSES + votes.verdict
    confusion = np.stack(
        [
            np.bincount(said, posterior[votes.pair, true], annotators * _CLASSES)
            for true in range(_CLASSES)
        ]
    ).reshape(_CLASSES, annotators, _CLASSES)
    confusion = confusion.transpose(1, 0, 2)
    confusion = (confusion + confusion[:, ::-1, ::-1]) / 2
    crowd = confusion.sum(axis=0) + _TINY
    confusion = confusion + _CROWD_VOTES * crowd / crowd.sum(axis=-1, keepdims=True)
    return prior, confusion / confusion.sum(axis=-1, keepdims=True)


def _expect(votes: Votes, annotator: Ints, prior: Floats, confusion: Floats) -> Floats:
    """[I, 3] the posterior of each pair (1979, eq. 2.5)."""
    vote = np.log(confusion)[annotator, :, votes.verdict]
    log = np.stack(
        [np.bincount(votes.pair, vote[:, true], len(votes.pairs)) for true in range(_CLASSES)],
        axis=1,
    )
    log = log + np.log(np.maximum(prior, np.finfo(np.float64).tiny))
    likely = np.exp(log - log.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)
