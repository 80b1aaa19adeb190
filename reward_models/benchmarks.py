"""A reward model on a benchmark, in one call: items read, scored and evaluated.

The model is anything with `score(prompts, completions) -> list[float]`; none is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from preference_data.counts import counted
from preference_data.quarantine import DataError
from preference_data.records import Prompt, Response
from preference_data.reward_benchmarks import Benchmark, Item, read_benchmark
from reward_models.benchmark_scores import Evaluation, evaluate

AT_ONCE = 32
"""Items that are given to a model in one call."""


class HasScore(Protocol):
    """What gives scores to completions: a RewardModel, or a class of your own."""

    def score(
        self, prompts: Sequence[str | Prompt], completions: Sequence[str | Response]
    ) -> list[float]:
        """A finite number for each completion of the prompt beside it, higher for a better one.

        A prompt of one user turn and a completion of one turn come as text. Raises ValueError for
        what it cannot read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Unscored:
    """An item that the model could not read, and why."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """A model's scores on a benchmark, and what they come to."""

    benchmark: Benchmark
    items: tuple[Item, ...]
    scores: tuple[tuple[float, ...], ...]
    """Of `items`, a score for each completion."""
    unscored: tuple[Unscored, ...]
    evaluation: Evaluation
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Every number and every row: what was scored, what could not be, what was rejected."""
        read = self.benchmark
        return {
            "layout": read.layout,
            "source": read.source,
            "files": list(read.files),
            "limit": read.limit,
            "seed": self.seed,
            "rows": {
                "in": read.rows,
                "scored": len(self.items),
                "unscored": len(self.unscored),
                "rejected": len(read.rejected),
                "beyond_limit": read.rows - len(read.rejected) - len(read.items),
            },
            "by_reason": dict(sorted(read.by_reason().items())),
            **asdict(self.evaluation),
            "notes": [*read.notes, *self.evaluation.notes],
            "items": [
                {
                    "id": item.id, "subset": item.subset, "right": list(item.right),
                    "scores": list(scores),
                }
                for item, scores in zip(self.items, self.scores, strict=True)
            ],
            "unscored": [
                {"id": one.item.id, "subset": one.item.subset, "reason": one.reason}
                for one in self.unscored
            ],
            "rejected": [
                {
                    "file": one.file, "row": one.row, "line": one.line, "reason": one.reason,
                    "detail": one.detail,
                }
                for one in read.rejected
            ],
        }  # fmt: skip


def run_benchmark(
    model: HasScore,
    source: str | Benchmark,
    layout: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda items: None,
) -> BenchmarkReport:
    """Scores a benchmark with a model: a file, a folder, a data set of the hub, or one read before.

    `layout` and `limit` are as in `read_benchmark`; `seed` is the bootstrap's; `advance` is called
    with the number of items done since the last call. Items that the model cannot read (it raises
    ValueError: a conversation may be too long for it) are left out and reported.

    Raises DataError if the data cannot be read or no item scored, and ValueError for scores that
    are no finite numbers, one for each completion.
    """
    read = read_benchmark(source, layout, limit) if isinstance(source, str) else source
    items: list[Item] = []
    scores: list[tuple[float, ...]] = []
    unscored: list[Unscored] = []
    for item, found in score_items(model, read.items):
        if isinstance(found, str):
            unscored.append(Unscored(item, found))
        else:
            items.append(item)
            scores.append(found)
        advance(1)
    if not items:
        raise DataError(
            f"The model could score none of the {counted(len(unscored), 'item')} of "
            f"{read.source}; the first: {unscored[0].reason}"
        )
    evaluation = evaluate(read.layout, items, scores, seed)
    return BenchmarkReport(read, tuple(items), tuple(scores), tuple(unscored), evaluation, seed)


def score_items(
    model: HasScore, items: Sequence[Item]
) -> Iterator[tuple[Item, tuple[float, ...] | str]]:
    """Each item with the score of each of its completions, or with why the model cannot read it."""
    for first in range(0, len(items), AT_ONCE):
        some = items[first : first + AT_ONCE]
        try:
            found = _scored(model, some)
        except _Unreadable:
            yield from ((item, _alone(model, item)) for item in some)
        else:
            yield from zip(some, found, strict=True)


class _Unreadable(Exception):
    """What the model raised as ValueError, apart from the ValueErrors of this module."""


def _alone(model: HasScore, item: Item) -> tuple[float, ...] | str:
    try:
        return _scored(model, [item])[0]
    except _Unreadable as error:
        return str(error)


def _scored(model: HasScore, items: Sequence[Item]) -> list[tuple[float, ...]]:
    texts = [[(_plain(i.prompt), _plain(answer)) for answer in i.completions] for i in items]
    # Once each: a batch rounds the same text differently at different places, and a tie is a tie.
    distinct = list(dict.fromkeys(pair for row in texts for pair in row))
    try:
        values = model.score([prompt for prompt, _ in distinct], [answer for _, answer in distinct])
    except ValueError as error:
        raise _Unreadable(str(error)) from error
    if len(values) != len(distinct):
        raise ValueError(
            f"The model gave {counted(len(values), 'score')} to "
            f"{counted(len(distinct), 'completion')}."
        )
    by_text = dict(zip(distinct, map(float, values), strict=True))
    found = [tuple(by_text[pair] for pair in row) for row in texts]
    for item, row in zip(items, found, strict=True):
        if not all(map(math.isfinite, row)):
            raise ValueError(f"The model gave {list(row)} to {item.id}; a score is finite.")
    return found


def _plain(turns: Prompt | Response) -> Any:
    """The text of a single turn as text, which any model takes; a conversation as it is."""
    [first, *more] = turns.messages
    role = "user" if isinstance(turns, Prompt) else "assistant"
    return turns if more or first.role != role else first.content
