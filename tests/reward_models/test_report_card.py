"""The numbers of the report card on a few answers, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from reward_models.report_card import (
    Judged,
    balanced_weights,
    classes_of,
    correlations,
    length_bins,
    metrics,
    report_card,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def judged(
    margins: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
    ties: Sequence[tuple[int, int]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Judged:
    """A pair of answers each, of a prompt of its own; the rejected ones score 0."""
    pairs = len(margins)
    return Judged(
        scores=np.stack([array(*margins), np.zeros(pairs)], axis=1).ravel(),
        lengths=np.array(lengths, dtype=float).ravel(),
        prompts=np.repeat(np.arange(pairs), 2),
        better=np.arange(0, 2 * pairs, 2),
        worse=np.arange(1, 2 * pairs, 2),
        weights=np.ones(pairs) if weights is None else array(*weights),
        labels=np.ones(pairs),
        ties=np.array(ties, dtype=int).reshape(-1, 2),
        groups=groups or {},
    )


def test_headline_numbers_by_hand():
    """Margins log 3, -log 3, 0 with weights 1, 1, 2: P = 3/4, 1/4, 1/2.

    Accuracy (1 + 0 + 2 * .5) / 4 = .5; margin 0; Brier ((1/4)^2 + (3/4)^2 + 2 (1/2)^2) / 4 =
    .28125. Length 9 to 3, 5 to 4, 7 to 7: the longer is right in (1 + 1 + 2 * .5) / 4 = .75, which
    the model is below by .25.
    """
    log_3 = math.log(3.0)
    found = judged([log_3, -log_3, 0.0], [(9, 3), (5, 4), (7, 7)], [1, 1, 2])
    card = report_card(found, found, seed=0)
    assert card["length"]["rule"] == "longer"
    assert card["calibration"]["temperature"] is None and card["ties"] is None
    numbers = metrics(card)
    assert numbers["accuracy"] == pytest.approx(0.5)
    assert numbers["margin"] == pytest.approx(0.0, abs=1e-9)
    assert numbers["brier"] == pytest.approx(0.28125)
    assert numbers["length_baseline"] == pytest.approx(0.75)
    assert numbers["above_length_baseline"] == pytest.approx(-0.25)
    assert numbers["pairs"] == 3
    assert 0.0 <= numbers["accuracy_low"] <= 0.5 <= numbers["accuracy_high"] <= 1.0
    assert "temperature" not in numbers
    json.dumps(card, allow_nan=False)


def test_a_model_of_length_alone_is_seen_through():
    """Score = length: the correlation is 1, the model is the baseline pair by pair, so that the
    difference is 0 without doubt, and right on half of the pairs that length tells nothing of."""
    generator = np.random.default_rng(0)
    longer = generator.integers(1, 50, size=400) * np.where(generator.random(400) < 0.7, 1, -1)
    lengths = [(60 + int(more), 60) for more in longer]
    found = judged([more / 10 for more in longer], lengths)
    found = Judged(**{**vars(found), "scores": found.lengths / 10})
    numbers = metrics(report_card(found, found, seed=0))
    assert numbers["length_correlation"] == pytest.approx(1.0)
    assert numbers["accuracy"] == numbers["length_baseline"] == pytest.approx(np.mean(longer > 0))
    for end in ("", "_low", "_high"):
        assert numbers[f"above_length_baseline{end}"] == 0
    assert numbers["length_balanced_accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("lengths", "baseline", "rule"),
    [
        ([(5, 3), (5, 3), (5, 3), (3, 5)], 0.75, "longer"),
        ([(3, 5), (3, 5), (3, 5), (5, 3)], 0.75, "shorter"),  # as good a rule
        ([(4, 4), (4, 4)], 0.5, "longer"),  # nothing to go by
    ],
)
def test_length_baseline_by_hand(lengths: list[tuple[int, int]], baseline: float, rule: str):
    found = judged([1.0] * len(lengths), lengths)
    length = report_card(found, found, seed=0)["length"]
    assert length["baseline"]["value"] == pytest.approx(baseline)
    assert length["rule"] == rule
    assert length["above_baseline"]["value"] == pytest.approx(1 - baseline)


def test_two_pairs_are_not_above_the_baseline_without_doubt():
    """Both right and of one length: .5 above it. Wilson's interval of 3/4 of the 0.0475876 trials
    that two pairs are worth is [.0069, .9992], and twice that less 1; forty leave no doubt."""
    for pairs, low, high in ((2, -0.9862, 0.9985), (40, 0.5, 0.5)):
        found = judged([1.0] * pairs, [(4, 4)] * pairs)
        length = report_card(found, found, seed=0)["length"]
        above = length["above_baseline"]
        assert above["value"] == 0.5
        assert (above["low"], above["high"]) == pytest.approx((low, high), abs=1e-3)
        assert length["baseline"]["low"] < 0.5 < length["baseline"]["high"]


def test_without_a_training_pair_there_is_no_training_accuracy():
    """The training side holds thumbs alone, or ties."""
    found, ties = judged([1.0], [(4, 4)]), judged([], [])
    ties = Judged(**{**vars(ties), "scores": array(0, 1), "lengths": array(3, 3)})
    card = report_card(found, ties, seed=0)
    assert card["training_accuracy"] is None
    json.dumps(card, allow_nan=False)


def test_pairs_are_balanced_within_bins_of_difference():
    """Sizes 1, 1, 2, 3, 3, 6: thirds end at places 5/3 and 10/3 of 0 … 5, at 1.67 and 3.

    In the first bin the longer answer wins with weight 1 and the shorter with 3: both become 2. In
    the second 2 to 1: both 3/2. The third has one side alone and tells nothing. Equal lengths stay.
    """
    longer = array(1, -1, 2, -3, 3, 6, 0)
    bins = length_bins(longer)
    assert bins.tolist() == [1, -1, 2, -2, 2, 3, 0]
    found = balanced_weights(bins, array(1, 3, 1, 1, 1, 1, 5))
    assert found == pytest.approx([2, 2, 0.75, 1.5, 0.75, 0, 5])


def test_correlation_within_prompts_leaves_prompts_out():
    """Two prompts of answers of lengths 1, 2 and 11, 12; scores 1, 0 and 11, 10: over all answers
    nearly 1; within each prompt the longer answer scores less: -1. Of the ranks 1 2 3 4 and 2 1 4
    3: d^2 = 4, 1 - 6 * 4 / (4 * 15) = .6, and -1."""
    found = correlations(array(1, 0, 11, 10), array(1, 2, 11, 12), np.array([0, 0, 1, 1]))
    # Centred at 5.5 and 6.5: covariance (4.5 * 5.5 + 5.5 * 4.5) * 2 / 4 = 24.75; variances 25.25.
    assert found["pearson"] == pytest.approx(24.75 / 25.25)
    assert found["spearman"] == pytest.approx(0.6)
    assert found["pearson_within_prompts"] == pytest.approx(-1.0)
    assert found["spearman_within_prompts"] == pytest.approx(-1.0)


def test_groups_that_are_small_are_joined_and_counted():
    """12 of a, all right; 10 of b, half right; 3 of c and 1 of d, in one line of 4, 3 right."""
    groups = ["a"] * 12 + ["b"] * 10 + ["c"] * 3 + ["d"]
    margins = [1.0] * 12 + [1.0] * 5 + [-1.0] * 5 + [2.0] * 3 + [-2.0]
    found = judged(margins, [(5, 5)] * 26, groups={"source": groups, "one": ["x"] * 26})
    breakdowns = report_card(found, found, seed=0)["breakdowns"]
    assert list(breakdowns) == ["source"]  # a group alone breaks nothing down
    rows = [(r["group"], r["pairs"], r["accuracy"]["value"]) for r in breakdowns["source"]]
    assert rows == [("a", 12, 1.0), ("b", 10, 0.5), ("2 others", 4, 0.75)]
    assert breakdowns["source"][2]["margin"] == pytest.approx(1.0)
    low = breakdowns["source"][0]["accuracy"]["low"]
    assert low == pytest.approx(1 / (1 + 3.841459 / 12), abs=1e-5)  # Wilson's


def test_ties_are_told_apart():
    """One tie of scores 2 and 0, beside decided pairs of margins 2, -1, 0: 2 to (2 + 1 + 0) / 3."""
    found = judged([2.0, -1.0, 0.0], [(5, 5)] * 3, ties=[(0, 1)])
    ties = report_card(found, found, seed=0)["ties"]
    assert ties == {"pairs": 1, "share": 0.25, "margin": 2.0, "margin_of_decided": 1.0}


def test_every_answer_is_in_the_histogram():
    generator = np.random.default_rng(2)
    found = judged(generator.standard_t(2, size=500).tolist(), [(5, 5)] * 500)
    scores = report_card(found, found, seed=0)["scores"]
    for name, answers in (("chosen", 500), ("rejected", 500), ("reference", 1000)):
        assert sum(scores[name]["counts"]) == scores[name]["answers"] == answers
    assert scores["chosen"]["mean"] == pytest.approx(found.scores[::2].mean())


def test_classes_are_the_numbers_or_thirds():
    assert classes_of([1, None, 2, 1], "gap") == ["gap 1", "no gap", "gap 2", "gap 1"]
    # 1 … 9: thirds end at 1 + 8/3 = 3.67 and 6.33.
    found = classes_of([float(i) for i in range(1, 10)], "gap")
    assert found == ["gap to 3.67"] * 3 + ["gap to 6.33"] * 3 + ["gap above 6.33"] * 3


def test_the_pairs_order_changes_nothing():
    """Neither does which pair comes first, nor a score that all answers have on top."""
    generator = np.random.default_rng(3)
    margins = generator.normal(size=60)
    lengths = [(int(a), int(b)) for a, b in generator.integers(1, 30, size=(60, 2))]
    order = generator.permutation(60)
    one = judged(margins.tolist(), lengths)
    other = judged(margins[order].tolist(), [lengths[i] for i in order])
    other = Judged(**{**vars(other), "scores": other.scores + 5})
    fixed = ("accuracy", "brier", "ece", "log_loss", "length_baseline", "temperature")
    first, second = (metrics(report_card(found, found, seed=0)) for found in (one, other))
    for name in fixed:
        assert first[name] == pytest.approx(second[name], abs=1e-6), name
