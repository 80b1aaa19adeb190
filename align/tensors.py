"""Statistics under a mask, and the one place where logits meet their targets.

`*_mask` is True where the token counts. Axes: B sequences, R response tokens, N tokens of
completions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

_recomputed: Any = torch.utils.checkpoint.checkpoint  # pyright: ignore

LOGITS_AT_ONCE = 1 << 25
"""Elements of the largest block of logits that exists at a time (128 MiB in float32)."""


VOCABULARY_BLOCK = 128
"""Words whose probabilities are summed up together before one is drawn."""


class TokenLogprobs(NamedTuple):
    """Of N tokens, in float32."""

    logprobs: Tensor
    """[N] log-probability of the target, nats"""
    entropy: Tensor
    """[N] entropy of the distribution it was drawn from, nats; without gradient unless asked for"""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`. Raises ValueError if nothing counts."""
    if not bool(mask.any()):
        raise ValueError("the mask is empty: a mean of nothing")
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def standardize(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the masked values (biased variance, epsilon 1e-8); 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 over the masked values, their spread as it was; 0 elsewhere."""
    return torch.where(mask, values - masked_mean(values, mask), 0.0)


def rescale(values: Tensor, mask: Tensor) -> Tensor:
    """Variance 1 over the masked values (as `standardize`), their mean as it was; 0 elsewhere."""
    return torch.where(mask, standardize(values, mask) + masked_mean(values, mask), 0.0)


def token_logprobs(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> TokenLogprobs:
    """Log-probabilities of `targets` [N] from the hidden states [N, D] that predict them.

    The head runs on these positions only, in blocks, and a block's logits are computed again in
    the backward pass instead of being kept: no B x T x V tensor exists. The entropy has a gradient
    only if it is asked for.
    """
    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]  # type: ignore[union-attr]
    block = max(1, LOGITS_AT_ONCE // int(vocabulary))  # type: ignore[arg-type]
    if hidden.shape[0] <= block:
        return TokenLogprobs(*_block_logprobs(hidden, head, targets, temperature, entropy_gradient))
    starts = range(0, hidden.shape[0], block)
    parts: list[tuple[Tensor, Tensor]] = [
        _recomputed(
            _block_logprobs, hidden[at : at + block], head, targets[at : at + block], temperature,
            entropy_gradient, use_reentrant=False,
        )
        for at in starts
    ]  # fmt: skip
    return TokenLogprobs(
        torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropy for _, entropy in parts])
    )


def _block_logprobs(
    hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    log_z = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return chosen, entropy


def sample_inverse_cdf(logits: Tensor, uniform: Tensor, temperature: float) -> TokenSample:
    """Draws one token a row by inverting the distribution function at `uniform`.

    `logits` [B, V], `uniform` [B] in [0, 1). A row's draw depends on its own number alone, not on
    the other rows, so a rollout is the same in any batch and on any number of ranks. The sums are
    taken of blocks of the vocabulary first, then within the one block that holds the token: ten to
    forty times as fast as torch.multinomial on a CPU.
    """
    logits = logits.float() / temperature
    log_z = logits.logsumexp(dim=-1, keepdim=True)
    probabilities = (logits - log_z).exp_()
    unused = -logits.shape[-1] % VOCABULARY_BLOCK
    probabilities = torch.nn.functional.pad(probabilities, (0, unused))
    blocks = probabilities.view(len(logits), -1, VOCABULARY_BLOCK)
    block, within = _invert(blocks.sum(dim=-1), uniform.double())
    row = torch.arange(len(logits), device=logits.device)
    place, _ = _invert(blocks[row, block], within)
    tokens = (block * VOCABULARY_BLOCK + place).clamp(max=logits.shape[-1] - 1)
    return TokenSample(tokens, (logits.gather(-1, tokens[:, None]) - log_z).squeeze(-1))


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(which of the `weights` [B, W] the point `uniform` [B] of their sum falls on, the point of
    that one), both [B]."""
    # Scaled by the total, which rounding keeps from being exactly 1.
    cumulative = weights.double().cumsum(dim=-1)
    point = uniform[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, point, right=True)
    found = found.clamp(max=weights.shape[-1] - 1)
    weight = weights.double().gather(-1, found)
    within = (point - (cumulative.gather(-1, found) - weight)) / weight
    return found.squeeze(-1), within.clamp(0.0, 1.0).squeeze(-1)


class TokenSample(NamedTuple):
    """One sampled token a row, and its log-probability under the distribution it was drawn from."""

    tokens: Tensor
    """[B]"""
    logprobs: Tensor
    """[B] nats"""
