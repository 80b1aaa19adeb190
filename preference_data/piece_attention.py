"""Attention over the pieces of a row, as one operator of torch with its own gradient.

As one operator it keeps queries, keys and values once, whatever number of completions read a
prompt, and a compiler sees one call, whatever the pieces. Half precision is computed in float32:
CPUs take 3 times as long for the gradients of pieces as short as these in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
"""What torch's `scaled_dot_product_attention` calls on a CPU; here its sums are kept for later."""


CAUSAL, TILE = -1, -2
"""In a layout: a piece that sees itself, as a prompt does or a whole conversation; groups whose
tokens see what their mask shows."""


def tile_mask(groups: Sequence[Sequence[int]]) -> Tensor:
    """Float32 [n, n] for groups, each a prompt and its completions of these sizes: 0 where a token
    may see another, -inf elsewhere."""
    sizes = torch.tensor([size for group in groups for size in group])
    numbers = [
        (place, branch) for place, group in enumerate(groups) for branch in range(len(group))
    ]
    group, branch = torch.tensor(numbers).repeat_interleave(sizes, dim=0).T
    seen = (group == group[:, None]) & ((branch == 0) | (branch == branch[:, None]))
    return torch.zeros(seen.shape).masked_fill_(~seen.tril_(), float("-inf"))


def causal_tail(longest: int, before: int) -> Tensor:
    """Float32 [longest, before + longest]: 0 where one of the last tokens may see another, -inf
    elsewhere. Shorter ones are parts of it."""
    hidden = torch.ones(longest, before + longest, dtype=torch.bool).triu(before + 1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


@torch.library.custom_op("align::piecewise_attention", mutates_args=())
def piecewise_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Tensor, tail: Tensor, tiles: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[1, N, H, D] of queries [1, H, N, D], keys and values [1, H', N, D] of N tokens, and the logs
    [N, H] of the softmax's sums.

    `layout` [P, 2] has each piece's number of tokens and, for a completion, which piece its prompt
    is (else CAUSAL or TILE). `tail` is a `causal_tail` that is as long as the longest completion,
    behind the longest prompt. `tiles` has the masks of the pieces that are tiles one after another,
    flat, and may be longer. Pieces of no token are passed over.
    """
    at, rows = _computed(query.dtype), _rows(layout)
    parts: list[Tensor] = []
    sums: list[Tensor] = []
    for piece in _pieces(rows, query, key, value, (tail, tiles), at):
        part, logs = _kernel(*piece.inputs, 0.0, piece.is_causal, attn_mask=piece.mask, scale=scale)
        parts.append(part.transpose(1, 2))
        sums.append(logs[0].T)
    return torch.cat(parts, dim=1).to(query.dtype), torch.cat(sums)


@piecewise_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, layout: Tensor, tail: Tensor, tiles: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    return found, query.new_empty(found.shape[1:3], dtype=_computed(query.dtype))


@torch.library.custom_op("align::piecewise_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, found: Tensor, sums: Tensor,
    layout: Tensor, tail: Tensor, tiles: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values, in their shapes."""
    at, rows = _computed(query.dtype), _rows(layout)
    sizes = [size for size, _ in rows]
    grads, outputs = (part.to(at).transpose(1, 2).split(sizes, 2) for part in (grad, found))
    logs = sums.split(sizes)
    of_queries: list[Tensor] = []
    of_keys: list[Tensor] = []
    of_values: list[Tensor] = []
    for place, piece in enumerate(_pieces(rows, query, key, value, (tail, tiles), at)):
        part, *of_seen = _kernel_backward(
            grads[place], *piece.inputs, outputs[place], logs[place].T[None], 0.0,
            piece.is_causal, attn_mask=piece.mask, scale=scale,
        )  # fmt: skip
        of_queries.append(part)
        for found_so_far, grad_seen in zip((of_keys, of_values), of_seen, strict=True):
            of_own = grad_seen
            if piece.prompt >= 0:
                read, of_own = grad_seen.split((grad_seen.shape[2] - sizes[place], sizes[place]), 2)
                found_so_far[piece.prompt].add_(read)
            found_so_far.append(of_own)
    return (
        _in_order(of_queries).to(query.dtype),
        _gathered(_in_order(of_keys), key),
        _gathered(_in_order(of_values), value),
    )


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, found: Tensor, sums: Tensor,
    layout: Tensor, tail: Tensor, tiles: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    at = _computed(query.dtype)

    def empty(part: Tensor) -> Tensor:
        return _in_order([part.new_empty(query.shape, dtype=at)])

    return empty(query).to(query.dtype), _gathered(empty(key), key), _gathered(empty(value), value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _of_inputs(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    query, key, value, layout, tail, tiles, found, sums = ctx.saved_tensors
    of_three = _backward(grad, query, key, value, found, sums, layout, tail, tiles, ctx.scale)
    return (*of_three, None, None, None, None)


piecewise_attention.register_autograd(_of_inputs, setup_context=_keep)


@dataclass(frozen=True)
class _Piece:
    inputs: tuple[Tensor, Tensor, Tensor]
    """Queries [1, H, Q, D], and the keys and values [1, H, K, D] that they may see."""
    prompt: int
    """Which piece comes first among the keys; CAUSAL or TILE if none does."""
    mask: Tensor | None
    """[Q, K] what is added to the scores; None where the kernel knows (causal)."""

    @property
    def is_causal(self) -> bool:
        return self.mask is None


def _rows(layout: Tensor) -> list[list[int]]:
    return [row for row in layout.tolist() if row[0]]


def _pieces(
    rows: list[list[int]], query: Tensor, key: Tensor, value: Tensor, masks: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> Iterator[_Piece]:  # fmt: skip
    """Of a layout's `rows`, in which a prompt comes before its completions; `masks` are the tail
    and the tiles."""
    sizes = [size for size, _ in rows]
    if query.stride(-1) != 1:  # the kernel reads each head's numbers one after another
        query = query.contiguous()
    whole = (query.to(dtype), _spread(key, query, dtype), _spread(value, query, dtype))
    queries, keys, values = (part.split(sizes, 2) for part in whole)
    tail, tiles = (mask.to(dtype) for mask in masks)
    before, used = tail.shape[1] - tail.shape[0], 0
    for place, (size, prompt) in enumerate(rows):
        if prompt < 0:
            mask = None
            if prompt == TILE:
                mask = tiles[used : used + size * size].view(size, size)
                used += size * size
            yield _Piece((queries[place], keys[place], values[place]), prompt, mask)
            continue
        seen = [torch.cat((part[prompt], part[place]), dim=2) for part in (keys, values)]
        mask = tail[:size, before - sizes[prompt] : before + size]
        yield _Piece((queries[place], seen[0], seen[1]), prompt, mask)


def _in_order(parts: list[Tensor]) -> Tensor:
    """[1, H, N, D] of pieces [1, H, n, D]; in memory token by token, as the kernel has them and the
    layers' linear maps made them."""
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


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
