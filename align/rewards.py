"""What gives a score to a response: the reward role on the shared base, or a function of text."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config import ConfigError
from align.roles import Roles
from align.rollout import Scorer, packed_scores
from align.stage import StageContext
from preference_data.batches import Group
from reward_models.scalar_head import Scoring


def make_scorer(
    context: StageContext, roles: Roles, texts: Mapping[tuple[int, ...], str]
) -> Scorer:
    """What gives a score to each group of one completion: the reward role, or a function."""
    step, tokens = context.step, context.step.train.tokens_per_forward
    if isinstance(step.reward, str):
        weights = context.weights_of(step.reward)
        assert weights is not None
        scoring = Scoring.load(weights)

        def by_model(groups: Sequence[Group]) -> list[float]:
            raw = packed_scores(roles, "reward", groups, tokens, context.engine)
            return [(score - scoring.mean) / scoring.std for score in raw]

        return by_model
    function = load_function(step.reward.function)

    def by_function(groups: Sequence[Group]) -> list[float]:
        return function(
            [texts[group.prompt] for group in groups],
            [roles.renderer.decode(group.completions[0]) for group in groups],
        )

    return by_function


def load_function(reference: str) -> Callable[[list[str], list[str]], list[float]]:
    """The function that `file.py:name` names. Raises ConfigError if there is none."""
    path, _, name = reference.rpartition(":")
    file = Path(path)
    if not path or not file.is_file():
        raise ConfigError(f"function {reference!r}: there is no file {path!r}; write file.py:name.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Any = getattr(module, name, None)
    if not inspect.isroutine(function) or len(inspect.signature(function).parameters) < 2:
        raise ConfigError(
            f"function {reference!r}: {path} has no function {name}(prompts, completions)."
        )
    return function
