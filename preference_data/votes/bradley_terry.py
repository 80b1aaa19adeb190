"""Bradley-Terry: how strong each response to a prompt is, from who was preferred to whom.

Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39 (1952): i is preferred
to j with probability 1 / (1 + exp(strength_j - strength_i)). A tie is half a win for either. A
small prior keeps the strength of a response that always won finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg

from preference_data.votes.table import Floats, Ints, Votes

_PRECISION = 0.1
"""Of the normal prior around 0; one vote alone then gives a probability of 0.90."""
_TOLERANCE = 1e-9
_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """R responses, each under one prompt and criterion, and the I pairs that were voted on."""

    responses: tuple[tuple[str, str, str], ...]
    """R of (prompt id, criterion, response id)."""
    strength: Floats
    """[R] in nats; the mean of a component is 0, so strengths of two do not compare."""
    component: Ints
    """[R] the same number for responses that comparisons join, directly or not."""
    probability: Floats
    """[I] that the first response of the pair is preferred."""


def bradley_terry(votes: Votes) -> BradleyTerry:
    """The most probable strengths, of all prompts at once. Repeats should be merged before."""
    places: dict[tuple[str, str, str], int] = {}
    pairs: list[tuple[int, int]] = []
    for pair in votes.pairs:
        first, second = (
            places.setdefault((pair.prompt, pair.criterion, response), len(places))
            for response in (pair.first, pair.second)
        )
        pairs.append((first, second))
    one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    counts = votes.counts()
    wins = counts @ np.array([1.0, 0.5, 0.0])
    strength = _fit(one, other, wins, counts.sum(axis=1), len(places))
    edges = coo_array((np.ones(len(one)), (one, other)), shape=(len(places),) * 2)
    component = connected_components(edges, directed=False)[1] if places else one
    return BradleyTerry(
        tuple(places), strength, component, _sigmoid(strength[one] - strength[other])
    )


def _fit(one: Ints, other: Ints, wins: Floats, games: Floats, size: int) -> Floats:
    """[size] the maximum of the posterior, which is concave, by Newton's steps, halved if need be.

    `wins` [I] are those of `one` [I] over `other` [I], of so many `games` [I].
    """
    strength = np.zeros(size)
    for _ in range(_MAX_STEPS):
        expected = _sigmoid(strength[one] - strength[other])
        surprise = wins - games * expected
        gradient = (
            np.bincount(one, surprise, size)
            - np.bincount(other, surprise, size)
            - _PRECISION * strength
        )
        if np.abs(gradient).max(initial=0.0) < _TOLERANCE:
            break
        step = _newton_step(one, other, games * expected * (1 - expected), gradient)
        here = _log_posterior(strength, one, other, wins, games)
        while _log_posterior(strength + step, one, other, wins, games) < here - _TOLERANCE:
            step = step / 2
        strength = strength + step
    return strength


def _newton_step(one: Ints, other: Ints, weight: Floats, gradient: Floats) -> Floats:
    """By conjugate gradients: factors of a prompt with thousands of responses would fill up."""
    size = len(gradient)
    diagonal = np.bincount(one, weight, size) + np.bincount(other, weight, size) + _PRECISION
    between = coo_array((weight, (one, other)), shape=(size, size))
    curvature = csr_array(diags_array(diagonal) - between - between.T)
    step, _ = cg(curvature, gradient, rtol=1e-6, M=diags_array(1 / diagonal))
    return step


def _log_posterior(
    strength: Floats, one: Ints, other: Ints, wins: Floats, games: Floats
) -> np.float64:
    difference = strength[one] - strength[other]
    won = wins * np.logaddexp(0.0, -difference)
    lost = (games - wins) * np.logaddexp(0.0, difference)
    return -(won + lost).sum() - _PRECISION / 2 * (strength**2).sum()


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
