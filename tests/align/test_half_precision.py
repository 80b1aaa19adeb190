"""A run on a base in bfloat16: adapters in float32 on it, and what it makes is what loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TWO_LAYERS, builtin, world_of
from step_files import metrics_of
from torch import Tensor

from align.config import build_config
from align.pipeline import Pipeline
from reward_models import folded
from reward_models.scalar_head import HEAD_KEY


def config_of(folder: Path, dtype: str) -> Any:
    train = {"max_steps": 3, "train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}
    iterations = {"iterations": 2, "prompts_per_iteration": 8, "max_new_tokens": 8}
    return build_config(
        {
            "name": "half",
            "output_dir": str(folder),
            "base": {"architecture": TWO_LAYERS, "dtype": dtype},
            "lora": {"r": 4, "alpha": 8},
            "world": world_of(60),
            "data": builtin("labels", "prompts"),
            "steps": {
                "reward": {"kind": "reward", "data": "labels", "train": train},
                "dpo": {"kind": "dpo", "data": "labels", "train": train},
                "ppo": {
                    "kind": "ppo", "policy": "dpo", "reward": "reward", "data": "prompts",
                    "train": {**iterations, "learning_rate": 1e-3},
                },
                "export": {"kind": "export", "policy": "ppo"},
            },
        }
    )  # fmt: skip


def test_every_stage_runs_and_saves_what_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each stage proves its files to 1e-4, which bfloat16's rounding alone would exceed wherever
    two ways to compute meet; the export does so in float32. Losses are those of float32, to
    bfloat16's two digits."""
    types: set[tuple[torch.dtype, torch.dtype]] = set()
    forward = folded._Folded.forward

    def noted(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, *rest: Any) -> Tensor:
        types.add((x.dtype, a.dtype))
        return forward(ctx, x, weight, bias, a, *rest)

    monkeypatch.setattr(folded._Folded, "forward", staticmethod(noted))
    Pipeline(config_of(tmp_path / "half", "bfloat16")).run()
    assert types == {(dtype, torch.float32) for dtype in (torch.bfloat16, torch.float32)}
    Pipeline(config_of(tmp_path / "whole", "float32")).run()
    for step in ("reward", "dpo"):
        half, whole = (
            [line["train/loss"] for line in metrics_of(tmp_path / run / step)][:3]
            for run in ("half", "whole")
        )
        assert half != whole
        assert half == pytest.approx(whole, rel=2e-2)
    weights = load_file(tmp_path / "half/reward/adapter/adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert float(weights[HEAD_KEY].abs().max()) > 0
