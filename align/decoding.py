"""A batch of conversations that grow token by token: what a model is given of them at each step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from align.compiling import uncompiled
from align.kv_cache import roomy_cache, spread
from preference_data.attention import read_prompts


class Decoding:
    """The rows that still grow. `logits` [B, V] are of each row's next token, and `states` [B, D]
    what the language head made them of.

    Where a model's attention allows it, the prompts are computed without padding. Then rows end
    together: their keys and values are padded on the left, which the mask hides.
    """

    logits: Tensor
    states: Tensor

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], capacity: int):
        """Reads the prompts, and makes room for `capacity` more tokens of each."""
        self._model = model
        ids, mask = (part.to(model.device) for part in left_padded(prompts))
        self._mask, self._positions = mask, (mask.cumsum(1) - 1).clamp(min=0)
        room = ids.shape[1] + capacity
        with _head_inputs(model) as given:
            packed = read_prompts(model, prompts)
            if packed is not None:
                self.logits = packed.logits
                self.states = torch.cat([states.flatten(0, -2) for states in given])
                self._cache = spread(packed.caches, [len(prompt) for prompt in prompts], room)
                return
        self._cache = roomy_cache(model, room)
        self._forward(ids)

    def append(self, tokens: Tensor) -> None:
        """Goes on to the state after one more token [B] of each row."""
        ids = tokens[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        self._forward(ids)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows [B'], in this order; a row may be there several times."""
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self.logits, self.states = self.logits[rows], self.states[rows]

    def _forward(self, ids: Tensor) -> None:
        with _head_inputs(self._model) as given:
            output = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits, self.states = output.logits[:, -1], given[0][:, -1]


@contextlib.contextmanager
def any_length(model: Any) -> Iterator[None]:
    """Nothing is compiled, for it would be again for every length that a response goes through."""
    before = model.config._attn_implementation
    if before == "flex_attention":
        model.config._attn_implementation = "sdpa"
    try:
        with uncompiled():
            yield
    finally:
        model.config._attn_implementation = before


def left_padded(prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [B, T]."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@contextlib.contextmanager
def _head_inputs(model: Any) -> Iterator[list[Tensor]]:
    """In it, the list holds the hidden states that the language head is given, call by call."""
    found: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
