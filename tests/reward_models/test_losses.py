"""Losses of reward models: hand numbers, symmetries, and TRL as a second opinion."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reward_models.losses import bradley_terry, centering


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_bradley_terry_by_hand():
    """Equal scores: log 2. Margin 1.5: log(1 + e^-1.5) = .2014133; -1.5: 1.7014133."""
    loss = bradley_terry(tensor(0.0, 2.0, -1.0), tensor(0.0, 0.5, 0.5))
    expected = tensor(math.log(2.0), 0.2014133, 1.7014133)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_a_score_of_odds_three_to_one():
    """exp(r) are the strengths: scores log 3 and 0 give P = 3/4, so -log .75."""
    loss = bradley_terry(tensor(math.log(3.0)), tensor(0.0))
    assert loss.item() == pytest.approx(-math.log(0.75), abs=1e-6)


def test_the_opposite_label_costs_the_margin_and_a_shift_nothing():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 9, generator=generator)
    torch.testing.assert_close(bradley_terry(b, a) - bradley_terry(a, b), a - b, rtol=0, atol=1e-6)
    torch.testing.assert_close(bradley_terry(a + 7, b + 7), bradley_terry(a, b), rtol=0, atol=1e-5)


def test_gradient_is_the_surprise():
    """d/dr_chosen = -(1 - P): at odds three to one, -1/4; the rejected one's is the opposite."""
    chosen, rejected = tensor(math.log(3.0)).requires_grad_(), tensor(0.0).requires_grad_()
    bradley_terry(chosen, rejected).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.25, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.25, abs=1e-6)


def test_label_smoothing_by_hand():
    """.9 * .2014133 + .1 * 1.7014133 = .3514133; its minimum is at the odds 9 to 1."""
    loss = bradley_terry(tensor(1.5), tensor(0.0), label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.3514133, abs=1e-6)
    best = tensor(math.log(9.0)).requires_grad_()
    bradley_terry(best, tensor(0.0), label_smoothing=0.1).sum().backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_a_soft_label_by_hand():
    """.75 * .2014133 + .25 * 1.7014133 = .5764133; least at the odds of 3 to 1; 1 and 0 are the
    plain label and its opposite."""
    loss = bradley_terry(tensor(1.5, 1.5, 1.5), tensor(0.0, 0.0, 0.0), label=tensor(0.75, 1.0, 0.0))
    expected = tensor(0.5764133, 0.2014133, 1.7014133)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    best = tensor(math.log(3.0)).requires_grad_()
    bradley_terry(best, tensor(0.0), label=tensor(0.75)).sum().backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_margin_by_hand():
    """d = 1.5 less a margin of .5, 1.5 or 0: log(1 + e^-1) = .3132617, log 2, .2014133."""
    margin = tensor(0.5, 1.5, 0.0)
    loss = bradley_terry(tensor(1.5, 1.5, 1.5), tensor(0.0, 0.0, 0.0), margin=margin)
    expected = tensor(0.3132617, math.log(2.0), 0.2014133)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    assert torch.equal(bradley_terry(tensor(1.5), tensor(0.0), margin=1.5), loss[1:2])


def test_with_a_margin_the_gradient_is_a_half_at_it():
    """-(1 - sigmoid(d - m)): .5 where d = m = .7."""
    chosen = tensor(0.7).requires_grad_()
    bradley_terry(chosen, tensor(0.0), margin=tensor(0.7)).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5, abs=1e-6)


def test_a_margin_holds_for_either_answer_of_a_soft_label():
    """d = 1.5, m = .5, p = .75: .75 log(1 + e^-1) + .25 log(1 + e^2) = .7666783; and the pair the
    other way round with 1 - p is the same pair."""
    there = bradley_terry(tensor(1.5), tensor(0.0), 0.0, tensor(0.75), 0.5)
    back = bradley_terry(tensor(0.0), tensor(1.5), 0.0, tensor(0.25), 0.5)
    torch.testing.assert_close(there, tensor(0.7666783), rtol=0, atol=1e-6)
    torch.testing.assert_close(back, there, rtol=0, atol=1e-6)


def test_centering_by_hand():
    """(1 + 2)^2 = 9; opposite scores cost nothing."""
    assert centering(tensor(1.0, 0.5), tensor(2.0, -0.5)).tolist() == [9.0, 0.0]


def test_far_out_it_stays_finite():
    assert bradley_terry(tensor(1e4, -1e4), tensor(-1e4, 1e4)).tolist() == [0.0, 2e4]


@pytest.mark.parametrize("margin", [None, (0.5, 0.0, 2.0, 1 / 3)])
@pytest.mark.parametrize("center", [None, 0.01])
def test_loss_equals_trl(center: float | None, margin: tuple[float, ...] | None):
    """TRL's own RewardTrainer.compute_loss on the scores of 4 pairs; it averages over pairs."""
    from trl.trainer.reward_trainer import RewardTrainer

    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(8, generator=generator) * 3
    theirs, metrics = _trl_reward(RewardTrainer, scores, center, margin)
    chosen, rejected = scores.chunk(2)
    asked = tensor(*margin) if margin else 0.0
    ours = bradley_terry(chosen, rejected, margin=asked)
    ours = ours + (center or 0.0) * centering(chosen, rejected)
    assert ours.mean().item() == pytest.approx(theirs, abs=1e-6)
    assert metrics["margin"][0] == pytest.approx((chosen - rejected).mean().item(), abs=1e-6)


def _trl_reward(
    trainer: Any, scores: Tensor, center: float | None, margin: tuple[float, ...] | None
) -> tuple[float, dict[str, list[float]]]:
    """With as much of a trainer around it as `compute_loss` looks at."""
    model = SimpleNamespace(training=True)
    stub = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda v: v, gather_for_metrics=lambda v: v),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )

    def forward(**inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=scores[:, None])

    inputs = {"attention_mask": torch.ones(8, 3, dtype=torch.long)}
    if margin:
        inputs["margin"] = tensor(*margin)
    loss = trainer.compute_loss(stub, forward, inputs)
    return float(loss), stub._metrics["train"]
