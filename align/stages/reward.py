"""The reward model: an adapter and a scalar head that rank answers as people did."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from align.proofs import prove_scores
from align.rankings import Ranked, Rankings, check_gaps, fit_rankings, load_rankings
from align.report_card import ranked_scores, report_card
from align.reward_loss import reward_loss
from align.roles import Roles
from align.stage import StageContext, StageResult
from reward_models.scalar_head import ScalarHead, Scoring

CALIBRATION_ROWS = 512


def run(context: StageContext) -> StageResult:
    """Trains on the training side of the judgements and reports on the other."""
    step = context.step
    roles = context.load_roles(step.init)
    torch.manual_seed(context.seed)
    head = ScalarHead(roles.model.config.hidden_size).to(context.engine.device)
    roles.add(
        "reward", weights=context.weights_of(step.init), fresh=True, trainable=True, head=head
    )
    rankings = _rankings(context, roles)
    fit_rankings(
        context, roles, "reward", rankings.train,
        lambda module, batch, pairs, _: reward_loss(step.train, module, batch, pairs),
    )  # fmt: skip
    scoring = _scoring(context, roles, rankings.train[:CALIBRATION_ROWS])
    held_out = bool(rankings.test)
    metrics, samples = report_card(context, roles, rankings.test if held_out else rankings.train)
    prefix = "reward/" if held_out else "reward/train_"
    metrics = {prefix + name: value for name, value in metrics.items()}
    if step.train.truncation != "none":
        metrics["train/cut_prompts"] = rankings.cut
    if context.engine.is_main:
        saved = roles.save("reward", context.folder, scoring)
        prove_scores(context, roles, "reward", saved, rankings.train[0].group)
        context.tracker.table("samples", samples)
    context.engine.barrier()
    return StageResult(metrics, rows=rankings.rows, base=roles.base_path)


def _rankings(context: StageContext, roles: Roles) -> Rankings:
    step, train = context.step, context.step.train
    rankings = load_rankings(context, step.data, roles.renderer, train.max_length, train.truncation)
    if train.margin_from_scores:
        check_gaps(context, rankings, "margin_from_scores")
    return rankings


def _scoring(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> Scoring:
    """How scores are to be read: their mean and spread on training completions."""
    scores = torch.cat(ranked_scores(context, roles, rows))
    return Scoring(
        renderer=roles.renderer.fingerprint(),
        max_length=context.step.train.max_length,
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
        truncation=context.step.train.truncation,
    )
