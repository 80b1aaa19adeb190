"""The reward model: an adapter and a scalar head that rank answers as people did; or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from align import overfit_check
from align.members import ROLE, disagreement, train_members
from align.progress import progress
from align.proofs import prove_scores
from align.rankings import Ranked, Rankings, check_gaps, fit_rankings, load_rankings
from align.report_card import has_pairs, ranked_scores, report_card
from align.reward_loss import loss_for, tie_fields, ties_and_ratings
from align.roles import Roles
from align.stage import StageContext, StageResult
from preference_data.quarantine import DataError
from reward_models.scalar_head import ScalarHead, Scoring

CALIBRATION_ROWS = 512


def run(context: StageContext) -> StageResult:
    """Trains on the training side of the judgements and reports on the other.

    1 the model, or each member of an ensemble, trained, saved, and proved by reloading; 2 a report
    on the held-out judgements, of the members' mean; 3 how far the members disagree there.
    """
    step = context.step
    roles = context.load_roles(step.init)
    rankings = _rankings(context, roles)
    train, save = partial(_train, roles=roles), partial(_save, context, roles, rankings.train)
    check = _overfit_check(context, rankings.train)
    scorings: list[Scoring] = []
    if step.ensemble is None:  # 1
        train(context, ROLE, rankings.train)
        save(ROLE, context.folder)
    else:
        scorings = train_members(context, roles, rankings.train, train, save)
    held_out = has_pairs(rankings.test)
    rows = rankings.test if held_out else rankings.train
    with progress("report card"):
        report = report_card(context, roles, rankings.test, rankings.train, check)  # 2
    metrics = dict(report.metrics) if report else {}
    if scorings:
        metrics |= disagreement(context, roles, rows, scorings)  # 3
    prefix = "reward/" if held_out else "reward/train_"
    metrics = {prefix + name: value for name, value in metrics.items()}
    tie = roles.head(ROLE).tie if step.ensemble is None else None
    metrics |= ties_and_ratings(context, roles, rankings, tie)
    if step.train.truncation != "none":
        metrics["train/cut_prompts"] = rankings.cut
    if context.engine.is_main and report:
        report.write(context)
    context.engine.barrier()
    return StageResult(metrics, rows=rankings.rows, base=roles.base_path)


def _train(context: StageContext, role: str, rows: Sequence[Ranked], *, roles: Roles) -> None:
    """A new adapter and head as `role`, trained on `rows`; the loss reads the role `reward`."""
    step = context.step
    torch.manual_seed(context.seed)
    head = ScalarHead(roles.model.config.hidden_size).to(context.engine.device)
    roles.add(role, weights=context.weights_of(step.init), fresh=True, trainable=True, head=head)
    loss = loss_for(context, rows, head)
    fit_rankings(context, roles, role, rows, loss, loss.apart)


def _save(
    context: StageContext, roles: Roles, rows: Sequence[Ranked], role: str, folder: Path
) -> Scoring:
    """Writes the role below `folder` and proves it; returns how its scores are to be read."""
    scoring = _scoring(context, roles, rows[:CALIBRATION_ROWS], roles.head(role).tie)
    if context.engine.is_main:
        saved = roles.save(role, folder, scoring)
        prove_scores(context, roles, role, saved, rows[0].group)
    return scoring


def _rankings(context: StageContext, roles: Roles) -> Rankings:
    step, train = context.step, context.step.train
    limits = train.max_length, train.truncation
    rankings = load_rankings(context, step.data, roles.renderer, *limits, train.trains)
    if train.margin_from_scores:
        check_gaps(context, rankings, "margin_from_scores")
    if step.require is not None and not has_pairs(rankings.test):
        raise DataError(
            f"steps.{context.name}.require needs held-out pairs, and data.{step.data} has none; "
            f"raise data.{step.data}.test_fraction, or remove the requirement."
        )
    return rankings


def _overfit_check(context: StageContext, rows: Sequence[Ranked]) -> Mapping[str, Any] | None:
    """What the step's own training, of a model apart, makes of a few pairs, if that is wanted."""
    pairs = context.step.overfit_check
    if pairs is None or not has_pairs(rows):
        return None

    def train(alone: StageContext, roles: Roles, role: str, few: Sequence[Ranked]) -> None:
        _train(alone, role, few, roles=roles)

    return overfit_check.overfit_check(context, ROLE, rows, pairs, train)


def _scoring(
    context: StageContext, roles: Roles, rows: Sequence[Ranked], tie: torch.Tensor | None
) -> Scoring:
    """How scores are to be read: their mean and spread on training completions."""
    scores = torch.cat(ranked_scores(context, roles, rows))
    return Scoring(
        renderer=roles.renderer.fingerprint(),
        max_length=context.step.train.max_length,
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
        truncation=context.step.train.truncation,
        **tie_fields(context.step.train, tie),
    )
