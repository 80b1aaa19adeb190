"""The same run by every launcher, as users start it: plain python, torchrun, deepspeed, accelerate.

Four optimiser steps a stage are enough: what is looked at is who takes part, who writes, and that
all come to the same numbers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import launchers
import pytest
import yaml
from small_runs import builtin
from step_files import metrics_of

ROOT = Path(__file__).resolve().parent.parent
ZERO = {name: f"deepspeed={ROOT}/configs/deepspeed/{name}.json" for name in ("zero1", "zero2")} | {
    "offload": f"deepspeed={ROOT}/configs/deepspeed/zero2_offload.json"
}
STEPS = ("sft", "reward", "dpo", "ppo")
PIPELINE = str(ROOT / "launch" / "pipeline.py")
ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 2}, "mixed_precision": "no", "num_machines": 1,
    "num_processes": 2, "use_cpu": True,
}  # fmt: skip
WITHOUT_DEEPSPEED = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] == "deepspeed":
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def whole() -> dict[str, Any]:
    """Every kind of step that trains roles."""
    small = launchers.SMALL
    steps = {
        "dpo": {"kind": "dpo", "data": "labels", "policy": "sft", "train": launchers.TRAIN},
        "ppo": {
            "kind": "ppo", "data": "prompts", "policy": "sft", "reward": "reward",
            "train": {"iterations": 4, "prompts_per_iteration": 6, "rollout_batch_size": 3,
                      "epochs": 1, "minibatches": 1, "max_new_tokens": 8, "learning_rate": 1e-3},
        },
    }  # fmt: skip
    data = builtin("demonstrations", "labels", "prompts")
    return {**small, "data": data, "steps": {**small["steps"], **steps}}


def configured(folder: Path) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(whole(), sort_keys=False))
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(ACCELERATE))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by plain python."""
    folder = configured(tmp_path_factory.mktemp("alone"))
    done = launchers.run([sys.executable, PIPELINE, "--config", "small.yaml"], folder)
    assert done.code == 0, done.text
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "override"),
    [
        ("python", ZERO["zero2"]),
        ("torchrun", ZERO["zero1"]),
        ("deepspeed", ZERO["offload"]),
        ("accelerate", ZERO["zero2"]),
    ],
)
def test_every_launcher_starts_the_same_run(
    launcher: str, override: str, alone: Path, tmp_path: Path
):
    """Rank 0 alone writes and logs: each line is there once. The losses of two processes are sums
    in another order, and those of SFT a mean over a half of the rows each."""
    folder = configured(tmp_path)
    start = {
        "python": lambda: [sys.executable],
        "torchrun": launchers.torchrun,
        "deepspeed": launchers.deepspeed,
        "accelerate": lambda: launchers.accelerate(folder / "accelerate.yaml"),
    }[launcher]()
    done = launchers.run([*start, PIPELINE, "--config", "small.yaml", override], folder)
    assert done.code == 0, done.text
    assert done.text.count("Report: ") == 1
    for step in STEPS:
        assert len(re.findall(rf"^{step} +done", done.text, re.MULTILINE)) == 1, done.text
        assert len(metrics_of(folder / "run" / step)) == 4
    for step in ("sft", "reward", "dpo"):
        found, expected = metrics_of(folder / "run" / step), metrics_of(alone / "run" / step)
        assert [row["step"] for row in found] == [1, 2, 3, 4]
        for row, wanted in zip(found, expected, strict=True):
            assert row["train/loss"] == pytest.approx(wanted["train/loss"], abs=1e-4)
            assert row["train/lr"] == pytest.approx(wanted["train/lr"], abs=1e-9)
    for step in ("reward", "dpo", "ppo"):
        found, expected = metrics_of(folder / "run" / step), metrics_of(alone / "run" / step)
        for row, wanted in zip(found, expected, strict=True):
            tolerance = 1e-4 if step == "ppo" else 1e-5  # a KL of 1e-4, by an offloaded optimiser
            assert row == pytest.approx(wanted, rel=1e-3, abs=tolerance)


@pytest.mark.slow
def test_accelerate_is_contradicted_once(tmp_path: Path):
    """Its configuration asks for ZeRO and the run's does not. Said by rank 0 alone, though every
    rank finds it; and nothing is made. `use_cpu: true`, which elsewhere switches
    ZeRO off without a word, changes nothing here."""
    folder = configured(tmp_path)
    start = launchers.accelerate(folder / "accelerate.yaml")
    done = launchers.run([*start, PIPELINE, "--config", "small.yaml"], folder)
    assert done.code != 0
    says = "sets distributed_type to DEEPSPEED, but deepspeed is null in the run's;"
    assert done.text.count(says) == 1, done.text
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_without_deepspeed_all_but_deepspeed_works(tmp_path: Path):
    """In an interpreter that does not find it; a configuration that asks says what to install."""
    folder = configured(tmp_path)
    (folder / "sitecustomize.py").write_text(WITHOUT_DEEPSPEED)
    more = {"PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, PIPELINE, "--config", "small.yaml"]
    asked = launchers.run([*command, ZERO["zero2"]], folder, more)
    assert asked.code == 2
    assert "DeepSpeed is not installed; install it (pip install 'deepspeed>=0.19.8'" in asked.text
    done = launchers.run(command, folder, more)
    assert done.code == 0, done.text
    assert (folder / "run" / "reward" / "artifact.json").is_file()
