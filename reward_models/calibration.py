"""How far a reward model's scores can be trusted: intervals, probabilities and their calibration.

A pair's margin is the score of the answer that people preferred less that of the other; the model
gives the preferred one the probability sigmoid(margin / temperature). All arrays are of P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from scipy.stats import norm
from scipy.stats import t as student

from preference_data.quality.measures import wilson
from preference_data.votes.agreement import Interval

Array = NDArray[np.floating]
Ints = NDArray[np.integer]

FEW_PROMPTS = 30
"""Below so many, a bootstrap over prompts is too narrow, and Wilson's interval is taken."""
LEAST_PROMPTS = 20
"""Below so many, no temperature is fitted: each half needs ten."""
TEMPERATURES = (0.02, 50.0)
"""The range in which one is sought; pairs that are all ranked right ask for 0."""
_DRAWS_AT_ONCE = 2**22


# --- intervals -----------------------------------------------------------------------------------


def correlation(a: Array, b: Array) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if len(a) == 0 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def clustered_means(
    values: Array, weights: Array, clusters: Ints, seed: int, resamples: int = 2000
) -> list[Interval]:
    """Weighted means of M columns of `values` [P, M] and their 95 % bootstrap intervals.

    Whole clusters are drawn with replacement, as the pairs of one prompt are not independent: they
    share answers, and what is hard about it. `weights` [P, M] are 0 where a pair is no part of a
    column; a column without any weight gives NaN. `clusters` [P] are any integers. All columns see
    the same draws.
    """
    number, place = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(number), 2 * values.shape[1]))
    np.add.at(sums, place, np.concatenate([values * weights, weights], axis=1))
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(1, len(number)))
    drawn = [
        _drawn_means(sums, generator, min(at_once, resamples - done))
        for done in range(0, resamples, at_once)
    ]
    means = np.concatenate(drawn)
    found: list[Interval] = []
    for column, mean in enumerate(_ratio(sums.sum(axis=0))):
        finite = means[np.isfinite(means[:, column]), column]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
        found.append(Interval(float(mean), float(low), float(high)))
    return found


def _drawn_means(sums: Array, generator: np.random.Generator, resamples: int) -> Array:
    """[resamples, M] means of clusters drawn with replacement."""
    size = len(sums)
    picks = generator.integers(0, size, size=(resamples, size))
    picks += size * np.arange(resamples)[:, None]
    times = np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size)
    return _ratio(times.astype(float) @ sums)


def _ratio(sums: Array) -> Array:
    """[..., M] of [..., 2 M]: the first half by the second, NaN where that is 0."""
    above, below = np.split(sums, 2, axis=-1)
    return above / np.where(below == 0, np.nan, below)


def share_intervals(
    hits: Array, weights: Array, clusters: Ints, seed: int, resamples: int = 2000
) -> list[Interval]:
    """As `clustered_means`, of `hits` [P, M] between 0 and 1.

    A column of fewer than FEW_PROMPTS clusters, or one without any spread, has Wilson's interval
    instead, of as many trials as `effective_trials` says: a bootstrap of five hits in a row would
    say 1 with certainty, and one of eight clusters knows little of how clusters differ.
    """
    found = clustered_means(hits, weights, clusters, seed, resamples)
    _, place = np.unique(clusters, return_inverse=True)
    for column, interval in enumerate(found):
        few = len(np.unique(place[weights[:, column] > 0])) < FEW_PROMPTS
        if np.isfinite(interval.value) and (few or interval.low == interval.high):
            trials = effective_trials(hits[:, column], weights[:, column], place)
            found[column] = wilson(interval.value * trials, trials)
    return found


def effective_trials(hits: Array, weights: Array, place: Ints) -> float:
    """How many independent trials would know the mean of `hits` [P] as well as these, which come in
    the clusters `place` [P] (Korn and Graubard 1998, Survey Methodology 24, sec. 2).

    m (1 - m) over the variance of the mean, which is that between clusters (with C / (C - 1)), less
    for the few degrees of freedom that it is known with: times (1.96 / t)^2, t of C - 1 degrees. At
    most the pairs by their weights (Kish). Where all clusters say 0 or all say 1, or there is but
    one, they tell nothing of their spread: then as many as there are clusters, by their weights.
    """
    by_cluster = np.bincount(place, weights=weights)
    clusters = int((by_cluster > 0).sum())
    mean = (weights * hits).sum() / weights.sum()
    spread = mean * (1 - mean)
    if clusters < 2 or spread <= 0:
        return float(by_cluster.sum() ** 2 / (by_cluster**2).sum())
    rest = np.bincount(place, weights=weights * (hits - mean))
    variance = (rest**2).sum() / weights.sum() ** 2 * clusters / (clusters - 1)
    known = (norm.ppf(0.975) / student.ppf(0.975, clusters - 1)) ** 2
    pairs = weights.sum() ** 2 / (weights**2).sum()
    return float(known * min(pairs, spread / max(variance, 1e-300)))


def reward_accuracy(
    margins: Array, weights: Array, clusters: Ints, seed: int, resamples: int = 2000
) -> Interval:
    """The weighted share of pairs that are ranked as people did; its interval as `share_intervals`.

    Where the pairs of a judgement share its weight, every judgement counts once however many pairs
    it gave.
    """
    (found,) = share_intervals(
        hits_of(margins)[:, None], weights[:, None], clusters, seed, resamples
    )
    return found


def hits_of(margins: Array) -> Array:
    """[P] 1 where the preferred answer scores higher, a half where both score alike."""
    return np.where(margins == 0, 0.5, (margins > 0).astype(float))


def named(name: str, found: Interval) -> dict[str, float]:
    """An interval as metrics: `name`, `name_low` and `name_high`."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


# --- probabilities -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """The pairs whose confidence lies between `low` and `high`."""

    low: float
    high: float
    pairs: int
    share: float
    """Of the weight of all pairs"""
    confidence: float
    """Mean of what the model gives to the answer that it prefers"""
    accuracy: float
    """How often that is the answer that people prefer"""


def reliability(probability: Array, labels: Array, weights: Array, bins: int = 10) -> list[Bin]:
    """The curve of accuracy over confidence, in `bins` equal bins of [0.5, 1]; no empty ones.

    `probability` is what the model gives to the answer that was preferred, `labels` how probable
    it is that this answer is the better one: 1, or a soft label's. The confidence is that of the
    answer the model prefers; where it prefers none, it is half right (Guo et al. 2017,
    arXiv:1706.04599, section 2).
    """
    confidence = np.maximum(probability, 1 - probability)
    right = np.where(probability > 0.5, labels, 1 - labels)
    right = np.where(probability == 0.5, 0.5, right)
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        Bin(
            low=0.5 + place / (2 * bins),
            high=0.5 + (place + 1) / (2 * bins),
            pairs=int(inside.sum()),
            share=float(weights[inside].sum() / weights.sum()),
            confidence=mean(confidence[inside], weights[inside]),
            accuracy=mean(right[inside], weights[inside]),
        )
        for place in range(bins)
        if (inside := places == place).any()
    ]


def expected_calibration_error(
    probability: Array, weights: Array, labels: Array | None = None, bins: int = 10
) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability`.

    (Guo et al. 2017, eq. 3.) Of P pairs it is above 0 by chance, about as much as the standard
    error of the accuracy in a bin.
    """
    known = np.ones_like(probability) if labels is None else labels
    curve = reliability(probability, known, weights, bins)
    return float(sum(found.share * abs(found.confidence - found.accuracy) for found in curve))


def brier(probability: Array, labels: Array, weights: Array) -> float:
    """Mean squared error of the probability (Brier 1950), in [0, 1]; 0.25 knows nothing."""
    return mean(labels * (1 - probability) ** 2 + (1 - labels) * probability**2, weights)


def log_loss(logits: Array, labels: Array, weights: Array) -> float:
    """Mean cross-entropy in nats of sigmoid(`logits`) with the labels; log 2 knows nothing."""
    return -mean(labels * log_expit(logits) + (1 - labels) * log_expit(-logits), weights)


def fit_temperature(margins: Array, labels: Array, weights: Array) -> float:
    """The temperature of the highest likelihood (Guo et al. 2017, section 4.2), in TEMPERATURES.

    Above 1 the model is too sure, below 1 not sure enough. No ranking changes by it.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(margins / np.exp(log_temperature), labels, weights)

    low, high = np.log(TEMPERATURES)
    # The loss is convex in 1 / temperature, and so has one minimum over its logarithm, too.
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def cross_fitted(
    margins: Array, labels: Array, weights: Array, clusters: Ints, seed: int
) -> Array | None:
    """[P] temperatures, each fitted on the half of the prompts that the pair is not in.

    So every pair is judged by a temperature that has not seen it. None for fewer than
    LEAST_PROMPTS prompts.
    """
    number, place = np.unique(clusters, return_inverse=True)
    if len(number) < LEAST_PROMPTS:
        return None
    order = np.random.default_rng(seed).permutation(len(number))
    first = (order < len(number) // 2)[place]
    temperatures = np.empty(len(margins))
    for half in (first, ~first):
        temperatures[~half] = fit_temperature(margins[half], labels[half], weights[half])
    return temperatures


def probabilities(margins: Array, temperature: Array | float = 1.0) -> Array:
    """sigmoid(margin / temperature): of the preferred answer being the better one."""
    return expit(margins / temperature)


def mean(values: Array, weights: Array) -> float:
    """Weighted."""
    return float((values * weights).sum() / weights.sum())
