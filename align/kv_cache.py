"""Room for a response, so that a token is written and the keys and values before it not copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values [B, H, T, D], in memory for `capacity` tokens.

    transformers' own layer puts each token behind the others by copying all of them, which on a
    CPU takes longer than computing it.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self._capacity = capacity
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """As `DynamicLayer.update`. Raises RuntimeError beyond the capacity."""
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            self._room = self._empty(key_states), self._empty(value_states)
        if after > self._capacity:
            raise RuntimeError(f"a cache for {self._capacity} tokens is given {after}")
        keys, values = self._room
        keys[:, :, before:after] = key_states
        values[:, :, before:after] = value_states
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]
        return self.keys, self.values

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, lengths: Sequence[int], capacity: int) -> RoomyLayer:
        """Of sequences [1, H, sum(lengths), D] one after another, each in a row of its own; the
        rows end together, and zeros are on their left."""
        layer = cls(capacity)
        layer.lazy_initialization(keys, values)
        longest = max(lengths)
        row = torch.repeat_interleave(torch.tensor(lengths))
        place = torch.cat([torch.arange(longest - length, longest) for length in lengths])

        def spread(packed: Tensor) -> Tensor:
            _, heads, _, width = packed.shape
            room = packed.new_zeros(len(lengths), heads, capacity, width)
            room[row, :, place] = packed[0].transpose(0, 1)
            return room

        layer._room = spread(keys), spread(values)
        layer.keys, layer.values = (room[:, :, :longest] for room in layer._room)
        return layer

    def _empty(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty(rows, heads, self._capacity, width)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, in this order."""
        if self._room is None or self.keys is None:
            return
        length = self.keys.shape[-2]
        keys, values = (self._empty(room[indices, :, :1]) for room in self._room)
        keys[:, :, :length] = self.keys[indices]
        assert self.values is not None
        values[:, :, :length] = self.values[indices]
        self._room = keys, values
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def roomy_cache(model: Any, capacity: int) -> DynamicCache:
    """A cache for `capacity` tokens of `model`; layers of another kind (a sliding window's, say)
    are transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def spread(packed: Sequence[DynamicCache], lengths: Sequence[int], capacity: int) -> DynamicCache:
    """A cache for `capacity` tokens with a row for each of the sequences that `packed`, whose
    layers are all plain ones, hold in one row each, prompt by prompt."""
    cache = DynamicCache()
    for parts in zip(*(one.layers for one in packed), strict=True):
        keys, values = (
            torch.cat([getattr(part, name) for part in parts], 2) for name in ("keys", "values")
        )
        cache.layers.append(RoomyLayer.of(keys, values, lengths, capacity))
    return cache
