"""A DeepSpeed JSON file beside the run's configuration: read, checked against it, filled from it.

What both can say is said once: a value that is "auto", or missing, in the file is the
configuration's; any other must be equal to it. What only DeepSpeed knows is passed on as it is.

Importing this module loads neither torch nor DeepSpeed: `align plan` checks the file, too.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.config import Config, ConfigError, TextTrain
from align.config_ppo import PPOTrain
from align.config_steps import DPO, PPO, SFT, Pretrain, Reward

INSTALL = "pip install 'deepspeed>=0.19.8'"
TRAINED = (Pretrain, SFT, Reward, DPO, PPO)
"""Kinds of steps that take optimiser steps."""
Settings = dict[str, Any]


def read(path: str) -> Settings:
    """The file's settings. Raises ConfigError if it is none, or asks for what cannot be honoured
    whatever the configuration says."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"deepspeed: there is no file {path!r}.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeed: {path} is not JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"deepspeed: {path} holds no JSON object.")
    for sentence in _impossible(settings):
        raise ConfigError(f"deepspeed: {path} {sentence}")
    return settings


def stage_of(settings: Mapping[str, Any]) -> int:
    """The ZeRO stage: 0 for none, 1 optimiser states, 2 gradients, 3 parameters sharded."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def check(config: Config) -> None:
    """Raises ConfigError where `config.deepspeed` and the rest of the configuration disagree, with
    the keys of both, or if DeepSpeed is not installed."""
    if config.deepspeed is None:
        return
    if not installed():
        raise ConfigError(
            f"deepspeed is {config.deepspeed!r}, but DeepSpeed is not installed; install it "
            f"({INSTALL}, on Linux), or set deepspeed to null."
        )
    for sentence in _conflicts(read(config.deepspeed), config):
        raise ConfigError(f"deepspeed: {config.deepspeed} {sentence}")


def installed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def filled(
    settings: Mapping[str, Any], max_grad_norm: float, *, bf16: bool, batch: int | None = 1
) -> Settings:
    """What DeepSpeed gets: the file's settings with the configuration's values for "auto".

    A step's batch is divided into parts and summed by the caller, so that DeepSpeed sees one row
    after the other; `batch` None leaves the sizes to transformers, which knows "auto" itself.
    """
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    own = {key: value for key, value in settings.items() if key not in sizes}
    found = own if batch is None else _without_auto(own)
    if batch is None:
        found |= dict.fromkeys(sizes, "auto")
    else:
        found |= {sizes[1]: batch, sizes[2]: 1}
    return found | {
        "gradient_clipping": max_grad_norm,
        "bf16": {**found.get("bf16", {}), "enabled": bf16},
        # The optimiser is torch's own AdamW, which runs where the sharded states are; DeepSpeed's
        # for the CPU would be compiled at the first start (two minutes).
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def wants_bf16(config: Config) -> bool:
    """Whether DeepSpeed is to hold a float32 copy of bfloat16 weights that are trained themselves.

    Adapters on a bfloat16 base are float32 already, and so are the heads."""
    return config.base.dtype == "bfloat16" and config.lora is None


def resumable(config: Config) -> bool:
    """Whether steps that have checkpoints have them under `config.deepspeed`: not without ZeRO, if
    DeepSpeed holds float32 copies of bfloat16 weights."""
    if config.deepspeed is None or not wants_bf16(config):
        return True
    return stage_of(read(config.deepspeed)) > 0


# --- what does not go together --------------------------------------------------------------------


def _impossible(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, option in (
        ("optimizer", "steps.*.train.learning_rate, weight_decay and adam_epsilon say"),
        ("scheduler", "steps.*.train.lr_scheduler_type and warmup_steps say"),
    ):
        if key in settings:
            yield f"sets {key!r}, which {option}; remove it."
    for key in ("zero_optimization", "bf16", "fp16"):
        if not isinstance(settings.get(key, {}), dict):
            yield f"sets {key!r} to no object."
    zero = settings.get("zero_optimization", {})
    for key in ("offload_param", "offload_optimizer"):
        if not isinstance(zero.get(key) or {}, dict):
            yield f"sets zero_optimization.{key} to no object."
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield f"sets zero_optimization.stage to {json.dumps(stage)}; use 1, 2 or 3."
    if settings.get("fp16", {}).get("enabled") is True:
        yield (
            "sets fp16.enabled, whose loss scaling skips optimiser steps that are counted here; "
            'set it to false, and base.dtype to "bfloat16".'
        )
    if (zero.get("offload_param") or {}).get("device", "none") != "none":
        yield "sets zero_optimization.offload_param, which is not supported; remove it."
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    if device not in ("none", "cpu"):
        yield (
            f"sets zero_optimization.offload_optimizer.device to {device!r}, which is not "
            f"supported; use 'cpu'."
        )
    if device == "cpu" and stage not in (1, 2, 3):
        yield "sets zero_optimization.offload_optimizer, but no ZeRO stage; set stage to 1, 2 or 3."
    if settings.get("zero_force_ds_cpu_optimizer") is True:
        yield (
            "sets zero_force_ds_cpu_optimizer, but the optimiser is torch's AdamW; set it to false."
        )


def _conflicts(settings: Mapping[str, Any], config: Config) -> Iterator[str]:
    yield from _of_precision(settings, config)
    if config.base.compile and stage_of(settings) == 3:
        yield (
            "sets zero_optimization.stage to 3, which gathers weights behind a compiler's back; "
            "set base.compile to false, or use stage 2."
        )
    for name, step in config.steps.items():
        if isinstance(step, TRAINED):
            for key, option, ours in _said_by(step):
                value = settings.get(key, "auto")
                dotted = f"steps.{name}.train.{option}"
                if value != "auto" and ours is None:
                    yield f'sets {key}, which follows from {dotted}; set it to "auto".'
                elif value not in ("auto", ours):
                    yield (
                        f"sets {key} to {json.dumps(value)}, but {dotted} is {json.dumps(ours)}; "
                        f'set {key} to "auto", or make the two equal.'
                    )


def _of_precision(settings: Mapping[str, Any], config: Config) -> Iterator[str]:
    """In what numbers the weights are: base.dtype says it."""
    enabled, wanted = settings.get("bf16", {}).get("enabled", "auto"), wants_bf16(config)
    if config.base.dtype == "float16" and config.lora is None:
        yield "needs fp16.enabled for base.dtype float16, which is not supported; use bfloat16."
    if wanted:
        for name, step in config.steps.items():
            scored = isinstance(step, PPO) and (
                step.train.has_value or isinstance(step.reward, str)
            )
            if scored or isinstance(step, Reward):
                yield (
                    f"would round the float32 head of steps.{name} to base.dtype bfloat16, because "
                    f"lora is null; use lora, or base.dtype float32."
                )
    if enabled not in ("auto", wanted):
        if config.base.dtype == "bfloat16" and config.lora is not None:
            yield (
                "sets bf16.enabled to true, but with lora what is trained is float32, whatever "
                'base.dtype is; set bf16.enabled to "auto".'
            )
        else:
            yield (
                f"sets bf16.enabled to {json.dumps(enabled)}, but base.dtype is "
                f'{config.base.dtype}; set bf16.enabled to "auto".'
            )


def _said_by(step: Pretrain | SFT | Reward | DPO | PPO) -> Iterator[tuple[str, str, Any]]:
    """(key in the file, option of the step's train section, what it says for the key): None if the
    key follows from the option and the number of processes."""
    train = step.train
    yield "gradient_clipping", "max_grad_norm", train.max_grad_norm
    if isinstance(train, PPOTrain):
        rows = train.prompts_per_iteration * train.samples_per_prompt
        yield "train_batch_size", "minibatches", rows / train.minibatches
    else:
        yield "train_batch_size", "train_batch_size", train.train_batch_size
    if isinstance(train, TextTrain):
        parts = "per_device_train_batch_size"
        yield "train_micro_batch_size_per_gpu", parts, train.per_device_train_batch_size
    else:
        parts = "tokens_per_forward"
        yield "train_micro_batch_size_per_gpu", parts, None
    yield "gradient_accumulation_steps", parts, None


def _without_auto(settings: Any) -> Any:
    """DeepSpeed itself does not know "auto", which transformers fills in."""
    if isinstance(settings, dict):
        return {k: _without_auto(v) for k, v in settings.items() if v != "auto"}
    return settings
