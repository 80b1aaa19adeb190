"""How many tokens a forward pass holds where nobody says."""

from __future__ import annotations

ON_CPU = 1024
"""So few that layers find in a cache what the layers before them wrote: on two cores more took up
to 1.4 times as long, and several times the memory (`tests/benchmarks/forward_sizes.py`)."""
ELSEWHERE = 8192
"""A GPU is idle between small products."""


def tokens_at_once(device: str) -> int:
    """Tokens of a forward pass on a device of this type, as `torch.device.type` names it."""
    return ON_CPU if device == "cpu" else ELSEWHERE


def rows_at_once(rows: int, longest: int, device: str) -> int:
    """Of so many rows, those of a forward pass that pads each to the `longest`'s tokens: a divisor
    of all."""
    room = max(1, tokens_at_once(device) // longest)
    return max(part for part in range(1, min(room, rows) + 1) if rows % part == 0)
