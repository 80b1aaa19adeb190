"""Direct preference optimisation: the policy learns from the pairs without a reward model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align import losses
from align.losses import LossOutput
from align.pairs import Pair, fit_pairs, load_pairs
from align.proofs import prove_policy
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
    pairs = load_pairs(context, step.data, roles.renderer, step.train.max_length)
    reference = _reference_sums(context, roles, pairs.train)
    metrics = fit_pairs(
        context,
        roles,
        "policy",
        pairs.train,
        lambda module, batch, indices: _loss(context, module, batch, reference[indices]),
    )
    held_out = _held_out(context, roles, pairs.test)
    if context.engine.is_main:
        saved = roles.save("policy", context.folder)
        group = pairs.train[0].group
        prove_policy(
            context, roles, "policy", saved, Rendered(group.prompt, group.completions[0])
        )
    context.engine.barrier()
    return StageResult({**metrics, **held_out}, rows=pairs.rows, base=roles.base_path)


def _loss(
    context: StageContext, module: Any, batch: PackedBatch, reference: Tensor
) -> LossOutput:
    """`reference` [P, 2] holds the log-probabilities of chosen and rejected, summed."""
    train = context.step.train
    sums = batch.sums(module("logprobs", "policy", batch).logprobs)
    reference = reference.to(sums.device)
    return losses.dpo(
        sums[0::2],
        sums[1::2],
        reference[:, 0],
        reference[:, 1],
        train.beta,
        train.label_smoothing,
    )


def _reference_sums(context: StageContext, roles: Roles, pairs: list[Pair]) -> Tensor:
    """[P, 2] computed once; the reference does not change."""
    return _sums(context, roles, "reference", pairs)


def _sums(context: StageContext, roles: Roles, role: str, pairs: list[Pair]) -> Tensor:
    """[P, 2] log-probabilities of chosen and rejected under the role, summed, from all ranks."""
    engine = context.engine
    mine = [pair.group for pair in engine.share(pairs)]
    rows = packed_tokens(
        mine, lambda batch: roles.logprobs(role, batch).logprobs, TOKENS_PER_FORWARD, engine
    )
    sums = [sum(row) for row in rows]
    return torch.tensor(
        engine.gather([(sums[at], sums[at + 1]) for at in range(0, len(sums), 2)])
    )


def _held_out(context: StageContext, roles: Roles, pairs: list[Pair]) -> dict[str, float]:
    """The loss's metrics on pairs whose prompts were not trained on."""
    if not pairs:
        return {}
    policy = _sums(context, roles, "policy", pairs)
    reference = _sums(context, roles, "reference", pairs)
    output = losses.dpo(
        policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], context.step.train.beta
    )
    weights = torch.tensor([pair.comparison.weight for pair in pairs])
    return {
        name: float((weights * values).sum() / weights.sum())
        for name, values in output.metrics.items()
    }
