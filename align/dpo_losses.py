"""Losses of direct alignment: pure functions of log-probabilities, [P] pairs in, an element a pair
out.

Each is given a number for the chosen and one for the rejected completion, in nats: the log-ratio
log pi - log ref summed over the tokens, its mean by token (`per_token`), or, for the losses that
know no reference, the mean of log pi. `label` [P] is the probability that the chosen one is better,
so that swapping a pair and its label changes no loss:

    loss = label * f(h) + (1 - label) * f(-h)

with the margin h of the two rewards and the loss f of a sure label.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from align.losses import LossOutput

NEARLY_CERTAIN = -1e-7
"""The largest log-probability whose odds fit float32; 0 would be odds of infinity."""


def per_token(sums: Tensor, tokens: Tensor) -> Tensor:
    """Sums over completions as means over their `tokens`, element by element.

    In place of the sum, the mean makes `sigmoid` length-normalised DPO (Lambert et al. 2024,
    arXiv:2411.15124); beta is then to be larger by about the length of a completion.
    """
    return sums / tokens


def offsets(gap: Tensor, alpha: float) -> Tensor:
    """[P] margins of ODPO (Amini et al. 2024, arXiv:2402.10571, eq. 9): alpha log(gap), for pairs
    rated `gap` [P] apart.

    A gap that is not known is 0, and its pair gets no offset. A gap below 1 gets a negative one.
    """
    known = gap > 0
    return alpha * torch.where(known, gap, 1.0).log()


def sigmoid(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    margin: Tensor | float = 0.0,
    label: Tensor | float = 1.0,
) -> LossOutput:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7): f(h) = -log sigmoid(h - margin).

    h = beta (chosen - rejected) of log-ratios. With a `margin` ([P] or one for all) it is ODPO
    (Amini et al. 2024, arXiv:2402.10571, eq. 8; its own margins are `offsets`), with
    `label_smoothing` conservative DPO: the label is taken to be wrong with that probability, and
    the loss is smallest at a margin of log((1 - e) / e) instead of infinity.
    """
    right = label * (1 - label_smoothing) + (1 - label) * label_smoothing
    return _either_way(lambda h: -F.logsigmoid(h - margin), beta * chosen, beta * rejected, right)


def robust(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    label_smoothing: float,
    margin: Tensor | float = 0.0,
    label: Tensor | float = 1.0,
) -> LossOutput:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): `sigmoid`, unbiased by flips.

    [(1 - e) f(h) - e f(-h)] / (1 - 2 e), whose mean over labels that are flipped with probability
    e = `label_smoothing` < 0.5 is the loss of the labels before. It has no smallest value.
    """
    right = (label - label_smoothing) / (1 - 2 * label_smoothing)
    return _either_way(lambda h: -F.logsigmoid(h - margin), beta * chosen, beta * rejected, right)


def hinge(chosen: Tensor, rejected: Tensor, beta: float, label: Tensor | float = 1.0) -> LossOutput:
    """The hinge of SLiC-HF (Zhao et al. 2023, arXiv:2305.10425), max(0, 1 - h), on log-ratios.

    As in Liu et al. 2023 (arXiv:2309.06657). The margin in nats is 1 / beta.
    """
    return _either_way(lambda h: F.relu(1 - h), beta * chosen, beta * rejected, label)


def ipo(chosen: Tensor, rejected: Tensor, beta: float, label: Tensor | float = 1.0) -> LossOutput:
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17) on mean log-ratios, which its authors meant.

    f = (d - 1 / (2 beta))^2 of d = chosen - rejected = h / beta. A soft label moves the smallest
    value to d = (label - 1/2) / beta.
    """
    return _either_way(lambda h: ((h - 0.5) / beta).square(), beta * chosen, beta * rejected, label)


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    margin: Tensor | float = 0.0,
    label: Tensor | float = 1.0,
) -> LossOutput:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6): `sigmoid` on mean log-probabilities.

    `margin` is its gamma. There is no reference.
    """
    return sigmoid(chosen, rejected, beta, label_smoothing, margin, label)


def orpo(chosen: Tensor, rejected: Tensor, beta: float, label: Tensor | float = 1.0) -> LossOutput:
    """ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7) on mean log-probabilities.

    The chosen completion's negative log-likelihood by token, plus `beta` (their lambda) times
    -log sigmoid of the log odds ratio. There is no reference. Rewards are the log odds.
    """
    odds = _either_way(lambda h: -F.logsigmoid(h), _log_odds(chosen), _log_odds(rejected), label)
    likelihood = -label * chosen - (1 - label) * rejected
    return LossOutput(likelihood + beta * odds.loss, odds.metrics)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprobs); 1 - exp is taken where it loses no digits."""
    logprobs = logprobs.clamp(max=NEARLY_CERTAIN)
    return logprobs - torch.log(-torch.expm1(logprobs))


def _either_way(
    loss: Callable[[Tensor], Tensor],
    chosen_reward: Tensor,
    rejected_reward: Tensor,
    right: Tensor | float,
) -> LossOutput:
    """`loss` of the margin, `right` parts as labelled and the rest the other way round."""
    margin = chosen_reward - rejected_reward
    return LossOutput(
        right * loss(margin) + (1 - right) * loss(-margin),
        {
            "dpo/accuracy": (margin > 0).float().detach(),
            "dpo/margin": margin.detach(),
            "dpo/chosen_reward": chosen_reward.detach(),
            "dpo/rejected_reward": rejected_reward.detach(),
        },
    )
