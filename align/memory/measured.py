"""Bytes of parameters, gradients and optimiser states that this rank holds, by their tensors.

The size of the process says nothing of it: buckets and freed memory are in it, too. Where ZeRO 3
leaves a parameter only its name, DeepSpeed's shard of it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARAMETERS, GRADIENTS, OPTIMIZER, PEAK = (
    f"memory/{what}" for what in ("parameters", "gradients", "optimizer", "peak")
)
"""What they are called among a step's metrics; bytes of the first rank."""


def bytes_of(tensors: Iterable[Tensor]) -> float:
    """Of their storages, each once: a bucket may be many tensors' storage."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return float(sum({one.data_ptr(): one.nbytes() for one in storages if one.nbytes()}.values()))


def parameters_of(module: nn.Module) -> float:
    """Of all weights, frozen ones too."""
    shards = (getattr(parameter, "ds_tensor", parameter) for parameter in module.parameters())
    return bytes_of(shards)


def gradients_of(parameters: Iterable[nn.Parameter]) -> float:
    return bytes_of(p.grad for p in parameters if p.grad is not None)


def optimizer_of(states: Mapping[Any, Mapping[str, Any]]) -> float:
    """Of a torch optimiser's states; counts of steps are none."""
    return bytes_of(
        value
        for state in states.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    )


def sharded_gradients_of(engine: Any) -> float:
    """Of a DeepSpeed engine, before its step."""
    own = gradients_of(engine.module.parameters())
    return own + bytes_of(_tensors(getattr(engine.optimizer, "averaged_gradients", {})))


def sharded_optimizer_of(engine: Any) -> float:
    """Of a DeepSpeed engine: the moments, and the rank's share of the weights in float32."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    shares = [
        getattr(optimizer, name, [])
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    ]
    return optimizer_of(inner.state) + bytes_of(_tensors(shares))


def held_by_trainer(trainer: Any, resident: nn.Module) -> dict[str, float]:
    """Of transformers' Trainer after its training, and of the model that it is a part of; its
    gradients are gone by then."""
    sharded = trainer.deepspeed
    states = trainer.optimizer.state if sharded is None else {}
    return {
        "parameters": parameters_of(resident),
        "optimizer": optimizer_of(states) if sharded is None else sharded_optimizer_of(sharded),
    }


def _tensors(nested: Any) -> Iterator[Tensor]:
    """All tensors in lists and dictionaries of them."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for part in nested.values():
            yield from _tensors(part)
    elif isinstance(nested, list | tuple):
        for part in nested:
            yield from _tensors(part)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> dict[str, float]:
    """The most that tensors held since `reset_peak`; nothing on a CPU, which does not count it."""
    if device.type != "cuda":
        return {}
    return {PEAK: float(torch.cuda.max_memory_allocated(device))}
