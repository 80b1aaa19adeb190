"""What a token of a packed batch may see, said in the words of each attention implementation.

Models are called as transformers made them, with explicit positions. On a CPU `sdpa` goes over
the conversations piece by piece; elsewhere it gets a dense mask, as `eager` does, and
`flex_attention` a block mask. Flash attention takes no mask: its prompts are laid out again before
each completion, one conversation after another with their lengths. The same is done, padded, for
conversations that are longer than a model's window.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from preference_data import piecewise
from preference_data.batches import UNUSED, PackedBatch, split_by_tokens
from preference_data.forward_size import tokens_at_once

if TYPE_CHECKING:
    from transformers import DynamicCache

WINDOWS = ("sliding_window", "attention_chunk_size")
"""What configurations call the number of tokens back that a layer sees, if transformers' own masks
keep to it."""
log = logging.getLogger("align")
_ONE_AT_A_TIME = threading.RLock()
"""A model's attention is a setting of its configuration, which all threads share."""


def hidden_states(model: Any, batch: PackedBatch, compiled: bool = False) -> Tensor:
    """[S, T, D] last hidden states of each conversation of `batch`, as if it were alone.

    `model` is a transformers model for a task; its trunk (`base_model`) is called. Where tokens are
    UNUSED the states mean nothing. Layers that are `compiled` tell nobody what they read: whether
    the model hands its attention what it needs must be known.
    """
    with _ONE_AT_A_TIME:
        return _hidden_states(model, batch, compiled)


def _hidden_states(model: Any, batch: PackedBatch, compiled: bool) -> Tensor:
    states = None
    if _goes_piecewise(model, batch.input_ids.device, int(batch.position_ids.max())):
        layout = _compact(batch)
        try:
            output = _by_pieces(model, model.base_model, layout.arguments, compiled)
            states = output.last_hidden_state
        except piecewise.Lost as lost:
            _without_pieces(model.config.model_type, lost)
    if states is None:
        layout = _layout(model, batch)
        states = model.base_model(**layout.arguments, use_cache=False).last_hidden_state
    if layout.source is None:
        return states
    return states.flatten(0, 1)[layout.source].view(*batch.input_ids.shape, -1)


@dataclass(frozen=True)
class ReadPrompts:
    """What a causal model says after each of U prompts."""

    logits: Tensor
    """[U, V] of the token that comes next"""
    caches: list[DynamicCache]
    """Of each forward pass, the keys and values [1, H, N, D] of each layer, prompt by prompt"""


def read_prompts(model: Any, prompts: Sequence[tuple[int, ...]]) -> ReadPrompts | None:
    """Computes `prompts`, each as if it were alone, in rows without padding of as many tokens as
    suit the device.

    None where the model's attention does not go piece by piece: on another device than a CPU, say.
    """
    with _ONE_AT_A_TIME:
        if not _goes_piecewise(model, model.device, max(map(len, prompts)) - 1):
            return None
        logits: list[Tensor] = []
        caches: list[DynamicCache] = []
        for part in split_by_tokens(prompts, tokens_at_once(model.device.type)):
            read = _read_row(model, [prompts[index] for index in part])
            if read is None:
                return None
            logits.append(read[0])
            caches.append(read[1])
    return ReadPrompts(torch.cat(logits), caches)


def _read_row(model: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, DynamicCache] | None:
    """Logits [U, V] and the cache of one row."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    sizes = [len(prompt) for prompt in prompts]
    cache = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    arguments = {
        "input_ids": torch.tensor([[token for prompt in prompts for token in prompt]]),
        "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
        "attention_mask": None,
        "pieces": piecewise.Pieces(sizes, [None] * len(sizes)),
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": torch.tensor(sizes).cumsum(0) - 1,
    }
    try:
        output = _by_pieces(model, model, arguments)
    except piecewise.Lost as lost:
        _without_pieces(model.config.model_type, lost)
        return None
    return output.logits[0], cache


def window_of(config: Any) -> int | None:
    """How many tokens back some layer of the model sees, itself included; None: all of them."""
    config = config.get_text_config()
    found = [getattr(config, name, None) for name in WINDOWS]
    used = [window for window in found if window and getattr(config, "use_sliding_window", True)]
    return min(used, default=None)


@dataclass(frozen=True)
class _Layout:
    arguments: dict[str, Any]
    """Of the model's forward."""
    source: Tensor | None = None
    """[S * T] flat index of each token of the batch among the tokens that the model was given;
    None: the same."""


def _layout(model: Any, batch: PackedBatch) -> _Layout:
    attention = model.config._attn_implementation
    if "flash" in attention:
        return _one_after_another(batch)
    window = window_of(model.config)
    if window is not None and int(batch.position_ids.max()) >= window:
        _say_once(model.config.model_type, window)
        return _padded(batch)
    mask: Any
    if attention == "flex_attention":
        mask = block_mask(batch)
    elif attention == "eager":  # it adds its mask to the scores, where a bool would count as 0 or 1
        visible = dense_mask(batch)
        lowest = torch.finfo(model.dtype).min
        mask = visible.new_zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, lowest)
    else:
        mask = dense_mask(batch)
    return _Layout(
        {
            "input_ids": batch.input_ids, "position_ids": batch.position_ids,
            "attention_mask": mask,
        }
    )  # fmt: skip


@functools.cache
def _say_once(model_type: str, window: int) -> None:
    log.warning(
        "%s attends to a window of %d tokens; batches with longer conversations are padded, which "
        "is slower than packing them.", model_type, window,
    )  # fmt: skip


# --- piece by piece -------------------------------------------------------------------------------

_MASKED: set[str] = set()
"""Types of models whose attention does not learn of pieces."""


def _goes_piecewise(model: Any, device: torch.device, last_position: int) -> bool:
    window = window_of(model.config)
    return (
        model.config._attn_implementation == "sdpa"
        and device.type == "cpu"
        and model.config.model_type not in _MASKED
        and (window is None or last_position < window)
    )


def _compact(batch: PackedBatch) -> _Layout:
    """All groups in one row, without the unused tokens."""
    used, pieces = piecewise.pieces_of(batch)
    source = used.new_zeros(batch.group.numel())
    source[used] = torch.arange(len(used), device=used.device)
    arguments = {
        "input_ids": batch.input_ids.flatten()[used][None],
        "position_ids": batch.position_ids.flatten()[used][None],
        "attention_mask": None,
        "pieces": pieces,
        "use_cache": False,
    }
    return _Layout(arguments, source)


def _by_pieces(model: Any, called: Any, arguments: dict[str, Any], compiled: bool = False) -> Any:
    """What `called`, the model or its trunk, gives. Raises Lost if a layer went without them."""
    piecewise.register()
    with piecewise.Attending(model.config, piecewise.NAME):
        output = called(**arguments)
    if (
        not compiled
        and arguments["pieces"].calls < model.config.get_text_config().num_hidden_layers
    ):
        raise piecewise.Lost("the pieces")
    return output


def _without_pieces(model_type: str, lost: piecewise.Lost) -> None:
    if lost.lasting:
        _MASKED.add(model_type)
        log.info("%s attends under masks, for it does not take %s", model_type, lost)


# --- masks ----------------------------------------------------------------------------------------


def dense_mask(batch: PackedBatch) -> Tensor:
    """Bool [S, 1, T, T]: True where the query (third axis) may see the key (fourth)."""
    rows, length = batch.group.shape
    row = torch.arange(rows, device=batch.group.device)[:, None, None]
    at = torch.arange(length, device=batch.group.device)
    return _visible(batch, row, at[:, None], at[None, :])[:, None]


def block_mask(batch: PackedBatch) -> Any:
    """FlexAttention's `BlockMask` of the same."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _visible(batch, row, query, key)

    rows, length = batch.group.shape
    device = batch.group.device
    return create_block_mask(visible, rows, None, length, length, device=device)  # pyright: ignore


def _visible(batch: PackedBatch, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A token sees the prompt of its group and its own completion, up to itself.

    An unused token sees itself: a softmax over nothing would be NaN.
    """
    group, branch = batch.group, batch.branch
    same = (group[row, query] == group[row, key]) & (group[row, key] != UNUSED)
    shared = (branch[row, key] == 0) | (branch[row, key] == branch[row, query])
    return (same & shared & (key <= query)) | (key == query)


# --- layouts without a mask -----------------------------------------------------------------------


def _members(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The M tokens of all conversations, prompts repeated: (sequence, flat index, place), each [M],
    in order of sequence and place."""
    group, branch = batch.group.flatten(), batch.branch.flatten()
    own_group, own_branch = group[batch.last_at], branch[batch.last_at]
    member = (group == own_group[:, None]) & ((branch == 0) | (branch == own_branch[:, None]))
    place = member.cumsum(dim=1) - 1
    sequence, index = member.nonzero(as_tuple=True)
    return sequence, index, place[sequence, index]


def _source(batch: PackedBatch, index: Tensor, laid: Tensor) -> Tensor:
    """[S * T] where each token was laid first; 0 for unused ones."""
    source = laid.new_full((batch.group.numel(),), int(laid.max()) + 1)
    source = source.scatter_reduce(0, index, laid, "amin")
    return source.where(batch.group.flatten() != UNUSED, 0)


def _one_after_another(batch: PackedBatch) -> _Layout:
    """All conversations in one row, told apart by their lengths."""
    sequence, index, place = _members(batch)
    lengths = torch.bincount(sequence, minlength=batch.sequences)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    arguments = {
        "input_ids": batch.input_ids.flatten()[index][None],
        "position_ids": place[None],
        "attention_mask": None,
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip
    return _Layout(arguments, _source(batch, index, torch.arange(len(index), device=index.device)))


def _padded(batch: PackedBatch) -> _Layout:
    """A conversation a row, padded on the right."""
    sequence, index, place = _members(batch)
    width = int(place.max()) + 1
    ids = batch.input_ids.new_zeros(batch.sequences, width)
    real = torch.zeros_like(ids)
    ids[sequence, place] = batch.input_ids.flatten()[index]
    real[sequence, place] = 1
    positions = torch.arange(width, device=ids.device).expand_as(ids)
    arguments = {"input_ids": ids, "position_ids": positions, "attention_mask": real}
    return _Layout(arguments, _source(batch, index, sequence * width + place))
