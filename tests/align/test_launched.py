"""What a launcher was asked for against the run's configuration."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

from pathlib import Path

import pytest

from align import launched
from align.config import Config, ConfigError, build_config

ZERO2 = Path(__file__).resolve().parents[2] / "configs" / "deepspeed" / "zero2.json"
ZERO1 = ZERO2.with_name("zero1.json")
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def config(deepspeed: Path | None) -> Config:
    return build_config(
        {
            "name": "x", "output_dir": "x", "deepspeed": deepspeed and str(deepspeed),
            "data": {"labels": {"path": "builtin:labels"}},
            "steps": {"sft": {"kind": "sft", "data": "labels", "train": {"max_grad_norm": 0.5}}},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "environment", "says"),
    [
        (None, {"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 processes that do not know of each other"),
        (None, {"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 processes that do not know of each other"),
        (None, {"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "4"}, None),
        (None, {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (None, {"ACCELERATE_MIXED_PRECISION": "no"}, None),
        (None, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "accelerate's configuration sets mixed_precision to bf16, but base.dtype (float32)"),
        (None, {"ACCELERATE_USE_FSDP": "true"}, "accelerate's configuration sets distributed_type to FSDP, which is not supported;"),
        (None, DEEPSPEED, "accelerate's configuration sets distributed_type to DEEPSPEED, but deepspeed is null in the run's;"),
        (ZERO2, DEEPSPEED, None),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, None),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "accelerate's configuration sets deepspeed_config.zero_stage to 3, but deepspeed names"),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "accelerate's configuration sets deepspeed_config.offload_optimizer_device to cpu"),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "0.5"}, None),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "accelerate's configuration sets deepspeed_config.gradient_clipping to 1.0, but steps.sft.train.max_grad_norm is 0.5;"),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ZERO2)}, None),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ZERO1)}, "accelerate's configuration sets deepspeed_config_file to"),
        (ZERO2, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none.json"}, "accelerate's configuration sets deepspeed_config_file to"),
    ],
)  # fmt: skip
def test_a_launcher_that_was_asked_for_something_else(
    file: Path | None, environment: dict[str, str], says: str | None
):
    if says is None:
        launched.check(config(file), environment)
        return
    with pytest.raises(ConfigError) as caught:
        launched.check(config(file), environment)
    assert str(caught.value).startswith(says)


def test_what_has_been_settled_is_not_said_twice():
    environment = {
        **DEEPSPEED,
        "ACCELERATE_GRADIENT_CLIPPING": "1",
        "ACCELERATE_USE_CPU": "1",
        "RANK": "0",
    }
    launched.settle(environment)
    assert environment == {"ACCELERATE_USE_CPU": "1", "RANK": "0"}
