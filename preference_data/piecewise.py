"""Attention over packed conversations piece by piece: a prompt over itself, then each completion
over the prompt and itself.

A mask says what must not be seen, and no kernel of a CPU skips what it hides: attention over a row
costs the square of its length. Here every piece costs what it sees, and a row has no unused tokens.
transformers calls `attend` where a model's attention implementation is NAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from preference_data.batches import UNUSED, PackedBatch

NAME = "piecewise"


class Lost(RuntimeError):
    """A model that does not hand its attention what it was given, or asks more of it."""


@dataclass
class Pieces:
    """A row of groups without a gap between them: a prompt, its completions, the next prompt, …"""

    sizes: list[int]
    """Tokens of each piece, in order."""
    prompts: list[int | None]
    """Which piece a completion's prompt is; None for a prompt."""
    calls: int = 0
    """Layers that have read it."""
    _tails: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    def tail(self, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
        """[queries, keys] 0 where one of the last tokens may see another, -inf elsewhere."""
        known = self._tails.get((queries, keys, dtype))
        if known is None:
            hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
            known = torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._tails[queries, keys, dtype] = known
        return known


def pieces_of(batch: PackedBatch) -> tuple[Tensor, Pieces]:
    """[N] the flat index of each used token, in order, and the pieces that they make."""
    group, branch = batch.group.flatten(), batch.branch.flatten()
    used = (group != UNUSED).nonzero().squeeze(1)
    named = torch.stack((group[used], branch[used]), dim=1)
    runs, sizes = torch.unique_consecutive(named, dim=0, return_counts=True)
    found = Pieces(sizes.tolist(), [])
    prompt: dict[int, int] = {}
    for piece, (of_group, of_branch) in enumerate(runs.tolist()):
        if of_branch == 0:
            prompt[of_group] = piece
        found.prompts.append(None if of_branch == 0 else prompt[of_group])
    return used, found


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pieces: Pieces | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """[1, N, H, D] of queries [1, H, N, D], keys and values [1, H', N, D], as transformers asks it.

    Raises Lost for what is more than causal attention by softmax.
    """
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if pieces is None or wanted or attention_mask is not None or not _is_causal(module, more):
        raise Lost(", ".join(wanted) or "the pieces")
    pieces.calls += 1
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    found = _attended(
        query.split(pieces.sizes, 2), key.split(pieces.sizes, 2), value.split(pieces.sizes, 2),
        pieces, dropout, scaling,
    )  # fmt: skip
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _attended(
    queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor],
    pieces: Pieces, dropout: float, scaling: float | None,
) -> list[Tensor]:  # fmt: skip
    attention = torch.nn.functional.scaled_dot_product_attention
    found: list[Tensor] = []
    for piece, prompt in enumerate(pieces.prompts):
        query, key, value = queries[piece], keys[piece], values[piece]
        if prompt is None:
            found.append(attention(query, key, value, None, dropout, is_causal=True, scale=scaling))
            continue
        key, value = torch.cat((keys[prompt], key), 2), torch.cat((values[prompt], value), 2)
        tail = pieces.tail(query.shape[2], key.shape[2], query.dtype)
        found.append(attention(query, key, value, tail, dropout, scale=scaling))
    return found


def _is_causal(module: Any, more: dict[str, Any]) -> bool:
    asked = more.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


class Attending:
    """A context in which a model's attention is the implementation called `name`."""

    def __init__(self, config: Any, name: str):
        self._config, self._name = config, name
        self._before: list[str] = []

    def __enter__(self) -> None:
        self._before.append(self._config._attn_implementation)
        self._config._attn_implementation = self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._config._attn_implementation = self._before.pop()


def attending_now(config: Any) -> Attending:
    """A context in which the attention of now is there again."""
    return Attending(config, config._attn_implementation)


def register() -> None:
    """Lets transformers know of `attend`; again, it changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
