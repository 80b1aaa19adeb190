"""Losses of policies and values: pure functions of tensors, an element a token out.

The caller divides by the number of rows or tokens of the whole optimiser step over all ranks, so
that the gradient does not depend on how the step was split.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss by row or token, with the metrics that belong to it, in the same axes."""

    loss: Tensor
    metrics: dict[str, Tensor]


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


def kl_penalty(logprobs: Tensor, old: Tensor, reference: Tensor) -> LossOutput:
    """KL(pi || ref) by token as a loss: the ratio, without gradient, times k2.

    k2 is (log pi - log ref)^2 / 2; all arguments share their axes and are in nats.
    Its value is an estimate; its expected gradient over tokens of the old policy is exactly that of
    the KL, on-policy and off it (arXiv:2510.01555; k1 here has expected gradient 0, k3 that of the
    reverse KL). What a token does to the KL of the tokens after it is not in it.
    """
    ratio = (logprobs - old).detach().clamp(-20, 20).exp()
    penalty = ratio * 0.5 * (logprobs - reference).square()
    return LossOutput(penalty, {"policy/kl_loss": penalty.detach()})


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
