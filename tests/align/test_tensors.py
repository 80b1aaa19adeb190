"""Masked statistics and token log-probabilities. (The sampler's tests are in test_policy.)"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from align import tensors
from align.tensors import masked_mean, standardize, token_logprobs

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_by_hand():
    """(1 + 2 + 3 + 6) / 4 = 3, whatever stands outside, be it not a number."""
    for rubbish in (0.0, 1e9, math.nan, math.inf):
        values = torch.tensor([[1.0, 2.0, 3.0], [6.0, rubbish, rubbish]])
        assert masked_mean(values, MASK).item() == 3.0


def test_masked_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mean of nothing"):
        masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool))


def test_standardize_by_hand():
    """Values 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5, sqrt 1.8708287.

    (1 - 3) / 1.8708287 = -1.0690450, then -.5345225, 0 and 1.6035675; outside the mask 0.
    """
    for rubbish in (0.0, 1e9, math.nan):
        values = torch.tensor([[1.0, 2.0, 3.0], [6.0, rubbish, rubbish]])
        expected = torch.tensor([[-1.0690450, -0.5345225, 0.0], [1.6035675, 0.0, 0.0]])
        torch.testing.assert_close(standardize(values, MASK), expected, rtol=0, atol=1e-6)


def test_standardize_forgets_shift_and_scale():
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        standardize(5 * values - 7, MASK), standardize(values, MASK), rtol=0, atol=1e-5
    )


def test_standardize_of_equal_values_is_0():
    """The epsilon keeps 0 / 0 out: all advantages equal means nothing to learn from."""
    assert standardize(torch.full((2, 3), 4.0), MASK).tolist() == [[0.0] * 3, [0.0] * 3]
    assert standardize(torch.tensor([3.0]), torch.tensor([True])).tolist() == [0.0]


def test_token_logprobs_by_hand():
    """A head that copies the hidden state: logits (log 1, log 2, log 5), p = (1/8, 1/4, 5/8).

    H = (1/8) log 8 + (1/4) log 4 + (5/8) log 1.6 = .9002561. At temperature .5 the logits double:
    p = (1, 4, 25) / 30.
    """
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    hidden = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    targets = torch.tensor([1, 2])
    result = token_logprobs(hidden, head, targets)
    expected = torch.log(torch.tensor([0.25, 0.625]))
    torch.testing.assert_close(result.logprobs, expected, rtol=0, atol=1e-6)
    entropy = torch.tensor([0.9002561, 0.9002561])
    torch.testing.assert_close(result.entropy, entropy, rtol=0, atol=1e-6)
    cold = token_logprobs(hidden, head, targets, temperature=0.5)
    expected = torch.log(torch.tensor([4 / 30, 25 / 30]))
    torch.testing.assert_close(cold.logprobs, expected, rtol=0, atol=1e-6)


def test_a_certain_next_token_has_log_probability_0():
    """The hidden state that predicts token k is e_k: at every place the right target, or e^-1000.

    An index off by one would read -1000 instead of 0.
    """
    head = nn.Linear(4, 4, bias=False)
    nn.init.eye_(head.weight)
    head.weight.data *= 1000.0
    hidden = torch.eye(4)[[2, 0, 3]]
    assert token_logprobs(hidden, head, torch.tensor([2, 0, 3])).logprobs.tolist() == [0.0] * 3
    assert token_logprobs(hidden, head, torch.tensor([0, 3, 2])).logprobs.tolist() == [-1000.0] * 3


@pytest.mark.parametrize("bias", [False, True])
def test_blocks_change_neither_values_nor_gradients(bias: bool, monkeypatch: pytest.MonkeyPatch):
    """11 tokens of a vocabulary of 7 in blocks of 3 tokens, recomputed in the backward pass."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(5, 7, bias=bias)
    hidden = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(7, (11,), generator=generator)
    weights = torch.randn(11, generator=generator)

    def numbers() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        result = token_logprobs(hidden, head, targets, temperature=0.8)
        loss = (weights * result.logprobs).sum()
        gradients = torch.autograd.grad(loss, [hidden, *head.parameters()])
        return result.logprobs.detach(), result.entropy, gradients

    whole = numbers()
    monkeypatch.setattr(tensors, "LOGITS_AT_ONCE", 3 * 7)
    in_blocks = numbers()
    torch.testing.assert_close(in_blocks[0], whole[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(in_blocks[1], whole[1], rtol=0, atol=1e-6)
    for ours, theirs in zip(in_blocks[2], whole[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_no_block_of_logits_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch):
    """100 tokens of a vocabulary of 50, 1000 logits at once: 5 blocks of 20 tokens."""
    monkeypatch.setattr(tensors, "LOGITS_AT_ONCE", 1000)
    seen: list[int] = []
    head = nn.Linear(8, 50)
    head.register_forward_hook(lambda *arguments: seen.append(arguments[2].numel()))
    hidden = torch.randn(100, 8, requires_grad=True)
    result = token_logprobs(hidden, head, torch.zeros(100, dtype=torch.long))
    assert result.logprobs.shape == (100,)
    assert seen == [1000] * 5


def test_log_probabilities_are_float32_and_entropy_has_no_gradient():
    head = nn.Linear(4, 6, dtype=torch.bfloat16)
    hidden = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    result = token_logprobs(hidden, head, torch.tensor([0, 1, 2]))
    assert result.logprobs.dtype == result.entropy.dtype == torch.float32
    assert result.logprobs.requires_grad and not result.entropy.requires_grad
