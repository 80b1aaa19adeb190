"""What the metric modules are given, checked: an error names the input, the row and the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_models.calibration import Array

WEIGHTED = "weighted"
"""The configuration in which weights are inputs like the others."""


def numbers(
    name: str, values: Sequence[float], low: float = -np.inf, high: float = np.inf
) -> Array:
    """[N] of the input `name`. Raises ValueError without any, and for one that is not finite or not
    between `low` and `high`."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"{name} must be a list of numbers with at least one in it.")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= low) & (found <= high)))
    if len(wrong):
        limits = " finite" if np.isinf(low) else f" finite and at least {low:g}"
        limits = limits if np.isinf(high) else f" between {low:g} and {high:g}"
        raise ValueError(f"{name}[{wrong[0]}] is {found[wrong[0]]:g}: it must be{limits}.")
    return found


def weights_of(values: Sequence[float] | None, items: int) -> Array:
    """[items]; 1 where none are given."""
    if values is None:
        return np.ones(items)
    found = numbers("weights", values, low=0)
    _check_length("weights", len(found), items)
    if not found.any():
        raise ValueError("weights are all 0: one at least must be above.")
    return found


def clusters_of(values: Sequence[Any] | None, items: int) -> Any:
    """[items] numbers or names; each item is a cluster of its own where none are given."""
    if values is None:
        return np.arange(items)
    _check_length("clusters", len(values), items)
    return np.asarray(values)


def _check_length(name: str, length: int, items: int) -> None:
    if length != items:
        raise ValueError(f"There are {length} {name} for {items} predictions.")


def check_count(name: str, value: int) -> None:
    """Raises ValueError for a number of bins or resamples below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be 1 or more.")


def check_config(module: str, config_name: str, *known: str) -> None:
    """Raises ValueError unless `config_name` is "default" or one of the `known` names."""
    names = ("default", *known)
    if config_name not in names:
        raise ValueError(
            f"{module} has no configuration {config_name!r}; choose from {', '.join(names)}."
        )
