"""Train and test without leaks: what begins alike is on one side, whatever the rows' order.

The key of a prompt is its first user turn, so that all tails of one conversation stay together;
near duplicates share the key of their cluster. A side given by the data's owner comes before the
key's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from preference_data.counts import counted, verb
from preference_data.near_duplicates import Clusters
from preference_data.quarantine import DataError
from preference_data.records import Comparison, Demonstration, Judgement, Prompt

Record = Prompt | Demonstration | Judgement | Comparison
R = TypeVar("R", Prompt, Demonstration, Judgement, Comparison)
Side = Literal["train", "test"]

_BUCKETS = 10_000
_ALONE = Clusters()


def opening(prompt: Prompt) -> Prompt:
    """The first user turn alone; a prompt without one is its own opening.

    Its id is the key that decides the side, and its text what near duplicates are sought in.
    """
    for message in prompt.messages:
        if message.role == "user":
            return Prompt((message,))
    return prompt


def split_of(
    prompt: Prompt, test_fraction: float, salt: str = "", clusters: Clusters | None = None
) -> Side:
    """The side of a prompt: sha256(salt + key) mod 10,000 below the fraction is "test".

    The key is the opening's id, or with clusters the representative of the opening's cluster. The
    fraction counts to 1/10,000. Raises ValueError if it is outside [0, 1].
    """
    _check_fraction(test_fraction)
    return _side(_key(prompt, clusters or _ALONE), test_fraction, salt)


def split(
    records: Iterable[R],
    test_fraction: float,
    salt: str = "",
    clusters: Clusters | None = None,
    given: Mapping[str, Side] | None = None,
) -> tuple[list[R], list[R]]:
    """(train, test), each in the records' order.

    A judgement with a `split` stays where it was put: "validation" and "test" are held out. What
    has none follows the given side of its key: `given`, by default what the records' own splits
    say. Only keys of no given side are drawn, as in `split_of`, with `clusters` of the openings'
    ids. Raises ValueError if the fraction is outside [0, 1].
    """
    _check_fraction(test_fraction)
    records, clusters = list(records), clusters or _ALONE
    if given is None:
        given = given_sides(records, clusters)
    sides: dict[str, Side] = dict(given)
    train: list[R] = []
    test: list[R] = []
    for record in records:
        side = _own_side(record)
        if side is None:
            key = _key(_prompt(record), clusters)
            if key not in sides:
                sides[key] = _side(key, test_fraction, salt)
            side = sides[key]
        (train if side == "train" else test).append(record)
    return train, test


def given_sides(records: Iterable[Record], clusters: Clusters | None = None) -> dict[str, Side]:
    """The side of every key that the data's owner put on one; a key on both is held out.

    For `split` of other records of the same data: prompts and demonstrations carry no split.
    """
    sides: dict[str, Side] = {}
    for record in records:
        side = _own_side(record)
        if side is not None:
            key = _key(_prompt(record), clusters or _ALONE)
            sides[key] = "test" if sides.get(key) == "test" else side
    return sides


@dataclass(frozen=True, slots=True)
class Leak:
    """A key on both sides, with the first prompt and the number of records on each."""

    key: str
    train: Prompt
    test: Prompt
    train_records: int
    test_records: int


def leaks(
    train: Iterable[Record], test: Iterable[Record], clusters: Clusters | None = None
) -> list[Leak]:
    """The keys on both sides, in the order in which the test side has them.

    Splits given by the data's owner can leak, and so can two sets that were never split.
    """
    trained, tested = (_by_key(side, clusters or _ALONE) for side in (train, test))
    return [
        Leak(key, trained[key][0], prompts[0], len(trained[key]), len(prompts))
        for key, prompts in tested.items()
        if key in trained
    ]


def check_leaks(
    train: Iterable[Record], test: Iterable[Record], clusters: Clusters | None = None
) -> None:
    """Raises DataError, with the number of leaks and the first of them, if there are any."""
    found = leaks(train, test, clusters)
    if not found:
        return
    first = found[0]
    trained, tested = opening(first.train).text, opening(first.test).text
    alike = "" if trained == tested else f", in train as {_short(trained)}"
    amount = f"{counted(len(found), 'first user turn')} {verb(len(found), 'is', 'are')}"
    raise DataError(
        f"{amount} on both sides of the split, such as {_short(tested)}{alike} "
        f"(records: {first.train_records} in train, {first.test_records} in test). "
        "Remove these records from one side, or give them the same split."
    )


def _own_side(record: Record) -> Side | None:
    if not isinstance(record, Judgement) or record.split is None:
        return None
    return "train" if record.split == "train" else "test"


def _by_key(records: Iterable[Record], clusters: Clusters) -> dict[str, list[Prompt]]:
    prompts: dict[str, list[Prompt]] = {}
    for record in records:
        prompt = _prompt(record)
        prompts.setdefault(_key(prompt, clusters), []).append(prompt)
    return prompts


def _prompt(record: Record) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


def _key(prompt: Prompt, clusters: Clusters) -> str:
    return clusters.of(opening(prompt).id)


def _side(key: str, test_fraction: float, salt: str) -> Side:
    digest = hashlib.sha256((salt + key).encode()).digest()
    bucket = int.from_bytes(digest, "big") % _BUCKETS
    return "test" if bucket < round(test_fraction * _BUCKETS) else "train"


def _check_fraction(test_fraction: float) -> None:
    if not 0.0 <= test_fraction <= 1.0:
        raise ValueError(f"A test fraction lies between 0 and 1, not at {test_fraction!r}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
