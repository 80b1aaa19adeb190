"""Bytes of parameters, gradients and optimiser states that one rank holds, in theory.

With n trained numbers of t bytes each, f bytes of frozen weights and W ranks (Rajbhandari et al.
2020, arXiv:1910.02054, section 3; AdamW keeps two moments of each number):

| | parameters | gradients | optimiser |
|---|---|---|---|
| without DeepSpeed | f + n t | n t | 2 n t |
| ZeRO 0, float32 | f + n t | n t | 2 n t |
| ZeRO 0, bfloat16 | f + n t | n t | 12 n: moments and weights in float32 |
| ZeRO 1 | f + n t | n t | 12 n / W |
| ZeRO 2 | f + n t | n t / W | 12 n / W |
| ZeRO 3 | f + n t / W | n t / W | 12 n / W |

ZeRO 3 shards what is trained; frozen weights are whole on each rank, so that one samples and asks
the reference without gathering them. Where transformers' Trainer is given both (sft of an adapter),
DeepSpeed shards the frozen weights, too: (f + n t) / W.

ZeRO 1 to 3 hold the rank's share of the weights a second time, in float32, also where the weights
are float32 themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sharding:
    """How training is spread over ranks."""

    world_size: int = 1
    stage: int | None = None
    """of ZeRO; None without DeepSpeed"""


@dataclass(frozen=True)
class Held:
    """Bytes on one rank."""

    parameters: float
    gradients: float
    optimizer: float


def held(
    frozen: float, trained: float, size: int, sharding: Sharding, all_sharded: bool = False
) -> Held:
    """Of `frozen` bytes of weights and `trained` numbers of `size` bytes each; `all_sharded` says
    whether ZeRO 3 has the frozen ones, too."""
    stage, ranks = sharding.stage, sharding.world_size
    weights, own = frozen + trained * size, trained * size
    if stage is None or (stage == 0 and size == 4):
        return Held(weights, own, 2 * own)
    if stage == 0:
        return Held(weights, own, 12 * trained)
    return Held(
        parameters=_sharded(frozen, own, ranks, all_sharded) if stage == 3 else weights,
        gradients=own if stage == 1 else own / ranks,
        optimizer=12 * trained / ranks,
    )


def _sharded(frozen: float, own: float, ranks: int, all_sharded: bool) -> float:
    return (frozen + own) / ranks if all_sharded else frozen + own / ranks
