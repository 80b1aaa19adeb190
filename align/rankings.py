"""Judgements as token ids, and the training loop on their pairs that reward and DPO share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.artifacts import Rows
from align.checkpoints import Checkpoint
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
from reward_models.scalar_head import Truncation, cut_left

log = logging.getLogger("align")


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

    def gap(self, better: int, worse: int) -> float:
        """By how much the answer at the one place was rated higher; 0 if that is not known, or the
        ratings contradict the ranks."""
        scores = self.judgement.scores or (None,) * len(self.judgement.responses)
        above, below = scores[better], scores[worse]
        return 0.0 if above is None or below is None else max(0.0, above - below)


@dataclass(frozen=True)
class Rankings:
    """Both sides of the split, and the account of the judgements they came from."""

    train: list[Ranked]
    test: list[Ranked]
    rows: Rows
    cut: int
    """Judgements on either side whose prompt lost its oldest tokens."""


class PairIndex(NamedTuple):
    """P pairs of a batch of judgements: which sequence of the batch is better, which worse."""

    better: Tensor
    worse: Tensor
    weight: Tensor
    """[P]; the pairs of a judgement share its weight, so that K completions count once and not
    K (K - 1) / 2 times (Ouyang et al. 2022, eq. 1)"""
    label: Tensor
    """[P] probability that the better one is better: 1, or a soft label's"""
    gap: Tensor
    """[P] by how much the better one was rated higher (`Ranked.gap`), on the judgement's scale"""


def pair_index(rows: Sequence[Ranked]) -> PairIndex:
    """The pairs of `rows` when their groups are packed in this order."""
    better, worse, weight, label, gap, first = [], [], [], [], [], 0
    for row in rows:
        for i, j in row.pairs:
            better.append(first + i)
            worse.append(first + j)
            weight.append(row.weight / len(row.pairs))
            label.append(row.label(i))
            gap.append(row.gap(i, j))
        first += len(row.group.completions)
    return PairIndex(
        torch.tensor(better), torch.tensor(worse), torch.tensor(weight), torch.tensor(label),
        torch.tensor(gap),
    )  # fmt: skip


def load_rankings(
    context: StageContext, source: str, renderer: Renderer, max_length: int,
    truncation: Truncation = "none",
) -> Rankings:  # fmt: skip
    """The imported judgements as ids. Those without any ordered pair (ties) train nothing.

    A judgement with a conversation longer than `max_length`, or one that cannot be rendered, is
    left out and counted; with `truncation` left, one that is too long loses the beginning of its
    prompt (`cut_left`), is counted too, and left out only if that is not enough. Raises DataError
    if nothing is left to train on.
    """
    judgements = views.judgements(context.data[source])
    sides = context.split(source, judgements)
    check_leaks(*sides, context.clusters)
    left_out = cut = 0
    kept: list[list[Ranked]] = [[], []]
    for side, rows in zip(sides, kept, strict=True):
        for judgement in side:
            whole = _group_of(judgement, renderer)
            group = _fitting(whole, max_length, truncation, renderer) if whole else None
            pairs = judgement.ordered_pairs()
            if group is None:
                left_out += 1
            elif pairs:
                rows.append(Ranked(judgement, group, pairs))
                cut += group is not whole
    if not kept[0]:
        raise DataError(
            f"data.{source}: none of the {len(judgements)} judgements can be trained on; "
            f"{left_out} are longer than max_length {max_length} or cannot be rendered, the rest "
            f"are ties or held out."
        )
    if cut and context.engine.is_main:
        log.warning(
            "data.%s: %d of %d judgements lost the beginning of their prompt to max_length %d.",
            source, cut, len(judgements), max_length,
        )  # fmt: skip
    rows_of = Rows(len(judgements), len(judgements) - left_out, left_out)
    return Rankings(kept[0], kept[1], rows_of, cut)


def _group_of(judgement: Judgement, renderer: Renderer) -> Group | None:
    try:
        rendered = [renderer.render(judgement.prompt, r) for r in judgement.responses]
    except RenderingError:
        return None
    return Group(rendered[0].prompt, tuple(row.completion for row in rendered))


def _fitting(
    group: Group, max_length: int, truncation: Truncation, renderer: Renderer
) -> Group | None:
    if truncation == "left":
        return cut_left(group, max_length, renderer.tokenizer.bos_token_id)
    longest = max(map(len, group.completions))
    return group if len(group.prompt) + longest <= max_length else None


def check_gaps(context: StageContext, rankings: Rankings, option: str) -> None:
    """That ratings are there for `option` of the step's train section, which reads them.

    Pairs without any are named in the log. Raises DataError if no pair to train on has one.
    """
    source = context.step.data
    gaps = [row.gap(*pair) for row in rankings.train for pair in row.pairs]
    missing = gaps.count(0.0)
    if missing == len(gaps):
        raise DataError(
            f"steps.{context.name}.train.{option}: no pair of data.{source} has scores that say by "
            f"how much it was won; bring ratings, or remove the option."
        )
    if missing and context.engine.is_main:
        log.warning(
            "%s: %d of %d pairs of data.%s have no scores, or some that contradict their ranks; "
            "%s does nothing to them.",
            context.name, missing, len(gaps), source, option,
        )  # fmt: skip


Loss = Callable[[Any, PackedBatch, PairIndex, list[int]], LossOutput]
"""(module to call, the rows' batch, its pairs, the rows' indices) -> a loss and metrics by pair."""


def fit_rankings(
    context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked], loss: Loss
) -> dict[str, float]:
    """Trains `role` on the pairs of `rows`; returns the last metrics.

    1 the step's rows, the same on every rank; 2 in parts of at most tokens_per_forward, as many on
    every rank; 3 loss / the step's weight; 4 one step; 5 metrics over all ranks. An interrupted
    training goes on from the engine's newest checkpoint.
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
    found = engine.checkpoints.restore(training)
    meter.restore(found)
    roles.train()
    for number, indices in enumerate(order[found.number :], found.number + 1):  # 1
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
        if number % train.save_steps == 0 and number < len(order):
            common, mine = meter.state()
            engine.checkpoints.save(number, training, common, mine=mine)
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

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What all ranks have in common, and this rank's own sums, for a checkpoint."""
        common = {"weight": self._weight, "last": self.last}
        return common, {"sums": self._sums, "tokens": self._tokens}

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
