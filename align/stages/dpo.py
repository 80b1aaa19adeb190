"""Direct preference optimisation: the policy learns from the pairs without a reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from align import dpo_losses
from align.config import DPOTrain
from align.displacement import FALL, DisplacementAlarm
from align.losses import LossOutput
from align.progress import progress
from align.proofs import prove_policy
from align.rankings import (
    PairIndex,
    Ranked,
    Rankings,
    by_group,
    check_gaps,
    fit_rankings,
    load_rankings,
    pair_index,
)
from align.reference_cache import reference_sums
from align.roles import Roles
from align.rollout import packed_tokens
from align.stage import StageContext, StageResult
from align.tracking import Trackers
from preference_data.batches import PackedBatch
from preference_data.rendering import Rendered

SMOOTHED = {
    "sigmoid": dpo_losses.sigmoid,
    "robust": dpo_losses.robust,
    "simpo": dpo_losses.simpo,
}
"""Losses with label_smoothing and a margin."""
PLAIN = {"hinge": dpo_losses.hinge, "ipo": dpo_losses.ipo, "orpo": dpo_losses.orpo}


def run(context: StageContext) -> StageResult:
    """Trains on the training side of the judgements, against the policy it starts from.

    1 the policy and the rows; 2 what it gives them before its first update, which is the
    reference; 3 the training, watched for displacement; 4 the held-out side; 5 the proved save.
    """
    step = context.step
    roles = context.load_roles(step.policy)  # 1
    torch.manual_seed(context.seed)
    roles.add("policy", weights=context.weights_of(step.policy), fresh=True, trainable=True)
    rankings = _rankings(context, roles)
    reference = _reference(context, roles, [*rankings.train, *rankings.test])  # 2
    alarm = DisplacementAlarm(context.name)
    metrics = fit_rankings(  # 3
        _watched(context, alarm),
        roles,
        "policy",
        rankings.train,
        lambda module, batch, pairs, rows: _loss(
            step.train, module, batch, pairs, _of(reference, rows)
        ),
    )
    with progress("held-out pairs"):
        metrics |= _held_out(context, roles, rankings, reference)  # 4
    if step.train.truncation != "none":
        metrics["train/cut_prompts"] = rankings.cut
    if context.engine.is_main:
        alarm.finish(metrics)
        saved = roles.save("policy", context.folder)  # 5
        group = rankings.train[0].group
        prove_policy(context, roles, "policy", saved, Rendered(group.prompt, group.completions[0]))
    context.engine.barrier()
    return StageResult(metrics, rows=rankings.rows, base=roles.base_path)


def _rankings(context: StageContext, roles: Roles) -> Rankings:
    step, train = context.step, context.step.train
    rankings = load_rankings(context, step.data, roles.renderer, train.max_length, train.truncation)
    if train.offset_from_scores:
        check_gaps(context, rankings, "offset_from_scores")
    return rankings


def _watched(context: StageContext, alarm: DisplacementAlarm) -> StageContext:
    """The context with the alarm among rank 0's trackers."""
    if not context.engine.is_main:
        return context
    return dataclasses.replace(context, tracker=Trackers((context.tracker, alarm)))


def _reference(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> list[Tensor] | None:
    """[K] every row's log-probabilities under the reference, summed; None if the loss has none.

    The policy itself is asked, before its first update: no second model is ever in memory.
    """
    if not context.step.train.needs_reference:
        return None
    roles.eval()  # a new adapter's dropout is on
    groups = [row.group for row in rows]
    with progress("reference"):
        return reference_sums(context, roles, groups, lambda: _sums(context, roles, rows))


def _of(reference: list[Tensor] | None, rows: Iterable[int]) -> Tensor | None:
    """[B] the numbers of these rows' completions."""
    return None if reference is None else torch.cat([reference[row] for row in rows])


def _sums(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> list[Tensor]:
    """[K] log-probabilities of every row's completions under the policy, summed over tokens; from
    all ranks."""
    engine = context.engine
    mine = engine.share(rows)
    tokens = packed_tokens(
        [row.group for row in mine],
        lambda batch: roles.logprobs("policy", batch).logprobs,
        engine,
    )
    return engine.gather(by_group(mine, [sum(row) for row in tokens]))


def _loss(
    train: DPOTrain, module: Any, batch: PackedBatch, pairs: PairIndex, reference: Tensor | None
) -> LossOutput:
    """`reference` [B] holds the sequences' log-probabilities under the reference, summed."""
    sums = batch.sums(module("logprobs", "policy", batch).logprobs)
    tokens = torch.bincount(batch.sequence, minlength=batch.sequences)
    return pair_loss(train, sums, reference, tokens, pairs)


def pair_loss(
    train: DPOTrain, sums: Tensor, reference: Tensor | None, tokens: Tensor, pairs: PairIndex
) -> LossOutput:
    """The loss that `train` names, [P] pairs, of the summed log-probabilities of B completions.

    `sums` and `reference` [B] are nats under policy and reference, `tokens` [B] the lengths. With
    a reference, the metrics have the log-ratios by token, and as `dpo/displacement` the share of
    pairs whose chosen completion has fallen; with offsets, `dpo/offset`.
    """
    ratios = sums if reference is None else sums - reference.to(sums.device)
    means = dpo_losses.per_token(ratios, tokens)
    values = means if train.averages else ratios
    of_pairs = values[pairs.better], values[pairs.worse], train.beta
    if train.loss in PLAIN:
        output = PLAIN[train.loss](*of_pairs, pairs.label)
    else:
        offset = dpo_losses.offsets(pairs.gap, train.offset_from_scores)
        margin = train.margin + offset
        output = SMOOTHED[train.loss](*of_pairs, train.label_smoothing, margin, pairs.label)
        if train.offset_from_scores:
            output = LossOutput(output.loss, {**output.metrics, "dpo/offset": offset})
    if reference is None:
        return output
    chosen, rejected = means.detach()[pairs.better], means.detach()[pairs.worse]
    metrics = {
        **output.metrics,
        "dpo/chosen_logratio": chosen,
        "dpo/rejected_logratio": rejected,
        "dpo/displacement": (chosen < -FALL).float(),
    }
    return LossOutput(output.loss, metrics)


def _held_out(
    context: StageContext, roles: Roles, rankings: Rankings, reference: list[Tensor] | None
) -> dict[str, float]:
    """The loss's metrics on pairs whose prompts were not trained on; `reference` as for train and
    test in this order."""
    rows = rankings.test
    if not rows:
        return {}
    pairs = pair_index(rows)
    tokens = torch.tensor([len(ids) for row in rows for ids in row.group.completions])
    sums = torch.cat(_sums(context, roles, rows))
    first = len(rankings.train)
    of_rows = _of(reference, range(first, first + len(rows)))
    output = pair_loss(context.step.train, sums, of_rows, tokens, pairs)
    return {
        name: float((pairs.weight * values).sum() / pairs.weight.sum())
        for name, values in output.metrics.items()
    }
