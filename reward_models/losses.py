"""Losses of reward models: pure functions of scores, one element a pair out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    label_smoothing: float = 0.0,
    label: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """-log P(chosen beats rejected) under Bradley and Terry (1952), [P] pairs of scores.

    `label` [P] is the probability that the chosen one is better (a soft label): the loss is the
    cross-entropy with it. With `label_smoothing` e, the label is taken to be wrong with
    probability e. `margin` ([P] or one for all) is by how much the better one's score is to exceed
    the other's (Touvron et al. 2023, arXiv:2307.09288, eq. 2).
    """
    gap = chosen - rejected
    right = label * (1 - label_smoothing) + (1 - label) * label_smoothing
    return -right * F.logsigmoid(gap - margin) - (1 - right) * F.logsigmoid(-gap - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, which pins the free constant of Bradley-Terry near 0
    (Eisenstein et al. 2023, arXiv:2312.09244, eq. 3)."""
    return (chosen + rejected).square()
