"""What the numbers on held-out pairs mean, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_models.calibration import (
    bootstrap_interval,
    correlation,
    expected_calibration_error,
    length_baseline,
    pair_metrics,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def test_expected_calibration_error_by_hand():
    """P(preferred) .92, .82, .62, .38: confidences .92, .82, .62, .62; right, right, right, wrong.

    Bins of width .05: two of one right pair (gaps .08 and .18), one of two pairs, half right (gap
    .12): (.08 + .18 + 2 * .12) / 4 = .125.
    """
    probability = array(0.92, 0.82, 0.62, 0.38)
    assert expected_calibration_error(probability, np.ones(4)) == pytest.approx(0.125, abs=1e-9)


def test_weights_count_in_the_calibration_error():
    """The wrong pair with weight 3: its bin holds 4 of 6, is right for 1 of 4: gap .37.

    (.08 + .18) / 6 + 4/6 * .37 = .29.
    """
    probability = array(0.92, 0.82, 0.62, 0.38)
    found = expected_calibration_error(probability, array(1, 1, 1, 3))
    assert found == pytest.approx(0.29, abs=1e-9)


@pytest.mark.parametrize(
    ("probability", "error"),
    [
        ([1.0] * 5, 0.0),  # certain and right
        ([0.0] * 5, 1.0),  # certain and wrong
        ([0.97] * 97 + [0.03] * 3, 0.0),  # right as often as it says
        ([0.72] * 5 + [0.28] * 5, 0.22),
    ],
)
def test_calibration_error_at_the_ends(probability: list[float], error: float):
    found = expected_calibration_error(array(*probability), np.ones(len(probability)))
    assert found == pytest.approx(error, abs=1e-9)


def test_pair_metrics_by_hand():
    """Margins log 3, -log 3, 0 with weights 1, 1, 2: P = 3/4, 1/4, 1/2.

    Accuracy (1 + 0 + 2 * .5) / 4 = .5; margin 0; Brier ((1/4)^2 + (3/4)^2 + 2 (1/2)^2) / 4 =
    (.0625 + .5625 + .5) / 4 = .28125. Lengths: longer, longer, equal: (1 + 1 + 2 * .5) / 4 = .75.
    """
    log_3 = math.log(3.0)
    scores = np.array([[log_3, 0.0], [1.0, 1.0 + log_3], [2.0, 2.0]])
    lengths = np.array([[9, 3], [5, 4], [7, 7]])
    found = pair_metrics(scores, lengths, array(1, 1, 2), seed=0)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx(0.0, abs=1e-9)
    assert found["brier"] == pytest.approx(0.28125)
    assert found["length_baseline"] == pytest.approx(0.75)
    assert found["pairs"] == 3
    assert 0.0 <= found["accuracy_low"] <= 0.5 <= found["accuracy_high"] <= 1.0


def test_a_model_of_length_alone_is_seen_through():
    """Score = length: the correlation is 1 and the accuracy is the length baseline's."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 50, size=(400, 2)).astype(float)
    found = pair_metrics(lengths / 10, lengths, np.ones(400), seed=0)
    assert found["length_correlation"] == pytest.approx(1.0)
    assert max(found["accuracy"], 1 - found["accuracy"]) == pytest.approx(found["length_baseline"])


@pytest.mark.parametrize(
    ("lengths", "baseline"),
    [
        ([[5, 3], [5, 3], [5, 3], [3, 5]], 0.75),  # the longer is preferred
        ([[3, 5], [3, 5], [3, 5], [5, 3]], 0.75),  # the shorter is: as good a rule
        ([[4, 4], [4, 4]], 0.5),  # nothing to go by
    ],
)
def test_length_baseline_by_hand(lengths: list[list[int]], baseline: float):
    found = length_baseline(np.array(lengths), np.ones(len(lengths)))
    assert found == pytest.approx(baseline)


def test_correlation_by_hand():
    """(0, 1, 2) with (0, 2, 1): covariance 1/3, variances 2/3: .5. Without variation: 0."""
    assert correlation(array(0, 1, 2), array(0, 2, 1)) == pytest.approx(0.5)
    assert correlation(array(0, 1, 2), array(3, 3, 3)) == 0.0


def test_the_interval_is_that_of_a_proportion():
    """60 hits of 100: the normal interval is .6 -+ 1.96 sqrt(.24 / 100) = (.504, .696)."""
    hits = array(*[1.0] * 60, *[0.0] * 40)
    low, high = bootstrap_interval(hits, seed=0)
    assert low == pytest.approx(0.504, abs=0.015)
    assert high == pytest.approx(0.696, abs=0.015)
    assert bootstrap_interval(hits, seed=0) == (low, high)
    # Weights of one size are no weights; a pair of weight 0 is not there.
    assert bootstrap_interval(hits, 0, weights=np.full(100, 3.0)) == pytest.approx((low, high))


def test_the_interval_has_its_coverage():
    """95 % intervals of 200 samples of 80 throws of a coin of .7 hold .7 at least 180 times."""
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        throws = (generator.random(80) < 0.7).astype(float)
        low, high = bootstrap_interval(throws, seed, resamples=400)
        held += low <= 0.7 <= high
    assert 180 <= held <= 200
