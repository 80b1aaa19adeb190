"""How rows of given lengths will be laid out, without their ids.

As `preference_data.batches` splits and packs them, which needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

EVEN_LENGTH = 1536
STRETCHES = (1.0, 1.25, 1.5, 2.0, 3.0)
"""As in `preference_data.batches`: where a token's attention costs as much as all else, and the
lengths of rows that are tried, in longest members."""
DRAWS = 12
"""Steps that are imagined; the largest counts."""


class Layout(NamedTuple):
    """A packed batch."""

    tokens: int
    """all that are computed, unused ones included"""
    row: int
    """of a row"""
    used: int


def layout_of(lengths: Sequence[int]) -> Layout:
    """Of members of these lengths, as `pack` lays them out."""
    longest = max(lengths)
    tried = [_packed(lengths, int(longest * stretch)) for stretch in STRETCHES]
    rows, row = min(tried, key=lambda found: found[0] * found[1] * (1 + found[1] / EVEN_LENGTH))
    return Layout(rows * row, row, sum(lengths))


def _packed(lengths: Sequence[int], limit: int) -> tuple[int, int]:
    """(rows, length of a row) of first-fit decreasing."""
    held: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, tokens in enumerate(held) if tokens + length <= limit), None)
        if place is None:
            held.append(length)
        else:
            held[place] += length
    return len(held), max(held)


def parts_of(lengths: Sequence[int], tokens: int, multiple: int) -> list[list[int]]:
    """Lengths of the members of each part, as `split_evenly` deals them; no part is empty."""
    order = sorted(lengths, reverse=True)
    parts: list[list[int]] = []
    for count in range(multiple, len(order) + multiple, multiple):
        parts = [[] for _ in range(count)]
        held = [0] * count
        for length in order:
            lightest = held.index(min(held))
            parts[lightest].append(length)
            held[lightest] += length
        if all(size <= tokens or len(part) == 1 for part, size in zip(parts, held, strict=True)):
            break
    return [part for part in parts if part]


@lru_cache(maxsize=1024)
def largest_part(
    lengths: tuple[int, ...], members: int, tokens: int, multiple: int, ranks: int = 1
) -> tuple[Layout, int]:
    """The largest of the passes that steps of so many members take, of a sample of lengths; and a
    rank's passes in that step. The draws are the same every time."""
    chance = random.Random(0)
    found: list[tuple[Layout, int]] = []
    for _ in range(DRAWS):
        whole = members // len(lengths)
        drawn = [*lengths * whole, *chance.sample(lengths, members % len(lengths))]
        parts = parts_of(drawn, tokens, multiple)
        largest = max(map(layout_of, parts), key=lambda layout: layout.tokens)
        found.append((largest, max(1, len(parts) // ranks)))
        if members % len(lengths) == 0:  # every draw is the same
            break
    return max(found, key=lambda one: one[0].tokens)
