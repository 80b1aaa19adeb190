"""Attention over packed conversations piece by piece: a prompt over itself, then each completion
over the prompt and itself.

A mask says what must not be seen, and no kernel of a CPU skips what it hides: attention over a row
costs the square of its length. Here every piece costs what it sees, and a row has no unused tokens.
A prompt and its only completion are one piece. A group of few tokens is one under a mask, as are
neighbours of very few. transformers calls `attend` where a model's attention is NAME.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from preference_data.batches import UNUSED, PackedBatch, split_by_sizes
from preference_data.piece_attention import (
    CAUSAL,
    TILE,
    causal_tail,
    piecewise_attention,
    tile_mask,
)

NAME = "piecewise"
SHORT = 128
"""Tokens of a group that is one piece, under a mask: of short pieces each costs more to call for
than to compute."""
NEIGHBOURS = 64
"""Tokens of several groups that are one piece: they would compute little of it alone."""
FILLERS = [(0, CAUSAL)] * 5
LEAST = (3, 2)
"""Pieces of no token, and a tail's sizes: a compiler makes a second program for sizes of 0 and 1,
and for sizes that happen to be equal. A layout is [6 or more, 2], the least tail [3, 5]."""


class Lost(RuntimeError):
    """A model that does not hand its attention what it was given, or asks more of it."""

    def __init__(self, what: str, lasting: bool = True):
        """`lasting`: it is so in all models of the type, and always."""
        super().__init__(what)
        self.lasting = lasting


@dataclass
class Pieces:
    """A row of groups without a gap between them: a prompt, its completions, the next prompt, …"""

    sizes: list[int]
    """Tokens of each piece, in order."""
    prompts: list[int | None]
    """Which piece a completion's prompt is; None for a prompt."""
    layout: Tensor = field(init=False)
    """What is computed at once, as a tensor (see `piecewise_attention`)."""
    tail: Tensor = field(init=False)
    """What the longest completion sees behind the longest prompt."""
    tiles: Tensor = field(init=False)
    """Masks of the pieces that are short groups."""
    calls: int = 0
    """Layers that have read it."""

    def __post_init__(self) -> None:
        rows: list[tuple[int, int]] = []
        masks: list[Tensor] = []
        longest, before = LEAST
        every = list(self._groups())
        for part in split_by_sizes([sum(group) for group in every], NEIGHBOURS):
            groups = [every[index] for index in part]
            [(prompt, *completions), *others] = groups
            if not others and len(completions) <= 1:
                rows.append((sum(groups[0]), CAUSAL))
            elif others or sum(groups[0]) <= SHORT:
                masks.append(tile_mask(groups).flatten())
                rows.append((sum(map(sum, groups)), TILE))
            else:
                rows += [(prompt, CAUSAL), *((size, len(rows)) for size in completions)]
                longest, before = max(longest, *completions), max(before, prompt)
        self.layout = torch.tensor([*rows, *FILLERS])
        self.tail = causal_tail(longest, before)
        self.tiles = torch.cat([*masks, torch.zeros(len(FILLERS))])

    def _groups(self) -> Iterator[list[int]]:
        """Tokens of each prompt and its completions."""
        starts = [place for place, prompt in enumerate(self.prompts) if prompt is None]
        for start, end in zip(starts, [*starts[1:], len(self.prompts)], strict=True):
            yield self.sizes[start:end]


def pieces_of(batch: PackedBatch) -> tuple[Tensor, Pieces]:
    """[N] the flat index of each used token, in order, and the pieces that they make."""
    group, branch = batch.group.flatten(), batch.branch.flatten()
    used = (group != UNUSED).nonzero().squeeze(1)
    named = torch.stack((group[used], branch[used]), dim=1)
    runs, sizes = torch.unique_consecutive(named, dim=0, return_counts=True)
    prompts: list[int | None] = []
    prompt: dict[int, int] = {}
    for piece, (of_group, of_branch) in enumerate(runs.tolist()):
        if of_branch == 0:
            prompt[of_group] = piece
        prompts.append(None if of_branch == 0 else prompt[of_group])
    return used, Pieces(sizes.tolist(), prompts)


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
    if query.shape[-1] != value.shape[-1]:
        wanted.append("heads of two widths")
    if pieces is None or wanted or attention_mask is not None or not _is_causal(module, more):
        raise Lost(", ".join(wanted) or "the pieces")
    if dropout:
        raise Lost("dropout", lasting=False)
    if not torch.compiler.is_compiling():  # a compiler would expect the same number again
        pieces.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found, _ = piecewise_attention(
        query, key, value, pieces.layout, pieces.tail, pieces.tiles, scale
    )
    return found, None


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
