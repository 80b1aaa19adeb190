"""How far a reward model's scores can be trusted: numbers on held-out pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def pair_metrics(scores: Array, lengths: Array, weights: Array, seed: int) -> dict[str, float]:
    """Accuracy with its 95 % interval, margin, calibration, and the length's share in it.

    `scores` and `lengths` are [P, 2], the preferred answer first; `weights` [P] makes every
    judgement count once however many pairs it gave. A tie of scores is half right.
    """
    margin = scores[:, 0] - scores[:, 1]
    hits = np.where(margin == 0, 0.5, margin > 0)
    probability = 1 / (1 + np.exp(-margin))
    low, high = bootstrap_interval(hits, seed, weights=weights)
    return {
        "accuracy": _mean(hits, weights),
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": _mean(margin, weights),
        "brier": _mean((1 - probability) ** 2, weights),
        "ece": expected_calibration_error(probability, weights),
        "length_baseline": length_baseline(lengths, weights),
        "length_correlation": correlation(scores.ravel(), lengths.ravel()),
        "pairs": float(len(margin)),
    }


def expected_calibration_error(probability: Array, weights: Array, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins of confidence.

    `probability` [P] is what the model gives to the answer that was preferred; the confidence is
    that of the answer the model prefers, between 0.5 and 1 (Guo et al. 2017, eq. 3).
    """
    confidence = np.maximum(probability, 1 - probability)
    right = (probability > 0.5).astype(float)
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    total = 0.0
    for place in range(bins):
        inside = places == place
        if inside.any():
            share = weights[inside].sum() / weights.sum()
            gap = _mean(confidence[inside], weights[inside]) - _mean(right[inside], weights[inside])
            total += share * abs(gap)
    return float(total)


def length_baseline(lengths: Array, weights: Array) -> float:
    """Accuracy of always preferring the longer answer, or always the shorter: what a model that
    reads nothing but length would get."""
    longer = np.where(lengths[:, 0] == lengths[:, 1], 0.5, lengths[:, 0] > lengths[:, 1])
    accuracy = _mean(longer, weights)
    return max(accuracy, 1 - accuracy)


def correlation(a: Array, b: Array) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def bootstrap_interval(
    values: Array, seed: int, resamples: int = 2000, weights: Array | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the (weighted) mean of `values` [n]."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), size=(resamples, len(values)))
    if weights is None:
        means = values[picks].mean(axis=1)
    else:
        means = (values * weights)[picks].sum(axis=1) / weights[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Array, weights: Array) -> float:
    return float((values * weights).sum() / weights.sum())
