"""From scores to advantages: the KL-shaped reward, the estimators, and the KL controllers.

GAE needs a value function; RLOO, GRPO and REINFORCE need none and give every token of a response
the same advantage.

Axes: B sequences, R response tokens. `mask` [B, R] is True on the response's tokens, its end
included; everything outside it is 0 in every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

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


def rloo(rewards: Tensor, samples: int) -> Tensor:
    """[B] each response's reward less the mean of the others' to its prompt (Ahmadian et al. 2024,
    arXiv:2402.14740, section 3.2).

    `rewards` [B] of whole responses; the `samples` >= 2 responses to a prompt stand side by side.
    Raises ValueError for fewer, or if B is no multiple of them.
    """
    groups = _groups(rewards, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def grpo(rewards: Tensor, samples: int, divide: bool = True, epsilon: float = 1e-4) -> Tensor:
    """[B] each response's reward less its group's mean, over the group's standard deviation +
    epsilon (Shao et al. 2024, arXiv:2402.03300, section 4.1.2; biased variance).

    Arguments as of `rloo`. Without `divide` the differences stay as they are (Liu et al. 2025,
    arXiv:2503.20783).
    """
    groups = _groups(rewards, samples)
    differences = groups - groups.mean(dim=1, keepdim=True)
    if divide:
        deviation = differences.square().mean(dim=1, keepdim=True).sqrt()
        differences = differences / (deviation + epsilon)
    return differences.flatten()


def _groups(rewards: Tensor, samples: int) -> Tensor:
    """[G, K] the rewards by prompt."""
    if samples < 2 or len(rewards) % samples:
        raise ValueError(f"{len(rewards)} rewards are no groups of {samples} >= 2 responses")
    return rewards.reshape(-1, samples)


def reinforce(rewards: Tensor, baseline: float) -> Tensor:
    """[B] reward of each response less a constant (Williams 1992): it does not bias the gradient
    as long as it does not depend on the response."""
    return rewards - baseline


def by_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B, R] the advantage [B] of a response on each of its tokens."""
    return torch.where(mask, advantages[:, None], 0.0)


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


@dataclass
class RunningStatistics:
    """Mean and spread of all numbers seen so far (Chan et al. 1979, eq. 1.5), in float64.

    Feed it the numbers of all ranks; it then agrees on all of them.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances to the mean."""

    def update(self, values: Tensor) -> None:
        """Takes in numbers of any shape."""
        new = values.double().flatten()
        total = self.count + new.numel()
        shift = float(new.mean()) - self.mean
        self.squares += float((new - new.mean()).square().sum())
        self.squares += shift**2 * self.count * new.numel() / total
        self.mean += shift * new.numel() / total
        self.count = total

    @property
    def scale(self) -> float:
        """Standard deviation (biased); 1 where there is none to speak of, so that one may divide
        by it."""
        deviation = (self.squares / self.count) ** 0.5 if self.count else 0.0
        return deviation if deviation > 1e-6 else 1.0

    def to_json(self) -> dict[str, float]:
        """For a checkpoint; `from_json` gives the same to the last bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, float]) -> RunningStatistics:
        return cls(int(plain["count"]), float(plain["mean"]), float(plain["squares"]))
