"""Token log-probabilities and entropies, by hand and against torch's own gradients. (The sampler's
tests are in test_policy.)"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from align import logits
from align.adapters import Pinned
from align.logits import Entropy, token_logprobs


def test_token_logprobs_by_hand():
    """A head that copies the hidden state: logits (log 1, log 2, log 5), p = (1/8, 1/4, 5/8).

    H = (1/8) log 8 + (1/4) log 4 + (5/8) log 1.6 = .9002561. At temperature .5 the logits double:
    p = (1, 4, 25) / 30.
    """
    head = nn.Linear(3, 3, bias=False)
    nn.init.eye_(head.weight)
    hidden = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    targets = torch.tensor([1, 2])
    result = token_logprobs(hidden, head, targets, entropy="value")
    assert result.entropy is not None
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


class Spoken(nn.Linear):
    """A linear layer that is more than one: its logits are recorded and computed again."""


@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Spoken])
@pytest.mark.parametrize("at_once", [3 * 7, 1 << 20])
def test_values_and_gradients_are_those_of_all_logits(
    entropy: Entropy, bias: bool, kind: type[nn.Linear], at_once: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """11 tokens of a vocabulary of 7, in blocks of 3 or at once, against log_softmax of them all in
    double precision, with torch's own gradients."""
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    head = kind(5, 7, bias=bias)
    hidden = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(7, (11,), generator=generator)
    weights = torch.randn(2, 11, generator=generator)
    ours = token_logprobs(hidden, Pinned(head), targets, 0.8, entropy)
    every = (nn.functional.linear(hidden, head.weight, head.bias).double() / 0.8).log_softmax(-1)
    logprobs = every.gather(1, targets[:, None]).squeeze(1)
    entropies = -(every.exp() * every).sum(1)
    torch.testing.assert_close(ours.logprobs, logprobs.float(), rtol=0, atol=1e-6)
    loss, expected = (weights[0] * ours.logprobs).sum(), (weights[0] * logprobs).sum()
    if ours.entropy is None:
        assert entropy == "none"
    else:
        torch.testing.assert_close(ours.entropy, entropies.float(), rtol=0, atol=1e-6)
        assert ours.entropy.requires_grad == (entropy == "gradient")
    if entropy == "gradient":
        assert ours.entropy is not None
        loss = loss + (weights[1] * ours.entropy).sum()
        expected = expected + (weights[1] * entropies).sum()
    inputs = [hidden, *head.parameters()]
    for mine, whole in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, whole, rtol=0, atol=2e-6)


def test_a_frozen_head_has_no_gradient_and_the_states_have_theirs():
    head = nn.Linear(5, 7, bias=False).requires_grad_(False)
    hidden = torch.randn(4, 5, requires_grad=True)
    token_logprobs(hidden, head, torch.tensor([0, 1, 2, 3])).logprobs.sum().backward()
    assert head.weight.grad is None and hidden.grad is not None and bool(hidden.grad.any())


class Largest(TorchDispatchMode):
    """Notes how large the largest tensor is that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
def test_no_block_of_logits_is_larger_than_allowed(
    entropy: Entropy, monkeypatch: pytest.MonkeyPatch
):
    """100 tokens of a vocabulary of 50, 1000 logits at once: nothing in the forward or the backward
    pass is larger than that, but for the hidden states (800) and the head (400) all 5000 would."""
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 1000)
    head, hidden = nn.Linear(8, 50), torch.randn(100, 8, requires_grad=True)
    with Largest() as largest:
        found = token_logprobs(hidden, head, torch.zeros(100, dtype=torch.long), 1.0, entropy)
        found.logprobs.sum().backward()
    assert largest.elements == 1000


def test_a_head_that_is_listened_to_is_called_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 1000)
    seen: list[int] = []
    head = nn.Linear(8, 50)
    head.register_forward_hook(lambda *arguments: seen.append(arguments[2].numel()))
    hidden = torch.randn(100, 8, requires_grad=True)
    result = token_logprobs(hidden, head, torch.zeros(100, dtype=torch.long))
    assert result.logprobs.shape == (100,)
    assert seen == [1000] * 5


def test_a_cpu_has_small_blocks():
    """600 tokens: 256, 256 and 88."""
    sizes: list[int] = []
    head = nn.Linear(4, 6)
    head.register_forward_hook(lambda *arguments: sizes.append(len(arguments[2])))
    token_logprobs(torch.randn(600, 4), head, torch.zeros(600, dtype=torch.long))
    assert sizes == [256, 256, 88]


@pytest.mark.parametrize("kind", [nn.Linear, Spoken])
def test_numbers_are_float32_whatever_the_head_is(kind: type[nn.Linear]):
    """bfloat16 has 8 bits: the gradient of 3 tokens is right to a hundredth."""
    head = kind(4, 6, dtype=torch.bfloat16)
    hidden = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    result = token_logprobs(hidden, head, torch.tensor([0, 1, 2]), entropy="value")
    assert result.entropy is not None
    assert result.logprobs.dtype == result.entropy.dtype == torch.float32
    [gradient] = torch.autograd.grad(result.logprobs.sum(), hidden)
    whole = hidden.detach().float().requires_grad_()
    every = nn.functional.linear(whole, head.weight.float(), head.bias.float()).log_softmax(-1)
    [expected] = torch.autograd.grad(every[range(3), range(3)].sum(), whole)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.float(), expected, rtol=0, atol=2e-2)


def test_no_tokens_are_no_numbers():
    head, hidden = nn.Linear(4, 6), torch.zeros(0, 4, requires_grad=True)
    found = token_logprobs(hidden, head, torch.zeros(0, dtype=torch.long), entropy="value")
    assert found.logprobs.shape == (0,) and found.entropy is not None
