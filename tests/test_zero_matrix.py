"""ZeRO 0 to 3 under sft, reward, dpo and ppo, with LoRA and in full: what one process does.

A row of the matrix is one run of two processes through all four steps, 20 optimiser steps each,
beside the run of one process without DeepSpeed. CI runs the rows of REPRESENTATIVE; all of them:

    ALIGN_ZERO_MATRIX=all pytest tests/test_zero_matrix.py
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launchers
import pytest
import torch
import yaml
from small_runs import TWO_LAYERS, builtin, world_of
from step_files import metrics_of

from align.config import load_config
from align.memory.plan import plan_memory

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("sft", "reward", "dpo", "ppo")
REPRESENTATIVE = [(3, "full"), (3, "lora")]
"""Stage 2 with LoRA is in tests/test_two_processes.py and test_faults.py, too."""
EVERY = [(stage, kind) for stage in (0, 1, 2, 3) for kind in ("lora", "full")]
EVERY += [(3, "full, checkpointed")]
ROWS = EVERY if os.environ.get("ALIGN_ZERO_MATRIX") == "all" else REPRESENTATIVE
TRAIN: dict[str, Any] = {
    "max_steps": 20, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 96,
    "logging_steps": 1,
}  # fmt: skip
PAIRS = {**TRAIN, "tokens_per_forward": 150}
"""Several passes to a step on each rank."""
CONFIG: dict[str, Any] = {
    "name": "matrix",
    "output_dir": "run",
    "base": {"architecture": TWO_LAYERS},
    # sft takes its 160 rows within an epoch: its last batch is filled up by accelerate, to as many
    # rows on every rank.
    "world": world_of(60, demonstrations=300),
    "data": builtin("demonstrations", "labels", "prompts"),
    "steps": {
        "sft": {"kind": "sft", "data": "demonstrations", "train": TRAIN},
        "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": PAIRS},
        "dpo": {"kind": "dpo", "data": "labels", "policy": "sft", "train": PAIRS},
        "ppo": {
            "kind": "ppo", "data": "prompts", "policy": "sft", "reward": "reward",
            # 7 prompts in batches of at most 4: each rank samples one, of 4 and of 3.
            "train": {
                "iterations": 10, "prompts_per_iteration": 7, "rollout_batch_size": 4,
                "epochs": 1, "minibatches": 2, "max_new_tokens": 12, "learning_rate": 1e-3,
                "value_learning_rate": 1e-3, "kl": {"coefficient": 0.05},
                "tokens_per_forward": 60,
            },
        },
    },
}  # fmt: skip
TEXTS = [
    ("Do you know the capital of Greece?", "The capital of Greece is Athens."),
    ("Hi there. Which colour does snow have?", "I do not know that."),
]


def configured(kind: str) -> str:
    config = {**CONFIG, "lora": {"r": 4, "alpha": 8} if kind == "lora" else None}
    config["base"] = {**CONFIG["base"], "gradient_checkpointing": kind.endswith("checkpointed")}
    return yaml.safe_dump(config, sort_keys=False)


def settings_of(stage: int) -> dict[str, Any]:
    """What is shipped for the stage; for 0, which has no file, the one of stage 1 without ZeRO.

    Gradients are summed 3,000 at a time, as those of a large model are in many parts: ranks would
    add up what does not belong together if one without rows took another way.
    """
    file = ROOT / "configs" / "deepspeed" / f"zero{max(1, stage)}.json"
    settings = json.loads(file.read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 3000
    if stage == 0:
        settings["zero_optimization"] = {"stage": 0}
    return settings


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`reference(kind)` is the folder of the run of one process, made once."""
    made: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(f"one_{kind}")
            (folder / "matrix.yaml").write_text(configured(kind))
            script = str(ROOT / "launch" / "pipeline.py")
            ended = launchers.run([sys.executable, script, "--config", "matrix.yaml"], folder)
            assert ended.code == 0, ended.text[-3000:]
            made[kind] = folder
        return made[kind]

    return folder_of


def differences(folder: Path, expected: Path, step: str) -> dict[str, float]:
    """The largest difference of each metric of the step, of all its log lines."""
    found, wanted = metrics_of(folder / "run" / step), metrics_of(expected / "run" / step)
    if step == "sft" and "train/grad_norm" not in found[0]:
        # DeepSpeed tells a Trainer none without ZeRO.
        wanted = [{k: v for k, v in line.items() if k != "train/grad_norm"} for line in wanted]
    if step == "dpo":  # the policy is its reference then: the sign of a margin of 0 is rounding's
        del found[0]["dpo/accuracy"], wanted[0]["dpo/accuracy"]
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    largest: dict[str, float] = {}
    for ours, theirs in zip(found, wanted, strict=True):
        for name in theirs:
            largest[name] = max(abs(ours[name] - theirs[name]), largest.get(name, 0.0))
    return largest


def scores_of(folder: Path) -> torch.Tensor:
    """Of the saved reward model, as users load it."""
    from reward_models import RewardModel

    model = RewardModel.from_pretrained(folder / "run" / "reward")
    prompts, answers = zip(*TEXTS, strict=True)
    return torch.tensor(model.score(list(prompts), list(answers)))


def logits_of(folder: Path, step: str) -> torch.Tensor:
    """Of the saved policy on its base, loaded with plain peft or transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any
    saved = folder / "run" / step
    if (saved / "adapter").is_dir():
        model = AutoModelForCausalLM.from_pretrained(folder / "run" / "base")
        model = PeftModel.from_pretrained(model, str(saved / "adapter"))
    else:
        model = AutoModelForCausalLM.from_pretrained(saved / "model")
    with torch.no_grad():
        return model.eval()(torch.arange(5, 45)[None]).logits.float()


def _assert_held(folder: Path, stage: int) -> None:
    """Bytes that rank 0 held in each step, after it, within 10 % of what `align plan` says before
    (Rajbhandari et al. 2020, arXiv:1910.02054, section 3; table in align/memory/sharding.py)."""
    config = load_config(folder / "matrix.yaml", [f"deepspeed={folder / 'zero.json'}"])
    plan = plan_memory(config, folder / "run", world_size=2)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    for planned in plan.steps:
        [use] = [phase for phase in planned.phases if phase.phase == "optimizer step"]
        found = summary["steps"][planned.name]["metrics"]
        theory = {
            "memory/parameters": use.parameters + use.adapters,
            "memory/gradients": use.gradients,
            "memory/optimizer": use.optimizer,
        }
        if planned.name == "sft":  # a Trainer's are gone when it ends
            del theory["memory/gradients"]
        if planned.name == "ppo" and stage == 2:
            # DeepSpeed leaves whole what an earlier pass than a step's last one has added up: the
            # value function's.
            whole = 2 * theory.pop("memory/gradients")
            assert found["memory/gradients"] <= whole
        assert {name: found[name] for name in theory} == pytest.approx(theory, rel=0.1), planned


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind"), ROWS)
def test_two_ranks_train_what_one_process_trains(
    stage: int, kind: str, reference: Callable[[str], Path], tmp_path: Path
):
    """Every logged number of every step, of its 20 optimiser steps one by one, and what the saved
    weights compute, within 1e-4; 10 lines are PPO's, of 2 optimiser steps each."""
    one, two = reference(kind), tmp_path / "two"
    shutil.copytree(one, two)
    for step in STEPS:
        shutil.rmtree(two / "run" / step)
    (two / "zero.json").write_text(json.dumps(settings_of(stage)))
    script = [str(ROOT / "launch" / "pipeline.py"), "--config", "matrix.yaml"]
    ended = launchers.run([*launchers.torchrun(), *script, "deepspeed=zero.json"], two)
    assert ended.code == 0, ended.text[-6000:]
    for step in STEPS:
        apart = differences(two, one, step)
        assert max(apart.values()) <= 1e-4, (step, {n: v for n, v in apart.items() if v > 1e-4})
        assert len(metrics_of(two / "run" / step)) == (10 if step == "ppo" else 20)
    torch.testing.assert_close(scores_of(two), scores_of(one), rtol=0, atol=1e-4)
    _assert_held(two, stage)
    for step in ("sft", "dpo", "ppo"):
        torch.testing.assert_close(logits_of(two, step), logits_of(one, step), rtol=0, atol=1e-4)
