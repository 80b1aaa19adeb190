"""What a reward model is trained on: scores of a packed batch, and a loss of what was said.

Pairs and ties, whole rankings or ratings: each is a mean within its judgement, so that a judgement
of K completions counts once.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align.config import RewardTrain
from align.rankings import PairIndex, Ranked, Rankings, Weighted, pair_index, tie_index
from align.report_card import ranked_scores
from align.roles import Roles
from align.stage import StageContext
from align.training import ParameterGroup
from preference_data.batches import PackedBatch
from preference_data.counts import counted
from preference_data.quarantine import DataError
from reward_models.losses import (
    TIE_MODELS,
    TieModel,
    Verdicts,
    bradley_terry,
    centering,
    plackett_luce,
    ranking_centering,
    rating_regression,
    soft_verdict,
    thumbs,
    tie_parameter,
    tie_start,
    with_ties,
)
from reward_models.scalar_head import ScalarHead


class Scale(NamedTuple):
    """What ratings on a scale are standardised with."""

    mean: float
    std: float


Scales = Mapping[str | None, Scale]


@dataclass(frozen=True)
class RewardLoss:
    """The loss that a reward step's train section names, for judgements in packed batches."""

    train: RewardTrain
    rows: Sequence[Ranked]
    tie: nn.Parameter | None = None
    """[1] what is learned of ties (`reward_models.losses`); None without a model of them"""
    scales: Scales = field(default_factory=dict[str | None, Scale])
    """By name, of regression."""

    def __call__(
        self, module: Any, batch: PackedBatch, pairs: PairIndex, places: Sequence[int]
    ) -> Weighted:
        """Of the rows at these places, packed in this order, scored by the role `reward`."""
        scores = module("scores", "reward", batch)
        rows = [self.rows[place] for place in places]
        found = LOSSES[self.train.loss](self, scores, rows)
        margin = (scores[pairs.better] - scores[pairs.worse]).detach()
        return found._replace(
            metrics={
                "reward/accuracy": ((margin > 0).float(), pairs.weight),
                "reward/margin": (margin, pairs.weight),
                **found.metrics,
            }
        )

    @property
    def apart(self) -> list[ParameterGroup]:
        """What has a learning rate of its own."""
        if self.tie is None:
            return []
        return [ParameterGroup([self.tie], self.train.tie_learning_rate)]


def loss_for(context: StageContext, rows: Sequence[Ranked], head: ScalarHead) -> RewardLoss:
    """The loss of the step on these rows; `head` gets a tie parameter if one is to be learned.

    Raises DataError for ratings that are all the same.
    """
    train = context.step.train
    if train.loss == "regression":
        return RewardLoss(train, rows, scales=rating_scales(rows, context.step.data))
    share = tie_share(rows) if train.tie_model is not None else 0.0
    if share:
        start = torch.tensor([tie_start(_tie_model(train), share)], device=head.weight.device)
        head.tie = nn.Parameter(start)
    return RewardLoss(train, rows, head.tie)


def tie_share(rows: Sequence[Ranked]) -> float:
    """The share of ties, by weight, among the pairs of `rows` that are no soft labels."""
    pairs, tied = tie_index([row for row in rows if not row.soft])
    total = float(pairs.weight.sum())
    share = float(pairs.weight[tied].sum()) / total if total else 0.0
    return min(share, 1 - 1e-3)  # soft labels alone may be decided


def rating_scales(rows: Sequence[Ranked], source: str) -> Scales:
    """Mean and spread of the ratings on each scale; thumbs have none.

    Raises DataError if all ratings on a scale are the same.
    """
    given: dict[str | None, list[float]] = defaultdict(list)
    for row in rows:
        if row.judgement.kind != "binary":
            given[row.judgement.scale] += [score for _, score in ratings_of(row)]
    scales: dict[str | None, Scale] = {}
    for name, ratings in given.items():
        std = statistics.pstdev(ratings)
        if std == 0:
            on = f" on the scale {name}" if name else ""
            raise DataError(
                f"data.{source}: all {counted(len(ratings), 'rating')} to train on{on} are "
                f"{ratings[0]:g}, which says nothing of what is better."
            )
        scales[name] = Scale(statistics.fmean(ratings), std)
    return scales


def ratings_of(row: Ranked) -> list[tuple[int, float]]:
    """(place in the group, rating) of each completion that was rated."""
    scores = row.judgement.scores or ()
    return [(place, score) for place, score in enumerate(scores) if score is not None]


def tie_fields(train: RewardTrain, tie: Tensor | None) -> dict[str, Any]:
    """What is stored of ties with the model (`Scoring`)."""
    if tie is None:
        return {}
    parameter = tie_parameter(_tie_model(train), tie.detach())
    return {"ties": train.tie_model, "tie_parameter": float(parameter)}


def ties_and_ratings(
    context: StageContext, roles: Roles, rankings: Rankings, tie: nn.Parameter | None
) -> dict[str, float]:
    """What pairs do not show of the role `reward`: means over the ties and ratings that are held
    out, or, with train_ in their names, that were trained on. All ranks come here."""
    train = context.step.train
    rows, prefix = rankings.test, "reward/"
    if not rows:
        rows, prefix = rankings.train, "reward/train_"
    if train.loss != "regression" and (train.trains == "pairs" or not any(r.ties for r in rows)):
        return {}
    # The tie parameter is on the device.
    scores = torch.cat(ranked_scores(context, roles, rows)).to(context.engine.device)
    scales: Scales = {}
    if train.loss == "regression":
        scales = rating_scales(rankings.train, context.step.data)
        rows, scores = _on_scales(rows, scores, scales)
    found = LOSSES[train.loss](RewardLoss(train, rows, tie, scales), scores, rows).metrics
    return {
        name.replace("reward/", prefix): float((values * weights).sum() / weights.sum())
        for name, (values, weights) in found.items()
        if weights.sum() > 0
    }


def _on_scales(
    rows: Sequence[Ranked], scores: Tensor, scales: Scales
) -> tuple[list[Ranked], Tensor]:
    """The rows that are thumbs or on a scale that was trained on, and their scores."""
    parts = scores.split([len(row.group.completions) for row in rows])
    kept = [
        (row, part)
        for row, part in zip(rows, parts, strict=True)
        if row.judgement.kind == "binary" or row.judgement.scale in scales
    ]
    return [row for row, _ in kept], torch.cat([scores[:0], *(part for _, part in kept)])


# --- by what is made of a judgement ---------------------------------------------------------------


def _of_pairs(loss: RewardLoss, scores: Tensor, rows: Sequence[Ranked]) -> Weighted:
    """[P] of every two completions that were compared (Ouyang et al. 2022, eq. 1)."""
    train, device = loss.train, scores.device
    if train.ties_as == "drop":
        index = pair_index(rows)
        tied = torch.zeros(len(index.weight), dtype=torch.bool)
    else:
        index, tied = tie_index(rows)
    pairs, tied = PairIndex(*(tensor.to(device) for tensor in index)), tied.to(device)
    better, worse = scores[pairs.better], scores[pairs.worse]
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    if loss.tie is None:
        asked = train.margin_from_scores * pairs.gap
        values = bradley_terry(better, worse, train.label_smoothing, pairs.label, asked)
    else:
        soft = _soft_pairs(rows).to(device)
        # Soft labels are read through the model, but tell it nothing: how many ties are in them is
        # not known.
        tie = torch.where(soft, loss.tie.detach(), loss.tie)
        said = TIE_MODELS[_tie_model(train)](better, worse, tie)
        smoothing = train.label_smoothing
        hard = with_ties(said, tied, smoothing)
        values = torch.where(soft, soft_verdict(said, pairs.label, smoothing), hard)
        metrics = _of_ties(train, loss.tie, said, tied, pairs.weight * ~soft)
    if train.ties_as != "drop":
        metrics["reward/tie_margin"] = ((better - worse).abs().detach(), pairs.weight * tied)
    values = values + train.center_coefficient * centering(better, worse)
    return Weighted(values, pairs.weight, metrics)


def _of_ties(
    train: RewardTrain, tie: Tensor, said: Verdicts, tied: Tensor, weight: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of the model of ties on pairs of these weights [P]."""
    parameter = tie_parameter(_tie_model(train), tie.detach())
    return {
        "reward/tie_parameter": (parameter.expand_as(weight), weight),
        "reward/tie_share": (tied.float(), weight),
        "reward/tie_predicted": (said.tie.detach().exp(), weight),
        "reward/tie_log_loss": (with_ties(said, tied).detach(), weight),
    }


def _tie_model(train: RewardTrain) -> TieModel:
    assert train.tie_model is not None, "a tie parameter is of a model of ties"
    return train.tie_model


def _soft_pairs(rows: Sequence[Ranked]) -> Tensor:
    """[P] which pairs of `tie_index` have a soft label."""
    return torch.tensor([row.soft for row in rows for _ in row.pairs + row.ties])


def _of_rankings(loss: RewardLoss, scores: Tensor, rows: Sequence[Ranked]) -> Weighted:
    """[J] of whole rankings; a soft label is two rankings, each as probable as it says."""
    train, device = loss.train, scores.device
    sizes = [len(row.group.completions) for row in rows]
    table = nn.utils.rnn.pad_sequence(list(scores.split(sizes)), batch_first=True)
    ranks = torch.zeros(table.shape, dtype=torch.long)
    for place, row in enumerate(rows):
        given = (1, 2) if row.soft else row.judgement.ranks
        ranks[place, : len(given)] = torch.tensor([rank or 0 for rank in given])
    ranks = ranks.to(device)
    label = torch.tensor([row.label(0) if row.soft else 1.0 for row in rows], device=device)
    alike = torch.tensor(
        [train.ties_as == "half" and row.judgement.kind != "best_of" for row in rows], device=device
    )
    back = torch.where(ranks > 0, ranks.max() + 1 - ranks, 0)
    values = label * plackett_luce(table, ranks, alike)
    values = values + (1 - label) * plackett_luce(table, back, alike)
    values = values + train.center_coefficient * ranking_centering(table, ranks > 0)
    return Weighted(values, torch.tensor([row.weight for row in rows], device=device), {})


def _of_ratings(loss: RewardLoss, scores: Tensor, rows: Sequence[Ranked]) -> Weighted:
    """[N] of rated completions, which share the weight of their judgement."""
    places, targets, weights, binary, first = [], [], [], [], 0
    for row in rows:
        found = ratings_of(row)
        thumb = row.judgement.kind == "binary"
        scale = Scale(0.0, 1.0) if thumb else loss.scales[row.judgement.scale]
        places += [first + place for place, _ in found]
        targets += [(rating - scale.mean) / scale.std for _, rating in found]
        weights += [row.weight / len(found)] * len(found)
        binary += [thumb] * len(found)
        first += len(row.group.completions)
    device = scores.device
    target, weight = torch.tensor(targets, device=device), torch.tensor(weights, device=device)
    thumb, score = torch.tensor(binary, dtype=torch.bool, device=device), scores[places]
    values = torch.where(thumb, thumbs(score, target), rating_regression(score, target))
    right = ((score > 0) == (target > 0.5)).float()
    metrics = {
        "reward/rating_error": (values.detach(), weight * ~thumb),
        "reward/thumb_accuracy": (right, weight * thumb),
    }
    return Weighted(values, weight, metrics)


LOSSES = {
    "bradley_terry": _of_pairs,
    "plackett_luce": _of_rankings,
    "regression": _of_ratings,
}
"""By the name in the train section: (loss, [B] scores, the rows of the batch) -> its items."""
