"""Direct preference optimisation: the policy learns from the pairs without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from align import losses
from align.losses import LossOutput
from align.proofs import prove_policy
from align.rankings import (
    PairIndex,
    Ranked,
    by_group,
    fit_rankings,
    load_rankings,
    pair_index,
)
from align.roles import Roles
from align.rollout import packed_tokens
from align.stage import StageContext, StageResult
from preference_data.batches import PackedBatch
from preference_data.rendering import Rendered

TOKENS_PER_FORWARD = 8192


def run(context: StageContext) -> StageResult:
    """Trains on the training side of the judgements, against the policy it starts from."""
    step = context.step
    roles = context.load_roles(step.policy)
    weights = context.weights_of(step.policy)
    roles.add("reference", weights=weights)
    roles.add("policy", weights=weights, fresh=True, trainable=True)
    rankings = load_rankings(context, step.data, roles.renderer, step.train.max_length)
    reference = _sums(context, roles, "reference", rankings.train)  # once: it does not change
    metrics = fit_rankings(
        context,
        roles,
        "policy",
        rankings.train,
        lambda module, batch, pairs, rows: _loss(
            context, module, batch, pairs, torch.cat([reference[i] for i in rows])
        ),
    )
    metrics |= _held_out(context, roles, rankings.test)
    if context.engine.is_main:
        saved = roles.save("policy", context.folder)
        group = rankings.train[0].group
        prove_policy(context, roles, "policy", saved, Rendered(group.prompt, group.completions[0]))
    context.engine.barrier()
    return StageResult(metrics, rows=rankings.rows, base=roles.base_path)


def _loss(
    context: StageContext, module: Any, batch: PackedBatch, pairs: PairIndex, reference: Tensor
) -> LossOutput:
    """`reference` [B] holds the sequences' log-probabilities under the reference, summed."""
    train = context.step.train
    sums = batch.sums(module("logprobs", "policy", batch).logprobs)
    reference = reference.to(sums.device)
    return losses.dpo(
        sums[pairs.better],
        sums[pairs.worse],
        reference[pairs.better],
        reference[pairs.worse],
        train.beta,
        train.label_smoothing,
        pairs.label,
    )


def _sums(context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked]) -> list[Tensor]:
    """[K] log-probabilities of every row's completions, summed over tokens; from all ranks."""
    engine = context.engine
    mine = engine.share(rows)
    tokens = packed_tokens(
        [row.group for row in mine],
        lambda batch: roles.logprobs(role, batch).logprobs,
        TOKENS_PER_FORWARD,
        engine,
    )
    return engine.gather(by_group(mine, [sum(row) for row in tokens]))


def _held_out(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> dict[str, float]:
    """The loss's metrics on pairs whose prompts were not trained on."""
    if not rows:
        return {}
    pairs = pair_index(rows)
    policy = torch.cat(_sums(context, roles, "policy", rows))
    reference = torch.cat(_sums(context, roles, "reference", rows))
    output = losses.dpo(
        policy[pairs.better],
        policy[pairs.worse],
        reference[pairs.better],
        reference[pairs.worse],
        context.step.train.beta,
    )
    return {
        name: float((pairs.weight * values).sum() / pairs.weight.sum())
        for name, values in output.metrics.items()
    }
