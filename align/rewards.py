"""The rewards of the configuration as scorers: from ids on the shared base, through text elsewhere.

A reward step on the policy's base is a role on it (an adapter and a head) and reads the policy's
own ids. A reward model on another base, or with another tokenizer, is loaded beside it and reads
the text of prompt and completion; ids are never used again with another tokenizer.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import (
    AnyReward,
    ConfigError,
    EnsembleReward,
    FunctionReward,
    ModelReward,
    ServiceReward,
)
from align.config_rewards import leaves
from align.engine import Engine
from align.roles import Roles, load_head
from align.rollout import Scorer as GroupScorer
from align.rollout import packed_scores
from align.stage import StageContext
from preference_data.batches import Group
from preference_data.records import Prompt
from reward_models.scalar_head import RewardModel, ScalarHead, Scoring, value_head_from
from reward_models.scoring import (
    Answer,
    Ensemble,
    Function,
    Model,
    Part,
    Scorer,
    Scores,
    ScoringError,
    Service,
    WeightedSum,
    checked,
)

TextReward = FunctionReward | ModelReward | ServiceReward
"""What is asked with text alone."""


@dataclass(frozen=True)
class Sampled(Answer):
    """An answer with the ids that the policy drew."""

    group: Group
    """of one completion"""


@dataclass(frozen=True)
class OnSharedBase:
    """A reward step as a role on the policy's base, scored from ids: (raw - mean) / std."""

    roles: Roles
    role: str
    scoring: Scoring
    tokens: int
    """a forward pass holds at most"""
    engine: Engine
    name: str

    def __call__(self, answers: Sequence[Sampled]) -> Scores:
        bos = self.roles.renderer.tokenizer.bos_token_id
        groups = [self.scoring.cut(answer.group, bos) for answer in answers]
        raw = packed_scores(self.roles, self.role, groups, self.tokens, self.engine)
        scores = [(score - self.scoring.mean) / self.scoring.std for score in raw]
        return Scores(checked(scores, answers, self.name))


def make_scorer(
    context: StageContext, roles: Roles, prompts: Mapping[tuple[int, ...], Prompt]
) -> GroupScorer:
    """What gives a score to each group of one completion; `prompts` are those of the ids.

    The roles of `add_reward_roles` are there. Raises ConfigError for a function, a model or a token
    that cannot be had.
    """
    scorer = _scorer(context, roles, context.step.reward, f"steps.{context.name}.reward")

    def score(groups: Sequence[Group]) -> Scores:
        return scorer(
            [
                Sampled(prompts[group.prompt], roles.renderer.decode(group.completions[0]), group)
                for group in groups
            ]
        )

    return score


def add_reward_roles(context: StageContext, roles: Roles) -> None:
    """A frozen role for each step that the reward names, if it stands on the policy's base.

    Raises ValueError for a reward model that was trained with another tokenizer or template.
    """
    for step in _steps_on(context, roles):
        weights, _ = _reward_model(context, step, roles.renderer.fingerprint())
        roles.add(_role(step), weights=weights, head=load_head(weights))


def value_start(context: StageContext, roles: Roles) -> tuple[Path, ScalarHead] | None:
    """Weights and head that predict the reward at once: those of the reward step, or of an
    ensemble's first; None where the reward is anything else."""
    if isinstance(context.step.reward, tuple):
        return None
    for step in _steps_on(context, roles):
        weights, scoring = _reward_model(context, step, roles.renderer.fingerprint())
        return weights, value_head_from(load_head(weights), scoring)
    return None


def text_scorer(reward: TextReward, where: str, device: str = "cpu") -> Scorer[Answer]:
    """A scorer that needs nothing but text; `where` is the option's dotted path.

    Raises ConfigError for a function, a model or a token that cannot be had.
    """
    if isinstance(reward, FunctionReward):
        return Function(load_function(reward.function), f"the reward function {reward.label}")
    if isinstance(reward, ServiceReward):
        return Service(
            reward.url, f"the reward service {reward.label}", reward.batch_size, reward.timeout,
            reward.patience, _token(reward, where),
        )  # fmt: skip
    return _beside(reward.model, None, f"the reward model {reward.label}", f"{where}.model", device)


def _scorer(context: StageContext, roles: Roles, reward: AnyReward, where: str) -> Scorer[Sampled]:
    if isinstance(reward, tuple):
        return WeightedSum(
            tuple(
                Part(
                    _scorer(context, roles, part.reward, f"{where}[{index}].reward"),
                    part.weight,
                    part.label,
                )
                for index, part in enumerate(reward)
            )
        )
    if isinstance(reward, EnsembleReward):
        members = tuple(
            _scorer(context, roles, member, f"{where}.ensemble[{index}]")
            for index, member in enumerate(reward.ensemble)
        )
        return Ensemble(members, reward.combine, reward.std_weight)
    if isinstance(reward, str):
        return _step_scorer(context, roles, reward, where)
    return text_scorer(reward, where, str(context.engine.device))


def _step_scorer(context: StageContext, roles: Roles, step: str, where: str) -> Scorer[Sampled]:
    name, base = f"the reward model {step!r}", context.base_of(step)
    if base != roles.base_path:
        path = str(context.inputs[step].path)
        return _beside(path, base, name, where, str(context.engine.device))
    _, scoring = _reward_model(context, step, roles.renderer.fingerprint())
    tokens = context.step.train.tokens_per_forward
    return OnSharedBase(roles, _role(step), scoring, tokens, context.engine, name)


def _beside(path: str, base: str | None, name: str, where: str, device: str) -> Model:
    import torch

    try:
        with torch.device(device):
            model = RewardModel.load(path, base)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{where} {path!r} cannot be loaded: {reason}") from error
    return Model(model, name, device)


def _role(step: str) -> str:
    return f"reward_{step}"


def _steps_on(context: StageContext, roles: Roles) -> Iterator[str]:
    """The steps that the reward names and that stand on the base of the roles, once each."""
    named = dict.fromkeys(leaf for _, leaf in leaves(context.step.reward, "reward"))
    for leaf in named:
        if isinstance(leaf, str) and context.base_of(leaf) == roles.base_path:
            yield leaf


def _reward_model(context: StageContext, step: str, renderer: str) -> tuple[Path, Scoring]:
    weights = context.weights_of(step)
    assert weights is not None
    scoring = Scoring.load(weights)
    scoring.check(renderer, f"the reward model {step!r}")
    return weights, scoring


def _token(reward: ServiceReward, where: str) -> str | None:
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
