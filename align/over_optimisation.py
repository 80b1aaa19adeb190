"""Over-optimisation: the score goes on rising while what it stands for falls (Goodhart's law).

Gao et al. 2022 (arXiv:2210.10760) draw both over d = sqrt(KL(pi || ref)), the way that the policy
has gone. Here is where the two part, and their curve for it. Needs neither torch nor a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SPAN = 5
"""Iterations of a running mean: one iteration's mean score is too noisy to have a maximum."""
NOISE = 6.0
"""Standard errors of a running mean that the judge must have fallen from its maximum. The maximum
was chosen among many: over 100 iterations without any trend (20 separate means) the largest and
the smallest mean differ by more than 5.7 standard errors in one run of a hundred (Tukey's
studentised range), and every iteration looks again."""
RISE = 2.0
"""Standard errors of a difference of two running means that the score must have risen by."""


def parting_point(
    kl: Sequence[float], proxy: Sequence[float], judge: Sequence[float]
) -> int | None:
    """The index of the iteration at which score and judge part; None if they do not.

    `kl`, `proxy` (the score that is trained on) and `judge` [iterations] are means of each
    iteration's responses. They part at the maximum of the judge's running mean, if from there to
    the last iterations the judge fell by more than its noise while the score rose by more than its
    own and the policy went further from the reference.
    """
    if len(judge) < 2 * SPAN:
        return None
    far, scored, judged = running_means(kl), running_means(proxy), running_means(judge)
    # The means that share no iteration with the last one: their errors are independent of its.
    peak = max(range(len(judged) - SPAN), key=judged.__getitem__)
    fall = judged[peak] - judged[-1]
    rise = scored[-1] - scored[peak]
    error = 1 / math.sqrt(SPAN)
    if fall <= NOISE * error * noise(judge) or rise <= RISE * math.sqrt(2) * error * noise(proxy):
        return None
    return peak + SPAN // 2 if far[-1] > far[peak] else None


def running_means(series: Sequence[float]) -> list[float]:
    """[n - SPAN + 1] means of SPAN neighbours; the first is centred on index SPAN // 2."""
    return [
        math.fsum(series[start : start + SPAN]) / SPAN for start in range(len(series) - SPAN + 1)
    ]


def noise(series: Sequence[float]) -> float:
    """Standard deviation of a series around its trend, from how far each value is off the middle
    of its two neighbours (Gasser, Sroka and Jennen-Steinmetz 1986): a straight line has none."""
    bends = [
        before - 2 * here + after
        for before, here, after in zip(series, series[1:], series[2:], strict=False)
    ]
    return math.sqrt(math.fsum(bend * bend for bend in bends) / (6 * len(bends))) if bends else 0.0


def fit_curve(distance: Sequence[float], score: Sequence[float]) -> tuple[float, float, float]:
    """(start, alpha, beta) of start + d (alpha - beta log d), by least squares.

    The form that Gao et al. (2022, section 3) found for reinforcement learning; at d = 0 it is
    `start`. At least three of the distances are different.
    """
    import numpy as np

    d = np.asarray(distance, dtype=float)
    design = np.stack([np.ones_like(d), d, -d * np.log(np.where(d > 0, d, 1.0))], axis=1)
    solution = np.linalg.lstsq(design, np.asarray(score, dtype=float), rcond=None)[0]
    start, alpha, beta = (float(value) for value in solution)
    return start, alpha, beta
