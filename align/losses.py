"""Losses of policies: pure functions of tensors, an element a row or token out.

The caller divides by the number of rows or tokens of the whole optimiser step over all ranks, so
that the gradient does not depend on how the step was split.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossOutput(NamedTuple):
    """A loss by row or token, with the metrics that belong to it, in the same axes."""

    loss: Tensor
    metrics: dict[str, Tensor]


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    label: Tensor | float = 1.0,
) -> LossOutput:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), [P] pairs.

    The first four are log-probabilities summed over the completion, nats; `label` [P] is the
    probability that the chosen one is better. With `label_smoothing` e it is conservative DPO:
    (1 - e) l(h) + e l(-h), l = -log sigmoid.
    """
    chosen_reward = beta * (chosen - reference_chosen)
    rejected_reward = beta * (rejected - reference_rejected)
    margin = chosen_reward - rejected_reward
    right = label * (1 - label_smoothing) + (1 - label) * label_smoothing
    loss = -right * F.logsigmoid(margin) - (1 - right) * F.logsigmoid(-margin)
    return LossOutput(
        loss,
        {
            "dpo/accuracy": (margin > 0).float().detach(),
            "dpo/margin": margin.detach(),
            "dpo/chosen_reward": chosen_reward.detach(),
            "dpo/rejected_reward": rejected_reward.detach(),
        },
    )


def ppo_policy(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> LossOutput:
    """Clipped policy loss by token (Schulman et al. 2017, eq. 7).

    All arguments share their axes; log-probabilities in nats. The log-ratio is bounded to +-20
    before it is raised.
    """
    log_ratio = (logprobs - old).clamp(-20, 20)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    return LossOutput(
        loss,
        {
            "policy/ratio_mean": ratio.detach(),
            "policy/clip_fraction": (-advantages * clipped > -advantages * ratio).float().detach(),
            "policy/approx_kl": (0.5 * log_ratio.square()).detach(),
        },
    )


def ppo_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> LossOutput:
    """Clipped value loss by token: half the larger of the two squared errors."""
    near = old + (values - old).clamp(-clip, clip)
    outside = (values - old).abs() > clip
    free_error, near_error = (values - returns).square(), (near - returns).square()
    return LossOutput(
        0.5 * torch.maximum(free_error, near_error),
        # Inside the range both errors are equal but for rounding.
        {"value/clip_fraction": (outside & (near_error > free_error)).float().detach()},
    )
