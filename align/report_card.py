"""What a reward step says of its model: numbers on held-out judgements, and its worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from align.rankings import Ranked, by_group, pair_index
from align.roles import Roles
from align.rollout import packed_scores
from align.stage import StageContext
from reward_models import calibration

TOKENS_PER_FORWARD = 8192
WORST_KEPT = 20


def ranked_scores(
    context: StageContext, roles: Roles, rows: Sequence[Ranked]
) -> list[torch.Tensor]:
    """[K] scores of every row, computed by all ranks."""
    engine = context.engine
    mine = engine.share(rows)
    groups = [row.group for row in mine]
    flat = packed_scores(roles, "reward", groups, TOKENS_PER_FORWARD, engine)
    return engine.gather(by_group(mine, flat))


def report_card(
    context: StageContext, roles: Roles, rows: Sequence[Ranked]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics on the pairs of `rows`, and the worst mistakes among them."""
    scores = torch.cat(ranked_scores(context, roles, rows)).numpy()
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
