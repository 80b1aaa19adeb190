"""What an iteration of policy optimisation says of its rollout."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from align.advantages import k3
from align.metrics.replies import distinct_n
from align.rollout import Rollout
from align.tensors import masked_mean


def describe(rollout: Rollout, rewards: Tensor, returns: Tensor | None) -> dict[str, float]:
    """Numbers about a rollout; the KL is summed over a response, then averaged.

    `rewards` [B, R] as charged; `returns` [B, R] where a value function learns them.
    """
    replies = [sample.group.completions[0] for sample in rollout.samples]
    found = {
        "objective/kl": float(rollout.kl.mean()),
        "objective/kl_k3": float(
            (k3(rollout.logprobs, rollout.reference) * rollout.mask).sum(1).mean()
        ),
        "objective/score": float(rollout.scores.mean()),
        **{f"objective/{name}": float(part.mean()) for name, part in rollout.score_parts.items()},
        "objective/reward": float(rewards.sum(1).mean()),
        "response/length": float(rollout.mask.sum(1).float().mean()),
        "response/eos_rate": float(rollout.ended.float().mean()),
        "response/distinct_2": distinct_n(replies, 2),
        "response/top_reply_share": max(Counter(replies).values()) / len(replies),
    }
    if returns is not None and rollout.values is not None:
        found["value/explained_variance"] = explained_variance(
            returns, rollout.values, rollout.mask
        )
    return found


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - mean squared error / variance of the returns, both under the mask: 1 is a perfect value
    function, 0 one that knows their mean, below 0 one that does harm."""
    spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask).clamp(min=1e-8)
    return float(1 - masked_mean((returns - values).square(), mask) / spread)
