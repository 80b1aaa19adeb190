"""The DeepSpeed file beside the configuration: what both say is said once, or equally."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align import deepspeed_settings
from align.config import Config, ConfigError, build_config
from align.deepspeed_settings import filled

ROOT = Path(__file__).resolve().parents[2]
STEPS: dict[str, Any] = {
    "sft": {"kind": "sft", "data": "labels", "train": {"train_batch_size": 16, "per_device_train_batch_size": 4, "max_grad_norm": 0.5}},
    "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": {"train_batch_size": 16, "max_grad_norm": 0.5}},
    "ppo": {"kind": "ppo", "data": "labels", "policy": "sft", "reward": "reward",
            "train": {"prompts_per_iteration": 16, "samples_per_prompt": 2, "minibatches": 2, "max_grad_norm": 0.5}},
}  # fmt: skip


def config(file: Path, **more: Any) -> Config:
    return build_config(
        {
            "name": "x", "output_dir": "x", "deepspeed": str(file),
            "data": {"labels": {"path": "builtin:labels"}}, "steps": STEPS, **more,
        }
    )  # fmt: skip


def sentence(tmp_path: Path, settings: Any, **more: Any) -> str | None:
    """Why the settings do not go with the configuration; the file's name is taken out."""
    file = tmp_path / "zero.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    try:
        deepspeed_settings.check(config(file, **more))
    except ConfigError as error:
        text = str(error)
        assert text.startswith("deepspeed: ")
        return text.removeprefix("deepspeed: ").replace(str(file), "FILE")
    return None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "FILE is not JSON: "),
        ("[]", "FILE holds no JSON object."),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "FILE sets zero_optimization.offload_optimizer to no object."),
        ({"gradient_clipping": 1.0}, 'FILE sets gradient_clipping to 1.0, but steps.sft.train.max_grad_norm is 0.5; set gradient_clipping to "auto", or make the two equal.'),
        ({"train_batch_size": 8}, "FILE sets train_batch_size to 8, but steps.sft.train.train_batch_size is 16;"),
        ({"train_micro_batch_size_per_gpu": 2}, "FILE sets train_micro_batch_size_per_gpu to 2, but steps.sft.train.per_device_train_batch_size is 4;"),
        ({"train_micro_batch_size_per_gpu": 4}, "FILE sets train_micro_batch_size_per_gpu, which follows from steps.reward.train.tokens_per_forward; set it to"),
        ({"gradient_accumulation_steps": 2}, "FILE sets gradient_accumulation_steps, which follows from steps.sft.train.per_device_train_batch_size;"),
        ({"optimizer": {"type": "AdamW"}}, "FILE sets 'optimizer', which steps.*.train.learning_rate, weight_decay and adam_epsilon say; remove it."),
        ({"scheduler": {}}, "FILE sets 'scheduler', which steps.*.train.lr_scheduler_type and warmup_steps say; remove it."),
        ({"bf16": {"enabled": True}}, "FILE sets bf16.enabled to true, but base.dtype is float32;"),
        ({"fp16": {"enabled": True}}, "FILE sets fp16.enabled, whose loss scaling skips"),
        ({"zero_optimization": {"stage": "two"}}, 'FILE sets zero_optimization.stage to "two"; use 1, 2 or 3.'),
        ({"zero_optimization": 2}, "FILE sets 'zero_optimization' to no object."),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "FILE sets zero_optimization.offload_param, which is not supported;"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "FILE sets zero_optimization.offload_optimizer.device to 'nvme'"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "FILE sets zero_optimization.offload_optimizer, but no ZeRO stage;"),
        ({"zero_force_ds_cpu_optimizer": True}, "FILE sets zero_force_ds_cpu_optimizer, but the optimiser is torch's AdamW;"),
    ],
)  # fmt: skip
def test_a_conflict_names_the_keys_of_both(settings: Any, says: str, tmp_path: Path):
    found = sentence(tmp_path, settings)
    assert found is not None and found.startswith(says)


def test_values_that_are_equal_are_no_conflict(tmp_path: Path):
    """PPO takes 16 prompts x 2 samples / 2 minibatches = 16 rows a step."""
    assert sentence(tmp_path, {"train_batch_size": 16, "gradient_clipping": 0.5}) is None
    assert sentence(tmp_path, {"train_batch_size": "auto", "gradient_clipping": "auto"}) is None


def test_sections_may_be_null(tmp_path: Path):
    """As DeepSpeed itself has them where nothing is said."""
    zero = {"stage": 2, "offload_optimizer": None, "offload_param": None}
    assert sentence(tmp_path, {"zero_optimization": zero}) is None


def test_a_later_step_that_disagrees_is_named(tmp_path: Path):
    ppo = {**STEPS["ppo"], "train": {**STEPS["ppo"]["train"], "minibatches": 4}}
    found = sentence(tmp_path, {"train_batch_size": 16}, steps={**STEPS, "ppo": ppo})
    assert found is not None and "but steps.ppo.train.minibatches is 8.0;" in found


@pytest.mark.parametrize(
    ("dtype", "lora", "enabled", "says"),
    [
        ("bfloat16", None, True, "FILE would round the float32 head of steps.reward to base.dtype bfloat16,"),
        ("bfloat16", {}, False, None),
        ("bfloat16", {}, True, "FILE sets bf16.enabled to true, but with lora what is trained is float32,"),
        ("float16", None, "auto", "FILE needs fp16.enabled for base.dtype float16, which is not supported;"),
        ("float16", {}, "auto", None),
    ],
)  # fmt: skip
def test_bf16_holds_a_copy_of_what_is_trained_in_it(
    dtype: str, lora: Any, enabled: Any, says: str | None, tmp_path: Path
):
    found = sentence(tmp_path, {"bf16": {"enabled": enabled}}, base={"dtype": dtype}, lora=lora)
    assert found is None if says is None else found is not None and found.startswith(says)


@pytest.mark.parametrize("enabled", [False, True, "auto"])
def test_bf16_needs_its_float32_copy_where_the_base_is_trained(enabled: Any, tmp_path: Path):
    found = sentence(
        tmp_path, {"bf16": {"enabled": enabled}}, base={"dtype": "bfloat16"}, lora=None,
        steps={"sft": STEPS["sft"]},
    )  # fmt: skip
    refused = "FILE sets bf16.enabled to false, but base.dtype is bfloat16; "
    assert found is None if enabled else found is not None and found.startswith(refused)


def test_compiled_layers_and_sharded_weights_exclude_each_other(tmp_path: Path):
    base = {"compile": True}
    found = sentence(tmp_path, {"zero_optimization": {"stage": 3}}, base=base)
    assert found is not None and found.startswith("FILE sets zero_optimization.stage to 3, which")
    assert sentence(tmp_path, {"zero_optimization": {"stage": 2}}, base=base) is None


def test_auto_is_filled_from_the_configuration():
    """What neither DeepSpeed nor we know by that name goes through."""
    settings = {
        "train_batch_size": 16, "gradient_clipping": "auto", "bf16": {"enabled": "auto", "x": 1},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": False},
        "wall_clock_breakdown": True,
    }  # fmt: skip
    assert filled(settings, 0.5, bf16=True) == {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5, "bf16": {"enabled": True, "x": 1},
        "zero_optimization": {"stage": 2, "overlap_comm": False}, "wall_clock_breakdown": True,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip


def test_transformers_fills_the_sizes_itself():
    found = filled(
        {"train_batch_size": 16, "zero_optimization": {"x": "auto"}}, 0.5, bf16=False, batch=None
    )
    assert found["train_batch_size"] == found["gradient_accumulation_steps"] == "auto"
    assert found["zero_optimization"] == {"x": "auto"}
    assert found["bf16"] == {"enabled": False}


def test_without_deepspeed_the_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deepspeed_settings, "installed", lambda: False)
    file = tmp_path / "zero.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"is not installed; install it \(pip install 'deepspeed"):
        deepspeed_settings.check(config(file))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.stem
)
def test_shipped_settings_go_with_any_configuration(path: Path):
    deepspeed_settings.check(config(path))
    alone = {"sft": STEPS["sft"]}
    deepspeed_settings.check(config(path, base={"dtype": "bfloat16"}, lora=None, steps=alone))
