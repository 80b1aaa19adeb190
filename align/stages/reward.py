"""The reward model: an adapter and a scalar head that rank answers as people did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from align.losses import LossOutput
from align.proofs import prove_scores
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
from align.roles import Roles
from align.rollout import packed_scores
from align.stage import StageContext, StageResult
from preference_data.batches import PackedBatch
from reward_models import calibration
from reward_models.losses import bradley_terry, centering
from reward_models.scalar_head import ScalarHead, Scoring

TOKENS_PER_FORWARD = 8192
CALIBRATION_ROWS = 512
WORST_KEPT = 20


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
        lambda module, batch, pairs, _: _loss(context, module, batch, pairs),
    )  # fmt: skip
    scoring = _scoring(context, roles, rankings.train[:CALIBRATION_ROWS])
    held_out = bool(rankings.test)
    metrics, samples = _report(context, roles, rankings.test if held_out else rankings.train)
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


def _loss(context: StageContext, module: Any, batch: PackedBatch, pairs: PairIndex) -> LossOutput:
    train = context.step.train
    scores = module("scores", "reward", batch)
    better, worse = scores[pairs.better], scores[pairs.worse]
    asked = train.margin_from_scores * pairs.gap
    loss = bradley_terry(better, worse, train.label_smoothing, pairs.label, asked)
    margin = (better - worse).detach()
    return LossOutput(
        loss + train.center_coefficient * centering(better, worse),
        {"reward/accuracy": (margin > 0).float(), "reward/margin": margin},
    )


def _scores(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> list[torch.Tensor]:
    """[K] scores of every row, computed by all ranks."""
    engine = context.engine
    mine = engine.share(rows)
    groups = [row.group for row in mine]
    flat = packed_scores(roles, "reward", groups, TOKENS_PER_FORWARD, engine)
    return engine.gather(by_group(mine, flat))


def _scoring(context: StageContext, roles: Roles, rows: Sequence[Ranked]) -> Scoring:
    """How scores are to be read: their mean and spread on training completions."""
    scores = torch.cat(_scores(context, roles, rows))
    return Scoring(
        renderer=roles.renderer.fingerprint(),
        max_length=context.step.train.max_length,
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
        truncation=context.step.train.truncation,
    )


def _report(context: StageContext, roles: Roles, rows: Sequence[Ranked]):
    """Metrics on the pairs of `rows`, and the worst mistakes among them."""
    scores = torch.cat(_scores(context, roles, rows)).numpy()
    lengths = np.array([len(ids) for row in rows for ids in row.group.completions])
    pairs = pair_index(rows)
    better, worse = pairs.better.numpy(), pairs.worse.numpy()
    metrics = calibration.pair_metrics(
        np.stack([scores[better], scores[worse]], axis=1),
        np.stack([lengths[better], lengths[worse]], axis=1),
        pairs.weight.numpy(),
        context.seed,
    )
    texts = [(row.judgement.prompt.text, r.text) for row in rows for r in row.judgement.responses]
    samples = [
        {
            "prompt": texts[better[i]][0],
            "chosen": texts[better[i]][1],
            "rejected": texts[worse[i]][1],
            "chosen_score": float(scores[better[i]]),
            "rejected_score": float(scores[worse[i]]),
        }
        for i in np.argsort(scores[better] - scores[worse])[:WORST_KEPT]
    ]
    return metrics, samples
