"""Factors of a learning rate over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable


def linear_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """Rises from 0 over `warmup` steps (below 1: a share of all), then falls to 0 linearly."""

    def factor(step: int, total: int) -> float:
        rise = _warmup_steps(warmup, total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return max(0.0, (total - step) / max(1, total - rise))

    return factor


def cosine_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """As `linear_schedule`, falling along half a cosine."""

    def factor(step: int, total: int) -> float:
        rise = _warmup_steps(warmup, total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    return factor


def constant_schedule(warmup: float = 0.0) -> Callable[[int, int], float]:
    """As `linear_schedule`, staying at 1."""
    return lambda step, total: min(1.0, (step + 1) / (_warmup_steps(warmup, total) + 1))


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "constant": constant_schedule}


def _warmup_steps(warmup: float, total: int) -> int:
    return int(warmup) if warmup >= 1 else math.ceil(total * warmup)
