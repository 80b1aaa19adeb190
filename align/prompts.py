"""The prompts of ppo and evaluate steps: the side of their data that they read, and what fits.

The steps themselves ask for them here; a run asks before its first step trains, so that a source
without a usable prompt costs no hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.config import PPO, Config, ConfigError, Evaluate
from align.policy import check_positions
from align.progress import tracked
from align.stage import sides
from align.tasks import base_is_ours, clusters_of, data_folder
from preference_data import views
from preference_data.counts import counted
from preference_data.near_duplicates import Clusters
from preference_data.records import Prompt
from preference_data.rendering import Renderer, RenderingError

if TYPE_CHECKING:
    from align.stage import StageContext

Fitting = list[tuple[Prompt, tuple[int, ...]]]
"""Prompts and their ids."""


def asked_prompts(context: StageContext) -> list[Prompt]:
    """What a step reads before any is left out: ppo the training side, evaluate the first of the
    held-out side, or of all where nothing is held out. Raises ConfigError if that is nothing."""
    source = context.step.data
    return _asked(context.config, context.name, context.data[source], context.clusters)


def _asked(config: Config, name: str, folder: Path, clusters: Clusters) -> list[Prompt]:
    step = config.steps[name]
    assert isinstance(step, PPO | Evaluate)
    every = views.prompts(folder)
    training, held_out = sides(config, step.data, folder, clusters, every)
    fraction = config.data[step.data].test_fraction
    has = f"steps.{name}: data.{step.data} has {counted(len(every), 'prompt')}"
    if isinstance(step, PPO):
        if not training:
            raise ConfigError(
                f"{has}, and none falls into the training side; lower its test_fraction or bring "
                f"more prompts."
            )
        return training
    if fraction == 0 and not held_out:  # the whole source is for evaluation
        held_out = every
    if not held_out:
        raise ConfigError(
            f"{has}, and none falls into the held-out share of {fraction:g}; raise its "
            f"test_fraction or bring more prompts."
        )
    return held_out[: step.prompts]


def fitting(config: Config, name: str, prompts: Sequence[Prompt], renderer: Renderer) -> Fitting:
    """The prompts that the template can render and that are no longer than the step allows. Raises
    ConfigError if there is none."""
    step = config.steps[name]
    assert isinstance(step, PPO | Evaluate)
    longest = step.train.max_prompt_length if isinstance(step, PPO) else step.max_prompt_length
    option = "train.max_prompt_length" if isinstance(step, PPO) else "max_prompt_length"
    found: Fitting = []
    refused: list[RenderingError] = []
    for prompt in tracked(prompts, "prompts", "prompts"):
        try:
            ids = renderer.prompt(prompt)
        except RenderingError as error:
            refused.append(error)
            continue
        if len(ids) <= longest:
            found.append((prompt, ids))
    if not found and len(refused) == len(prompts):
        raise ConfigError(
            f"steps.{name}.data: none of {counted(len(prompts), 'prompt')} of data.{step.data} can "
            f"be rendered; the first: {refused[0]}."
        )
    if not found:
        raise ConfigError(
            f"steps.{name}.{option} is {longest}, and none of {counted(len(prompts), 'prompt')} of "
            f"data.{step.data} fits into it; raise it."
        )
    return found


def check_prompts(config: Config, names: Sequence[str]) -> None:
    """That the ppo and evaluate steps of these names will have prompts. Their data is imported, and
    the base is there. Raises ConfigError."""
    steps = {name: config.steps[name] for name in names}
    if not any(isinstance(step, PPO | Evaluate) for step in steps.values()):
        return
    from transformers import AutoConfig

    from align.base import load_renderer

    path, revision = config.base.model, config.base.revision
    if base_is_ours(config):
        path, revision = str(Path(config.output_dir) / "base"), None
    renderer = load_renderer(path, revision)
    base = AutoConfig.from_pretrained(path, revision=revision or "main")
    clusters = Clusters(clusters_of(config))
    for name, step in steps.items():
        if isinstance(step, PPO | Evaluate):
            asked = _asked(config, name, data_folder(config, step.data), clusters)
            ids = [ids for _, ids in fitting(config, name, asked, renderer)]
            tokens = step.train.max_new_tokens if isinstance(step, PPO) else step.max_new_tokens
            check_positions(base, ids, tokens, name)
