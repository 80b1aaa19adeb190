"""What a reward step says of held-out ties and ratings, wherever the model is."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align import reward_loss
from align.artifacts import Rows
from align.config_train import RewardTrain
from align.rankings import Ranked, Rankings, Weighted
from align.reward_loss import RewardLoss, ties_and_ratings
from preference_data.batches import Group
from preference_data.records import Judgement, Prompt, Response


def row(*ranks: int, **fields: Any) -> Ranked:
    answers = tuple(Response.from_text(f"answer {place}") for place in range(len(ranks)))
    judgement = Judgement(Prompt.from_text("Why?"), answers, ranks, **fields)
    completions = tuple((6 + place, 7) for place in range(len(ranks)))
    return Ranked(judgement, Group((5,), completions), judgement.ordered_pairs())


def said(
    train: RewardTrain, trained: list[Ranked], held_out: list[Ranked], device: str = "cpu"
) -> dict[str, float]:
    """Of scores that are all 0."""
    step = SimpleNamespace(train=train, data="labels")
    context: Any = SimpleNamespace(
        step=step, engine=SimpleNamespace(device=torch.device(device)), name="reward"
    )
    rankings = Rankings(trained, held_out, Rows(2, 2, 0), 0, {})
    roles: Any = None
    return ties_and_ratings(context, roles, rankings, None)


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of all ranks come as numbers, and lie on the CPU."""

    def scores(_: Any, __: Any, rows: Sequence[Ranked]) -> list[torch.Tensor]:
        return [torch.zeros(len(row.group.completions)) for row in rows]

    monkeypatch.setattr(reward_loss, "ranked_scores", scores)


def test_they_are_computed_where_the_tie_parameter_is(monkeypatch: pytest.MonkeyPatch):
    """On a GPU the parameter meets the scores there; the device `meta` stands for one."""
    seen: list[str] = []

    def loss(_: RewardLoss, scores: torch.Tensor, __: Sequence[Ranked]) -> Weighted:
        seen.append(scores.device.type)
        return Weighted(scores, scores, {})

    monkeypatch.setitem(reward_loss.LOSSES, "bradley_terry", loss)
    said(RewardTrain(), [row(1, 2)], [row(1, 1)], "meta")
    assert seen == ["meta"]


def test_nothing_is_said_of_a_scale_that_nothing_was_trained_on():
    """Ratings of another scale alone are held out: there is nothing to standardise them with."""
    trained = [row(1, 2, scores=(3.0, 1.0), scale="stars")]
    known, unknown = (row(1, 2, scores=(4.0, 0.0), scale=scale) for scale in ("stars", "grades"))
    train = RewardTrain(loss="regression")
    assert said(train, trained, [unknown]) == {}
    # Mean 2 and spread 1: 2 and -2 are off by 2 each.
    assert said(train, trained, [known, unknown]) == {"reward/rating_error": pytest.approx(4.0)}
