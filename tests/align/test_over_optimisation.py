"""Where score and judge part, on series whose running means and noise are known by hand."""

from __future__ import annotations

import math
import random

import pytest

from align.over_optimisation import SPAN, fit_curve, noise, parting_point, running_means

RISING = [float(i) for i in range(20)]


def zigzag(level: float, count: int) -> list[float]:
    return [level + (-1.0) ** i for i in range(count)]


def test_running_means():
    """(1+2+3+4+10)/5 = 4, (2+3+4+10+6)/5 = 5."""
    assert running_means([1, 2, 3, 4, 10, 6]) == [4, 5]


def test_noise_of_a_line_is_nothing_and_of_a_zigzag_is_known():
    """Each bend of a zigzag of +-1 is 1 + 2 + 1 = 4; sqrt(16 / 6) = 1.632993."""
    assert noise(RISING) == 0
    assert noise(zigzag(5, 12)) == pytest.approx(1.632993, abs=1e-6)
    assert noise([1, 2]) == 0


def test_noise_of_independent_draws_is_their_deviation():
    draw = random.Random(1)
    assert noise([draw.gauss(0, 3) for _ in range(20_000)]) == pytest.approx(3, rel=0.02)


def test_they_part_where_the_judge_is_highest():
    """A tent of 0 .. 10 .. 0: the one bend is 2 high, the noise sqrt(4 / (6 * 19)) = 0.187, and 6
    standard errors of a mean 6 * 0.187 / sqrt(5) = 0.50; it fell from 8.8 (8 9 10 9 8) to 2."""
    tent = [10.0 - abs(i - 10) for i in range(21)]
    steady = [float(i) for i in range(21)]
    assert parting_point(steady, steady, tent) == 10


@pytest.mark.parametrize(("height", "parted"), [(3.8, 2), (3.7, None)])
def test_the_fall_must_exceed_the_noise(height: float, parted: int | None):
    """Ten around `height`, then ten around 0, all zigzags of +-1. Sixteen bends are 4 high, the two
    at the step height - 4: noise sqrt((256 + 2 (height - 4)^2) / 108) = 1.5398 for 3.8, 1.5402 for
    3.7, so that 6 standard errors of a mean are 4.132 and 4.133. The running mean falls from
    height + 0.2 (+ - + - +) to -0.2 (- + - + -): by 4.2, and by 4.1. The first highest mean is
    centred on index 2."""
    judge = zigzag(height, 10) + zigzag(0, 10)
    assert parting_point(RISING, RISING, judge) == parted


def test_without_a_rising_score_or_a_policy_that_goes_on_they_do_not_part():
    judge = [5.0] * 10 + [0.0] * 10
    assert parting_point(RISING, RISING, judge) is not None
    assert parting_point(RISING, judge, judge) is None
    assert parting_point([3.0] * 20, RISING, judge) is None


@pytest.mark.parametrize(("slope", "parted"), [(0.17, True), (0.12, False)])
def test_the_score_must_rise_by_more_than_its_noise(slope: float, parted: bool):
    """Zigzag noise 1.633: two standard errors of a difference of means are 2 * sqrt(2 / 5) * 1.633
    = 2.066. The judge's first highest mean is the first, index 0; from there to the last mean the
    score rises by 15 slope - 0.4 (a mean of + - + - +, then of - + - + -): 2.15, and 1.4."""
    judge = [5.0] * 10 + [0.0] * 10
    score = [slope * i + z for i, z in enumerate(zigzag(0, 20))]
    assert (parting_point(RISING, score, judge) is not None) == parted


def test_too_few_iterations_say_nothing():
    judge = [9.0] * SPAN + [0.0] * (SPAN - 1)
    assert parting_point(RISING[:9], RISING[:9], judge) is None
    assert parting_point(RISING[:10], RISING[:10], [*judge, 0.0]) == 2


def test_a_judge_without_a_trend_is_left_alone():
    """A hundred runs of 60 iterations under a steadily rising score, each looked at every
    iteration: at 6 standard errors hardly one is to be accused."""
    draw = random.Random(7)
    accused = 0
    for _ in range(100):
        judge = [draw.gauss(0, 1) for _ in range(60)]
        steady = [float(i) for i in range(60)]
        accused += any(
            parting_point(steady[:n], steady[:n], judge[:n]) is not None for n in range(10, 61)
        )
    assert accused <= 3


def test_the_curve_is_found_again():
    """start + d (alpha - beta log d) with -1, 2 and 0.8."""
    d = [0.2 * i for i in range(1, 20)]
    scores = [-1 + x * (2 - 0.8 * math.log(x)) for x in d]
    assert fit_curve(d, scores) == pytest.approx((-1, 2, 0.8), abs=1e-6)
