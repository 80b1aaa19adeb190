"""Attention over the pieces of a row, as one operator of torch with its own gradient.

As one operator it keeps queries, keys and values once, whatever number of completions read a
prompt, and a compiler sees one call, whatever the pieces. Half precision is computed in float32:
CPUs take 3 times as long for the gradients of pieces as short as these in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
"""What torch's `scaled_dot_product_attention` calls on a CPU; here its sums are kept for later."""


def causal_tail(longest: int, before: int) -> Tensor:
    """Float32 [longest, before + longest]: 0 where one of the last tokens may see another, -inf
    elsewhere. Shorter ones are parts of it (`_Piece.mask`)."""
    hidden = torch.ones(longest, before + longest, dtype=torch.bool).triu(before + 1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


@torch.library.custom_op("align::piecewise_attention", mutates_args=())
def piecewise_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Tensor, tail: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """[1, N, H, D] of queries [1, H, N, D], keys and values [1, H', N, D] of N tokens, and the logs
    [N, H] of the softmax's sums.

    `layout` [P, 2] has each piece's number of tokens and, for a completion, which piece its prompt
    is (else -1). `tail` is a `causal_tail` that is as long as the longest completion, behind the
    longest prompt.
    """
    at = _computed(query.dtype)
    queries, keys, values = query.to(at), _spread(key, query, at), _spread(value, query, at)
    found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    sums = torch.empty(found.shape[1:3], dtype=at)
    for piece in _pieces(layout):
        part, logs = _kernel(
            queries[:, :, piece.own], piece.seen(keys), piece.seen(values), 0.0,
            piece.prompt is None, attn_mask=piece.mask(tail, at), scale=scale,
        )  # fmt: skip
        found[:, piece.own] = part.transpose(1, 2)
        sums[piece.own] = logs[0].T
    return found, sums


@piecewise_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, layout: Tensor, tail: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    return found, query.new_empty(found.shape[1:3], dtype=_computed(query.dtype))


@torch.library.custom_op("align::piecewise_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, found: Tensor, sums: Tensor,
    layout: Tensor, tail: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values, in their shapes."""
    at = _computed(query.dtype)
    queries, keys, values = query.to(at), _spread(key, query, at), _spread(value, query, at)
    grads, outputs = grad.to(at).transpose(1, 2), found.to(at).transpose(1, 2)
    of_queries, of_keys, of_values = (torch.empty_like(part) for part in (queries, keys, values))
    for piece in _pieces(layout):
        own = piece.own
        part, *more = _kernel_backward(
            grads[:, :, own], queries[:, :, own], piece.seen(keys), piece.seen(values),
            outputs[:, :, own], sums[own].T[None], 0.0, piece.prompt is None,
            attn_mask=piece.mask(tail, at), scale=scale,
        )  # fmt: skip
        of_queries[:, :, own] = part
        for whole, of_seen in zip((of_keys, of_values), more, strict=True):
            if piece.prompt is not None:
                whole[:, :, piece.prompt] += of_seen[:, :, : -piece.size]
            whole[:, :, own] = of_seen[:, :, -piece.size :]
    return of_queries.to(query.dtype), _gathered(of_keys, key), _gathered(of_values, value)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, found: Tensor, sums: Tensor,
    layout: Tensor, tail: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    at = _computed(query.dtype)
    as_queries = torch.empty_like(query, dtype=at).to(query.dtype)
    return (
        as_queries,
        _gathered(torch.empty_like(_spread(key, query, at)), key),
        _gathered(torch.empty_like(_spread(value, query, at)), value),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _of_inputs(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    query, key, value, layout, tail, found, sums = ctx.saved_tensors
    of_three = _backward(grad, query, key, value, found, sums, layout, tail, ctx.scale)
    return (*of_three, None, None, None)


piecewise_attention.register_autograd(_of_inputs, setup_context=_keep)


@dataclass(frozen=True)
class _Piece:
    own: slice
    """Its tokens."""
    prompt: slice | None
    """Those of the prompt that it reads besides; None for a prompt."""

    @property
    def size(self) -> int:
        return self.own.stop - self.own.start

    def seen(self, whole: Tensor) -> Tensor:
        """[1, H, K, D] what it reads of [1, H, N, D]."""
        own = whole[:, :, self.own]
        return own if self.prompt is None else torch.cat((whole[:, :, self.prompt], own), dim=2)

    def mask(self, tail: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[size, K] what to add to the scores; None where the kernel knows (causal)."""
        if self.prompt is None:
            return None
        before = tail.shape[1] - tail.shape[0]
        first = before - (self.prompt.stop - self.prompt.start)
        return tail[: self.size, first : before + self.size].to(dtype)


def _pieces(layout: Tensor) -> Iterator[_Piece]:
    """A prompt comes before its completions."""
    known: list[slice] = []
    begin = 0
    for size, prompt in layout.tolist():
        own = slice(begin, begin + size)
        known.append(own)
        yield _Piece(own, None if prompt < 0 else known[prompt])
        begin += size


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _spread(part: Tensor, query: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, H, N, D] of [1, H', N, D]: a head for each head of the queries."""
    return part.to(dtype).repeat_interleave(query.shape[1] // part.shape[1], dim=1)


def _gathered(grad: Tensor, part: Tensor) -> Tensor:
    """The reverse: [1, H', N, D]."""
    if grad.shape == part.shape:
        return grad.to(part.dtype)
    return grad.unflatten(1, (part.shape[1], -1)).sum(dim=2).to(part.dtype)
