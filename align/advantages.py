"""From scores to advantages: the KL-shaped reward, GAE, and the KL controllers. Pure functions.

Axes: B sequences, R response tokens. `mask` [B, R] is True on the response's tokens, its end
included; everything outside it is 0 in every result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def kl_shaped_rewards(
    scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, coefficient: float
) -> Tensor:
    """[B, R] reward per token: -coefficient * (log pi - log ref), plus the score on the last token.

    `scores` [B]; `logprobs` and `reference` [B, R] at sampling time, nats. The estimator is k1, the
    only one whose place is in the reward (Ziegler et al. 2019, eq. 2; arXiv:2510.01555).
    """
    rewards = torch.where(mask, -coefficient * (logprobs - reference), 0.0)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [B, R] (Schulman et al. 2015, eq. 16).

    The value after the last token is 0: the episode ends there, and what stands in masked places
    does not matter. Returns are advantages (not standardised) + values.
    """
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        carried = deltas[:, t] + gamma * lambda_ * carried
        advantages[:, t] = carried
    advantages = torch.where(mask, advantages, 0.0)
    return advantages, advantages + values


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Low-variance estimate of KL(pi || ref) per token, for logging (Schulman 2020)."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


@dataclass
class KLController:
    """The KL coefficient: fixed, or steered to `target` nats a response (Ziegler et al. 2019, 2.2).

    Feed it the mean over responses of the KL summed over tokens, over all ranks.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """Moves the coefficient after `responses` episodes whose mean KL was `kl` nats."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * responses / self.horizon
