"""Losses of direct alignment: hand numbers, limits, symmetries, and TRL as a second opinion."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align import dpo_losses
from align.losses import LossOutput

LOG_2 = math.log(2.0)

# Each with settings at which all that it has is used: (chosen, rejected, label) -> output.
LOSSES: dict[str, Callable[[Tensor, Tensor, Any], LossOutput]] = {
    "sigmoid": lambda c, r, label: dpo_losses.sigmoid(c, r, 0.3, 0.1, 0.7, label),
    "robust": lambda c, r, label: dpo_losses.robust(c, r, 0.3, 0.1, 0.7, label),
    "hinge": lambda c, r, label: dpo_losses.hinge(c, r, 0.3, label),
    "ipo": lambda c, r, label: dpo_losses.ipo(c, r, 0.3, label),
    "simpo": lambda c, r, label: dpo_losses.simpo(c, r, 0.3, 0.1, 0.7, label),
    "orpo": lambda c, r, label: dpo_losses.orpo(c, r, 0.3, label),
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def close(ours: Tensor, *expected: float) -> None:
    torch.testing.assert_close(ours, tensor(*expected), rtol=0, atol=2e-6)


# --- DPO ------------------------------------------------------------------------------------------


def test_at_the_reference():
    """Log-ratios of 0: sigmoid log 2, hinge 1, IPO 1 / (4 * .1^2) = 25; none is preferred."""
    zeros = torch.zeros(2)
    for output, value in (
        (dpo_losses.sigmoid(zeros, zeros, 0.1), LOG_2),
        (dpo_losses.sigmoid(zeros, zeros, 0.1, label_smoothing=0.3), LOG_2),
        (dpo_losses.robust(zeros, zeros, 0.1, label_smoothing=0.3), LOG_2),
        (dpo_losses.hinge(zeros, zeros, 0.1), 1.0),
        (dpo_losses.ipo(zeros, zeros, 0.1), 25.0),
    ):
        close(output.loss, value, value)
        for name in ("accuracy", "margin", "chosen_reward", "rejected_reward"):
            assert output.metrics[f"dpo/{name}"].tolist() == [0.0, 0.0]


def test_sigmoid_by_hand():
    """beta .5; log-ratios 2 and -1: rewards 1 and -.5, h = 1.5.

    -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.22313016) = .2014133.
    """
    output = dpo_losses.sigmoid(tensor(2.0), tensor(-1.0), beta=0.5)
    close(output.loss, 0.2014133)
    assert output.metrics["dpo/chosen_reward"].tolist() == [1.0]
    assert output.metrics["dpo/rejected_reward"].tolist() == [-0.5]
    assert output.metrics["dpo/margin"].tolist() == [1.5]
    assert output.metrics["dpo/accuracy"].tolist() == [1.0]


def test_smoothing_by_hand():
    """h = 1.5, e .1: conservative .9 * .2014133 + .1 * (.2014133 + 1.5) = .3514133;
    robust (.9 * .2014133 - .1 * 1.7014133) / .8 = (.1812720 - .1701413) / .8 = .0139133.
    """
    ratios = tensor(2.0), tensor(-1.0)
    close(dpo_losses.sigmoid(*ratios, 0.5, label_smoothing=0.1).loss, 0.3514133)
    close(dpo_losses.robust(*ratios, 0.5, label_smoothing=0.1).loss, 0.0139133)


def test_margin_by_hand():
    """h = 1.5 less an offset of 1.5 or .5: log 2, and log(1 + e^-1) = .3132617. The reported margin
    is still h. One offset a pair is ODPO."""
    output = dpo_losses.sigmoid(tensor(2.0, 2.0), tensor(-1.0, -1.0), 0.5, margin=tensor(1.5, 0.5))
    close(output.loss, LOG_2, 0.3132617)
    assert output.metrics["dpo/margin"].tolist() == [1.5, 1.5]


def test_offsets_by_hand():
    """alpha log gap: gaps 4, 1/4 and 1 with alpha .5 are log 2, -log 2 and 0; no gap is none."""
    close(dpo_losses.offsets(tensor(4.0, 0.25, 1.0, 0.0), 0.5), math.log(2), -math.log(2), 0.0, 0.0)
    assert dpo_losses.offsets(tensor(4.0, 1e-30, 0.0), 0.0).tolist() == [0.0, 0.0, 0.0]


def test_odpo_by_hand():
    """h = 1.5, gaps 4 and 1/4, alpha .5: h - Delta = .8068528 and 2.1931472; log(1 + e^-x) of them.
    Without a known gap, the loss of `sigmoid`."""
    offset = dpo_losses.offsets(tensor(4.0, 0.25, 0.0), 0.5)
    output = dpo_losses.sigmoid(tensor(2.0, 2.0, 2.0), tensor(-1.0, -1.0, -1.0), 0.5, margin=offset)
    close(output.loss, 0.3689811, 0.1057690, 0.2014133)


def test_odpos_gradient_is_a_half_at_the_offset():
    """beta 1, h = Delta = 2 log 3: dl/dh = -sigmoid(0)."""
    chosen = tensor(2 * math.log(3.0)).requires_grad_()
    offset = dpo_losses.offsets(tensor(3.0), 2.0)
    dpo_losses.sigmoid(chosen, tensor(0.0), 1.0, margin=offset).loss.sum().backward()
    assert chosen.grad is not None
    close(chosen.grad, -0.5)


def test_sigmoid_gradient():
    """dl/d chosen = -beta sigmoid(-h), at h = 0: -beta / 2; the rejected one's is the opposite."""
    chosen, rejected = tensor(-4.0).requires_grad_(), tensor(-4.0).requires_grad_()
    dpo_losses.sigmoid(chosen, rejected, beta=0.1).loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    close(chosen.grad, -0.05)
    close(rejected.grad, 0.05)


def test_sigmoid_stays_finite_far_out():
    output = dpo_losses.sigmoid(tensor(-1e4, 1e4), tensor(0.0, 0.0), 1)
    assert output.loss.tolist() == [1e4, 0.0]


def test_conservative_dpo_has_its_minimum_at_the_labels_certainty():
    """d/dh [(1 - e) l(h) + e l(-h)] = sigmoid(h) - (1 - e): 0 at h = log((1 - e) / e) = log 9.

    Robust DPO goes on: -[.9 sigmoid(-h) + .1 sigmoid(h)] / .8 = -(.09 + .09) / .8 = -.225 there.
    """
    for loss, gradient in ((dpo_losses.sigmoid, 0.0), (dpo_losses.robust, -0.225)):
        chosen = tensor(math.log(9.0)).requires_grad_()
        loss(chosen, tensor(0.0), 1.0, 0.1).loss.sum().backward()
        assert chosen.grad is not None
        close(chosen.grad, gradient)


def test_robust_dpo_is_unbiased_by_flips():
    """Labels flipped with probability .2: (1 - e) robust(h) + e robust(-h) = sigmoid(h)."""
    c, r = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    right = dpo_losses.robust(c, r, 0.5, 0.2, margin=0.3).loss
    flipped = dpo_losses.robust(r, c, 0.5, 0.2, margin=0.3).loss
    clean = dpo_losses.sigmoid(c, r, 0.5, margin=0.3).loss
    torch.testing.assert_close(0.8 * right + 0.2 * flipped, clean, rtol=0, atol=1e-6)


def test_without_flips_robust_is_sigmoid():
    c, r = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    robust, plain = dpo_losses.robust(c, r, 0.5, 0.0), dpo_losses.sigmoid(c, r, 0.5)
    torch.testing.assert_close(robust.loss, plain.loss, rtol=0, atol=1e-6)


# --- soft labels ----------------------------------------------------------------------------------


@ALL
def test_swapping_a_pair_and_its_label_changes_nothing(loss: Callable[..., LossOutput]):
    generator = torch.Generator().manual_seed(2)
    c, r = -torch.rand(2, 20, generator=generator) * 3
    label = torch.rand(20, generator=generator)
    there, back = loss(c, r, label), loss(r, c, 1 - label)
    torch.testing.assert_close(there.loss, back.loss, rtol=0, atol=2e-6)
    assert torch.equal(there.metrics["dpo/margin"], -back.metrics["dpo/margin"])


@ALL
def test_a_soft_label_is_the_mean_over_annotators(loss: Callable[..., LossOutput]):
    """3 of 4 say the first is better: a label of .75 costs what the four pairs do on average."""
    c, r = tensor(-0.4), tensor(-1.1)
    four = [loss(c, r, 1.0).loss] * 3 + [loss(r, c, 1.0).loss]
    torch.testing.assert_close(loss(c, r, tensor(0.75)).loss, sum(four) / 4, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("loss", "optimum"),
    [
        # sigmoid(beta d) = .8: d = log 4 / .5
        (lambda d, label: dpo_losses.sigmoid(d, torch.zeros(1), 0.5, label=label), 2.7725887),
        # d = (.8 - .5) / .5
        (lambda d, label: dpo_losses.ipo(d, torch.zeros(1), 0.5, label), 0.6),
    ],
    ids=["sigmoid", "ipo"],
)
def test_a_soft_labels_optimum(loss: Callable[[Tensor, float], LossOutput], optimum: float):
    """The derivative by the log-ratio is 0 there, and has opposite signs around it."""
    d = tensor(optimum - 0.1, optimum, optimum + 0.1).requires_grad_()
    loss(d, 0.8).loss.sum().backward()
    assert d.grad is not None
    below, at, above = d.grad.tolist()
    assert at == pytest.approx(0, abs=1e-6)
    assert below < -1e-3 and above > 1e-3


def test_soft_labels_lead_to_the_closed_form_optimum():
    """Labels p_ij = sigmoid(r_i - r_j) on all pairs of 5 answers: DPO's smallest loss is where
    beta (log-ratio_i - log-ratio_j) = r_i - r_j, hence at pi* = ref * exp(r / beta) / Z, which is
    the optimum of the reward r under a KL penalty of beta (Rafailov et al. 2023, eq. 4)."""
    beta, reward = 0.5, tensor(1.0, -0.5, 0.2, 0.0, 0.6).double()
    reference = tensor(0.3, 0.3, 0.2, 0.1, 0.1).double()
    logits = reference.log().clone().requires_grad_()
    i, j = torch.triu_indices(5, 5, offset=1)
    label = torch.sigmoid(reward[i] - reward[j])
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - reference.log()
        loss = dpo_losses.sigmoid(ratio[i], ratio[j], beta, label=label).loss.sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type] - torch wants a float
    optimum = reference * (reward / beta).exp()
    torch.testing.assert_close(logits.softmax(0), optimum / optimum.sum(), rtol=0, atol=1e-4)


# --- the others -----------------------------------------------------------------------------------


def test_hinge_by_hand():
    """beta .5: h = 1.5, .5 and -1: max(0, 1 - h) = 0, .5 and 2; no gradient past the margin."""
    chosen = tensor(2.0, 1.0, -2.0).requires_grad_()
    output = dpo_losses.hinge(chosen, tensor(-1.0, 0.0, 0.0), 0.5)
    close(output.loss, 0.0, 0.5, 2.0)
    output.loss.sum().backward()
    assert chosen.grad is not None
    close(chosen.grad, 0.0, -0.5, -0.5)


def test_ipo_by_hand():
    """tau .25 asks for d = 2. d = 1.5, 2 and 3: .25, 0 and 1 (it pulls back what went too far)."""
    output = dpo_losses.ipo(tensor(1.5, 1.0, 2.0), tensor(0.0, -1.0, -1.0), 0.25)
    close(output.loss, 0.25, 0.0, 1.0)
    close(output.metrics["dpo/margin"], 0.375, 0.5, 0.75)


def test_means_by_token():
    """Sums -6 and -2 over 3 and 4 tokens are -2 and -.5 a token. With beta 2 the length-normalised
    margin of a pair of log-ratios 3 / 2 and -4 / 8 is 2 (1.5 + .5) = 4: log(1 + e^-4) = .0181499.
    """
    close(dpo_losses.per_token(tensor(-6.0, -2.0), tensor(3.0, 4.0)), -2.0, -0.5)
    chosen = dpo_losses.per_token(tensor(3.0), torch.tensor([2]))
    rejected = dpo_losses.per_token(tensor(-4.0), torch.tensor([8]))
    close(dpo_losses.sigmoid(chosen, rejected, 2.0).loss, 0.0181499)


def test_simpo_by_hand():
    """Means -.5 and -1, beta 2, gamma .6: h - gamma = 1 - .6 = .4: log(1 + e^-.4) = .5130153."""
    close(dpo_losses.simpo(tensor(-0.5), tensor(-1.0), 2.0, margin=0.6).loss, 0.5130153)


def test_simpo_is_length_normalised_dpo_under_a_uniform_reference():
    """A reference that gives every token 1 / V: its mean is the same for both and cancels."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.tensor([[3, 5, 9], [4, 1, 2]])
    sums = -torch.rand(2, 3, generator=generator) * tokens
    uniform = -math.log(50) * tokens
    simpo = dpo_losses.simpo(*dpo_losses.per_token(sums, tokens), beta=2.0, margin=0.5)
    ratios = dpo_losses.per_token(sums - uniform, tokens)
    dpo = dpo_losses.sigmoid(*ratios, beta=2.0, margin=0.5)
    torch.testing.assert_close(simpo.loss, dpo.loss, rtol=0, atol=2e-6)


def test_orpo_by_hand():
    """P = .5 and .2 (means -.6931472 and -1.6094379): odds 1 and .25, log odds 0 and -log 4.

    NLL .6931472; sigmoid(log 4) = .8; with lambda .5: .6931472 - .5 log .8 = .6931472 + .1115718.
    """
    output = dpo_losses.orpo(tensor(math.log(0.5)), tensor(math.log(0.2)), 0.5)
    close(output.loss, 0.8047190)
    close(output.metrics["dpo/chosen_reward"], 0.0)
    close(output.metrics["dpo/rejected_reward"], -math.log(4))


def test_orpo_without_odds_is_supervised():
    """lambda 0 leaves the chosen one's negative log-likelihood, and no gradient to the other."""
    chosen, rejected = tensor(-0.7).requires_grad_(), tensor(-0.9).requires_grad_()
    output = dpo_losses.orpo(chosen, rejected, 0.0)
    close(output.loss.detach(), 0.7)
    output.loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (-1.0, 0.0)


def test_orpo_stays_finite_at_both_ends():
    """Probabilities of 1 and of e^-200: the odds are infinite and 0 in float32, the loss is not.

    From certainty, -log(odds) is bounded by log(1e-7) = -16.1180957, so the swapped pair costs
    200 + (16.1180957 + 200) and the right one 0 + log(1 + e^-216) = 0.
    """
    chosen = tensor(0.0, -200.0).requires_grad_()
    rejected = tensor(-200.0, 0.0).requires_grad_()
    output = dpo_losses.orpo(chosen, rejected, 1.0)
    torch.testing.assert_close(output.loss, tensor(0.0, 416.1180957), rtol=1e-6, atol=1e-6)
    output.loss.sum().backward()
    for values in (chosen, rejected):
        assert values.grad is not None and bool(values.grad.isfinite().all())


@ALL
def test_metrics_carry_no_gradient(loss: Callable[..., LossOutput]):
    output = loss(tensor(-0.1, -0.2).requires_grad_(), tensor(-0.3, -0.3), 1.0)
    assert output.loss.shape == (2,)
    assert output.loss.requires_grad
    for name, values in output.metrics.items():
        assert values.shape == (2,) and not values.requires_grad, name


# --- TRL ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("name", "means", "ours"),
    [
        ("sigmoid", False, lambda c, r: dpo_losses.sigmoid(c, r, 0.7)),
        ("sigmoid_norm", True, lambda c, r: dpo_losses.sigmoid(c, r, 0.7)),
        ("robust", False, lambda c, r: dpo_losses.robust(c, r, 0.7, 0.1)),
        ("hinge", False, lambda c, r: dpo_losses.hinge(c, r, 0.7)),
        ("ipo", True, lambda c, r: dpo_losses.ipo(c, r, 0.7)),
    ],
)
def test_losses_with_a_reference_equal_trls(
    name: str, means: bool, ours: Callable[[Tensor, Tensor], LossOutput]
):
    """TRL's own DPOTrainer on 3 pairs of 4 or fewer tokens; it averages, so ours is averaged too.

    (Its `sigmoid` ignores label_smoothing, so only `robust` is compared with one.)
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor([4, 2, 3, 1, 4, 2])
    mask = torch.arange(4)[None, :] < tokens[:, None]
    policy, reference = -torch.rand(2, 6, 4, generator=generator) * 3
    policy, reference = policy * mask, reference * mask  # TRL's models give 0 elsewhere
    loss, metrics = _trl_dpo(DPOTrainer, name, policy, reference.sum(1), mask)
    ratios = (policy - reference).sum(1)
    values = dpo_losses.per_token(ratios, tokens) if means else ratios
    output = ours(values[:3], values[3:])
    assert float(output.loss.mean()) == pytest.approx(loss, abs=2e-6)
    if not means:  # TRL's rewards are of sums in any case
        for metric, other in (
            ("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins"),
            ("accuracy", "accuracies"),
        ):  # fmt: skip
            mean = float(output.metrics[f"dpo/{metric}"].mean())
            assert mean == pytest.approx(metrics[f"rewards/{other}"][0], abs=2e-6)


def _trl_dpo(
    trainer: Any, name: str, policy: Tensor, reference: Tensor, mask: Tensor
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
        loss_types=[name],
        loss_weights=[1.0],
        beta=0.7,
        label_smoothing=0.1,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt = torch.zeros(len(mask), 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.ones(6, 5, dtype=torch.long),
        "attention_mask": torch.ones(6, 5, dtype=torch.long),
        "completion_mask": torch.cat([prompt, mask.long()], dim=1),
        "ref_chosen_logps": reference[:3],
        "ref_rejected_logps": reference[3:],
    }
    loss = float(trainer._compute_loss(stub, stub.model, inputs, False))
    return loss, stub._metrics["train"]


def test_losses_without_a_reference_equal_trls(monkeypatch: pytest.MonkeyPatch):
    """SimPO as in TRL's CPOTrainer, and the odds of ORPO as in its ORPOTrainer, which adds the
    likelihood elsewhere."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    pair: Any = -torch.rand(2, 8, generator=torch.Generator().manual_seed(4)) * 3
    c, r = pair
    stub: Any = SimpleNamespace(
        alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.6, label_smoothing=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    theirs = CPOTrainer.cpo_loss(stub, c, r)[0]
    ours = dpo_losses.simpo(c, r, 2.0, margin=0.6)
    torch.testing.assert_close(ours.loss, theirs, rtol=0, atol=2e-6)
    odds = ORPOTrainer.odds_ratio_loss(stub, c, r)[0]
    ours = dpo_losses.orpo(c, r, 2.0)
    torch.testing.assert_close(ours.loss, -c - odds, rtol=0, atol=2e-6)
