"""Means of metrics over the judgements of all ranks, kept from one log line to the next."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from align.checkpoints import Checkpoint
from align.stage import StageContext


class Meter:
    """Means over the rows of all ranks since the last log line."""

    def __init__(self, context: StageContext):
        self._context = context
        self._sums: dict[str, float] = {}
        self._means: dict[str, list[float]] = {}
        self._weight = 0.0
        self._tokens = 0
        self._since = time.monotonic()
        self.last: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor], weights: Tensor, tokens: int) -> None:
        """[P] metrics and weights of this rank's pairs."""
        for name, values in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float((weights * values).sum())
        self._tokens += tokens

    def add_means(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Metrics that not every item has: values and the weights of which they are the mean."""
        for name, (values, weights) in metrics.items():
            self._add_mean(name, float((weights * values).sum()), float(weights.sum()))

    def _add_mean(self, name: str, total: float, weight: float) -> None:
        before = self._means.get(name, [0.0, 0.0])
        self._means[name] = [before[0] + total, before[1] + weight]

    def step(self, weight: float) -> None:
        """Counts the weight that all ranks together put into an optimiser step."""
        self._weight += weight

    def log(self, number: int, more: Mapping[str, float]) -> None:
        """One line of metrics, over all ranks."""
        sums = self._context.engine.gather([self._sums])
        tokens = sum(self._context.engine.gather([self._tokens]))
        names = {name: None for part in sums for name in part}
        now = time.monotonic()
        self.last = {
            **{name: sum(part.get(name, 0.0) for part in sums) / self._weight for name in names},
            **self._all_means(),
            **more,
            "train/tokens_per_second": tokens / (now - self._since),
        }
        self._context.tracker.log(number, self.last)
        self._sums, self._means, self._weight, self._tokens, self._since = {}, {}, 0.0, 0, now

    def _all_means(self) -> dict[str, float]:
        """Of all ranks; without those that had no item."""
        parts = self._context.engine.gather([self._means])
        found: dict[str, float] = {}
        for name in {name: None for part in parts for name in part}:
            of_ranks = [part[name] for part in parts if name in part]
            total, weight = (sum(values) for values in zip(*of_ranks, strict=True))
            if weight:
                found[name] = total / weight
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What all ranks have in common, and this rank's own sums, for a checkpoint."""
        common = {"weight": self._weight, "last": self.last}
        return common, {"sums": self._sums, "means": self._means, "tokens": self._tokens}

    def restore(self, found: Checkpoint) -> None:
        """Goes on from a checkpoint's sums; of another number of ranks, rank 0 takes all."""
        if not found.number:
            return
        self._weight, self.last = found.state["weight"], dict(found.state["last"])
        engine = self._context.engine
        if len(found.ranks) == engine.world_size:
            mine = [found.ranks[engine.rank]]
        else:
            mine = list(found.ranks) if engine.is_main else []
        for part in mine:
            self._tokens += part["tokens"]
            for name, total in part["sums"].items():
                self._sums[name] = self._sums.get(name, 0.0) + total
            for name, (total, weight) in part.get("means", {}).items():
                self._add_mean(name, total, weight)
