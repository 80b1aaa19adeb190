"""What is taken out of advantages and rewards, under the mask; and the entropy's gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from align.logits import token_logprobs
from align.tensors import centre, masked_mean, rescale, standardize

MASK = torch.tensor([[True, True, True], [True, False, False]])


def table(rubbish: float) -> Tensor:
    """1, 2, 3 and 6 under the mask: mean 3, variance 3.5."""
    return torch.tensor([[1.0, 2.0, 3.0], [6.0, rubbish, rubbish]])


@pytest.mark.parametrize("rubbish", [0.0, 1e9, math.nan])
def test_centre_by_hand(rubbish: float):
    assert centre(table(rubbish), MASK).tolist() == [[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]


@pytest.mark.parametrize("rubbish", [0.0, 1e9, math.nan])
def test_rescale_by_hand(rubbish: float):
    """(x - 3) / sqrt(3.5) + 3: 1.9309550, 2.4654775, 3 and 4.6035675; 0 outside, not the mean."""
    expected = torch.tensor([[1.9309550, 2.4654775, 3.0], [4.6035675, 0.0, 0.0]])
    torch.testing.assert_close(rescale(table(rubbish), MASK), expected, rtol=0, atol=1e-6)


def test_rescale_keeps_the_mean_and_centre_the_spread():
    values = 5 + 3 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    mean = float(masked_mean(values, MASK))
    assert float(masked_mean(rescale(values, MASK), MASK)) == pytest.approx(mean, abs=1e-5)
    assert float(masked_mean((rescale(values, MASK) - mean).square(), MASK)) == pytest.approx(
        1.0, abs=1e-5
    )
    assert float(masked_mean(centre(values, MASK), MASK)) == pytest.approx(0.0, abs=1e-5)
    for whitened in (centre(values, MASK), rescale(values, MASK)):
        torch.testing.assert_close(
            standardize(whitened, MASK), standardize(values, MASK), rtol=0, atol=1e-5
        )


def test_statistics_are_of_all_rows_and_not_of_each():
    """Rows of equal values each: by row nothing would be left, over all it is -1 and 1."""
    values = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(standardize(values, everywhere), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(centre(values, everywhere), expected, rtol=0, atol=1e-6)


def test_more_padding_changes_no_bit():
    wide = torch.cat([table(7.0), torch.full((2, 4), 7.0)], dim=1)
    wide_mask = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    for whiten in (centre, rescale, standardize):
        assert torch.equal(whiten(wide, wide_mask)[:, :3], whiten(table(0.0), MASK))
        assert not whiten(wide, wide_mask)[:, 3:].any()


def test_gradient_of_the_entropy_by_hand():
    """p = (1/8, 1/4, 5/8), H = .9002561: dH/dz_i = -p_i (log p_i + H) = .1473982, .1215096,
    -.2689078. At temperature 2 of the logits 2 log p, H is the same and the gradient half."""
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    targets = torch.tensor([0])
    expected = torch.tensor([[0.1473982, 0.1215096, -0.2689078]])
    for temperature in (1.0, 2.0):
        hidden = (temperature * torch.log(torch.tensor([[1.0, 2.0, 5.0]]))).requires_grad_()
        found = token_logprobs(hidden, head, targets, temperature, entropy="gradient")
        assert found.entropy.item() == pytest.approx(0.9002561, abs=1e-6)
        [gradient] = torch.autograd.grad(found.entropy.sum(), hidden)
        torch.testing.assert_close(gradient, expected / temperature, rtol=0, atol=1e-6)
    assert not token_logprobs(hidden, head, targets, entropy="value").entropy.requires_grad
    with torch.no_grad():
        found = token_logprobs(hidden, head, targets, entropy="gradient")
    assert not found.entropy.requires_grad


def test_gradient_of_the_entropy_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """11 tokens of a vocabulary of 7 in blocks of 3, computed again in the backward pass."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(5, 7)
    hidden = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(7, (11,), generator=generator)

    def gradient() -> Tensor:
        found = token_logprobs(hidden, head, targets, 0.8, entropy="gradient")
        return torch.autograd.grad((found.entropy + 2 * found.logprobs).sum(), hidden)[0]

    whole = gradient()
    monkeypatch.setattr("align.logits.LOGITS_AT_ONCE", 3 * 7)
    torch.testing.assert_close(gradient(), whole, rtol=0, atol=1e-6)
