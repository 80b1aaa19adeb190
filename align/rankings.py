"""Judgements as token ids, and the training loop on their pairs that reward and DPO share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.artifacts import Rows
from align.config import Train
from align.engine import SCHEDULES, Engine, ParameterGroup
from align.losses import LossOutput
from align.roles import Roles
from align.stage import StageContext
from preference_data import views
from preference_data.batches import Group, PackedBatch, pack, split_evenly
from preference_data.quarantine import DataError
from preference_data.records import Judgement
from preference_data.rendering import Renderer, RenderingError
from preference_data.splits import check_leaks


@dataclass(frozen=True)
class Ranked:
    """A judgement and its ids: one group of K completions, and the ordered pairs among them."""

    judgement: Judgement
    group: Group
    pairs: tuple[tuple[int, int], ...]
    """(better, worse) places in the group; ties and unranked completions give none"""

    @property
    def weight(self) -> float:
        """Of the whole judgement, shared by its pairs."""
        return self.judgement.weight

    def label(self, better: int) -> float:
        """The probability that the answer at this place beats the other one of its pair."""
        first = self.judgement.probability
        if first is None:
            return 1.0
        return first if better == 0 else 1.0 - first


@dataclass(frozen=True)
class Rankings:
    """Both sides of the split, and the account of the judgements they came from."""

    train: list[Ranked]
    test: list[Ranked]
    rows: Rows


class PairIndex(NamedTuple):
    """P pairs of a batch of judgements: which sequence of the batch is better, which worse."""

    better: Tensor
    worse: Tensor
    weight: Tensor
    """[P]; the pairs of a judgement share its weight, so that K completions count once and not
    K (K - 1) / 2 times (Ouyang et al. 2022, eq. 1)"""
    label: Tensor
    """[P] probability that the better one is better: 1, or a soft label's"""


def pair_index(rows: Sequence[Ranked]) -> PairIndex:
    """The pairs of `rows` when their groups are packed in this order."""
    better, worse, weight, label, first = [], [], [], [], 0
    for row in rows:
        for i, j in row.pairs:
            better.append(first + i)
            worse.append(first + j)
            weight.append(row.weight / len(row.pairs))
            label.append(row.label(i))
        first += len(row.group.completions)
    return PairIndex(
        torch.tensor(better), torch.tensor(worse), torch.tensor(weight), torch.tensor(label)
    )


def load_rankings(
    context: StageContext, source: str, renderer: Renderer, max_length: int
) -> Rankings:
    """The imported judgements as ids. Those without any ordered pair (ties) train nothing.

    A judgement with a conversation longer than `max_length`, or one that cannot be rendered, is
    left out and counted. Raises DataError if nothing is left to train on.
    """
    judgements = views.judgements(context.data[source])
    sides = context.split(source, judgements)
    check_leaks(*sides, context.clusters)
    left_out = 0
    kept: list[list[Ranked]] = [[], []]
    for side, rows in zip(sides, kept, strict=True):
        for judgement in side:
            group = _group_of(judgement, renderer, max_length)
            pairs = judgement.ordered_pairs()
            if group is None:
                left_out += 1
            elif pairs:
                rows.append(Ranked(judgement, group, pairs))
    if not kept[0]:
        raise DataError(
            f"data.{source}: none of the {len(judgements)} judgements can be trained on; "
            f"{left_out} are longer than max_length {max_length} or cannot be rendered, the rest "
            f"are ties or held out."
        )
    return Rankings(kept[0], kept[1], Rows(len(judgements), len(judgements) - left_out, left_out))


def _group_of(judgement: Judgement, renderer: Renderer, max_length: int) -> Group | None:
    try:
        rendered = [renderer.render(judgement.prompt, r) for r in judgement.responses]
    except RenderingError:
        return None
    if max(map(len, rendered)) > max_length:
        return None
    return Group(rendered[0].prompt, tuple(row.completion for row in rendered))


Loss = Callable[[Any, PackedBatch, PairIndex, list[int]], LossOutput]
"""(module to call, the rows' batch, its pairs, the rows' indices) -> a loss and metrics by pair."""


def fit_rankings(
    context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked], loss: Loss
) -> dict[str, float]:
    """Trains `role` on the pairs of `rows`; returns the last metrics.

    1 the step's rows, the same on every rank; 2 in parts of at most tokens_per_forward, as many on
    every rank; 3 loss / the step's weight; 4 one step; 5 metrics over all ranks.
    """
    train, engine = context.step.train, context.engine
    order = steps_of_rows(len(rows), train, context.seed)
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
        weight = sum(rows[i].weight for i in indices)
        groups = [rows[i].group for i in indices]
        parts = split_evenly(groups, train.tokens_per_forward, engine.world_size)  # 2
        mine = engine.share([[indices[i] for i in sorted(part)] for part in parts])
        for place, part in enumerate(mine, 1):
            summed = _part_loss(training.module, role, rows, part, loss, meter, engine)
            training.backward(summed / weight, last=place == len(mine))  # 3
        rate = training.learning_rates[0]
        norm = training.step()  # 4
        meter.step(weight)
        if number % train.logging_steps == 0 or number == len(order):
            meter.log(number, {"train/lr": rate, "train/grad_norm": norm})  # 5
    training.close()
    roles.eval()
    return meter.last


def _part_loss(
    module: Any, role: str, rows: Sequence[Ranked], mine: list[int], loss: Loss, meter: Meter,
    engine: Engine,
) -> Tensor:  # fmt: skip
    """Weighted sum of the losses of this rank's rows of a part."""
    if not mine:  # fewer rows than ranks; the others wait for this one's backward
        return module("nothing", role, None)
    part = [rows[i] for i in mine]
    batch = pack([row.group for row in part]).to(engine.device)
    pairs = PairIndex(*(tensor.to(engine.device) for tensor in pair_index(part)))
    output = loss(module, batch, pairs, mine)
    meter.add({"train/loss": output.loss.detach(), **output.metrics}, pairs.weight, batch.tokens)
    return (pairs.weight * output.loss).sum()


def by_group(rows: Sequence[Ranked], flat: Sequence[float]) -> list[Tensor]:
    """Numbers of all sequences, in order, as one tensor [K] a row."""
    sizes = [len(row.group.completions) for row in rows]
    return list(torch.tensor(flat).split(sizes))


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
