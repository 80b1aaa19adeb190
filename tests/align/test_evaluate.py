"""The evaluation's numbers about its judges: the same measure as the reward step's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_runs import TWO_LAYERS, world_of

from align.config import build_config
from align.pipeline import Pipeline
from align.report_card import judged_of
from align.stages import evaluate
from reward_models.report_card import Judged


def tree(folder: Path) -> dict[str, Any]:
    train = {"max_steps": 2, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 512}
    return {
        "name": "judges", "output_dir": str(folder), "base": {"architecture": TWO_LAYERS},
        "world": world_of(30, items=120),
        "data": {
            "demonstrations": {"path": "builtin:demonstrations"},
            "labels": {"path": "builtin:labels", "test_fraction": 0.5},
            "prompts": {"path": "builtin:prompts", "test_fraction": 0.3},
        },
        "steps": {
            "sft": {"kind": "sft", "data": "demonstrations", "train": train},
            "reward": {"kind": "reward", "data": "labels", "train": train},
            "evaluate": {
                "kind": "evaluate", "data": "prompts", "policies": ["sft"], "baseline": "base",
                "judges": ["gold", "reward"], "preferences": "labels", "prompts": 4,
                "max_new_tokens": 8,
            },
        },
    }  # fmt: skip


def test_the_same_rows_and_scores_give_the_number_of_the_reward_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Accuracy and both ends of its interval, to 1e-12; counting pairs would give another number,
    as the world's labels hold rankings of several answers."""
    seen: list[Judged] = []

    def spied(*arguments: Any) -> Judged:
        seen.append(judged_of(*arguments))
        return seen[-1]

    monkeypatch.setattr(evaluate, "judged_of", spied)
    steps = Pipeline(build_config(tree(tmp_path / "run"))).run()["steps"]
    there, here = steps["reward"]["metrics"], steps["evaluate"]["metrics"]
    for part in ("", "_low", "_high"):
        name = f"accuracy{part}"
        assert here[f"evaluate/reward/{name}"] == pytest.approx(there[f"reward/{name}"], abs=1e-12)
    [judged] = seen
    assert len(judged.better) == there["reward/pairs"]
    assert abs(judged.hits.mean() - here["evaluate/reward/accuracy"]) > 1e-3
    assert 0 <= here["evaluate/reward/gold_accuracy"] <= 1


def judged(scores: list[float], weights: list[float], prompts: list[int]) -> Judged:
    """Pairs of answers of their own; the first of each was preferred."""
    pairs = len(weights)
    return Judged(
        scores=np.array(scores), lengths=np.ones(2 * pairs), prompts=np.repeat(prompts, 2),
        better=np.arange(0, 2 * pairs, 2), worse=np.arange(1, 2 * pairs, 2),
        weights=np.array(weights), labels=np.ones(pairs), ties=np.zeros((0, 2), dtype=int),
    )  # fmt: skip


CONTEXT: Any = SimpleNamespace(seed=3, step=SimpleNamespace(bootstrap=100))


def test_accuracy_against_gold_by_hand():
    """Pairs of weights 1/2, 1/2, 1, 1; the model prefers the first, second, first, neither.

    Gold prefers the first, second, second, and finds the last equal: it is left out. So it agrees
    in (1/2 + 1/2) / 2; counting pairs would give 2/3, and the labels 1.5 / 3 + half of the last.
    """
    found = judged([2.0, 1, 0, 1, 3, 1, 1, 1], [0.5, 0.5, 1, 1], [0, 0, 1, 2])
    gold = np.array([1.0, 0, 0, 1, 0, 1, 2, 2])
    against = evaluate._against_gold(CONTEXT, "rm", found, gold)
    assert against["evaluate/rm/gold_accuracy"] == pytest.approx(0.5, abs=1e-12)
    labels = evaluate._against_labels(CONTEXT, "rm", found)
    assert labels["evaluate/rm/accuracy"] == pytest.approx((0.5 + 0 + 1 + 0.5) / 3, abs=1e-12)
    margins, gains = [1.0, -1, 2, 0], [1.0, -1, -1, 0]
    correlation = np.corrcoef(margins, gains)[0, 1]
    assert against["evaluate/rm/gold_correlation"] == pytest.approx(correlation, abs=1e-12)


def test_against_its_own_order_gold_is_the_labels():
    """Where gold prefers what people preferred, the two accuracies and their intervals are one."""
    scores = np.random.default_rng(1).normal(size=80)
    found = judged(list(scores), list(np.tile([1.0, 0.25], 20)), list(np.arange(40) // 2))
    gold = np.tile([1.0, 0.0], 40)
    against = evaluate._against_gold(CONTEXT, "rm", found, gold)
    labels = evaluate._against_labels(CONTEXT, "rm", found)
    for part in ("", "_low", "_high"):
        assert against[f"evaluate/rm/gold_accuracy{part}"] == labels[f"evaluate/rm/accuracy{part}"]


def test_gold_that_knows_no_difference_says_nothing():
    found = judged([2.0, 1, 0, 1], [1, 1], [0, 1])
    assert evaluate._against_gold(CONTEXT, "rm", found, np.ones(4)) == {}
