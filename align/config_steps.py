"""The steps of a run, one frozen model a kind.

A step also says which other steps and which data it stands on, and which of its own options have
no effect; `align.config` checks these against the whole file.
"""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, Union

from pydantic import Field

from align.config_ppo import PPOTrain
from align.config_rewards import (
    AnyReward,
    Members,
    PartReward,
    SingleReward,
    contradictions,
    ensemble_steps,
    file_of,
    label_of,
    leaves,
)
from align.config_section import Name, PositiveFloat, PositiveInt, Section
from align.config_train import DPOTrain, RewardTrain, TextTrain
from align.requirements import Requirements

DataKind = Literal["text", "demonstrations", "preferences", "prompts"]
"""What a data source can be read as."""


POLICY_KINDS = ("pretrain", "sft", "dpo", "ppo")
"""Kinds of step that leave a policy behind."""
RESERVED_NAMES = ("base", "data", "gold", "reference_logprobs", "splits", "world")
"""Names that mean something else where a step is named, or folders of the run."""
ENDS = ("_low", "_high")
"""Of the names of metrics that are the ends of another's 95 % interval."""
SAMPLE_COLUMNS = ("prompt", "policy", "completion")
"""Of the answers that evaluate writes, beside a column for each judge."""


def misread(name: str, steps: Iterable[str]) -> str | None:
    """What a step's name would be taken for, if it is more than the step's: metrics are named after
    policies, as `evaluate/kl/ppo` and `evaluate/gold/win_rate/ppo_vs_sft_low`."""
    if name in RESERVED_NAMES:
        return "this name is taken"
    if "_vs_" in f"{name}_":
        return "_vs_ stands between two policies in the name of a win rate"
    for other in steps:
        if name in [f"{other}{end}" for end in ENDS]:
            return f"its numbers would be taken for the end of an interval of {other}'s"
    return None


class Step(Section):
    """What all steps have: where they stand in the pipeline."""

    seed: int | None = None
    """Replaces the run's seed for this step."""

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """(option, name, allowed kinds) of each other step that this one stands on.

        Among the kinds, `base` allows the base itself.
        """
        yield from ()

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        """(option, name, what it is read as) of each data source."""
        yield from ()

    def files_used(self) -> Iterator[tuple[str, str]]:
        """(option, path) of each file or model folder that the step reads besides its data."""
        yield from ()

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) of options that do not go together."""
        yield from ()


def _indivisible(train: TextTrain) -> Iterator[tuple[str, str]]:
    micro = train.per_device_train_batch_size
    if micro is not None and train.train_batch_size % micro:
        yield (
            "train.per_device_train_batch_size",
            f"is {micro}, which does not divide train_batch_size {train.train_batch_size}",
        )


def _files(rewards: Iterable[tuple[str, SingleReward]]) -> Iterator[tuple[str, str]]:
    for option, reward in rewards:
        if (path := file_of(reward)) is not None:
            yield option, path


def _judging_steps(
    judges: Iterable[tuple[str, PartReward]],
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for option, judge in judges:
        for inner, leaf in leaves(judge, option):
            if isinstance(leaf, str) and leaf != "gold":
                yield inner, leaf, ("reward",)


def _judging_files(judges: Iterable[tuple[str, PartReward]]) -> Iterator[tuple[str, str]]:
    for option, judge in judges:
        yield from _files(leaves(judge, option))


def _judging_contradictions(
    judges: Iterable[tuple[str, PartReward]],
) -> Iterator[tuple[str, str]]:
    for option, judge in judges:
        yield from contradictions(judge, option)
        for inner, leaf in leaves(judge, option):
            if leaf == "gold" and judge != "gold":
                yield inner, "names gold, which is no member of an ensemble; let it judge alone"


class Pretrain(Step):
    """Self-supervised training of the whole base on unlabelled text."""

    kind: Literal["pretrain"]
    data: Name
    """The data source: text."""
    train: TextTrain = TextTrain()

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "text"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from _indivisible(self.train)


class SFT(Step):
    """Supervised fine-tuning on demonstrations; only the completion's tokens count."""

    kind: Literal["sft"]
    data: Name
    """The data source: demonstrations, or preferences, whose preferred answers are then used."""
    init: Name = "base"
    """The step it starts from, or `base`."""
    train: TextTrain = TextTrain()

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "init", self.init, ("base", "pretrain")

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "demonstrations"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from _indivisible(self.train)


class Reward(Step):
    """A scalar reward model trained on preferences."""

    kind: Literal["reward"]
    data: Name
    """The data source: preferences."""
    init: Name = "base"
    """The step it starts from, or `base`."""
    ensemble: Members | None = None
    """Several models instead of one, whose disagreement is known; null = one."""
    train: RewardTrain = RewardTrain()
    overfit_check: PositiveInt | None = None
    """Training pairs that a model like it must first learn by heart, which shows faults of the
    set-up before the real training; the report card says whether it did. null = not checked."""
    require: Requirements | None = None
    """What its report card must show, or the run stops after this step. A change of it trains
    nothing again."""

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "init", self.init, ("base", "pretrain", "sft")

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "preferences"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.require is not None and not self.require.model_fields_set:
            yield "require", "without a requirement in it"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        for option, problem in self.train.contradictions():
            yield f"train.{option}", problem


class DPO(Step):
    """Direct preference optimisation against the policy it starts from."""

    kind: Literal["dpo"]
    data: Name
    """The data source: preferences."""
    policy: Name = "base"
    """The step it starts from, or `base`; also the reference, for losses that have one."""
    train: DPOTrain = DPOTrain()

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "policy", self.policy, ("base", "pretrain", "sft")

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "preferences"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        for option, problem in self.train.contradictions():
            yield f"train.{option}", problem


class PPO(Step):
    """Proximal policy optimisation against a reward, kept near the policy it starts from."""

    kind: Literal["ppo"]
    data: Name
    """The data source: prompts, or the prompts of any other."""
    policy: Name = "base"
    """The step it starts from, or `base`; also the reference."""
    reward: AnyReward
    """The reward step, a function, a model, a service, an ensemble, or a list: a weighted sum."""
    judge: PartReward | None = None
    """Scores every iteration's responses and is never trained on: `gold` (built-in world), or a
    reward step, function, model, service or ensemble other than the reward. null = nobody
    watches."""
    train: PPOTrain = PPOTrain()

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "policy", self.policy, ("base", "pretrain", "sft", "dpo")
        for option, reward in leaves(self.reward, "reward"):
            if isinstance(reward, str):
                yield option, reward, ("reward",)
        yield from _judging_steps(self.judges_used())

    def judges_used(self) -> Iterator[tuple[str, PartReward]]:
        """(option, judge), if there is one."""
        if self.judge is not None:
            yield "judge", self.judge

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "prompts"
        if self.train.ptx is not None:
            yield "train.ptx.data", self.train.ptx.data, "demonstrations"

    def files_used(self) -> Iterator[tuple[str, str]]:
        yield from _files(leaves(self.reward, "reward"))
        yield from _judging_files(self.judges_used())

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from contradictions(self.reward, "reward")
        yield from _judging_contradictions(self.judges_used())
        if self.judge is not None and self.judge == self.reward:
            yield (
                "judge",
                "is the reward itself, whose score is logged as objective/score anyway; name "
                "another, or remove it",
            )
        if self.train.stop_when_ill and self.judge is None and self.train.rescales_rewards:
            yield (
                "train.stop_when_ill",
                "keeps the policy with the best reward, whose scale changes from one iteration to "
                "the next under reward_scaling or kl.target; name a judge",
            )
        for option, problem in self.train.contradictions():
            yield f"train.{option}", problem


class Evaluate(Step):
    """Win rates, KL, lengths and samples of policies on held-out prompts."""

    kind: Literal["evaluate"]
    data: Name
    """The data source: prompts, or the prompts of any other."""
    policies: tuple[Name, ...]
    """The steps whose policies are compared; `base` is the base itself."""
    baseline: Name
    """The policy that the others are compared with."""
    judges: tuple[PartReward, ...]
    """`gold` (built-in world), reward steps, functions, models, services, or ensembles."""
    preferences: Name | None = None
    """Preferences on whose held-out side the reward judges' accuracy is measured."""
    prompts: PositiveInt = 200
    """How many held-out prompts."""
    max_new_tokens: PositiveInt = 64
    """Tokens of a response, its end included."""
    max_prompt_length: PositiveInt = 512
    """Longer prompts are left out and counted."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    bootstrap: PositiveInt = 2000
    """Resamples of the prompts behind each 95 % interval."""

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        for index, name in enumerate(self.policies):
            yield f"policies[{index}]", name, ("base", *POLICY_KINDS)
        yield "baseline", self.baseline, ("base", *POLICY_KINDS)
        yield from _judging_steps(self.judges_used())

    def judges_used(self) -> Iterator[tuple[str, PartReward]]:
        """(option, judge) of each."""
        for index, judge in enumerate(self.judges):
            yield f"judges[{index}]", judge

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "prompts"
        if self.preferences is not None:
            yield "preferences", self.preferences, "preferences"

    def files_used(self) -> Iterator[tuple[str, str]]:
        yield from _judging_files(self.judges_used())

    def ineffective(self) -> Iterator[tuple[str, str]]:
        judged = any(isinstance(judge, str) and judge != "gold" for judge in self.judges)
        if self.preferences is not None and not judged:
            yield "preferences", "without a reward step among the judges"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from _judging_contradictions(self.judges_used())
        if not set(self.policies) - {self.baseline}:
            yield "policies", f"names no policy besides the baseline {self.baseline!r}"
        judges = tuple(label_of(judge) for judge in self.judges)
        for index, name in enumerate(judges):
            if name in SAMPLE_COLUMNS:
                yield (
                    f"judges[{index}]",
                    f"is called {name}, as a column of samples.jsonl is; call it something else",
                )
        for option, names in (("policies", self.policies), ("judges", judges)):
            for index, name in enumerate(names):
                if name in names[:index]:
                    yield f"{option}[{index}]", f"names {name!r} a second time"


class Export(Step):
    """A folder to hand on: adapter, optionally merged weights, and a model card."""

    kind: Literal["export"]
    policy: Name
    """The step whose policy, or reward model, is exported."""
    merge: bool = False
    """Also write the base with the adapter folded in, as safetensors."""
    license: str | None = None
    """Licence named in the model card."""

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "policy", self.policy, ("sft", "reward", "dpo", "ppo")

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.sets("seed"):
            yield "seed", "in an export, which draws nothing at random"


def misread_rewards(step: PPO | Evaluate, steps: Mapping[str, Step]) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) of a step's rewards and judges with the reward steps they name."""
    rewards: list[tuple[str, AnyReward]] = [*step.judges_used()]
    if isinstance(step, PPO):
        rewards.insert(0, ("reward", step.reward))
        limit, tokens = "train.max_new_tokens", step.train.max_new_tokens
    else:
        limit, tokens = "max_new_tokens", step.max_new_tokens
    for option, reward in rewards:
        for inner, name in ensemble_steps(reward, option):
            named = steps.get(name)
            if isinstance(named, Reward) and named.ensemble is None:
                yield inner, f"names {name!r}, which is one model; give that step an ensemble"
        for _, leaf in leaves(reward, option):
            named = steps.get(leaf) if isinstance(leaf, str) else None
            if not isinstance(named, Reward) or named.train.truncation == "none":
                continue
            if tokens >= (length := named.train.max_length):
                yield (
                    limit,
                    f"is {tokens}, which leaves a prompt no room in the max_length of {length} "
                    f"that the reward model {leaf!r} reads; lower it, or raise that",
                )


AnyStep = Annotated[
    Union[Pretrain, SFT, Reward, DPO, PPO, Evaluate, Export],  # noqa: UP007 - Annotated needs it
    Field(discriminator="kind"),
]
