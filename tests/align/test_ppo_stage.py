"""The PPO stage from its configuration on: roles, demonstrations and metrics of each objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import TWO_LAYERS, world_of

from align.config import build_config
from align.pipeline import Pipeline

JUDGE = """
def score(prompts, completions):
    return [len(set(text)) / 10 for text in completions]
"""


def run(folder: Path, **train: Any) -> list[dict[str, float]]:
    """Two iterations on a random base; the lines of metrics."""
    (folder / "judge.py").write_text(JUDGE)
    data = {"prompts": {"path": "builtin:prompts"}}
    if "ptx" in train:
        data["writers"] = {"path": "builtin:demonstrations"}
    tree = {
        "name": "small",
        "output_dir": str(folder / "run"),
        "base": {"architecture": TWO_LAYERS},
        "lora": {"r": 4, "alpha": 8},
        "world": world_of(60),
        "data": data,
        "steps": {
            "ppo": {
                "kind": "ppo", "data": "prompts",
                "reward": {"function": f"{folder / 'judge.py'}:score"},
                "train": {
                    "iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 2,
                    "max_new_tokens": 8, "learning_rate": 1e-3, **train,
                },
            }
        },
    }  # fmt: skip
    Pipeline(build_config(tree)).run()
    lines = (folder / "run/ppo/metrics.jsonl").read_text().splitlines()
    assert (folder / "run/ppo/adapter/adapter_model.safetensors").is_file()
    return [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_head_on_the_trunk_with_everything_else(tmp_path: Path):
    """The head starts at 0: in the first iteration all values are 0 and explain nothing of the
    returns' spread, and the first error is half the mean square of the returns."""
    first, second = run(
        tmp_path, value="trunk", value_coefficient=0.5, value_learning_rate=1e-2,
        entropy_coefficient=0.01, max_approx_kl=10.0, reward_scaling=True, whiten_rewards=True,
        whiten_advantages="mean", ptx={"data": "writers", "coefficient": 0.5, "batch_size": 4},
        warmup_steps=2,
    )  # fmt: skip
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["value/explained_variance"] <= 0.0
    assert first["policy/minibatches"] == 4.0
    # ln 400 = 5.99: an untrained base knows nothing of the demonstrations.
    assert 5.0 < first["ptx/loss"] < 7.0
    assert second["ptx/loss"] < first["ptx/loss"] + 0.1
    assert first["objective/score_scale"] > 0.0
    # After 4 of 8 steps, 2 of them rising: (8 - 4) / (8 - 2) of the peak.
    assert first["train/lr"] == pytest.approx(1e-3 * 4 / 6, abs=1e-9)
    assert first["train/value_lr"] == pytest.approx(1e-2 * 4 / 6, abs=1e-9)
    for row in (first, second):
        assert row["policy/sampler_mismatch"] < 1e-4


def test_no_value_function_and_the_kl_in_the_loss(tmp_path: Path):
    first, second = run(
        tmp_path, advantage="rloo", kl={"place": "loss", "estimator": "k2", "coefficient": 0.1}
    )
    assert not [name for name in first if name.startswith("value/") or "value_lr" in name]
    assert first["policy/kl_loss"] >= 0.0
    eos = first["response/eos_rate"]
    assert first["objective/reward"] == pytest.approx(
        first["objective/score"] - (1 - eos), abs=1e-5
    )
    assert second["policy/minibatches"] == 4.0
