"""The reward model: an adapter and a scalar head that rank answers as people did."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from align.losses import LossOutput
from align.pairs import Pair, fit_pairs, load_pairs
from align.proofs import prove_scores
from align.roles import Roles
from align.rollout import packed_scores
from align.stage import StageContext, StageResult
from preference_data.batches import PackedBatch
from reward_models import calibration
from reward_models.losses import bradley_terry, centering
from reward_models.scalar_head import ScalarHead, Scoring

TOKENS_PER_FORWARD = 8192


def run(context: StageContext) -> StageResult:
    """Trains on the training side of the judgements and reports on the other."""
    step = context.step
    roles = context.load_roles(step.init)
    torch.manual_seed(context.seed)
    head = ScalarHead(roles.model.config.hidden_size).to(context.engine.device)
    roles.add(
        "reward", weights=context.weights_of(step.init), fresh=True, trainable=True, head=head
    )
    pairs = load_pairs(context, step.data, roles.renderer, step.train.max_length)
    fit_pairs(
        context, roles, "reward", pairs.train,
        lambda module, batch, _: _loss(context, module, batch),
    )  # fmt: skip
    metrics, scoring, samples = _report(context, roles, pairs.train, pairs.test)
    if context.engine.is_main:
        saved = roles.save("reward", context.folder, scoring)
        prove_scores(context, roles, "reward", saved, pairs.train[0].group)
        context.tracker.table("samples", samples)
    context.engine.barrier()
    return StageResult(metrics, rows=pairs.rows, base=roles.base_path)


def _loss(context: StageContext, module: Any, batch: PackedBatch) -> LossOutput:
    train = context.step.train
    scores = module("scores", "reward", batch)
    chosen, rejected = scores[0::2], scores[1::2]
    loss = bradley_terry(chosen, rejected, train.label_smoothing)
    margin = (chosen - rejected).detach()
    return LossOutput(
        loss + train.center_coefficient * centering(chosen, rejected),
        {"reward/accuracy": (margin > 0).float(), "reward/margin": margin},
    )


def _report(context: StageContext, roles: Roles, train: list[Pair], test: list[Pair]):
    """Metrics on the held-out pairs, how scores are to be read, and the worst mistakes."""
    engine = context.engine
    held_out = test or train

    def scores_of(pairs: list[Pair]) -> np.ndarray:
        mine = [pair.group for pair in engine.share(pairs)]
        flat = packed_scores(roles, "reward", mine, TOKENS_PER_FORWARD, engine) if mine else []
        rows = [tuple(flat[at : at + 2]) for at in range(0, len(flat), 2)]
        return np.array(engine.gather(rows))

    reference = scores_of(train[:512])
    scores = scores_of(held_out)
    scoring = Scoring(
        renderer=roles.renderer.fingerprint(),
        max_length=context.step.train.max_length,
        mean=float(reference.mean()),
        std=float(reference.std()) or 1.0,
    )
    lengths = np.array([[len(ids) for ids in pair.group.completions] for pair in held_out])
    weights = np.array([pair.comparison.weight for pair in held_out])
    metrics = {
        f"reward/{name}": value
        for name, value in calibration.pair_metrics(scores, lengths, weights, context.seed).items()
    }
    worst = np.argsort(scores[:, 0] - scores[:, 1])[:20]
    samples = [
        {
            "prompt": held_out[i].comparison.prompt.text,
            "chosen": held_out[i].comparison.chosen.text,
            "rejected": held_out[i].comparison.rejected.text,
            "chosen_score": float(scores[i, 0]),
            "rejected_score": float(scores[i, 1]),
        }
        for i in worst
    ]
    return metrics, scoring, samples
