"""What a run's rewards and judges need, looked for before anything trains: code, tokens, models'
folders, and one base under all that is compared.

Importing this loads neither torch nor transformers; loading a function runs the module it is in.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from align.config import (
    PPO,
    Config,
    ConfigError,
    Evaluate,
    FunctionReward,
    ModelReward,
    ServiceReward,
    SingleReward,
)
from align.config_rewards import leaves
from reward_models.folders import SCORING_FILE, member_folders, weights_folder
from reward_models.scoring import Function, ScoringError


def check_rewards(config: Config, steps: Iterable[str]) -> None:
    """That every reward and judge of these steps that is no step itself can be had.

    A function's module is run, as it will be when its step begins. A service is not asked anything.
    Raises ConfigError.
    """
    for name in steps:
        for option, reward in _rewards_of(config.steps[name]):
            _check(reward, f"steps.{name}.{option}", config, name)


def _rewards_of(step: Any) -> Iterator[tuple[str, SingleReward]]:
    if isinstance(step, PPO):
        yield from leaves(step.reward, "reward")
    if isinstance(step, PPO | Evaluate):
        for option, judge in step.judges_used():
            yield from leaves(judge, option)


def _check(reward: SingleReward, where: str, config: Config, name: str) -> None:
    if isinstance(reward, FunctionReward):
        load_function(reward.function)
    elif isinstance(reward, ServiceReward):
        token_of(reward, where)
    elif isinstance(reward, ModelReward):
        _check_model(reward.model, f"{where}.model", config, name)


def _check_model(path: str, where: str, config: Config, name: str) -> None:
    """That a reward model is there, and reads a response of the step's longest."""
    step: Any = config.steps[name]
    tokens = step.train.max_new_tokens if isinstance(step, PPO) else step.max_new_tokens
    for folder in map(weights_folder, member_folders(Path(path)) or [Path(path)]):
        try:
            record = json.loads((folder / SCORING_FILE).read_text(encoding="utf-8"))
            length, truncation = int(record["max_length"]), record.get("truncation", "none")
        except FileNotFoundError:
            raise ConfigError(
                f"{where} {path!r} cannot be loaded: {folder} holds no reward model (no "
                f"{SCORING_FILE})."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{where} {path!r} cannot be loaded: {folder / SCORING_FILE} cannot be read."
            ) from None
        if truncation == "left" and tokens >= length:
            raise ConfigError(
                f"steps.{name}: max_new_tokens is {tokens}, which leaves a prompt no room in the "
                f"{length} tokens that the reward model {path!r} reads; lower it."
            )


def check_bases(config: Config, names: Sequence[str]) -> None:
    """That all that an evaluation compares, and the reward steps among its judges, will stand on
    one base. Raises ConfigError."""
    for name in names:
        step = config.steps[name]
        if not isinstance(step, Evaluate):
            continue
        known = _base_under(config, step.baseline)
        for option, other, _ in step.steps_used():
            if (base := _base_under(config, other)) != known:
                raise ConfigError(
                    f"steps.{name}.{option} names {other!r}, which stands on {base}, but the "
                    f"baseline {step.baseline!r} stands on {known}; one evaluation needs one base."
                )


def _base_under(config: Config, name: str) -> str:
    """The base that a step's model stands on: `base`, or the pretrain step that made another."""
    while name != "base" and config.steps[name].kind != "pretrain":
        name = next(
            other
            for option, other, _ in config.steps[name].steps_used()
            if option in ("init", "policy")
        )
    return name


def token_of(reward: ServiceReward, where: str) -> str | None:
    """The service's token, if it has one. Raises ConfigError if that cannot be had."""
    if reward.token_env is None:
        return None
    token = os.environ.get(reward.token_env, "").strip()
    if not token:
        raise ConfigError(
            f"{where}.token_env names the environment variable {reward.token_env}, which is not "
            f"set; put the service's token there."
        )
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"{where}.token_env: what the environment variable {reward.token_env} holds has "
            f"characters that no header can carry; put the token alone there."
        )
    return token


def load_function(reference: str) -> Callable[[list[str], list[str]], Any]:
    """The function that `file.py:name` names. Raises ConfigError if there is none."""
    path, _, name = reference.rpartition(":")
    file = Path(path)
    if not path or not file.is_file():
        raise ConfigError(f"function {reference!r}: there is no file {path!r}; write file.py:name.")
    function = getattr(_module(file), name, None)
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(
            f"function {reference!r}: {path} has no function {name}(prompts, completions)."
        )
    try:
        Function(function, name)
    except ScoringError as error:
        raise ConfigError(f"function {reference!r}: {error}.") from None
    return function


def _module(file: Path) -> Any:
    """The file as a module. Raises ConfigError when it cannot be run."""
    name = f"reward_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"function {str(file)!r} cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    return module
