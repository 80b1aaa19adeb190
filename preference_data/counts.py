"""How many of something, in words."""

from __future__ import annotations


def counted(n: float, noun: str, shown: str | None = None) -> str:
    """As in "1 row" and "1,200 rows"; `shown` is how the number is written, if in another way."""
    return f"{f'{n:,}' if shown is None else shown} {noun if n == 1 else f'{noun}s'}"


def verb(n: int, one: str, several: str) -> str:
    """What is said of so many: "is" of one, "are" of several."""
    return one if n == 1 else several
