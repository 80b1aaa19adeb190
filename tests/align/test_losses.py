"""Policy losses: hand numbers, limits, gradients, and TRL as a second opinion."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align import losses

LOG_2 = math.log(2.0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


# --- DPO ------------------------------------------------------------------------------------------


def test_dpo_with_the_reference_as_policy_is_log_2():
    """h = 0 whatever the log-probabilities; the accuracy is 0, for nothing is preferred yet."""
    chosen, rejected = tensor(-10.0, -3.0), tensor(-20.0, -1.0)
    output = losses.dpo(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(output.loss, tensor(LOG_2, LOG_2))
    for name in ("accuracy", "margin", "chosen_reward", "rejected_reward"):
        assert output.metrics[f"dpo/{name}"].tolist() == [0.0, 0.0]


def test_dpo_by_hand():
    """beta .5; log-ratios 2 and -1: rewards 1 and -.5, h = 1.5.

    -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.22313016) = .2014133.
    With smoothing .1: .9 * .2014133 + .1 * (.2014133 + 1.5) = .3514133.
    """
    arguments = (tensor(-3.0), tensor(-6.0), tensor(-5.0), tensor(-5.0))
    output = losses.dpo(*arguments, beta=0.5)
    torch.testing.assert_close(output.loss, tensor(0.2014133), rtol=0, atol=1e-6)
    assert output.metrics["dpo/chosen_reward"].tolist() == [1.0]
    assert output.metrics["dpo/rejected_reward"].tolist() == [-0.5]
    assert output.metrics["dpo/margin"].tolist() == [1.5]
    assert output.metrics["dpo/accuracy"].tolist() == [1.0]
    smooth = losses.dpo(*arguments, beta=0.5, label_smoothing=0.1)
    torch.testing.assert_close(smooth.loss, tensor(0.3514133), rtol=0, atol=1e-6)


def test_dpo_of_the_opposite_opinion():
    """l(-h) - l(h) = h: swapping chosen and rejected costs exactly the margin."""
    generator = torch.Generator().manual_seed(0)
    c, r, rc, rr = torch.randn(4, 7, generator=generator)
    there, back = losses.dpo(c, r, rc, rr, 0.3), losses.dpo(r, c, rr, rc, 0.3)
    torch.testing.assert_close(
        back.loss - there.loss, there.metrics["dpo/margin"], rtol=0, atol=1e-6
    )


def test_conservative_dpo_has_its_minimum_at_the_labels_certainty():
    """d/dh [(1 - e) l(h) + e l(-h)] = sigmoid(h) - (1 - e): 0 at h = log((1 - e) / e) = log 9."""
    chosen = tensor(math.log(9.0)).requires_grad_()
    zero = tensor(0.0)
    losses.dpo(chosen, zero, zero, zero, beta=1.0, label_smoothing=0.1).loss.sum().backward()
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(0.0, abs=1e-6)


def test_dpo_gradient():
    """dl/d chosen = -beta sigmoid(-h), at h = 0: -beta / 2; the rejected one's is the opposite."""
    chosen, rejected = tensor(-4.0).requires_grad_(), tensor(-5.0).requires_grad_()
    losses.dpo(chosen, rejected, tensor(-4.0), tensor(-5.0), beta=0.1).loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.05, abs=1e-7)
    assert float(rejected.grad) == pytest.approx(0.05, abs=1e-7)


def test_dpo_stays_finite_far_out():
    output = losses.dpo(tensor(-1e4, 1e4), tensor(0.0, 0.0), tensor(0.0, 0.0), tensor(0.0, 0.0), 1)
    assert output.loss.tolist() == [1e4, 0.0]


class Fixed:
    """A language model to TRL: gives the log-probabilities that it was made with."""

    training = True

    def __init__(self, logprobs: Tensor):
        self.logprobs = logprobs

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(  # TRL reports the last three; they are not looked at here
            log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def test_dpo_equals_trl():
    """TRL's own DPOTrainer loss on 3 pairs of 4 tokens; it averages, so ours is averaged too."""
    from trl.trainer.dpo_trainer import DPOTrainer

    generator = torch.Generator().manual_seed(1)
    policy = -torch.rand(6, 4, generator=generator) * 3
    reference = -torch.rand(6, 4, generator=generator) * 3
    loss, metrics = _trl_dpo(DPOTrainer, policy, reference, beta=0.7)
    sums, reference_sums = policy.sum(1), reference.sum(1)
    ours = losses.dpo(sums[:3], sums[3:], reference_sums[:3], reference_sums[3:], beta=0.7)
    assert float(ours.loss.mean()) == pytest.approx(loss, abs=1e-6)
    for name, other in (
        ("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins"),
        ("accuracy", "accuracies"),
    ):  # fmt: skip
        mean = float(ours.metrics[f"dpo/{name}"].mean())
        assert mean == pytest.approx(metrics[f"rewards/{other}"][0], abs=1e-6)


def _trl_dpo(
    trainer: Any, policy: Tensor, reference: Tensor, beta: float
) -> tuple[float, dict[str, list[float]]]:
    """`DPOTrainer._compute_loss` with as much of a trainer around it as it looks at."""
    same = SimpleNamespace(
        device=torch.device("cpu"),
        gather_for_metrics=lambda value: value,
        gather=lambda value: value,
    )
    stub = SimpleNamespace(
        model=Fixed(policy),
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones(6, 5, dtype=torch.long),
        "attention_mask": torch.ones(6, 5, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1, 1, 1, 1]] * 6),
        "ref_chosen_logps": reference.sum(1)[:3],
        "ref_rejected_logps": reference.sum(1)[3:],
    }
    loss = float(trainer._compute_loss(stub, stub.model, inputs, False))
    return loss, stub._metrics["train"]


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
        losses.dpo(grown, tensor(0.0, 0.0), tensor(0.0, 0.0), tensor(0.0, 0.0), 0.1),
        losses.ppo_policy(grown, tensor(0.0, 0.0), tensor(1.0, 1.0), 0.2),
        losses.ppo_value(grown, tensor(0.0, 0.0), tensor(1.0, 1.0), 0.2),
    )
    for output in outputs:
        assert output.loss.shape == (2,)
        for name, values in output.metrics.items():
            assert not values.requires_grad, name
