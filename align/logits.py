"""The one place where logits meet their targets, and where tokens are drawn from them.

Axes: B sequences, N tokens of completions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from align.adapters import Pinned

_recomputed: Any = torch.utils.checkpoint.checkpoint  # pyright: ignore

LOGITS_AT_ONCE = 1 << 25
"""Elements of the largest block of logits that exists at a time (128 MiB in float32)."""
ROWS_AT_ONCE = 256
"""Tokens of such a block on a CPU, where a small one stays in the cache: on 2,000 tokens of 24,000
words 1.8 times as fast as blocks of the size above. A GPU is faster with large ones."""
VOCABULARY_BLOCK = 128
"""Words whose probabilities are summed up together before one is drawn."""

Entropy = Literal["none", "value", "gradient"]
"""Whether the entropy is wanted, and whether a loss goes through it."""


class TokenLogprobs(NamedTuple):
    """Of N tokens, in float32."""

    logprobs: Tensor
    """[N] log-probability of the target, nats"""
    entropy: Tensor | None
    """[N] entropy of the distribution it was drawn from, nats; None unless asked for"""


def token_logprobs(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: Entropy = "none",
) -> TokenLogprobs:
    """Log-probabilities of `targets` [N] from the hidden states [N, D] that predict them.

    The head runs on these positions only, in blocks, and a block's logits are computed again in
    the backward pass instead of being kept: no B x T x V tensor exists. A plain linear head is one
    function, whose gradient is written down instead of recorded.
    """
    plain = _plain_linear(head, hidden)
    if plain is not None:
        return TokenLogprobs(*_Linear.apply(hidden, *plain, targets, temperature, entropy))  # type: ignore[misc]
    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]  # type: ignore[union-attr]
    blocks = list(_blocks(hidden, int(vocabulary)))  # type: ignore[arg-type]
    if len(blocks) == 1:
        return TokenLogprobs(*_recorded(hidden, head, targets, temperature, entropy))
    parts: list[tuple[Tensor, Tensor | None]] = [
        _recomputed(
            _recorded, hidden[block], head, targets[block], temperature, entropy,
            use_reentrant=False,
        )
        for block in blocks
    ]  # fmt: skip
    found = [part for _, part in parts if part is not None]
    return TokenLogprobs(
        torch.cat([logprobs for logprobs, _ in parts]), torch.cat(found) if found else None
    )


def _blocks(hidden: Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, LOGITS_AT_ONCE // vocabulary)
    if hidden.device.type == "cpu":
        rows = min(rows, ROWS_AT_ONCE)
    for at in range(0, max(1, len(hidden)), rows):
        yield slice(at, at + rows)


def _plain_linear(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a head that is a linear layer and nothing more, whole on this rank."""
    inner = head.inner if isinstance(head, Pinned) else head
    if type(inner) is not nn.Linear or torch.is_autocast_enabled(hidden.device.type):
        return None
    weight = inner.weight
    listened = inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks
    sharded = hasattr(weight, "ds_id")  # ZeRO-3 gathers it in the layer's own forward
    if listened or sharded or weight.dtype != hidden.dtype:
        return None
    return weight, inner.bias


class _Linear(torch.autograd.Function):
    """[N] log-probabilities and entropies of a linear head, whose logits exist a block at a time.

    With p = softmax(z), log p(y) has the gradient 1[j = y] - p_j and the entropy H has
    -p_j (log p_j + H) in the logit z_j.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        temperature: float, entropy: Entropy,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        log_z = hidden.new_empty(len(hidden), dtype=torch.float32)
        logprobs = torch.empty_like(log_z)
        entropies = None if entropy == "none" else torch.empty_like(log_z)
        room = _Room(hidden, weight)
        for block in _blocks(hidden, len(weight)):
            logits = room.logits(hidden[block], weight, bias, temperature)
            chosen = logits.gather(-1, targets[block, None]).squeeze(-1)
            largest = logits.amax(dim=-1, keepdim=True)
            into = logits if entropies is None else room.second(len(logits))
            weights = torch.sub(logits, largest, out=into).exp_()
            total = weights.sum(dim=-1)
            log_z[block] = found = largest.squeeze(-1) + total.log()
            logprobs[block] = chosen - found
            if entropies is not None:
                entropies[block] = found - weights.mul_(logits).sum(dim=-1) / total
        kept = entropies if entropy == "gradient" else None
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, kept)
        ctx.temperature = temperature
        if entropy == "value":
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropies: Tensor | None) -> Any:
        hidden, weight, bias, targets, log_z, entropies = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
        room = _Room(hidden, weight)
        for block in _blocks(hidden, len(weight)):
            logits = room.logits(hidden[block], weight, bias, ctx.temperature)
            logp = logits.sub_(log_z[block, None])
            coming = of_logprobs[block, None]
            if entropies is None or of_entropies is None:
                gradient = logp.exp_().mul_(-coming)
            else:
                into = room.second(len(logp))
                bent = torch.add(logp, entropies[block, None], out=into)
                bent.mul_(of_entropies[block, None]).add_(coming).neg_()
                gradient = logp.exp_().mul_(bent)
            gradient.scatter_add_(1, targets[block, None], coming)
            gradient = gradient.div_(ctx.temperature).to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(gradient, weight, out=to_hidden[block])
            if to_weight is not None and gradient.dtype == torch.float32:
                to_weight.addmm_(gradient.T, hidden[block])
            elif to_weight is not None:
                to_weight += gradient.T @ hidden[block]
            if to_bias is not None:
                to_bias += gradient.sum(dim=0, dtype=torch.float32)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None, None, None,
        )  # fmt: skip


class _Room:
    """Memory for a block's logits, which every block uses again: a new one would be asked of the
    system, and cleared by it, each time."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        rows = min(next(_blocks(hidden, len(weight))).stop, len(hidden))
        self._first = hidden.new_empty(rows, len(weight), dtype=torch.float32)
        self._second: Tensor | None = None

    def logits(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
    ) -> Tensor:
        """[N, V] in float32."""
        logits = self._first[: len(hidden)]
        if hidden.dtype != torch.float32:
            logits.copy_(nn.functional.linear(hidden, weight, bias))
        elif bias is None:
            torch.mm(hidden, weight.T, out=logits)
        else:
            torch.addmm(bias, hidden, weight.T, out=logits)
        return logits if temperature == 1.0 else logits.div_(temperature)

    def second(self, rows: int) -> Tensor:
        """[N, V] of another tensor."""
        if self._second is None:
            self._second = torch.empty_like(self._first)
        return self._second[:rows]


def _recorded(
    hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, Tensor | None]:
    """The same by any head, with the gradient that torch records."""
    logits = head(hidden).float() / temperature
    log_z = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
    if entropy == "none":
        return chosen, None
    with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
        return chosen, log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)


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
