"""PPO by one process and by two, started as users start them: the same tokens, the same steps."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import launchers
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import TWO_LAYERS, builtin, world_of
from step_files import metrics_of
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
TRAIN = {"max_steps": 3, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 96}
CONFIG: dict[str, Any] = {
    "name": "small",
    "base": {"architecture": TWO_LAYERS},
    "lora": {"r": 4, "alpha": 8},
    "world": world_of(60),
    "data": builtin("demonstrations", "labels", "prompts"),
    "steps": {
        "sft": {"kind": "sft", "data": "demonstrations", "train": TRAIN},
        "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": TRAIN},
        "ppo": {
            "kind": "ppo", "data": "prompts", "policy": "sft", "reward": "reward",
            # 7 prompts in batches of at most 4: each rank samples one, of 4 and of 3.
            "train": {
                "iterations": 3, "prompts_per_iteration": 7, "rollout_batch_size": 4,
                "max_new_tokens": 12, "learning_rate": 1e-2, "value_learning_rate": 1e-2,
                "max_grad_norm": 100, "kl": {"coefficient": 0.05},
            },
        },
    },
}  # fmt: skip


def run(command: list[str], folder: Path) -> None:
    done = launchers.run(command, folder)
    assert done.code == 0, done.text[-6000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration and a run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "small.yaml").write_text(
        yaml.safe_dump({**CONFIG, "output_dir": "run"}, sort_keys=False)
    )
    run([sys.executable, str(ROOT / "launch" / "ppo.py"), "--config", "small.yaml"], folder)
    return folder


def left_by(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """(metrics but for the clock, weights) of the PPO step."""
    step = folder / "run" / "ppo"
    return metrics_of(step), load_file(step / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("launcher", "tolerance"),
    # DeepSpeed's optimiser sees a flat vector, of which a processor rounds the last few otherwise.
    [("torchrun", 0.0), ("deepspeed", 1e-6)],
)
def test_two_processes_take_the_same_steps(
    one: Path, launcher: str, tolerance: float, tmp_path: Path
):
    """The upstream steps are the one process's own, so that only PPO is compared."""
    two = tmp_path / "two"
    shutil.copytree(one, two)
    shutil.rmtree(two / "run" / "ppo")
    script = [str(ROOT / "launch" / "ppo.py"), "--config", "small.yaml"]
    if launcher == "torchrun":
        run([*launchers.torchrun(), *script], two)
    else:
        settings = f"deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero2.json'}"
        run([*launchers.deepspeed(), *script, settings], two)
    metrics, weights = left_by(two)
    expected, expected_weights = left_by(one)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=0, atol=tolerance)
    assert len(metrics) == len(expected) == 3
    assert [row["response/length"] for row in metrics] == [
        row["response/length"] for row in expected
    ]
    for row, wanted in zip(metrics, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6, abs=1e-5)
