"""Losses of PPO: hand numbers, limits, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from align import losses
from align.advantages import k3


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


# --- PPO: the policy ------------------------------------------------------------------------------


def test_ppo_policy_by_hand():
    """clip .2, ratios 1.5 and .5 against advantages 2 and -2: loss = max(-A rho, -A clip(rho)).

    A = 2: rho 1.5 -> max(-3, -2.4) = -2.4 (clipped); rho .5 -> max(-1, -1.6) = -1.
    A = -2: rho 1.5 -> max(3, 2.4) = 3; rho .5 -> max(1, 1.6) = 1.6 (clipped).
    approx_kl = (log rho)^2 / 2: .0822010 and .2402265.
    """
    ratio = tensor(1.5, 0.5, 1.5, 0.5)
    output = losses.ppo_policy(ratio.log(), torch.zeros(4), tensor(2.0, 2.0, -2.0, -2.0), 0.2)
    torch.testing.assert_close(output.loss, tensor(-2.4, -1.0, 3.0, 1.6), rtol=0, atol=1e-6)
    assert output.metrics["policy/clip_fraction"].tolist() == [1.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(output.metrics["policy/ratio_mean"], ratio, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        output.metrics["policy/approx_kl"],
        tensor(0.0822010, 0.2402265, 0.0822010, 0.2402265),
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_ratio_1_is_the_policy_gradient():
    """At log pi = log old: loss -A, and its gradient by log pi is -A, as of -A log pi."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    actions = torch.tensor([0, 1, 2, 3, 4, 0])
    advantages = torch.randn(6, generator=generator)

    def logprobs() -> Tensor:
        return logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)

    output = losses.ppo_policy(logprobs(), logprobs().detach(), advantages, clip=0.2)
    torch.testing.assert_close(output.loss, -advantages)
    [ours] = torch.autograd.grad(output.loss.sum(), logits)
    [plain] = torch.autograd.grad(-(advantages * logprobs()).sum(), logits)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        # d(-A rho)/d log pi = -A rho, but nothing once the ratio is past the clip on A's side
        (1.21, 1.0, 0.0),
        (1.19, 1.0, -1.19),
        (0.79, -1.0, 0.0),
        (0.81, -1.0, 0.81),
        (0.5, 1.0, -0.5),
        (2.0, -1.0, 2.0),
    ],
)
def test_gradient_stops_past_the_clip(ratio: float, advantage: float, gradient: float):
    logprobs = tensor(math.log(ratio)).requires_grad_()
    losses.ppo_policy(logprobs, tensor(0.0), tensor(advantage), clip=0.2).loss.sum().backward()
    assert logprobs.grad is not None
    assert float(logprobs.grad) == pytest.approx(gradient, abs=1e-6)


def test_a_huge_ratio_is_bounded():
    """log-ratio 1000 counts as 20: e^20 = 485165195.4; nothing overflows."""
    output = losses.ppo_policy(tensor(1000.0), tensor(0.0), tensor(-1.0), clip=0.2)
    assert float(output.loss) == pytest.approx(485165195.4, rel=1e-5)


# --- the KL as a loss -----------------------------------------------------------------------------


def test_kl_penalty_by_hand():
    """pi = 1/2, old = 1/4, ref = 1/8: ratio 2, log-ratio log 4 = 1.3862944; 2 * 1.3862944^2 / 2 =
    1.9218121. The ratio has no gradient: d / d log pi = 2 * 1.3862944 = 2.7725887."""
    logprobs = tensor(0.5).log().requires_grad_()
    output = losses.kl_penalty(logprobs, tensor(0.25).log(), tensor(0.125).log())
    assert output.loss.item() == pytest.approx(1.9218121, abs=1e-6)
    [gradient] = torch.autograd.grad(output.loss.sum(), logprobs)
    assert float(gradient) == pytest.approx(2.7725887, abs=1e-6)


def expected_gradient(penalty: Tensor, old: Tensor, logits: Tensor) -> Tensor:
    """Of the mean of `penalty` [V] over tokens drawn from `old` [V]: every token, enumerated."""
    return torch.autograd.grad((old.detach() * penalty).sum(), logits, retain_graph=True)[0]


@pytest.mark.parametrize("on_policy", [True, False])
def test_kl_penalty_has_the_gradient_of_the_kl(on_policy: bool):
    """5 tokens, all of them: the mean over the old policy of the penalty's gradient is that of
    KL(pi || ref) = sum pi (log pi - log ref), to 1e-6. The other estimators' are not: k1's is 0,
    k3's is that of KL(ref || pi), and without the ratio k2 is right on-policy alone."""
    generator = torch.Generator().manual_seed(4)
    logits, other, target = torch.randn(3, 5, generator=generator)
    logits.requires_grad_()
    logprobs, reference = logits.log_softmax(-1), target.log_softmax(-1)
    old = logprobs.detach() if on_policy else other.log_softmax(-1)
    [exact] = torch.autograd.grad(
        (logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True
    )
    assert exact.abs().max() > 0.1
    ours = expected_gradient(losses.kl_penalty(logprobs, old, reference).loss, old.exp(), logits)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-6)
    plain = expected_gradient(0.5 * (logprobs - reference).square(), old.exp(), logits)
    assert bool(torch.allclose(plain, exact, rtol=0, atol=1e-6)) == on_policy
    if on_policy:
        first = expected_gradient(logprobs - reference, old.exp(), logits)
        torch.testing.assert_close(first, torch.zeros(5), rtol=0, atol=1e-6)
        third = expected_gradient(k3(logprobs, reference), old.exp(), logits)
        [reverse] = torch.autograd.grad((reference.exp() * -logprobs).sum(), logits)
        torch.testing.assert_close(third, reverse, rtol=0, atol=1e-6)


# --- PPO: the value -------------------------------------------------------------------------------


def test_ppo_value_by_hand():
    """V = 1.5, old 1, R = 2, clip .2: errors .5 and, clipped to 1.2, .8: max(.25, .64) / 2 = .32.

    V = 1.1 (inside the clip): .81 / 2 = .405. V = .5, R = 0: errors .5 and .8: .64 / 2 = .32.
    V = 1.5, R = 0: errors 1.5 and 1.2: 2.25 / 2 = 1.125, not clipped.
    """
    output = losses.ppo_value(
        tensor(1.5, 1.1, 0.5, 1.5), torch.ones(4), tensor(2.0, 2.0, 0.0, 0.0), clip=0.2
    )
    torch.testing.assert_close(output.loss, tensor(0.32, 0.405, 0.32, 1.125), rtol=0, atol=1e-6)
    assert output.metrics["value/clip_fraction"].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_value_without_a_clip_is_half_the_squared_error():
    generator = torch.Generator().manual_seed(3)
    values, old, returns = torch.randn(3, 9, generator=generator)
    output = losses.ppo_value(values, old, returns, clip=1e9)
    expected = np.square(values.double().numpy() - returns.double().numpy()) / 2
    np.testing.assert_allclose(output.loss.numpy(), expected, atol=1e-6)


def test_metrics_carry_no_gradient():
    grown = tensor(0.1, 0.2).requires_grad_()
    outputs = (
        losses.ppo_policy(grown, tensor(0.0, 0.0), tensor(1.0, 1.0), 0.2),
        losses.ppo_value(grown, tensor(0.0, 0.0), tensor(1.0, 1.0), 0.2),
        losses.kl_penalty(grown, tensor(0.0, 0.0), tensor(1.0, 1.0)),
    )
    for output in outputs:
        assert output.loss.shape == (2,)
        for name, values in output.metrics.items():
            assert not values.requires_grad, name
