"""What the numbers on held-out pairs mean, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_models.calibration import (
    brier,
    clustered_means,
    correlation,
    cross_fitted,
    effective_trials,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    probabilities,
    reliability,
    share_intervals,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def sampled(temperature: float, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and labels drawn with the probability sigmoid(margin / temperature)."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(scale=2.0, size=pairs)
    labels = (generator.random(pairs) < 1 / (1 + np.exp(-margins / temperature))).astype(float)
    return margins, labels


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
        ([0.5] * 5, 0.0),  # it does not know, and says so
    ],
)
def test_calibration_error_at_the_ends(probability: list[float], error: float):
    found = expected_calibration_error(array(*probability), np.ones(len(probability)))
    assert found == pytest.approx(error, abs=1e-9)


def test_a_soft_label_is_that_share_of_people():
    """Confidence .8 on labels of .8: no gap. Confidence .8 in the other answer (P = .2) on the same
    label is right in .2 of the cases: a gap of .6."""
    labels = np.full(4, 0.8)
    assert expected_calibration_error(labels, np.ones(4), labels) == pytest.approx(0.0, abs=1e-9)
    wrong = expected_calibration_error(1 - labels, np.ones(4), labels)
    assert wrong == pytest.approx(0.6, abs=1e-9)


def test_the_curve_has_a_point_for_each_bin_that_is_not_empty():
    """.92 -> [.9, .95); .62 twice, one right, -> [.6, .65), which holds 2/3 of the weight."""
    curve = reliability(array(0.92, 0.62, 0.38), np.ones(3), np.ones(3))
    low, high = curve
    assert (low.low, low.high) == pytest.approx((0.6, 0.65))
    assert (low.pairs, low.confidence, low.accuracy) == pytest.approx((2, 0.62, 0.5))
    assert low.share == pytest.approx(2 / 3)
    assert (high.pairs, high.confidence, high.accuracy) == pytest.approx((1, 0.92, 1.0))


def test_brier_and_log_loss_by_hand():
    """Margins log 3, -log 3, 0 with weights 1, 1, 2: P = 3/4, 1/4, 1/2.

    Brier ((1/4)^2 + (3/4)^2 + 2 (1/2)^2) / 4 = .28125; log-loss (log 4/3 + log 4 + 2 log 2) / 4.
    The last as a soft label of 1/4: .25 * .5^2 + .75 * .5^2 is the same, and so is log 2.
    """
    margins, weights = array(math.log(3), -math.log(3), 0), array(1, 1, 2)
    for labels in (np.ones(3), array(1, 1, 0.25)):
        assert brier(probabilities(margins), labels, weights) == pytest.approx(0.28125)
        expected = (math.log(4 / 3) + math.log(4) + 2 * math.log(2)) / 4
        assert log_loss(margins, labels, weights) == pytest.approx(expected)


# --- temperature ---------------------------------------------------------------------------------


def test_temperature_by_hand():
    """Margins of 1, right in 3 of 4 cases: sigmoid(1 / T) = 3/4, so T = 1 / log 3 = .910."""
    found = fit_temperature(np.ones(4), array(1, 1, 1, 0), np.ones(4))
    assert found == pytest.approx(1 / math.log(3), abs=1e-5)
    weighted = fit_temperature(np.ones(2), array(1, 0), array(3, 1))
    assert weighted == pytest.approx(1 / math.log(3), abs=1e-5)
    soft = fit_temperature(np.ones(1), array(0.75), np.ones(1))
    assert soft == pytest.approx(1 / math.log(3), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_a_sample_is_found(temperature: float):
    """Of 20,000 pairs its standard error is below 2 %."""
    margins, labels = sampled(temperature, 20_000, seed=3)
    found = fit_temperature(margins, labels, np.ones(len(margins)))
    assert found == pytest.approx(temperature, rel=0.06)
    # A scale of the scores is no property of the pairs.
    scaled = fit_temperature(3 * margins, labels, np.ones(len(margins)))
    assert scaled == pytest.approx(3 * found, rel=1e-4)


def test_a_temperature_takes_overconfidence_away():
    """Scores three times too large: far off; after calibration no further off than chance, the
    mean of |accuracy - p| in 10 bins of about 1,000, sqrt(2 / pi * .2 / 1000) = .011."""
    margins, labels = sampled(3.0, 10_000, seed=4)
    ones = np.ones(len(margins))
    fitted = cross_fitted(margins, labels, ones, np.arange(len(margins)), seed=0)
    assert fitted is not None

    def error(temperature: np.ndarray | float) -> float:
        return expected_calibration_error(probabilities(margins, temperature), ones, labels)

    assert error(1.0) > 0.1
    assert error(fitted) < 0.02
    assert error(3.0) < 0.02  # perfectly calibrated


def test_no_pair_is_judged_by_a_temperature_that_saw_it():
    """A change of one prompt's labels changes the temperature of the other half alone, and the
    pairs of one prompt have the same."""
    margins, labels = sampled(1.0, 80, seed=5)
    prompts, ones = np.repeat(np.arange(40), 2), np.ones(80)
    before = cross_fitted(margins, labels, ones, prompts, seed=0)
    flipped = np.where(prompts == 0, 1 - labels, labels)
    after = cross_fitted(margins, flipped, ones, prompts, seed=0)
    assert before is not None and after is not None
    own_half = before == before[0]
    assert own_half.sum() == 40
    assert (before[::2] == before[1::2]).all()
    assert (after[own_half] == before[own_half]).all()
    assert (after[~own_half] != before[~own_half]).all()


def test_few_prompts_give_no_temperature():
    assert cross_fitted(np.ones(38), np.ones(38), np.ones(38), np.arange(38) // 2, 0) is None


# --- intervals -----------------------------------------------------------------------------------


def test_correlation_by_hand():
    """(0, 1, 2) with (0, 2, 1): covariance 1/3, variances 2/3: .5. Without variation: 0."""
    assert correlation(array(0, 1, 2), array(0, 2, 1)) == pytest.approx(0.5)
    assert correlation(array(0, 1, 2), array(3, 3, 3)) == 0.0


def interval_of(
    hits: np.ndarray, seed: int, resamples: int = 2000, weight: float = 1.0
) -> tuple[float, float]:
    """(low, high) of hits that are each a cluster of its own."""
    weights, each = np.full((len(hits), 1), weight), np.arange(len(hits))
    (found,) = clustered_means(hits[:, None], weights, each, seed, resamples)
    return found.low, found.high


def test_the_interval_is_that_of_a_proportion():
    """60 hits of 100: the normal interval is .6 -+ 1.96 sqrt(.24 / 100) = (.504, .696)."""
    hits = array(*[1.0] * 60, *[0.0] * 40)
    low, high = interval_of(hits, seed=0)
    assert low == pytest.approx(0.504, abs=0.015)
    assert high == pytest.approx(0.696, abs=0.015)
    assert interval_of(hits, seed=0) == (low, high)
    # Weights of one size are no weights.
    assert interval_of(hits, seed=0, weight=3.0) == pytest.approx((low, high))


def test_the_interval_has_its_coverage():
    """95 % intervals of 200 samples of 80 throws of a coin of .7 hold .7 at least 180 times."""
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        throws = (generator.random(80) < 0.7).astype(float)
        low, high = interval_of(throws, seed, resamples=400)
        held += low <= 0.7 <= high
    assert 180 <= held <= 200


def test_pairs_of_a_prompt_that_agree_are_one_observation():
    """100 prompts, 60 all right: with one pair each (.504, .696), as above. Four equal pairs of
    each say nothing new: the same interval, and not that of 400 pairs, which is half as wide."""
    prompts = np.repeat(np.arange(100), 4)
    hits = (prompts < 60).astype(float)[:, None]
    ones = np.ones_like(hits)
    (found,) = clustered_means(hits, ones, prompts, seed=0)
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.504, abs=0.015)
    assert found.high == pytest.approx(0.696, abs=0.015)
    (naive,) = clustered_means(hits, ones, np.arange(400), seed=0)
    assert (found.high - found.low) / (naive.high - naive.low) == pytest.approx(2, abs=0.2)


def test_columns_are_means_under_their_own_weights():
    """Columns (1, 0) with weights (3, 1) and (0, 2) -> 3/4 and 0; nothing has no mean."""
    values = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    weights = np.array([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    first, second, nothing = clustered_means(values, weights, np.array([7, 9]), seed=0)
    assert (first.value, second.value) == (0.75, 0.0)
    assert (first.low, first.high) == (0.0, 1.0)  # one of the two prompts drawn twice
    assert math.isnan(nothing.value)


def test_five_hits_in_a_row_are_not_certain():
    """Wilson's interval of 5 of 5: the low end is 1 / (1 + z^2 / 5) = 1 / (1 + 3.8415 / 5) = .5655.
    Of five pairs of one prompt it is that of 1 of 1, 1 / (1 + 3.8415) = .2065."""
    hits = np.ones((5, 1))
    (found,) = share_intervals(hits, hits, np.arange(5), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((1, 0.5655, 1), abs=1e-4)
    (found,) = share_intervals(hits, hits, np.zeros(5, dtype=int), seed=0)
    assert found.low == pytest.approx(0.2065, abs=1e-4)


def test_few_clusters_are_worth_what_their_spread_says():
    """Two clusters of four pairs, 3 of 4 and 1 of 4 right: m = 1/2, m (1 - m) = 1/4; the sums of
    what is left are 3 - 2 = 1 and 1 - 2 = -1, so the variance of the mean is
    (1 + 1) / 8^2 * 2 / 1 = 1/16 and 1/4 / 1/16 = 4 trials, times (1.95996 / 12.70620)^2 = 0.0237938
    for the one degree of freedom. Equal clusters are worth their eight pairs, times the same; and
    clusters that are all right, or one alone, count themselves."""
    apart = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=float)
    alike = np.array([1, 1, 0, 0, 1, 1, 0, 0], dtype=float)
    ones, place = np.ones(8), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert effective_trials(apart, ones, place) == pytest.approx(4 * 0.0237938, abs=1e-5)
    assert effective_trials(alike, ones, place) == pytest.approx(8 * 0.0237938, abs=1e-5)
    assert effective_trials(ones, ones, place) == pytest.approx(2)
    assert effective_trials(apart, ones, 0 * place) == pytest.approx(1)


def test_many_pairs_of_few_clusters_have_a_narrower_interval_than_the_clusters():
    """Eight clusters of 500 independent pairs, 0.6 right: nearly as good as 4,000 trials, but for
    the seven degrees of freedom (1.96 / 2.3646). Eight trials would be wrong by 0.3."""
    generator = np.random.default_rng(5)
    widths, held = [], 0
    for _ in range(200):
        hits = (generator.random((4000, 1)) < 0.6).astype(float)
        place = np.repeat(np.arange(8), 500)
        [found] = share_intervals(hits, np.ones((4000, 1)), place, seed=1, resamples=2)
        widths.append(found.high - found.low)
        held += found.low <= 0.6 <= found.high
    assert 0.02 < np.median(widths) < 0.05
    assert held >= 185  # 190 expected, standard deviation 3.1
