"""Preference pairs as token ids, and the training loop that the reward model and DPO share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.artifacts import Rows
from align.config import Train
from align.engine import SCHEDULES, Engine, ParameterGroup
from align.losses import LossOutput
from align.roles import Roles
from align.stage import StageContext
from preference_data import views
from preference_data.batches import Group, PackedBatch, pack
from preference_data.records import Comparison, Judgement
from preference_data.rendering import Renderer, RenderingError
from preference_data.splits import split


@dataclass(frozen=True)
class Pair:
    """A comparison and its ids: one group of two completions, the chosen one first."""

    comparison: Comparison
    group: Group


@dataclass(frozen=True)
class Pairs:
    """Both sides of the split, and the account of the judgements they came from."""

    train: list[Pair]
    test: list[Pair]
    rows: Rows


def load_pairs(context: StageContext, source: str, renderer: Renderer, max_length: int) -> Pairs:
    """Every ordered pair of the imported judgements; ties give none.

    A judgement whose conversation is longer than `max_length`, or that cannot be rendered, is left
    out and counted.
    """
    judgements = views.judgements(context.data[source])
    fraction = context.config.data[source].test_fraction
    sides = split(judgements, fraction, context.split_salt())
    train, test = (
        [list(_pairs_of(judgement, renderer, max_length)) for judgement in side] for side in sides
    )
    left_out = sum(
        not pairs and bool(judgement.comparisons())
        for judgement, pairs in zip([*sides[0], *sides[1]], [*train, *test], strict=True)
    )
    return Pairs(
        [pair for pairs in train for pair in pairs],
        [pair for pairs in test for pair in pairs],
        Rows(len(judgements), len(judgements) - left_out, left_out),
    )


def _pairs_of(judgement: Judgement, renderer: Renderer, max_length: int) -> Iterator[Pair]:
    for comparison in judgement.comparisons():
        try:
            chosen = renderer.render(comparison.prompt, comparison.chosen)
            rejected = renderer.render(comparison.prompt, comparison.rejected)
        except RenderingError:
            return
        if max(len(chosen), len(rejected)) > max_length:
            return
        yield Pair(comparison, Group(chosen.prompt, (chosen.completion, rejected.completion)))


Loss = Callable[[Any, PackedBatch, list[int]], LossOutput]
"""(module to call, the pairs' batch, their indices) -> a loss and metrics by pair."""


def fit_pairs(
    context: StageContext, roles: Roles, role: str, pairs: Sequence[Pair], loss: Loss
) -> dict[str, float]:
    """Trains `role` on `pairs`, each with its weight; returns the last metrics.

    1 the step's rows, the same on every rank; 2 in parts, of which each rank takes its share;
    3 loss / the step's weight; 4 one step; 5 metrics over all ranks.
    """
    train, engine = context.step.train, context.engine
    micro = train.micro_batch_size(engine.world_size)
    order = steps_of_rows(len(pairs), train, context.seed)
    training = engine.training(
        roles,
        [ParameterGroup(roles.parameters_of(role), train.learning_rate)],
        total_steps=len(order),
        schedule=SCHEDULES[train.lr_scheduler_type](train.warmup_steps),
        max_grad_norm=train.max_grad_norm,
        adam_epsilon=train.adam_epsilon,
        weight_decay=train.weight_decay,
    )
    meter = Meter(context)
    roles.train()
    for number, indices in enumerate(order, 1):  # 1
        weight = sum(pairs[i].comparison.weight for i in indices)
        starts = range(0, len(indices), micro * engine.world_size)
        for start in starts:  # 2
            mine = engine.share(indices[start : start + micro * engine.world_size])
            part = _part_loss(training.module, role, pairs, mine, loss, meter, engine)
            training.backward(part / weight, last=start == starts[-1])  # 3
        rate = training.learning_rates[0]
        norm = training.step()  # 4
        meter.step(weight)
        if number % train.logging_steps == 0 or number == len(order):
            meter.log(number, {"train/lr": rate, "train/grad_norm": norm})  # 5
    training.close()
    roles.eval()
    return meter.last


def _part_loss(
    module: Any, role: str, pairs: Sequence[Pair], mine: list[int], loss: Loss, meter: Meter,
    engine: Engine,
) -> Tensor:  # fmt: skip
    """Weighted sum of the losses of this rank's rows of a part."""
    if not mine:  # fewer rows than ranks; the others wait for this one's backward
        return module("nothing", role, None)
    batch = pack([pairs[i].group for i in mine]).to(engine.device)
    output = loss(module, batch, mine)
    weights = torch.tensor([pairs[i].comparison.weight for i in mine], device=engine.device)
    meter.add({"train/loss": output.loss.detach(), **output.metrics}, weights, batch.tokens)
    return (weights * output.loss).sum()


class Meter:
    """Means over the rows of all ranks since the last log line."""

    def __init__(self, context: StageContext):
        self._context = context
        self._sums: dict[str, float] = {}
        self._weight = 0.0
        self._tokens = 0
        self._since = time.monotonic()
        self.last: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor], weights: Tensor, tokens: int) -> None:
        """[P] metrics and weights of this rank's pairs."""
        for name, values in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float((weights * values).sum())
        self._tokens += tokens

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
            **more,
            "train/tokens_per_second": tokens / (now - self._since),
        }
        self._context.tracker.log(number, self.last)
        self._sums, self._weight, self._tokens, self._since = {}, 0.0, 0, now


def steps_of_rows(rows: int, train: Train, seed: int) -> list[list[int]]:
    """Indices of each optimiser step's rows: every epoch in a fresh order, all steps full.

    Rows left over at the end of an epoch open the next step.
    """
    batch = train.train_batch_size
    steps = train.max_steps or max(1, round(train.num_train_epochs * rows / batch))
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    order: list[list[int]] = []
    for _ in range(steps):
        while len(queue) < batch:
            queue += torch.randperm(rows, generator=generator).tolist()
        order.append(queue[:batch])
        queue = queue[batch:]
    return order
