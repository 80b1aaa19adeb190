"""Losses of reward models: pure functions of scores, one element a pair, ranking or answer out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TieModel = Literal["rao_kupper", "davidson"]

# --- two answers ----------------------------------------------------------------------------------


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


class Verdicts(NamedTuple):
    """Log-probabilities [P] of the three things that can be said of two answers; sum to 1."""

    first: Tensor
    tie: Tensor
    second: Tensor


def rao_kupper(first: Tensor, second: Tensor, tie: Tensor) -> Verdicts:
    """Bradley and Terry's model with ties after Rao and Kupper (1967): an answer wins if
    it is felt to be better by more than a threshold.

    `first` and `second` [P] are scores, strengths p = exp(score). `tie` ([P] or [1]) is any number,
    theta = 1 + exp(tie). P(first) = p1 / (p1 + theta p2), and P(tie) = (theta^2 - 1) P(first)
    P(second). As theta goes to 1, it is Bradley and Terry's.
    """
    gap, threshold = first - second, F.softplus(tie)  # log theta
    wins, loses = F.logsigmoid(gap - threshold), F.logsigmoid(-gap - threshold)
    spread = tie + F.softplus(tie - math.log(2)) + math.log(2)  # log (theta - 1) (theta + 1)
    return Verdicts(wins, spread + wins + loses, loses)


def davidson(first: Tensor, second: Tensor, tie: Tensor) -> Verdicts:
    """Bradley and Terry's model with ties after Davidson (1970).

    `first` and `second` [P] are scores, strengths p = exp(score). `tie` ([P] or [1]) is any number,
    log nu: P(first), P(tie) and P(second) are as p1 : nu sqrt(p1 p2) : p2. Whatever nu is, a
    verdict that is no tie follows Bradley and Terry's model, so sigmoid(first - second) keeps its
    meaning. As nu goes to 0, there are no ties.
    """
    half = (first - second) / 2
    said = torch.stack(torch.broadcast_tensors(half, tie, -half)).log_softmax(0)
    return Verdicts(said[0], said[1], said[2])


def with_ties(said: Verdicts, tied: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """[P] -log of what was said: a tie where `tied` [P] is True, else that the first is better.

    With `label_smoothing` e, a win is taken to be the other's with probability e; a tie is a tie
    from either side.
    """
    won = -(1 - label_smoothing) * said.first - label_smoothing * said.second
    return torch.where(tied, -said.tie, won)


def soft_verdict(said: Verdicts, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """[P] cross-entropy of soft labels that hold ties: `label` [P] is the share of those for whom
    the first is better, plus half of those for whom neither is.

    It is compared with P(first) + P(tie) / 2, and least where the two are equal. Without ties it is
    `bradley_terry`'s.
    """
    right = label * (1 - label_smoothing) + (1 - label) * label_smoothing
    shared = said.tie - math.log(2)
    first, second = torch.logaddexp(said.first, shared), torch.logaddexp(said.second, shared)
    return -right * first - (1 - right) * second


def tie_parameter(model: TieModel, tie: Tensor) -> Tensor:
    """theta of Rao and Kupper, or nu of Davidson, of the number `tie` that is learned."""
    return tie.exp() if model == "davidson" else 1 + tie.exp()


def tie_of(model: TieModel, parameter: float) -> float:
    """`tie_parameter` backwards: of a theta above 1, or a nu above 0."""
    if model == "davidson":
        return math.log(parameter)
    return math.log(parameter - 1)


def tie_start(model: TieModel, share: float) -> float:
    """The `tie` under which two answers of equal scores tie with probability `share`, in (0, 1).

    Rao and Kupper: (theta - 1) / (theta + 1) = share; Davidson: nu / (nu + 2) = share.
    """
    if model == "davidson":
        return tie_of(model, 2 * share / (1 - share))
    return tie_of(model, (1 + share) / (1 - share))


TIE_MODELS = {"rao_kupper": rao_kupper, "davidson": davidson}

# --- whole rankings -------------------------------------------------------------------------------


def plackett_luce(scores: Tensor, ranks: Tensor, alike: Tensor | bool = False) -> Tensor:
    """[J] -log probability of rankings, each the mean over its choices (Plackett 1975; Luce 1959).

    `scores` [J, K]; `ranks` [J, K], 1 is best, equal is a tie, 0 is not ranked and takes no part.
    The best answer is chosen among all, the next among the rest, and so on: of an answer with the
    score r, log sum exp(r_j) - r over itself and all that are ranked below it. A choice of one is
    none. Of two answers it is `bradley_terry`.

    Answers that share a rank are each chosen among those below alone, as if nobody had compared
    them with one another; where `alike` ([J] or one for all) is True, they are drawn to each other
    instead: the m that tie are taken in any order, and as many as are gone by then are taken from
    the sum in even parts (Efron 1977, on ties in Cox's partial likelihood). A ranking
    without any choice is 0.
    """
    ranked = ranks > 0
    below = (ranks[:, None, :] > ranks[:, :, None]) & ranked[:, None, :]
    same = (ranks[:, None, :] == ranks[:, :, None]) & ranked[:, None, :]
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device).expand_as(same)
    earlier = (same & itself.new_ones(itself.shape[1:]).tril(-1)).sum(2)
    left = 1 - earlier / same.sum(2).clamp(min=1)  # of those that tie, when this one is chosen
    alike = torch.as_tensor(alike, device=ranks.device).expand(len(ranks))[:, None, None]
    tied = torch.where(alike, same * left[:, :, None], (same & itself).to(scores.dtype))
    among = torch.where(below, 1.0, tied).to(scores.dtype)
    choices = ranked & (below.any(2) | (same & alike).sum(2).gt(1))
    among = torch.where(choices[:, :, None], among, itself.to(scores.dtype))
    each = torch.logsumexp(scores[:, None, :] + among.log(), dim=2) - scores
    return (each * choices).sum(1) / choices.sum(1).clamp(min=1)


# --- ratings --------------------------------------------------------------------------------------


def rating_regression(scores: Tensor, ratings: Tensor) -> Tensor:
    """[N] squared differences of scores and ratings, which are to have mean 0 and spread 1 (the
    regression objective of Wang et al. 2024, arXiv:2410.01257)."""
    return (scores - ratings).square()


def thumbs(scores: Tensor, good: Tensor) -> Tensor:
    """[N] -log P(what was said) of answers that were called good (1) or bad (0): P(good) =
    sigmoid(score), as if each had been compared with an answer of the score 0."""
    return F.binary_cross_entropy_with_logits(scores, good, reduction="none")


# --- the free constant ----------------------------------------------------------------------------


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, which pins the free constant of Bradley-Terry near 0
    (Eisenstein et al. 2023, arXiv:2312.09244, eq. 3)."""
    return (chosen + rejected).square()


def ranking_centering(scores: Tensor, ranked: Tensor) -> Tensor:
    """[J] squares of twice the mean score of rankings; of two answers it is `centering`.

    `scores` [J, K]; `ranked` [J, K] is True where an answer takes part.
    """
    mean = (scores * ranked).sum(1) / ranked.sum(1).clamp(min=1)
    return (2 * mean).square()
