"""A model that cannot learn a few pairs by heart has a fault: a head at the wrong place, weights
that are frozen, a learning rate that is far too low. This finds out before the real training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from align.artifacts import write_json
from align.checkpoints import Checkpoints
from align.progress import progress
from align.rankings import Enough, Ranked, pair_index
from align.roles import Roles
from align.rollout import packed_scores
from align.stage import StageContext
from align.tracking import Trackers

FILE = "overfit_check.json"
MOST_STEPS = 200
LOOK_EVERY = 5
"""Steps between two looks at the accuracy"""
log = logging.getLogger("align")

Train = Callable[[StageContext, Roles, str, Sequence[Ranked]], None]
"""Makes a role and trains it on rows, as the step does."""


class _Watch(Trackers):
    """Logs nothing, and ends the training once everything is learnt."""

    steps = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps = step
        if metrics.get("reward/accuracy", 0.0) >= 1 - 1e-6:
            raise Enough


def overfit_check(
    context: StageContext, role: str, rows: Sequence[Ranked], pairs: int, train: Train
) -> dict[str, Any]:
    """{"pairs", "steps", "accuracy"} of a model that was trained on `pairs` pairs of `rows` alone.

    The step's own training, all pairs a step, at its largest learning rate, until all are ranked
    right or for MOST_STEPS steps. What comes after is not touched by it: base, adapter and head are
    others, and the random numbers go on where they were. The result lies in the step's folder, so
    that a step which is resumed does not check again. All ranks come here.
    """
    path = context.folder / FILE
    known = context.engine.from_main(lambda: path.read_text() if path.is_file() else None)
    if known is not None:
        return json.loads(known)
    found = _check(context, role, some_pairs(rows, pairs, context.seed), train)
    if context.engine.is_main:
        write_json(path, found)
        if found["accuracy"] < 1:
            log.warning(
                "%s: after %d steps the model ranks %.2f of %d pairs right that it was to learn by "
                "heart; is train.learning_rate too low, or do the labels contradict each other?",
                context.name, found["steps"], found["accuracy"], found["pairs"],
            )  # fmt: skip
    return found


def some_pairs(rows: Sequence[Ranked], pairs: int, seed: int) -> list[Ranked]:
    """Rows that hold so many pairs or just more, in a random order; one of each prompt, since two
    people may say the opposite, and none with two answers of the same tokens. All there are, if
    they are fewer."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found: dict[str, Ranked] = {}
    count = 0
    for row in (rows[place] for place in order):
        answers, prompt = row.group.completions, row.judgement.prompt.id
        unlike = len(set(answers)) == len(answers)
        if count < pairs and row.pairs and unlike and prompt not in found:
            found[prompt] = row
            count += len(row.pairs)
    return list(found.values())


def _check(
    context: StageContext, role: str, rows: Sequence[Ranked], train: Train
) -> dict[str, Any]:
    watch = _Watch()
    settings = {
        "max_steps": MOST_STEPS, "train_batch_size": len(rows), "logging_steps": LOOK_EVERY,
        "lr_scheduler_type": "constant", "warmup_steps": 0,
    }  # fmt: skip
    step = context.step
    alone = dataclasses.replace(
        context,
        step=step.model_copy(update={"train": step.train.model_copy(update=settings)}),
        tracker=watch,
    )
    with progress("overfit check"), torch.random.fork_rng(), _no_checkpoints(context):
        roles = context.load_roles(step.init)
        train(alone, roles, role, rows)
        roles.eval()
        accuracy = _accuracy(context, roles, role, rows)
    return {
        "pairs": sum(len(row.pairs) for row in rows), "steps": watch.steps, "accuracy": accuracy,
    }  # fmt: skip


@contextlib.contextmanager
def _no_checkpoints(context: StageContext) -> Iterator[None]:
    """Those of the step belong to its real training."""
    own, context.engine.checkpoints = context.engine.checkpoints, Checkpoints()
    try:
        yield
    finally:
        context.engine.checkpoints = own


def _accuracy(context: StageContext, roles: Roles, role: str, rows: Sequence[Ranked]) -> float:
    """Share of all pairs that are ranked right; equal scores are not."""
    tokens = context.step.train.tokens_per_forward
    mine = context.engine.share(rows)
    groups = [row.group for row in mine]
    scores = torch.tensor(packed_scores(roles, role, groups, context.engine, tokens))
    pairs = pair_index(mine)
    right = (scores[pairs.better] > scores[pairs.worse]).tolist() if mine else []
    counts = context.engine.gather([(sum(right), len(right))])
    return sum(hits for hits, _ in counts) / sum(of for _, of in counts)
