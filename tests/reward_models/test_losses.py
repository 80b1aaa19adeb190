"""Losses of reward models: hand numbers, symmetries, and TRL as a second opinion."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reward_models.losses import (
    TIE_MODELS,
    TieModel,
    bradley_terry,
    centering,
    davidson,
    plackett_luce,
    ranking_centering,
    rao_kupper,
    rating_regression,
    soft_verdict,
    thumbs,
    tie_of,
    tie_parameter,
    tie_start,
    with_ties,
)
from reward_models.scalar_head import Scoring

MODELS: tuple[TieModel, ...] = ("rao_kupper", "davidson")


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


# --- ties -----------------------------------------------------------------------------------------


def tie_tensor(model: TieModel, parameter: float) -> Tensor:
    return tensor(tie_of(model, parameter))


def test_rao_kupper_by_hand():
    """Strengths 3 and 1, theta = 2: P(first) = 3 / (3 + 2) = .6, P(second) = 1 / (1 + 6) = 1/7, and
    P(tie) = (4 - 1) * 3 * 1 / (5 * 7) = 9/35, which is what is missing to 1."""
    said = rao_kupper(tensor(math.log(3.0)), tensor(0.0), tie_tensor("rao_kupper", 2.0))
    chances = torch.stack(said).exp().flatten()
    torch.testing.assert_close(chances, tensor(0.6, 9 / 35, 1 / 7), rtol=0, atol=1e-6)


def test_davidson_by_hand():
    """Strengths 4 and 1, nu = .5: the geometric mean is 2, so 4 : 1 : 1; P = 2/3, 1/6, 1/6."""
    said = davidson(tensor(math.log(4.0)), tensor(0.0), tie_tensor("davidson", 0.5))
    chances = torch.stack(said).exp().flatten()
    torch.testing.assert_close(chances, tensor(2 / 3, 1 / 6, 1 / 6), rtol=0, atol=1e-6)


def test_davidsons_decided_verdicts_are_bradley_terrys():
    """Whatever nu is: P(first) / (P(first) + P(second)) = sigmoid(a - b). Not so Rao and Kupper's:
    .6 / (.6 + 1/7) is not 3/4."""
    a, b = tensor(1.2, -0.3, 4.0), tensor(0.1, 0.4, -4.0)
    said = davidson(a, b, tensor(0.7))
    torch.testing.assert_close(said.first - said.second, a - b, rtol=0, atol=1e-5)
    other = rao_kupper(tensor(math.log(3.0)), tensor(0.0), tie_tensor("rao_kupper", 2.0))
    assert (other.first - other.second).item() == pytest.approx(math.log(4.2), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_one_of_three_things_is_said(model: TieModel):
    """The probabilities sum to 1, also at scores of +-100 and with next to no ties or little else;
    and all are finite, and so are their gradients."""
    a = tensor(0.3, -2.0, 100.0, -100.0, 100.0).requires_grad_()
    b = tensor(0.1, 5.0, -100.0, 100.0, 100.0)
    for value in (-30.0, -1.0, 0.0, 3.0, 30.0):
        tie = tensor(value).requires_grad_()
        said = torch.stack(TIE_MODELS[model](a, b, tie))
        torch.testing.assert_close(said.exp().sum(0), torch.ones(5), rtol=0, atol=1e-6)
        assert said.isfinite().all()
        grads = torch.autograd.grad(said.sum(), (a, tie))
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("model", MODELS)
def test_swapped_and_shifted_it_says_the_same(model: TieModel):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 9, generator=generator)
    said, back = (TIE_MODELS[model](*pair, tensor(0.4)) for pair in ((a, b), (b + 3, a + 3)))
    for one, other in zip(said, reversed(back), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_without_ties_it_is_bradley_terrys(model: TieModel):
    """theta = 1 and nu = 0 are where tie goes to -inf; at -40 they are e^-40 away."""
    a, b = tensor(1.5, -2.0, 0.0), tensor(0.0, 1.0, 0.0)
    said = TIE_MODELS[model](a, b, tensor(-40.0))
    label = tensor(0.75, 1.0, 0.3)
    torch.testing.assert_close(-said.first, bradley_terry(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        soft_verdict(said, label, 0.1), bradley_terry(a, b, 0.1, label), rtol=0, atol=1e-6
    )


def test_gradients_of_a_win_by_hand():
    """-log P(first) by d = a - b and by tie. Rao and Kupper, strengths 3 and 1, theta = 2: by d
    -(1 - .6) = -.4; by log theta .4, and theta = 1 + e^tie, so that d log theta / d tie =
    (theta - 1) / theta = .5: .2. Davidson, 4 : 1 : 1: -(1 - 2/3) + half of 1/6 = -.25 (a tie counts
    half a win); by tie = log nu the probability of a tie, 1/6."""
    cases: tuple[tuple[TieModel, float, float, tuple[float, float]], ...] = (
        ("rao_kupper", 3.0, 2.0, (-0.4, 0.2)),
        ("davidson", 4.0, 0.5, (-0.25, 1 / 6)),
    )
    for model, odds, parameter, expected in cases:
        a, tie = tensor(math.log(odds)).requires_grad_(), tie_tensor(model, parameter)
        said = TIE_MODELS[model](a, tensor(0.0), tie.requires_grad_())
        loss = with_ties(said, torch.tensor([False])).sum()
        found = [grad.item() for grad in torch.autograd.grad(loss, (a, tie))]
        assert found == pytest.approx(expected, abs=1e-6)


def test_what_was_said_costs_its_surprise():
    """4 : 1 : 1 after Davidson, smoothing .1: a win -.9 log 2/3 - .1 log 1/6 = .5440943; a tie
    log 6 with it and without."""
    said = davidson(tensor(math.log(4.0)), tensor(0.0), tie_tensor("davidson", 0.5))
    said = type(said)(*(part.expand(2) for part in said))
    loss = with_ties(said, torch.tensor([False, True]), 0.1)
    torch.testing.assert_close(loss, tensor(0.5440943, math.log(6.0)), rtol=0, atol=1e-6)


def test_a_soft_verdict_by_hand():
    """4 : 1 : 1: the first gets 2/3 + 1/12 = 3/4, the second 1/4. Label .75: the entropy of 3/4,
    .5623351, and least there: the gradient by the score is 0."""
    a = tensor(math.log(4.0)).requires_grad_()
    loss = soft_verdict(davidson(a, tensor(0.0), tie_tensor("davidson", 0.5)), tensor(0.75))
    assert loss.item() == pytest.approx(0.5623351, abs=1e-6)
    [gradient] = torch.autograd.grad(loss.sum(), a)
    assert gradient.item() == pytest.approx(0.0, abs=1e-6)


def test_the_tie_parameter_by_hand():
    """Equal scores, 20 % ties: theta = 1.2 / .8 = 1.5; nu = .4 / .8 = .5. And the model says so."""
    cases: tuple[tuple[TieModel, float], ...] = (("rao_kupper", 1.5), ("davidson", 0.5))
    for model, parameter in cases:
        tie = tensor(tie_start(model, 0.2))
        assert tie_parameter(model, tie).item() == pytest.approx(parameter, abs=1e-6)
        said = TIE_MODELS[model](tensor(0.7), tensor(0.7), tie)
        assert said.tie.exp().item() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(("model", "parameter"), [("rao_kupper", 1.8), ("davidson", 0.9)])
def test_the_parameter_of_sampled_verdicts_is_found(model: TieModel, parameter: float):
    """2,000 verdicts on pairs of known scores. The most likely parameter lies within three standard
    errors of the true one: 1 / sqrt of the Fisher information, which is the mean square of the
    gradient of the log-probability, taken over the three verdicts of every pair."""
    generator = torch.Generator().manual_seed(4)
    gap = torch.randn(2000, generator=generator, dtype=torch.float64) * 1.5
    true = torch.tensor([tie_of(model, parameter)], dtype=torch.float64)

    def said_at(tie: Tensor) -> Tensor:
        return torch.stack(TIE_MODELS[model](gap, torch.zeros_like(gap), tie), dim=1)

    chances = said_at(true).exp()
    verdict = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    by_tie = torch.autograd.functional.jacobian(said_at, true).squeeze(2)
    error = float((chances * by_tie.square()).sum() ** -0.5)

    def slope(value: float) -> float:
        tie = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        likelihood = said_at(tie).gather(1, verdict[:, None]).sum()
        return float(torch.autograd.grad(likelihood, tie)[0])

    low, high = -6.0, 6.0  # the likelihood rises on one side of its only maximum
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    assert abs(low - float(true)) < 3 * error < 0.5


def test_a_stored_model_tells_the_chances():
    """Scores log 4 and 0, nu = .5: 2/3, 1/6, 1/6; of a model without ties 4/5 and 1/5."""
    with_tie = Scoring("r", 9, ties="davidson", tie_parameter=0.5)
    assert with_tie.chances(math.log(4.0), 0.0) == pytest.approx((2 / 3, 1 / 6, 1 / 6), abs=1e-9)
    assert Scoring("r", 9).chances(math.log(4.0), 0.0) == pytest.approx((0.8, 0.0, 0.2), abs=1e-9)


# --- rankings -------------------------------------------------------------------------------------


def ranked(*ranks: int) -> Tensor:
    return torch.tensor([ranks])


def test_plackett_luce_by_hand():
    """Strengths 3, 2, 1 in this order: 3/6 and then 2/3; the mean of log 2 and log 1.5. Backwards:
    1/6 and 2/5."""
    scores = tensor(3.0, 2.0, 1.0).log()[None]
    loss = plackett_luce(scores, ranked(1, 2, 3))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1.5)) / 2, abs=1e-6)
    back = plackett_luce(scores, ranked(3, 2, 1))
    assert back.item() == pytest.approx((math.log(6) + math.log(2.5)) / 2, abs=1e-6)


def test_plackett_luce_gradient_by_hand():
    """Strengths 3, 2, 1: half of softmax - chosen, over both choices. First answer: 1/2 - 1 = -1/2;
    second: 1/3 + (2/3 - 1) = 0; third: 1/6 + 1/3 = 1/2."""
    scores = tensor(3.0, 2.0, 1.0).log()[None].requires_grad_()
    [gradient] = torch.autograd.grad(plackett_luce(scores, ranked(1, 2, 3)).sum(), scores)
    torch.testing.assert_close(gradient, tensor(-0.25, 0.0, 0.25)[None], rtol=0, atol=1e-6)


def test_plackett_luce_of_two_is_bradley_terrys():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 2, generator=generator) * 3
    loss = plackett_luce(scores, torch.tensor([[1, 2]]).expand(9, 2))
    expected = bradley_terry(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_all_orders_together_are_certain():
    """The probabilities of the 6 orders of 3 answers sum to 1: each is exp(-2 times the mean)."""
    scores = tensor(0.4, -1.0, 2.0)[None]
    losses = [plackett_luce(scores, ranked(*order)) for order in permutations((1, 2, 3))]
    assert sum(math.exp(-2 * loss.item()) for loss in losses) == pytest.approx(1.0, abs=1e-6)


def test_who_is_not_ranked_takes_no_part():
    """With a fourth answer of any score and without a rank, or cells of padding: the same."""
    scores = tensor(3.0, 2.0, 1.0).log()
    plain = plackett_luce(scores[None], ranked(1, 2, 3))
    more = torch.cat([scores, tensor(50.0)])[None].requires_grad_()
    loss = plackett_luce(more, ranked(1, 2, 3, 0))
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-6)
    [gradient] = torch.autograd.grad(loss.sum(), more)
    assert gradient[0, 3] == 0


def test_neither_order_nor_shift_nor_spacing_changes_a_ranking():
    """Of completions, of rows, of ranks (1 5 9 for 1 2 3), of scores; with ties and gaps."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 5, generator=generator)
    ranks = torch.tensor([[2, 1, 2, 0, 3], [1, 1, 2, 3, 3]])
    order = torch.tensor([4, 2, 0, 3, 1])
    for alike in (False, True):
        plain = plackett_luce(scores, ranks, alike)
        moved = plackett_luce(scores[:, order] + 7, ranks[:, order], alike).flip(0)
        spaced = plackett_luce(
            scores.flip(0), torch.where(ranks > 0, ranks * 4 - 3, 0).flip(0), alike
        )
        torch.testing.assert_close(moved.flip(0), plain, rtol=0, atol=1e-5)
        torch.testing.assert_close(spaced.flip(0), plain, rtol=0, atol=1e-6)


def test_ties_that_nobody_compared():
    """Strengths 3, 2, 1 ranked 1 1 2: 3/4 and 2/3, each against the last alone. A best-of: 3/6."""
    scores = tensor(3.0, 2.0, 1.0).log()[None]
    tied = plackett_luce(scores, ranked(1, 1, 2))
    assert tied.item() == pytest.approx((math.log(4 / 3) + math.log(1.5)) / 2, abs=1e-6)
    assert plackett_luce(scores, ranked(1, 2, 2)).item() == pytest.approx(math.log(2), abs=1e-6)
    assert plackett_luce(scores, ranked(1, 1, 1)).item() == 0.0


def test_efrons_ties_by_hand():
    """Strengths 3, 2, 1 ranked 1 1 2: 3 of 6, then 2 of 6 less half of the 5 that tie, 3.5.
    (log 2 + log 1.75) / 2. Ranked 1 2 2: 3 of 6, 2 of 3, 1 of 1.5: (log 2 + 2 log 1.5) / 3."""
    scores = tensor(3.0, 2.0, 1.0).log()[None]
    tied = plackett_luce(scores, ranked(1, 1, 2), True)
    assert tied.item() == pytest.approx((math.log(2) + math.log(1.75)) / 2, abs=1e-6)
    losers = plackett_luce(scores, ranked(1, 2, 2), True)
    assert losers.item() == pytest.approx((math.log(2) + 2 * math.log(1.5)) / 3, abs=1e-6)


def test_a_tie_of_two_draws_as_half_a_label():
    """Efron's tie of two is Bradley-Terry's label of one half less log 2 / 2, a constant."""
    scores = torch.tensor([[1.5, 0.0], [-0.4, 2.0]])
    tied = plackett_luce(scores, torch.ones(2, 2, dtype=torch.long), True)
    half = bradley_terry(scores[:, 0], scores[:, 1], label=0.5)
    torch.testing.assert_close(tied, half - math.log(2) / 2, rtol=0, atol=1e-6)


def test_each_ranking_has_its_own_ties():
    scores = tensor(3.0, 2.0, 1.0).log().expand(2, 3)
    both = plackett_luce(scores, ranked(1, 2, 2).expand(2, 3), torch.tensor([False, True]))
    expected = tensor(math.log(2), (math.log(2) + 2 * math.log(1.5)) / 3)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-6)


def test_far_out_a_ranking_stays_finite():
    """100, 0, -100 in this order cost nothing, backwards 200 and 100; with their gradients."""
    scores = tensor(100.0, 0.0, -100.0)[None].requires_grad_()
    assert plackett_luce(scores, ranked(1, 2, 3)).item() == pytest.approx(0.0, abs=1e-6)
    loss = plackett_luce(scores, ranked(3, 2, 1))
    assert loss.item() == pytest.approx(150.0, abs=1e-4)
    for alike in (False, True):
        loss = plackett_luce(scores, ranked(2, 1, 1), alike)
        assert torch.autograd.grad(loss.sum(), scores)[0].isfinite().all()


def test_the_scores_of_sampled_rankings_are_found():
    """2,000 rankings of 4 answers by known scores: the most likely scores, less their mean, lie
    within three standard errors, from the inverse of the Hessian of the sum of the losses."""
    true = torch.tensor([1.0, 0.3, -0.4, -0.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    waiting = torch.empty(2000, 4, dtype=torch.float64).exponential_(generator=generator)
    # Whoever's exponential clock of rate exp(score) rings first is chosen first.
    ranks = (waiting / true.exp()).argsort(dim=1).argsort(dim=1) + 1

    def loss(scores: Tensor) -> Tensor:
        return 3 * plackett_luce(scores.expand(2000, 4), ranks).sum()

    found = torch.zeros(4, dtype=torch.float64)
    for _ in range(20):  # Newton's steps; the free constant is held by the pseudo-inverse
        hessian = torch.autograd.functional.hessian(loss, found)
        assert isinstance(hessian, Tensor)
        gradient = torch.autograd.functional.jacobian(loss, found)
        inverse = torch.linalg.pinv(hessian, hermitian=True)
        found = found - inverse @ gradient
    errors = inverse.diagonal().sqrt()
    assert errors.max() < 0.05
    assert ((found - true).abs() < 3 * errors).all()


# --- ratings --------------------------------------------------------------------------------------


def test_regression_by_hand():
    """(1 - .5)^2 = .25, with the gradient 2 * .5 = 1 by the score."""
    score = tensor(1.0).requires_grad_()
    loss = rating_regression(score, tensor(0.5))
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    [gradient] = torch.autograd.grad(loss.sum(), score)
    assert gradient.item() == pytest.approx(1.0, abs=1e-6)


def test_a_thumb_is_a_comparison_with_zero():
    """Score log 3: up -log 3/4, down -log 1/4; as Bradley-Terry against an answer of the score 0.
    The gradient of an up is -(1 - 3/4)."""
    score = tensor(math.log(3.0), math.log(3.0)).requires_grad_()
    loss = thumbs(score, tensor(1.0, 0.0))
    torch.testing.assert_close(loss, tensor(-math.log(0.75), math.log(4.0)), rtol=0, atol=1e-6)
    zero = torch.zeros(1)
    expected = torch.cat([bradley_terry(score[:1], zero), bradley_terry(zero, score[1:])])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    [gradient] = torch.autograd.grad(loss.sum(), score)
    assert gradient.tolist() == pytest.approx([-0.25, 0.75], abs=1e-6)


def test_centering_of_a_ranking_by_hand():
    """Scores 1, 2, 6, the last not ranked: (2 * 1.5)^2 = 9, `centering` of 1 and 2; all ranked
    (2 * 3)^2 = 36."""
    scores = tensor(1.0, 2.0, 6.0).expand(2, 3)
    ranked_ones = torch.tensor([[True, True, False], [True, True, True]])
    assert ranking_centering(scores, ranked_ones).tolist() == pytest.approx([9.0, 36.0], abs=1e-5)
    assert centering(tensor(1.0), tensor(2.0)).item() == 9.0
