"""Train and test by the prompt's hash: a prompt is never in both, whatever the rows' order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, TypeVar

from preference_data.records import Comparison, Demonstration, Judgement, Prompt

R = TypeVar("R", Prompt, Demonstration, Judgement, Comparison)

_BUCKETS = 10_000


def split_of(prompt: Prompt, test_fraction: float, salt: str = "") -> Literal["train", "test"]:
    """The side of a prompt: sha256(salt + prompt id) mod 10,000 below the fraction is "test".

    The fraction counts to 1/10,000. Raises ValueError if it is outside [0, 1].
    """
    if not 0.0 <= test_fraction <= 1.0:
        raise ValueError(f"A test fraction lies between 0 and 1, not at {test_fraction!r}.")
    digest = hashlib.sha256((salt + prompt.id).encode()).digest()
    bucket = int.from_bytes(digest, "big") % _BUCKETS
    return "test" if bucket < round(test_fraction * _BUCKETS) else "train"


def split(records: Iterable[R], test_fraction: float, salt: str = "") -> tuple[list[R], list[R]]:
    """(train, test), each in the records' order.

    Raises ValueError if the fraction is outside [0, 1].
    """
    train: list[R] = []
    test: list[R] = []
    for record in records:
        prompt = record if isinstance(record, Prompt) else record.prompt
        side = train if split_of(prompt, test_fraction, salt) == "train" else test
        side.append(record)
    return train, test
