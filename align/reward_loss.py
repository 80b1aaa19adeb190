"""What a reward model is trained on: scores of a packed batch, and a loss for each pair in it."""

from __future__ import annotations

from typing import Any

from align.config import RewardTrain
from align.losses import LossOutput
from align.rankings import PairIndex
from preference_data.batches import PackedBatch
from reward_models.losses import bradley_terry, centering


def reward_loss(
    train: RewardTrain, module: Any, batch: PackedBatch, pairs: PairIndex
) -> LossOutput:
    """[P] losses of the pairs of a packed batch, and their accuracy and margin."""
    scores = module("scores", "reward", batch)
    better, worse = scores[pairs.better], scores[pairs.worse]
    asked = train.margin_from_scores * pairs.gap
    loss = bradley_terry(better, worse, train.label_smoothing, pairs.label, asked)
    margin = (better - worse).detach()
    return LossOutput(
        loss + train.center_coefficient * centering(better, worse),
        {"reward/accuracy": (margin > 0).float(), "reward/margin": margin},
    )
