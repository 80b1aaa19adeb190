"""Values as JSON, and the services that take it, can hold them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy and torch scalars as numbers, NaN and infinity as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    as_float = float(value)
    return as_float if math.isfinite(as_float) else None
