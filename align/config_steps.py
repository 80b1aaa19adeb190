"""The steps of a run and their settings, one frozen model a kind.

A step also says which other steps and which data it stands on, and which of its own options have
no effect; `align.config` checks these against the whole file.
"""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from align.config_errors import ConfigError

DataKind = Literal["text", "demonstrations", "preferences", "prompts"]
"""What a data source can be read as."""


class Section(BaseModel):
    """A closed, frozen part of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def to_plain(self) -> dict[str, Any]:
        """Every option with its value, defaults included, as JSON would hold it."""
        return self.model_dump(mode="json", by_alias=True)

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """(option, why) of each option that is set here and would do nothing."""
        yield from ()

    def sets(self, option: str) -> bool:
        """Whether the file (or an override) sets the option, be it to its default."""
        return option in self.model_fields_set


def look_up(text: str, folders: tuple[Path, ...]) -> str | None:
    """The path or glob `text` as it is found from the first of `folders` that has it, or None."""
    for folder in folders:
        path = folder / Path(text).expanduser()
        anchor = Path(path.anchor)
        if path.exists() or any(anchor.glob(str(path.relative_to(anchor)))):
            return str(path)
    return None


def folders_of(info: ValidationInfo) -> tuple[Path, ...]:
    """The folders that the validation looks for files in; none takes every path on trust."""
    context = cast(dict[str, tuple[Path, ...]], info.context or {})
    return context.get("folders", ())


def found(text: str, info: ValidationInfo) -> str:
    """A path of the user's, looked for in the folders that the validation was given (if any)."""
    folders = folders_of(info)
    if not folders or text.startswith("builtin:"):
        return text
    path = look_up(text, folders)
    if path is None:
        places = " or ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
        absolute = Path(text).expanduser().is_absolute()
        raise ValueError(f"there is no such file{'' if absolute else f' in {places}'}")
    return path


def _function(text: str, info: ValidationInfo) -> str:
    file, separator, name = text.rpartition(":")
    if not separator or not file.endswith(".py") or not name.isidentifier():
        raise ValueError("write it as file.py:name")
    return f"{found(file, info)}:{name}"


Name = Annotated[str, Field(min_length=1)]
FoundPath = Annotated[str, Field(min_length=1), AfterValidator(found)]
Function = Annotated[str, AfterValidator(_function)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Train(Section):
    """Settings that every gradient step shares; names as in transformers' TrainingArguments."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimiser steps, whatever num_train_epochs says."""
    train_batch_size: PositiveInt = 32
    """Rows between two optimiser steps, over all ranks."""
    learning_rate: PositiveFloat = 1e-4
    """The largest one, after the warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup_steps: NonNegativeFloat = 0.05
    """Steps in which the learning rate rises from 0; below 1, a share of all steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW, decoupled from the gradient (arXiv:1711.05101)."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the denominator of Adam's update."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    max_length: PositiveInt = 512
    """Tokens of a row, prompt and completion together."""
    logging_steps: PositiveInt = 10
    """Optimiser steps between two lines of metrics."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.max_steps is not None and self.sets("num_train_epochs"):
            yield "num_train_epochs", "beside max_steps"


class TextTrain(Train):
    """Settings of training on text, token after token."""

    per_device_train_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one rank; train_batch_size / ranks by default."""

    def micro_batch_size(self, world_size: int) -> int:
        """Rows of one forward pass on one rank. Raises ConfigError if the sizes do not divide."""
        per_rank, rest = divmod(self.train_batch_size, world_size)
        if rest:
            raise ConfigError(
                f"train_batch_size {self.train_batch_size} does not divide by {world_size} ranks."
            )
        micro = self.per_device_train_batch_size or per_rank
        if per_rank % micro:
            raise ConfigError(
                f"per_device_train_batch_size {micro} does not divide the {per_rank} rows that a "
                f"rank takes of train_batch_size {self.train_batch_size}."
            )
        return micro


class RankingTrain(Train):
    """Settings of training on judgements."""

    tokens_per_forward: PositiveInt = 8192
    """Tokens one forward pass holds on one rank, whole judgements; does not change the result."""


class RewardTrain(RankingTrain):
    """Settings of the reward model's training."""

    center_coefficient: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)^2, which keeps scores around 0 (arXiv:2312.09244)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels."""


class DPOTrain(RankingTrain):
    """Settings of direct preference optimisation."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust", "simpo", "orpo"] = "sigmoid"
    """What is made of a pair (align/dpo_losses.py): DPO's own, SLiC's hinge, IPO, DPO for flipped
    labels, and two without a reference, SimPO and ORPO."""
    beta: PositiveFloat = 0.1
    """Strength of the pull to the reference (Rafailov et al. 2023, eq. 7); in simpo the scale of
    the rewards, in orpo the weight of the odds ratio beside the likelihood."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels (conservative DPO; under robust, robust DPO)."""
    margin: NonNegativeFloat = 0.0
    """By how much the chosen reward is to exceed the rejected one: the offset of ODPO, the gamma of
    SimPO; in units of beta times nats."""
    length_normalised: bool = False
    """Log-ratios are means over the completion's tokens instead of sums."""

    @property
    def averages(self) -> bool:
        """Whether a completion counts by its mean over tokens."""
        return self.length_normalised or self.loss in ("ipo", "simpo", "orpo")

    @property
    def needs_reference(self) -> bool:
        return self.loss not in ("simpo", "orpo")

    def ineffective(self) -> Iterator[tuple[str, str]]:
        yield from super().ineffective()
        if self.loss in ("ipo", "simpo", "orpo") and self.sets("length_normalised"):
            yield "length_normalised", f"on {self.loss}, which takes means over tokens in any case"
        if self.loss in ("hinge", "ipo", "orpo"):
            if self.sets("label_smoothing"):
                yield "label_smoothing", f"on {self.loss}, only on sigmoid, robust and simpo"
            if self.sets("margin"):
                yield "margin", f"on {self.loss}, only on sigmoid, robust and simpo"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong), as `Step.contradictions`."""
        if self.loss == "robust" and self.label_smoothing == 0:
            yield (
                "label_smoothing",
                "is 0, but loss is robust, which corrects for that share of flipped labels; set "
                "it, or use sigmoid",
            )
        if not self.sets("beta") and (self.loss == "simpo" or self.length_normalised):
            what = "simpo" if self.loss == "simpo" else "length_normalised"
            yield (
                "beta",
                f"must be set with {what}: its default of 0.1 is for sums over tokens, and means "
                "need about 2 to 10",
            )


class KL(Section):
    """The penalty for leaving the reference."""

    coefficient: NonNegativeFloat = 0.05
    """beta: reward per token is -beta * (log pi - log ref), plus the score on the last token."""
    target: PositiveFloat | None = None
    """Nats per response that an adaptive coefficient steers to (Ziegler et al. 2019, 2.2); fixed
    without it."""
    horizon: PositiveInt = 10_000
    """Responses over which the adaptive coefficient may change by its own size."""
    estimator: Literal["k1"] = "k1"
    """log pi - log ref. Put in the reward, k2, k3 and |k1| regularise nothing, so they are not
    offered (arXiv:2510.01555)."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.target is None and self.sets("horizon"):
            yield "horizon", "without a target"
        if self.target is not None and self.coefficient == 0:
            yield "target", "on a coefficient of 0, which is steered by multiplying it"


class GAE(Section):
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16)."""

    model_config = ConfigDict(populate_by_name=True)

    gamma: Fraction = 1.0
    """Discount per token."""
    lambda_: Fraction = Field(default=0.95, validation_alias="lambda", serialization_alias="lambda")
    """0 trusts the value function alone (TD error), 1 the sampled reward alone."""


class Clip(Section):
    """Clipping ranges (Schulman et al. 2017, eq. 7)."""

    policy: PositiveFloat = 0.2
    """The ratio is clipped to 1 - policy .. 1 + policy."""
    value: PositiveFloat = 0.2
    """A value may move this far from the one at sampling time."""


class PPOTrain(Section):
    """Settings of proximal policy optimisation."""

    iterations: PositiveInt = 100
    """Rounds of rollout and update."""
    prompts_per_iteration: PositiveInt = 64
    """Prompts of one rollout, over all ranks."""
    samples_per_prompt: PositiveInt = 1
    """Responses that are drawn to each prompt of a rollout."""
    epochs: PositiveInt = 2
    """Passes over a rollout."""
    minibatches: PositiveInt = 2
    """Optimiser steps per pass."""
    tokens_per_forward: PositiveInt = 4096
    """Tokens one forward pass holds on one rank; does not change the result."""
    rollout_batch_size: PositiveInt | None = None
    """Responses one rank samples at a time, which bounds the key-value cache; none: its share."""
    max_new_tokens: PositiveInt = 64
    """Tokens of a response, its end included."""
    max_prompt_length: PositiveInt = 512
    """Longer prompts are left out and counted."""
    temperature: PositiveFloat = 1.0
    """Of sampling, and of every log-probability."""
    learning_rate: PositiveFloat = 1e-5
    """Of the policy."""
    value_learning_rate: PositiveFloat = 1e-5
    """Of the value function."""
    adam_epsilon: PositiveFloat = 1e-5
    """Added to the denominator of Adam's update."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    lr_scheduler_type: Literal["linear", "constant"] = "linear"
    """Shape of both learning rates; linear ends at 0."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Subtracted from the score of a response that does not end."""
    score_clip: PositiveFloat | None = None
    """Scores are clipped to +- this after normalisation."""
    advantage: Literal["gae"] = "gae"
    """How the advantages are estimated."""
    value: Literal["adapter"] = "adapter"
    """The value function is an adapter and head of its own, started from the reward model."""
    kl: KL = KL()
    gae: GAE = GAE()
    clip: Clip = Clip()

    def responses_per_iteration(self) -> int:
        """Responses of one rollout, over all ranks."""
        return self.prompts_per_iteration * self.samples_per_prompt


POLICY_KINDS = ("pretrain", "sft", "dpo", "ppo")
"""Kinds of step that leave a policy behind."""


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
    """A scalar reward model trained on preferences (Bradley-Terry)."""

    kind: Literal["reward"]
    data: Name
    """The data source: preferences."""
    init: Name = "base"
    """The step it starts from, or `base`."""
    train: RewardTrain = RewardTrain()

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "init", self.init, ("base", "pretrain", "sft")

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "preferences"


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


class FunctionReward(Section):
    """A Python function as the reward."""

    function: Function
    """`file.py:name`; called with prompts and completions (lists of text), gives a score each."""


class PPO(Step):
    """Proximal policy optimisation against a reward, kept near the policy it starts from."""

    kind: Literal["ppo"]
    data: Name
    """The data source: prompts, or the prompts of any other."""
    policy: Name = "base"
    """The step it starts from, or `base`; also the reference."""
    reward: Name | FunctionReward
    """The reward step, or a function."""
    train: PPOTrain = PPOTrain()

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "policy", self.policy, ("base", "pretrain", "sft", "dpo")
        if isinstance(self.reward, str):
            yield "reward", self.reward, ("reward",)

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "prompts"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        responses = self.train.responses_per_iteration()
        if self.train.minibatches > responses:
            yield (
                "train.minibatches",
                f"is {self.train.minibatches}, but an iteration has only {responses} responses",
            )


class Evaluate(Step):
    """Win rates, KL, lengths and samples of policies on held-out prompts."""

    kind: Literal["evaluate"]
    data: Name
    """The data source: prompts, or the prompts of any other."""
    policies: tuple[Name, ...]
    """The steps whose policies are compared; `base` is the base itself."""
    baseline: Name
    """The policy that the others are compared with."""
    judges: tuple[Name | FunctionReward, ...]
    """`gold` (built-in world), reward steps, or functions."""
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
        for index, judge in enumerate(self.judges):
            if isinstance(judge, str) and judge != "gold":
                yield f"judges[{index}]", judge, ("reward",)

    def data_used(self) -> Iterator[tuple[str, str, DataKind]]:
        yield "data", self.data, "prompts"
        if self.preferences is not None:
            yield "preferences", self.preferences, "preferences"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        judged = any(isinstance(judge, str) and judge != "gold" for judge in self.judges)
        if self.preferences is not None and not judged:
            yield "preferences", "without a reward step among the judges"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if not set(self.policies) - {self.baseline}:
            yield "policies", f"names no policy besides the baseline {self.baseline!r}"
        for option, names in (("policies", self.policies), ("judges", self.judges)):
            for index, name in enumerate(names):
                if name in names[:index]:
                    text = name if isinstance(name, str) else name.function
                    yield f"{option}[{index}]", f"names {text!r} a second time"


class Export(Step):
    """A folder to hand on: adapter, optionally merged weights, and a model card."""

    kind: Literal["export"]
    policy: Name
    """The step whose policy is exported."""
    merge: bool = False
    """Also write the base with the adapter folded in, as safetensors."""
    license: str | None = None
    """Licence named in the model card."""

    def steps_used(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        yield "policy", self.policy, ("sft", "dpo", "ppo")

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.sets("seed"):
            yield "seed", "in an export, which draws nothing at random"


AnyStep = Annotated[
    Union[Pretrain, SFT, Reward, DPO, PPO, Evaluate, Export],  # noqa: UP007 - Annotated needs it
    Field(discriminator="kind"),
]
