"""The rewards of the configuration as scorers: from ids on the shared base, through text elsewhere.

A reward step on the policy's base is a role on it (an adapter and a head) and reads the policy's
own ids. A reward model on another base, or with another tokenizer, is loaded beside it and reads
the text of prompt and completion; ids are never used again with another tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.artifacts import Rows
from align.config import (
    AnyReward,
    ConfigError,
    EnsembleReward,
    FunctionReward,
    ModelReward,
    ServiceReward,
)
from align.config_rewards import Combine, leaves
from align.engine import Engine
from align.ensembles import (
    add_reward_step,
    member_scores,
    normalised,
    reward_scorings,
    reward_weights,
)
from align.progress import tracked
from align.reward_checks import load_function, token_of
from align.roles import Roles, load_head
from align.stage import StageContext
from preference_data.batches import Group
from preference_data.counts import counted, verb
from preference_data.records import Prompt
from reward_models.reward_model import RewardModel
from reward_models.scalar_head import ScalarHead, Scoring, value_head_from
from reward_models.scoring import (
    Answer,
    Ensemble,
    Function,
    Model,
    Part,
    Scorer,
    Scores,
    WeightedSum,
    checked,
    combined,
    parts_of,
)
from reward_models.service import Service

log = logging.getLogger("align")

TextReward = FunctionReward | ModelReward | ServiceReward
"""What is asked with text alone."""


@dataclass(frozen=True)
class Sampled(Answer):
    """An answer with the ids that the policy drew."""

    group: Group
    """of one completion"""


@dataclass(frozen=True)
class OnSharedBase:
    """A reward step as a role on the policy's base, scored from ids: (raw - mean) / std.

    The members of an ensemble, each with its own mean and spread, read one packed batch together
    and are combined.
    """

    roles: Roles
    role: str
    scorings: tuple[Scoring, ...]
    """of each member, or of the one model"""
    tokens: int | None
    """a forward pass holds at most (None: as many as suit the device)"""
    engine: Engine
    name: str
    combine: Combine = "mean"
    std_weight: float = 1.0

    def __call__(self, answers: Sequence[Sampled]) -> Scores:
        bos = self.roles.renderer.tokenizer.bos_token_id
        # Members of one step cut alike.
        groups = [self.scorings[0].cut(answer.group, bos) for answer in answers]
        raw = member_scores(self.roles, self.role, groups, self.engine, self.tokens)
        scores = normalised(raw, self.scorings)
        if len(scores) == 1:
            return Scores(checked(scores[0], answers, self.name))
        for number, row in enumerate(scores, 1):
            checked(row, answers, f"member {number} of {self.name}")
        return combined(scores, self.combine, self.std_weight)

    def refusal(self, prompt: tuple[int, ...], tokens: int) -> str | None:
        """Why a completion of so many tokens to the prompt could not be scored, or None."""
        longest = Group(prompt, ((0,) * tokens,))
        try:
            self.scorings[0].cut(longest, self.roles.renderer.tokenizer.bos_token_id)
        except ValueError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class RolloutScorer:
    """Gives a score to each group of one completion."""

    context: StageContext
    roles: Roles
    scorer: Scorer[Sampled]
    prompts: Mapping[tuple[int, ...], Prompt]
    """by their ids"""

    def __call__(self, groups: Sequence[Group]) -> Scores:
        decode = self.roles.renderer.decode
        return self.scorer(
            [
                Sampled(self.prompts[group.prompt], decode(group.completions[0]), group)
                for group in groups
            ]
        )

    def readable(self, rows: Rows) -> tuple[dict[tuple[int, ...], Prompt], Rows]:
        """The prompts to which every reward model can score even the longest response, and `rows`,
        their account, without the others, which are named in the log.

        A model with another tokenizer counts other tokens in a response; it is taken to count no
        more than the policy. Raises ConfigError if no prompt is left.
        """
        tokens = self.context.step.train.max_new_tokens
        reasons: dict[tuple[int, ...], str] = {}
        for part in parts_of(self.scorer):
            for ids, prompt in self.prompts.items():
                why = None
                if isinstance(part, OnSharedBase):
                    why = part.refusal(ids, tokens)
                elif isinstance(part, Model):
                    why = part.refusal(prompt, tokens)
                if why is not None:
                    reasons.setdefault(ids, f"{part.name} cannot read it: {why}")
        if not reasons:
            return dict(self.prompts), rows
        return self._without(reasons, rows)

    def _without(
        self, reasons: Mapping[tuple[int, ...], str], rows: Rows
    ) -> tuple[dict[tuple[int, ...], Prompt], Rows]:
        first, why = next(iter(reasons.items()))
        text = self.prompts[first].text
        said = (
            f"{len(reasons)} of {counted(len(self.prompts), 'prompt')} of "
            f"data.{self.context.step.data} {verb(len(reasons), 'is', 'are')} left out, the first "
            f"{text[:60]!r}: {why}"
        )
        if len(reasons) == len(self.prompts):
            raise ConfigError(
                f"steps.{self.context.name}.reward: all {said}; lower max_new_tokens or "
                f"max_prompt_length, or take another reward model."
            )
        if self.context.engine.is_main:
            log.warning("%s: %s.", self.context.name, said)
        kept = {ids: prompt for ids, prompt in self.prompts.items() if ids not in reasons}
        lost = len(reasons)
        return kept, replace(
            rows, rows_out=rows.rows_out - lost, quarantined=rows.quarantined + lost
        )


def make_scorer(
    context: StageContext, roles: Roles, prompts: Mapping[tuple[int, ...], Prompt]
) -> RolloutScorer:
    """What gives a score to each group of one completion; `prompts` are those of the ids.

    The roles of `add_reward_roles` are there. Raises ConfigError for a function, a model or a token
    that cannot be had.
    """
    where, tokens = f"steps.{context.name}.reward", context.step.train.tokens_per_forward
    scorer = Scorers(context, roles, reward_role, tokens).scorer(context.step.reward, where)
    return RolloutScorer(context, roles, scorer, prompts)


def add_reward_roles(context: StageContext, roles: Roles) -> None:
    """A frozen role for each step that the reward names, if it stands on the policy's base.

    Raises ValueError for a reward model that was trained with another tokenizer or template.
    """
    for step in _steps_on(context, roles):
        reward_scorings(context, step, roles.renderer.fingerprint())
        add_reward_step(context, roles, step, reward_role(step))


def reward_role(step: str) -> str:
    """What a step's model is called among the roles of a policy that it rewards."""
    return f"reward_{step}"


def value_start(context: StageContext, roles: Roles) -> tuple[Path, ScalarHead] | None:
    """Weights and head that predict the reward at once: those of the reward step, or of an
    ensemble's first; None where the reward is anything else."""
    if isinstance(context.step.reward, tuple):
        return None
    for step in _steps_on(context, roles):
        weights = reward_weights(context, step)[0]
        scoring = reward_scorings(context, step, roles.renderer.fingerprint())[0]
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
            reward.patience, token_of(reward, where),
            lambda parts: tracked(parts, "asking", "requests"),
        )  # fmt: skip
    return beside(reward.model, None, f"the reward model {reward.label}", f"{where}.model", device)


def beside(
    path: str, base: str | None, name: str, where: str, device: str, combine: Combine = "mean",
    std_weight: float = 1.0,
) -> Model:  # fmt: skip
    """The reward model in a folder, with a base of its own; combined, if it is an ensemble.

    Raises ConfigError, with the option `where`, if it cannot be loaded.
    """
    try:
        model = RewardModel.from_pretrained(path, base=base, device=device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{where} {path!r} cannot be loaded: {reason}") from error
    return Model(
        model, name, combine, std_weight, lambda parts: tracked(parts, "scoring", "batches")
    )


@dataclass(frozen=True)
class Scorers:
    """Makes the scorers of a configured reward, part by part."""

    context: StageContext
    roles: Roles
    role_of: Callable[[str], str]
    """what a step's model is called among the roles"""
    tokens: int | None = None
    """a forward pass on the shared base holds at most (None: as many as suit the device)"""

    def scorer(self, reward: AnyReward, where: str) -> Scorer[Sampled]:
        if isinstance(reward, tuple):
            return WeightedSum(
                tuple(
                    Part(
                        self.scorer(part.reward, f"{where}[{index}].reward"),
                        part.weight,
                        part.label,
                    )
                    for index, part in enumerate(reward)
                )
            )
        if isinstance(reward, EnsembleReward):
            return self._ensemble(reward, where)
        if isinstance(reward, str):
            return self.step(reward, where)
        return text_scorer(reward, where, str(self.context.engine.device))

    def _ensemble(self, reward: EnsembleReward, where: str) -> Scorer[Sampled]:
        if isinstance(reward.ensemble, str):
            return self.step(
                reward.ensemble, f"{where}.ensemble", reward.combine, reward.std_weight
            )
        members = tuple(
            self.scorer(member, f"{where}.ensemble[{index}]")
            for index, member in enumerate(reward.ensemble)
        )
        return Ensemble(members, reward.combine, reward.std_weight)

    def step(
        self, step: str, where: str, combine: Combine = "mean", std_weight: float = 1.0
    ) -> Scorer[Sampled]:
        context, roles = self.context, self.roles
        name, base = f"the reward model {step!r}", context.base_of(step)
        if base != roles.base_path:
            path, device = str(context.inputs[step].path), str(context.engine.device)
            return beside(path, base, name, where, device, combine, std_weight)
        return OnSharedBase(
            roles, self.role_of(step),
            reward_scorings(context, step, roles.renderer.fingerprint()),
            self.tokens, context.engine, name, combine, std_weight,
        )  # fmt: skip


def _steps_on(context: StageContext, roles: Roles) -> Iterator[str]:
    """The steps that the reward names and that stand on the base of the roles, once each."""
    named = dict.fromkeys(leaf for _, leaf in leaves(context.step.reward, "reward"))
    for leaf in named:
        if isinstance(leaf, str) and context.base_of(leaf) == roles.base_path:
            yield leaf
