"""How this process was started, and whether that fits the run's configuration.

A launcher says in environment variables what it was asked for. accelerate's configuration can ask
for things that are this configuration's to say; without a word, one of the two would then be
ignored.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from align.config import Config, ConfigError
from align.deepspeed_settings import read, stage_of

SPOKEN_WITHIN = 8.0
"""Seconds after which a rank that has failed says why, if rank 0 has not ended the run by then."""
TASKS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Variables with the number of processes, of starters that do not say who they are to torch."""
ACCELERATE = "accelerate's configuration"


def check(config: Config, environment: Mapping[str, str]) -> None:
    """Raises ConfigError, with the keys of both, where what the launcher was asked for and
    `config` disagree."""
    for sentence in _disagreements(config, environment):
        raise ConfigError(sentence)


def settle(environment: MutableMapping[str, str]) -> None:
    """Takes out what `check` has found to say the same as the run's configuration: transformers
    refuses to hear it twice."""
    said = ("USE_DEEPSPEED", "CONFIG_DS_FIELDS", "DEEPSPEED_", "GRADIENT_")
    for variable in list(environment):
        if variable.startswith(tuple(f"ACCELERATE_{name}" for name in said)):
            del environment[variable]


def rank() -> int:
    """This process's place among those of the run; rank 0 alone logs and writes."""
    return int(os.environ.get("RANK", "0"))


def let_rank_0_speak() -> None:
    """Waits before this rank says that it failed.

    An error that all ranks have is said once: rank 0 says it at once, and its end ends the others
    in this wait. One that rank 0 does not have is said after it.
    """
    if rank() > 0:
        time.sleep(SPOKEN_WITHIN)
        print(f"rank {rank()} on {socket.gethostname()}:", file=sys.stderr)


def _disagreements(config: Config, environment: Mapping[str, str]) -> Iterator[str]:
    if "WORLD_SIZE" not in environment:
        for variable, starter in TASKS.items():
            if (tasks := environment.get(variable, "1")).isdecimal() and int(tasks) > 1:
                yield (
                    f"{starter} has started {tasks} processes that do not know of each other "
                    f"({variable} is {tasks}, WORLD_SIZE is not set); start them with torchrun "
                    f"(launch/slurm.sh), deepspeed or accelerate launch."
                )
    yield from _of_accelerate(config, environment)


def _of_accelerate(config: Config, environment: Mapping[str, str]) -> Iterator[str]:
    for variable, kind in (
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "MEGATRON_LM"),
    ):
        if _is_true(environment, variable):
            yield (
                f"{ACCELERATE} sets distributed_type to {kind}, which is not supported; use "
                f"DEEPSPEED, with deepspeed set in the run's configuration."
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        yield (
            f"{ACCELERATE} sets mixed_precision to {precision}, but base.dtype "
            f"({config.base.dtype}) says in what numbers is computed; set mixed_precision to 'no'."
        )
    if not _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        return
    if config.deepspeed is None:
        yield (
            f"{ACCELERATE} sets distributed_type to DEEPSPEED, but deepspeed is null in the run's; "
            f"set deepspeed=configs/deepspeed/zero2.json, or another distributed_type."
        )
        return
    yield from _of_deepspeed(config, environment, read(config.deepspeed))


def _of_deepspeed(
    config: Config, environment: Mapping[str, str], settings: Mapping[str, Any]
) -> Iterator[str]:
    """accelerate's own section `deepspeed_config` against the run's DeepSpeed file."""
    other = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if other is not None and (not Path(other).is_file() or _json(other) != settings):
        yield (
            f"{ACCELERATE} sets deepspeed_config_file to {other!r}, but deepspeed is "
            f"{config.deepspeed!r}, which says something else; leave the former out, or name one "
            f"file in both."
        )
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    for variable, key, ours in (
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "zero_stage", str(stage_of(settings))),
        (
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            "offload_optimizer_device",
            str(offload.get("device", "none")),
        ),
    ):
        if (theirs := environment.get(variable, ours)) != ours:
            yield (
                f"{ACCELERATE} sets deepspeed_config.{key} to {theirs}, but deepspeed names "
                f"{config.deepspeed}, where it is {ours}; leave the former out, or make the two "
                f"equal."
            )
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    for name, step in config.steps.items():
        train = step.model_dump().get("train") or {}
        ours = train.get("max_grad_norm")
        if clipping not in ("none", "auto") and ours is not None and float(clipping) != ours:
            yield (
                f"{ACCELERATE} sets deepspeed_config.gradient_clipping to {clipping}, but "
                f"steps.{name}.train.max_grad_norm is {ours}; leave the former out, or make the "
                f"two equal."
            )


def _is_true(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes", "on")


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return None
