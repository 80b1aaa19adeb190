"""Which adapters are active: switched, kept for when a layer is computed again, or folded in."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.base import checkpointed_layers
from preference_data.piecewise import Attending, attending_now


def adapted(module: nn.Module) -> list[BaseTunerLayer]:
    """The layers that carry adapters."""
    return [part for part in module.modules() if isinstance(part, BaseTunerLayer)]


class Active:
    """A context in which each of `layers` has the adapters of its `names` active.

    It can be entered again, as often as the backward pass comes by.
    """

    def __init__(self, layers: Sequence[BaseTunerLayer], names: Sequence[str | list[str]]):
        self._layers, self._names = layers, names

    def __enter__(self) -> None:
        self._before = [layer._active_adapter for layer in self._layers]
        self._set(self._names)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def _set(self, names: Sequence[str | list[str]]) -> None:
        for layer, active in zip(self._layers, names, strict=True):
            layer._active_adapter = active


def as_now(module: nn.Module) -> Active:
    """A context in which the adapters that are active in `module` now are active again."""
    layers = adapted(module)
    return Active(layers, [layer._active_adapter for layer in layers])


class Pinned(nn.Module):
    """A language head with the adapters that are active now: `token_logprobs` calls it once more
    in the backward pass."""

    def __init__(self, head: Any):
        super().__init__()
        self.out_features = head.weight.shape[0]
        self.inner, self._same = head, as_now(head)

    def forward(self, hidden: Tensor) -> Tensor:
        with self._same:
            return self.inner(hidden)


# --- layers that are computed again ---------------------------------------------------------------


@contextlib.contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """In it, layers whose checkpointing is on keep only their inputs, if a gradient is wanted.

    transformers checkpoints in training mode alone, in which a layer may drop out. So it is shown
    training mode, and the layer computes in the mode it was in.
    """
    layers = checkpointed_layers(model) if torch.is_grad_enabled() else []
    before = [(layer.training, layer._gradient_checkpointing_func) for layer in layers]
    config: Any = model.config
    for layer in layers:
        layer._gradient_checkpointing_func = partial(_checkpointed, layer, config, layer.training)
        layer.training = True
    try:
        yield
    finally:
        for layer, (training, function) in zip(layers, before, strict=True):
            layer.training, layer._gradient_checkpointing_func = training, function


def _checkpointed(
    layer: Any, config: Any, training: bool, forward: Callable[..., Any], *inputs: Any
) -> Any:
    """`forward(*inputs)` of the layer; the backward pass computes it again with the adapters and
    the attention that are active now, whichever are active then."""
    same = _Both(as_now(layer), attending_now(config))
    layer.training = training
    try:
        return checkpoint(
            forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), same),
        )
    finally:
        layer.training = True


class _Both:
    """Two contexts as one that can be entered again."""

    def __init__(self, first: Active, second: Attending):
        self._first, self._second = first, second

    def __enter__(self) -> None:
        self._first.__enter__()
        self._second.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._second.__exit__(*error)
        self._first.__exit__(*error)


# --- folded in ------------------------------------------------------------------------------------


@contextlib.contextmanager
@torch.no_grad()
def merged(model: nn.Module) -> Iterator[None]:
    """In it, linear layers in float32 have their active adapter in their weight, and compute as
    fast as without one.

    The base's own weights are put back, not computed back: subtracting the adapter again would
    leave rounding in them. A base in half precision keeps its adapters beside it, for its weights
    would round them away, and what is sampled from would not be what is trained.
    """
    users = Counter(id(part._parameters.get("weight")) for part in model.modules())
    layers: list[Any] = [
        part
        for part in model.modules()
        if isinstance(part, BaseTunerLayer) and part.active_adapters and _can_merge(part)
    ]
    before: list[tuple[Any, list[str], Tensor]] = []
    try:
        for layer in layers:
            weight = layer.get_base_layer().weight
            if users[id(weight)] > 1:  # tied: another layer would change, too
                continue
            before.append((layer, layer._active_adapter, weight.data))
            deltas = [layer.get_delta_weight(name) for name in layer.active_adapters]
            weight.data = sum(deltas, weight.data)
            layer._active_adapter = []
        yield
    finally:
        for layer, names, weight in before:
            layer.get_base_layer().weight.data = weight
            layer._active_adapter = names


def _can_merge(layer: Any) -> bool:
    """A linear layer in float32 with plain LoRA, which adds a matrix."""
    if not isinstance(layer, LoraLayer) or isinstance(layer.get_base_layer(), nn.Embedding):
        return False
    variants = getattr(layer, "lora_variant", {})
    bias = getattr(layer, "lora_bias", {})
    plain = not any(name in variants or bias.get(name) for name in layer.active_adapters)
    return plain and layer.get_base_layer().weight.dtype == torch.float32
