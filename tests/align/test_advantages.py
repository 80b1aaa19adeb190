"""Rewards per token, GAE and the KL controllers against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from align.advantages import (
    KLController,
    RunningStatistics,
    by_token,
    gae,
    grpo,
    k3,
    kl_shaped_rewards,
    reinforce,
    rloo,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def all_of(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def random_rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and mask of 5 responses of 1 to 6 tokens, with rubbish outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6)[None, :] < torch.tensor([6, 1, 3, 5, 2])[:, None]
    return (
        torch.randn(5, 6, generator=generator),
        torch.randn(5, 6, generator=generator),
        mask,
    )


# --- rewards --------------------------------------------------------------------------------------


def test_rewards_of_two_responses():
    """coefficient 0.5. First: log-ratios (0.2, -0.4), so -0.1 and 0.2, and the score 3 on the last.

    Second, one token: log-ratio 1, so -0.5, and the score -1 on it; what stands after is no token.
    """
    rewards = kl_shaped_rewards(
        scores=torch.tensor([3.0, -1.0]),
        logprobs=torch.tensor([[-1.0, -2.4], [-0.5, 99.0]]),
        reference=torch.tensor([[-1.2, -2.0], [-1.5, -7.0]]),
        mask=torch.tensor([[True, True], [True, False]]),
        coefficient=0.5,
    )
    expected = torch.tensor([[-0.1, 3.2], [-1.5, 0.0]])
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)


def test_rewards_sum_to_score_less_the_weighted_kl():
    """sum_t r_t = score - coefficient * sum_t (log pi - log ref), whatever the lengths."""
    logprobs, reference, mask = random_rows()
    scores = torch.arange(5.0)
    rewards = kl_shaped_rewards(scores, logprobs, reference, mask, 0.3)
    kl = ((logprobs - reference) * mask).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * kl, rtol=0, atol=1e-6)


def test_policy_that_is_the_reference_has_the_score_alone():
    logprobs, _, mask = random_rows()
    rewards = kl_shaped_rewards(torch.full((5,), 2.0), logprobs, logprobs, mask, 10.0)
    assert rewards.sum(1).tolist() == [2.0] * 5
    assert rewards[[0, 1, 2, 3, 4], [5, 0, 2, 4, 1]].tolist() == [2.0] * 5


# --- advantages -----------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma 1, lambda .95, r = [0, 0, 0, 1], V = [.1, .2, .3, .4]; deltas .1, .1, .1, .6.

    A_4 = .6; A_3 = .1 + .95 * .6 = .67; A_2 = .1 + .95 * .67 = .7365;
    A_1 = .1 + .95 * .7365 = .799675. Returns are A + V.
    """
    values = row(0.1, 0.2, 0.3, 0.4)
    advantages, returns = gae(row(0, 0, 0, 1), values, all_of(values), gamma=1.0, lambda_=0.95)
    expected = row(0.799675, 0.7365, 0.67, 0.6)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, row(0.899675, 0.9365, 0.97, 1.0), rtol=0, atol=1e-6)


def test_gae_with_a_discount_by_hand():
    """gamma .5, lambda .5, r = [1, 2], V = [3, 4].

    delta_2 = 2 - 4 = -2; delta_1 = 1 + .5 * 4 - 3 = 0; A_1 = 0 + .25 * (-2) = -.5.
    """
    values = row(3, 4)
    advantages, returns = gae(row(1, 2), values, all_of(values), gamma=0.5, lambda_=0.5)
    assert advantages.tolist() == [[-0.5, -2.0]]
    assert returns.tolist() == [[2.5, 2.0]]


def test_lambda_1_is_the_return_less_the_value():
    """With gamma 1 the return is the sum of the rewards still to come, whatever the values are."""
    rewards, values, mask = random_rows()
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lambda_=1.0)
    for b, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            to_come = float(rewards[b, t:length].sum())
            assert float(advantages[b, t]) == pytest.approx(to_come - float(values[b, t]), abs=1e-5)
            assert float(returns[b, t]) == pytest.approx(to_come, abs=1e-5)


def test_lambda_0_is_the_temporal_difference():
    rewards, values, mask = random_rows()
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lambda_=0.0)
    for b, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            following = float(values[b, t + 1]) if t + 1 < length else 0.0
            error = float(rewards[b, t]) + 0.9 * following - float(values[b, t])
            assert float(advantages[b, t]) == pytest.approx(error, abs=1e-5)


def test_gae_is_the_matrix_form():
    """A = U delta with U[i, j] = (gamma lambda)^(j - i) above the diagonal, in float64."""
    rewards, values, _ = random_rows()
    advantages, _ = gae(rewards, values, all_of(values), gamma=0.9, lambda_=0.8)
    step = torch.arange(6)
    powers = torch.tensor(0.72, dtype=torch.float64) ** (step[None, :] - step[:, None])
    following = torch.cat([values[:, 1:], torch.zeros(5, 1)], dim=1).double()
    deltas = rewards.double() + 0.9 * following - values.double()
    expected = deltas @ powers.triu().T
    torch.testing.assert_close(advantages.double(), expected, rtol=0, atol=1e-5)


def test_rubbish_outside_the_mask_changes_no_bit():
    rewards, values, mask = random_rows()
    clean = gae(rewards * mask, values * mask, mask, 0.99, 0.95)
    dirty = gae(rewards.masked_fill(~mask, 1e6), values.masked_fill(~mask, -1e6), mask, 0.99, 0.95)
    nan = gae(
        rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.inf), mask, 0.99, 0.95
    )
    for a, b, c in zip(clean, dirty, nan, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not a[~mask].any()


def test_more_padding_changes_no_bit():
    rewards, values, mask = random_rows()
    rubbish = torch.full((5, 3), 7.0)
    wide_mask = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], dim=1)
    narrow = gae(rewards, values, mask, 1.0, 0.95)
    wide = gae(
        torch.cat([rewards, rubbish], 1), torch.cat([values, rubbish], 1), wide_mask, 1.0, 0.95
    )
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b[:, :6])
        assert not b[:, 6:].any()
    shaped = kl_shaped_rewards(torch.ones(5), rewards, values, mask, 0.1)
    shaped_wide = kl_shaped_rewards(
        torch.ones(5), torch.cat([rewards, rubbish], 1), torch.cat([values, -rubbish], 1),
        wide_mask, 0.1,
    )  # fmt: skip
    assert torch.equal(shaped, shaped_wide[:, :6])
    assert not shaped_wide[:, 6:].any()


# --- advantages without a value function ----------------------------------------------------------


def test_rloo_by_hand():
    """Groups (1, 2, 6) and (0, 0, 3). 1 - (2 + 6) / 2 = -3; 2 - 7 / 2 = -1.5; 6 - 3 / 2 = 4.5;
    0 - 3 / 2 = -1.5 twice; 3 - 0 = 3."""
    found = rloo(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), samples=3)
    assert found.tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]


def test_rloo_of_two_is_their_difference():
    found = rloo(torch.tensor([5.0, 2.0, -1.0, 1.0]), samples=2)
    assert found.tolist() == [3.0, -3.0, -2.0, 2.0]


def test_rloo_is_the_difference_to_the_mean_stretched():
    """r_i - (S - r_i) / (K - 1) = K / (K - 1) * (r_i - S / K); a group's advantages sum to 0, and a
    prompt on which everything scores higher changes nothing."""
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = rloo(rewards.flatten(), samples=4).reshape(3, 4)
    expected = 4 / 3 * (rewards - rewards.mean(dim=1, keepdim=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.sum(dim=1).abs().max() < 1e-6
    shifted = rewards + torch.tensor([[10.0], [0.0], [-3.0]])
    torch.testing.assert_close(rloo(shifted.flatten(), 4).reshape(3, 4), found, rtol=0, atol=1e-5)


def test_grpo_by_hand():
    """(1, 3): mean 2, deviation 1: -1 / 1.0001 and 1 / 1.0001. (1, 1, 4, 6): mean 3, variance
    (4 + 4 + 1 + 9) / 4 = 4.5, deviation 2.1213203: -2 / 2.1214203 = -.9427645 and so on."""
    torch.testing.assert_close(
        grpo(torch.tensor([1.0, 3.0]), 2), torch.tensor([-0.9999, 0.9999]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        grpo(torch.tensor([1.0, 1.0, 4.0, 6.0]), 4),
        torch.tensor([-0.9427645, -0.9427645, 0.4713823, 1.4141468]),
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_grpo_without_the_deviation_is_the_difference_to_the_mean():
    found = grpo(torch.tensor([1.0, 1.0, 4.0, 6.0]), 4, divide=False)
    assert found.tolist() == [-2.0, -2.0, 1.0, 3.0]


@pytest.mark.parametrize("divide", [True, False])
def test_grpo_of_equal_rewards_is_0(divide: bool):
    """Nothing is learnt of a prompt on which everything scores the same, and nothing overflows."""
    rewards = torch.tensor([4.0, 4.0, 4.0, 4.0, -1.0, 1.0, -1.0, 1.0])
    assert grpo(rewards, 4, divide)[:4].tolist() == [0.0] * 4


@pytest.mark.parametrize(("rewards", "samples"), [(4, 1), (5, 2), (3, 4)])
def test_responses_that_are_no_groups_are_refused(rewards: int, samples: int):
    for estimator in (rloo, grpo):
        with pytest.raises(ValueError, match=f"{rewards} rewards are no groups of {samples}"):
            estimator(torch.ones(rewards), samples)


def test_reinforce_on_every_token_by_hand():
    """Rewards 3 and -1 less their mean 1: 2 on both tokens of the first, -2 on the second's one."""
    mask = torch.tensor([[True, True], [True, False]])
    rewards = torch.tensor([3.0, -1.0])
    found = by_token(reinforce(rewards, float(rewards.mean())), mask)
    assert found.tolist() == [[2.0, 2.0], [-2.0, 0.0]]


def test_gae_at_the_limit_is_reinforce_with_a_baseline_by_state():
    """gamma = lambda = 1, all reward at the end and one value everywhere: R - V on every token."""
    mask = torch.arange(4)[None, :] < torch.tensor([4, 2])[:, None]
    rewards = torch.tensor([[0.0, 0.0, 0.0, 3.0], [0.0, -1.0, 0.0, 0.0]])
    advantages, _ = gae(rewards, torch.full((2, 4), 0.5), mask, gamma=1.0, lambda_=1.0)
    assert torch.equal(advantages, by_token(reinforce(rewards.sum(1), 0.5), mask))


# --- running statistics ---------------------------------------------------------------------------


def test_running_statistics_by_hand():
    """1, 2, 3 and then 6: mean 3, squares 4 + 1 + 0 + 9 = 14, deviation sqrt(3.5) = 1.8708287."""
    running = RunningStatistics()
    running.update(torch.tensor([1.0, 2.0, 3.0]))
    assert (running.count, running.mean, running.squares) == (3, 2.0, 2.0)
    running.update(torch.tensor([6.0]))
    assert running.count == 4
    assert running.mean == pytest.approx(3.0, abs=1e-12)
    assert running.squares == pytest.approx(14.0, abs=1e-12)
    assert running.scale == pytest.approx(1.8708287, abs=1e-7)


def test_running_statistics_do_not_know_how_numbers_were_split():
    values = 100 + torch.randn(60, generator=torch.Generator().manual_seed(0))
    whole, parts = RunningStatistics(), RunningStatistics()
    whole.update(values)
    for part in values.split([1, 7, 30, 22]):
        parts.update(part)
    assert parts.mean == pytest.approx(whole.mean, abs=1e-12)
    assert parts.scale == pytest.approx(whole.scale, abs=1e-12)
    assert whole.scale == pytest.approx(float(values.double().std(correction=0)), abs=1e-12)


def test_running_statistics_of_equal_numbers_scale_nothing():
    running = RunningStatistics()
    assert running.scale == 1.0
    running.update(torch.full((5,), 0.1))
    running.update(torch.full((5,), 0.1))
    assert running.scale == 1.0


def test_running_statistics_survive_json_to_the_last_bit():
    running = RunningStatistics()
    running.update(torch.randn(7, generator=torch.Generator().manual_seed(1)) / 3)
    again = RunningStatistics.from_json(json.loads(json.dumps(running.to_json())))
    assert again == running
    for one in (running, again):
        one.update(torch.tensor([0.3, 0.7]))
    assert again == running


# --- KL -------------------------------------------------------------------------------------------


def test_k3_by_hand():
    """r = ref / pi = 2: 2 - 1 - log 2 = .306853; r = 1/2: .5 - 1 + log 2 = .193147; r = 1: 0."""
    reference = torch.log(torch.tensor([0.5, 0.25, 0.3]))
    logprobs = torch.log(torch.tensor([0.25, 0.5, 0.3]))
    expected = torch.tensor([0.306853, 0.193147, 0.0])
    torch.testing.assert_close(k3(logprobs, reference), expected, rtol=0, atol=1e-6)


def test_k3_is_the_kl_in_expectation():
    """pi = (.5, .3, .2), ref = (.2, .3, .5): KL = .5 log 2.5 + .2 log .4 = .274887."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimate = (policy * k3(policy.log(), reference.log())).sum()
    assert float(estimate) == pytest.approx(0.274887, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        # error = clip(kl / 6 - 1, -.2, .2); coefficient *= 1 + error * 512 / 10 000
        (12.0, 0.151536),  # error 1 -> .2
        (0.0, 0.148464),  # error -1 -> -.2
        (6.0, 0.15),
        (6.6, 0.150768),  # error .1
    ],
)
def test_adaptive_controller(kl: float, expected: float):
    controller = KLController(0.15, target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert controller.coefficient == pytest.approx(expected, abs=1e-9)


def test_controller_without_a_target_stays():
    controller = KLController(0.05)
    controller.update(100.0, 512)
    assert controller.coefficient == 0.05
