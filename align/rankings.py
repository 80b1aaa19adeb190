"""Judgements as token ids, and the training loop on their pairs that reward and DPO share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from align.artifacts import Rows
from align.config import Train
from align.engine import Engine
from align.losses import LossOutput
from align.progress import tracked
from align.ranking_meter import Meter
from align.roles import Roles
from align.schedules import SCHEDULES
from align.stage import StageContext
from align.training import ParameterGroup
from preference_data import views
from preference_data.batches import Group, PackedBatch, pack, split_evenly
from preference_data.counts import counted
from preference_data.quarantine import DataError
from preference_data.records import Judgement
from preference_data.rendering import Renderer, RenderingError
from preference_data.sources.store import AGGREGATED_FILE, read_judgements
from preference_data.splits import check_leaks
from reward_models.scalar_head import Truncation, cut_left

log = logging.getLogger("align")


Trains = Literal["pairs", "ties", "ratings"]
"""What of a judgement is trained on: its ordered pairs, these and its ties, or ratings alone."""


@dataclass(frozen=True)
class Ranked:
    """A judgement and its ids: one group of K completions, and the ordered pairs among them."""

    judgement: Judgement
    group: Group
    pairs: tuple[tuple[int, int], ...]
    """(better, worse) places in the group; ties and unranked completions give none"""

    @property
    def ties(self) -> tuple[tuple[int, int], ...]:
        """Places in the group of every two answers that were found equally good."""
        return tied_pairs(self.judgement)

    @property
    def weight(self) -> float:
        """Of the whole judgement, shared by its pairs."""
        return self.judgement.weight

    @property
    def soft(self) -> bool:
        """Whether it is a probability, which holds the ties of those who were asked."""
        return self.judgement.probability is not None

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


def tied_pairs(judgement: Judgement) -> tuple[tuple[int, int], ...]:
    """Places of every two responses of equal ranks; the losers of a best-of were not compared."""
    if judgement.kind == "best_of":
        return ()
    return tuple(
        (i, j)
        for i, rank in enumerate(judgement.ranks)
        for j, other in enumerate(judgement.ranks[i + 1 :], i + 1)
        if rank is not None and rank == other
    )


@dataclass(frozen=True)
class Rankings:
    """Both sides of the split, and the account of the judgements they came from."""

    train: list[Ranked]
    test: list[Ranked]
    rows: Rows
    cut: int
    """Judgements on either side whose prompt lost its oldest tokens."""
    left_out: Mapping[str, int]
    """Judgements of which nothing is made, by reason."""


class PairIndex(NamedTuple):
    """P pairs of a batch of judgements: which sequence of the batch is better, which worse."""

    better: Tensor
    worse: Tensor
    weight: Tensor
    """[P]; the pairs of a judgement share its weight, so that K completions count once and not
    K (K - 1) / 2 times (Ouyang et al. 2022, eq. 1)"""
    label: Tensor
    """[P] probability that the better one is better: 1, or a soft label's; of a tie 1/2"""
    gap: Tensor
    """[P] by how much the better one was rated higher (`Ranked.gap`), on the judgement's scale"""


def pair_index(rows: Sequence[Ranked]) -> PairIndex:
    """The ordered pairs of `rows` when their groups are packed in this order."""
    return _index([(row, [(i, j, row.label(i)) for i, j in row.pairs]) for row in rows])


def tie_index(rows: Sequence[Ranked]) -> tuple[PairIndex, Tensor]:
    """The ordered pairs of `rows` and those that tie; [P] True for the latter.

    All pairs of a judgement share its weight. A tie that is a soft label keeps it.
    """
    chosen: list[tuple[Ranked, list[tuple[int, int, float]]]] = []
    tied: list[bool] = []
    for row in rows:
        ordered = [(i, j, row.label(i)) for i, j in row.pairs]
        equal = [(i, j, row.label(i) if row.soft else 0.5) for i, j in row.ties]
        chosen.append((row, ordered + equal))
        tied += [False] * len(ordered) + [True] * len(equal)
    return _index(chosen), torch.tensor(tied, dtype=torch.bool)


def _index(chosen: Sequence[tuple[Ranked, Sequence[tuple[int, int, float]]]]) -> PairIndex:
    """Of each row, (better, worse, label) of its pairs."""
    better, worse, weight, label, gap, first = [], [], [], [], [], 0
    for row, pairs in chosen:
        for i, j, probability in pairs:
            better.append(first + i)
            worse.append(first + j)
            weight.append(row.weight / len(pairs))
            label.append(probability)
            gap.append(row.gap(i, j))
        first += len(row.group.completions)
    return PairIndex(
        torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long),
        torch.tensor(weight), torch.tensor(label), torch.tensor(gap),
    )  # fmt: skip


def load_rankings(
    context: StageContext, source: str, renderer: Renderer, max_length: int,
    truncation: Truncation = "none", trains: Trains = "pairs",
) -> Rankings:  # fmt: skip
    """The imported judgements as ids.

    One that trains nothing (`trains`), a conversation longer than `max_length`, or one that cannot
    be rendered is left out and counted; with `truncation` left, one that is too long loses the
    beginning of its prompt (`cut_left`), is counted too, and left out only if that is not enough.
    Raises DataError if nothing is left to train on.
    """
    judgements = _judgements(context, source, trains)
    sides = context.split(source, judgements)
    check_leaks(*sides, context.clusters)
    left_out: Counter[str] = Counter()
    cut = 0
    kept: list[list[Ranked]] = [[], []]
    for side, rows in zip(sides, kept, strict=True):
        for judgement in side:
            if (reason := _untrained(judgement, trains)) is not None:
                left_out[reason] += 1
            elif (whole := _group_of(judgement, renderer)) is None:
                left_out["impossible to render"] += 1
            elif (group := _fitting(whole, max_length, truncation, renderer)) is None:
                left_out[f"longer than max_length {max_length}"] += 1
            else:
                rows.append(Ranked(judgement, group, judgement.ordered_pairs()))
                cut += group is not whole
    _report(context, source, len(judgements), left_out, cut, max_length)
    _check_anything(source, len(judgements), kept[0], left_out, trains)
    out = left_out.total()
    account = Rows(len(judgements), len(judgements) - out, out)
    return Rankings(kept[0], kept[1], account, cut, left_out)


def _judgements(context: StageContext, source: str, trains: Trains) -> list[Judgement]:
    folder = context.data[source]
    if trains != "ratings":
        return views.judgements(folder)
    if (folder / AGGREGATED_FILE).is_file():
        raise DataError(
            f"data.{source}.aggregate makes one verdict of many, but loss regression learns from "
            f"every rating; remove it, or choose another loss."
        )
    return [judgement for judgement in read_judgements(folder) if judgement.gold is None]


def _untrained(judgement: Judgement, trains: Trains) -> str | None:
    """Why nothing is made of the judgement, if that is so."""
    if trains == "ratings":
        rated = any(score is not None for score in judgement.scores or ())
        return None if rated else "without ratings"
    if judgement.ordered_pairs():
        return None
    if not tied_pairs(judgement):
        return "without two ranked answers"
    return None if trains == "ties" else "tied"


def _report(
    context: StageContext, source: str, judgements: int, left_out: Mapping[str, int], cut: int,
    max_length: int,
) -> None:  # fmt: skip
    if not context.engine.is_main:
        return
    if left_out:
        log.warning(
            "%s: %d of %d judgements of data.%s are left out: %s.",
            context.name, sum(left_out.values()), judgements, source, _reasons(left_out),
        )  # fmt: skip
    if cut:
        log.warning(
            "data.%s: %d of %d judgements lost the beginning of their prompt to max_length %d.",
            source, cut, judgements, max_length,
        )  # fmt: skip


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))


def _check_anything(
    source: str, judgements: int, rows: Sequence[Ranked], left_out: Mapping[str, int],
    trains: Trains,
) -> None:  # fmt: skip
    if not rows:
        why = f"{_reasons(left_out)}; " if left_out else ""
        raise DataError(
            f"data.{source}: none of the {counted(judgements, 'judgement')} can be trained on: "
            f"{why}the rest is held out."
        )
    if trains == "ties" and not any(row.pairs or row.soft for row in rows):
        raise DataError(
            f"data.{source}: all of the {counted(len(rows), 'judgement')} to train on are ties, "
            "which do not say what a better answer is."
        )


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


class Weighted(NamedTuple):
    """A loss by item (pairs, rankings, rated answers), and metrics that are of other items."""

    loss: Tensor
    """[N]"""
    weight: Tensor
    """[N]; that of a judgement's items sums to its own"""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """By name, values and the weights of which they are the mean, 0 where there is no value."""


Loss = Callable[[Any, PackedBatch, PairIndex, list[int]], LossOutput | Weighted]
"""(module to call, the rows' batch, its ordered pairs, the rows' indices) -> a loss and metrics by
pair, which are weighted as the pairs are, or with weights of their own."""


class Enough(Exception):
    """Raised by the trackers of all ranks: the training ends as if this had been its last step."""


def fit_rankings(
    context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked], loss: Loss,
    apart: Sequence[ParameterGroup] = (),
) -> dict[str, float]:  # fmt: skip
    """Trains `role` on the judgements of `rows`; returns the last metrics.

    Those of its parameters that are in `apart` have a learning rate of their own.

    1 the step's rows, the same on every rank; 2 in parts of at most tokens_per_forward, as many on
    every rank; 3 loss / the step's weight; 4 one step; 5 metrics over all ranks. An interrupted
    training goes on from the engine's newest checkpoint.
    """
    train, engine = context.step.train, context.engine
    tokens = engine.tokens_per_forward(train.tokens_per_forward)
    order = steps_of_rows(len(rows), train, context.seed)
    training = engine.training(
        roles,
        _groups(roles.parameters_of(role), train.learning_rate, apart),
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
    steps = tracked(order[found.number :], "training", "steps", total=len(order), done=found.number)
    for number, indices in enumerate(steps, found.number + 1):  # 1
        weight = sum(rows[i].weight for i in indices)
        groups = [rows[i].group for i in indices]
        parts = split_evenly(groups, tokens, engine.world_size)  # 2
        mine = engine.share([[indices[i] for i in sorted(part)] for part in parts])
        for place, part in enumerate(mine, 1):
            summed = _part_loss(training.module, role, rows, part, loss, meter, engine)
            ids = (rows[i].judgement.id for i in part)
            training.backward(summed / weight, place == len(mine), ids)  # 3
        rate = training.learning_rates[0]
        norm = training.step()  # 4
        meter.step(weight)
        if number % train.logging_steps == 0 or number == len(order):
            try:
                meter.log(number, {"train/lr": rate, "train/grad_norm": norm})  # 5
            except Enough:
                break
        if number % train.save_steps == 0 and number < len(order):
            common, mine = meter.state()
            engine.checkpoints.save(number, training, common, mine=mine)
    training.close()
    roles.eval()
    return meter.last


def _groups(
    parameters: Sequence[nn.Parameter], rate: float, apart: Sequence[ParameterGroup]
) -> list[ParameterGroup]:
    taken = {id(parameter) for group in apart for parameter in group.parameters}
    rest = [parameter for parameter in parameters if id(parameter) not in taken]
    return [ParameterGroup(rest, rate), *apart]


def _part_loss(
    module: Any, role: str, rows: Sequence[Ranked], mine: list[int], loss: Loss, meter: Meter,
    engine: Engine,
) -> Tensor:  # fmt: skip
    """Weighted sum of the losses of this rank's rows of a part."""
    if not mine:  # fewer rows than ranks; the others wait for this one's backward
        return module("idle", role, None)
    part = [rows[i] for i in mine]
    batch = pack([row.group for row in part]).to(engine.device)
    pairs = PairIndex(*(tensor.to(engine.device) for tensor in pair_index(part)))
    output = loss(module, batch, pairs, mine)
    if isinstance(output, Weighted):
        meter.add({"train/loss": output.loss.detach()}, output.weight, batch.tokens)
        meter.add_means(output.metrics)
        return (output.weight * output.loss).sum()
    meter.add({"train/loss": output.loss.detach(), **output.metrics}, pairs.weight, batch.tokens)
    return (pairs.weight * output.loss).sum()


def by_group(rows: Sequence[Ranked], flat: Sequence[float]) -> list[Tensor]:
    """Numbers of all sequences, in order, as one tensor [K] a row."""
    sizes = [len(row.group.completions) for row in rows]
    return list(torch.tensor(flat).split(sizes))


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
