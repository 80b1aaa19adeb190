"""How PPO trains: its settings, from sampling to the KL penalty."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, model_validator

from align.config_section import (
    Fraction,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)
from preference_data.counts import counted

Whitening = Literal["mean_and_std", "mean", "none"]
"""What is taken out of the advantages: mean 0 and variance 1, mean 0 alone, nothing."""


class KL(Section):
    """The penalty for leaving the reference."""

    coefficient: NonNegativeFloat = 0.05
    """beta: reward per token is -beta * (log pi - log ref), plus the score on the last token."""
    target: PositiveFloat | None = None
    """Nats per response that an adaptive coefficient steers to (Ziegler et al. 2019, 2.2); fixed
    without it."""
    horizon: PositiveInt = 10_000
    """Responses over which the adaptive coefficient may change by its own size."""
    place: Literal["reward", "loss"] = "reward"
    """Where it is charged: in the reward of each token, or in the loss beside the policy's."""
    estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """k1 = log pi - log ref, which belongs in the reward; k2 = half its square, in the loss. Every
    other pair pulls elsewhere than to the reference, and is refused (arXiv:2510.01555)."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.target is None and self.sets("horizon"):
            yield "horizon", "without a target"
        if self.target is not None and self.coefficient == 0:
            yield "target", "on a coefficient of 0, which is steered by multiplying it"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong), as `Step.contradictions`."""
        why = _WRONG_PLACES.get((self.estimator, self.place))
        if why is not None:
            yield "estimator", f"is {self.estimator} with place {self.place}: {why}"


_NO_PENALTY = (
    "there its gradient is not that of the KL and hardly holds the policy (measured: it ends at a "
    "KL of 5.14 where k1 ends at 3.14 and the optimum is 3.02); use k1"
)
_WRONG_PLACES = {
    ("k2", "reward"): _NO_PENALTY,
    ("k3", "reward"): _NO_PENALTY,
    ("abs", "reward"): _NO_PENALTY,
    ("k1", "loss"): "its expected gradient there is 0; use k2, or place reward",
    ("k3", "loss"): "its gradient there is that of the reverse KL(reference || policy); use k2",
    ("abs", "loss"): "its gradient there knows only the sign of the log-ratio; use k2",
}
"""(estimator, place) -> why they do not go together."""


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


class PTX(Section):
    """Demonstrations mixed into every optimiser step (Ouyang et al. 2022, eq. 2)."""

    data: Name
    """The data source: demonstrations, or preferences, whose preferred answers are then used."""
    coefficient: PositiveFloat = 1.0
    """Weight of their negative log-likelihood, a mean over the completions' tokens of the step."""
    batch_size: PositiveInt = 32
    """Demonstrations of one optimiser step, over all ranks."""
    max_length: PositiveInt = 512
    """Tokens of prompt and completion together; longer ones are left out."""


class PPOTrain(Section):
    """Settings of proximal policy optimisation."""

    iterations: PositiveInt = 100
    """Rounds of rollout and update."""
    save_iterations: PositiveInt = 10
    """Iterations between two checkpoints, from which an interrupted step goes on; does not change
    the result."""
    prompts_per_iteration: PositiveInt = 64
    """Prompts of one rollout, over all ranks."""
    samples_per_prompt: PositiveInt = 1
    """Responses that are drawn to each prompt of a rollout."""
    epochs: PositiveInt = 2
    """Passes over a rollout."""
    minibatches: PositiveInt = 2
    """Optimiser steps per pass."""
    max_approx_kl: PositiveFloat | None = None
    """Nats per token: past this, measured on a minibatch against the policy at sampling time, the
    rest of the rollout's epochs is left out; the learning rates go on as if it had been taken."""
    tokens_per_forward: PositiveInt | None = None
    """Tokens one forward pass holds on one rank; does not change the result. By default 1024 on a
    CPU, 8192 on a GPU."""
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
    """Of the value function; with value: trunk, of its head."""
    adam_epsilon: PositiveFloat = 1e-5
    """Added to the denominator of Adam's update."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    lr_scheduler_type: Literal["linear", "constant"] = "linear"
    """Shape of both learning rates after the warm-up; linear ends at 0."""
    warmup_steps: NonNegativeFloat = 0.0
    """Optimiser steps in which the learning rates rise from 0; below 1, a share of all steps. The
    policy's are counted from the end of value_warmup_iterations."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Subtracted from the score of a response that does not end."""
    reward_scaling: bool = False
    """Scores are divided by the standard deviation of all scores so far; their mean stays
    (PPO-max, arXiv:2307.04964)."""
    score_clip: PositiveFloat | None = None
    """Scores are clipped to +- this after normalisation and scaling."""
    whiten_rewards: bool = False
    """Rewards per token get variance 1 over the rollout, after the KL is charged; their mean stays
    (Ziegler et al. 2019)."""
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = "gae"
    """How the advantages are estimated. Only gae has a value function; the others give all tokens
    of a response its reward less that of the other responses to the prompt (rloo,
    arXiv:2402.14740), the same over the group's standard deviation (grpo, arXiv:2402.03300), or
    less a baseline over prompts (reinforce)."""
    whiten_advantages: Whitening | None = None
    """What is taken out of the advantages of a rollout, over all its tokens; by default
    mean_and_std for gae and reinforce, none for rloo and grpo, which compare within a prompt."""
    group_std: bool = True
    """grpo divides by the group's standard deviation; without, a prompt counts as its rewards are
    spread (arXiv:2503.20783)."""
    baseline: Literal["batch", "running"] = "batch"
    """What reinforce subtracts: the mean reward of this rollout, or of all earlier ones."""
    value: Literal["adapter", "trunk"] = "adapter"
    """The value function: an adapter and head of its own, started from the reward model, or a head
    on the policy's own hidden states, started from 0, in the same forward pass."""
    value_coefficient: PositiveFloat = 0.1
    """Weight of the value's loss beside the policy's where both train the same weights
    (value: trunk)."""
    value_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """First iterations, in which the policy stays and only the value function (with value: trunk,
    its head) learns."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the entropy, a mean over tokens, that is added to what the policy maximises."""
    stop_when_ill: bool = False
    """Stops at a grave finding (align/doctor.py: collapse, over-optimisation, a KL out of hand) and
    keeps the policy whose rollout the judge scored best; without a judge, the one of the best
    objective/reward before the last three iterations, in which the policy was ill already."""
    kl: KL = KL()
    gae: GAE = GAE()
    clip: Clip = Clip()
    ptx: PTX | None = None
    """Demonstrations mixed in; null = none."""

    @model_validator(mode="before")
    @classmethod
    def _samples_from_the_policy(cls, values: Any) -> Any:
        given = cast(dict[str, object], values) if isinstance(values, dict) else {}
        for option in ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty"):
            if option in given:
                raise ValueError(
                    f"{option} would sample from another distribution than the one whose "
                    f"log-probabilities PPO optimises, so there is no such key; temperature is "
                    f"applied to both"
                )
        return cast(object, values)

    def responses_per_iteration(self) -> int:
        """Responses of one rollout, over all ranks."""
        return self.prompts_per_iteration * self.samples_per_prompt

    def steps_per_iteration(self) -> int:
        """Planned optimiser steps of one rollout."""
        return self.epochs * self.minibatches

    @property
    def has_value(self) -> bool:
        """Whether a value function is made and trained."""
        return self.advantage == "gae"

    @property
    def whitening(self) -> Whitening:
        """What is taken out of the advantages, the default resolved."""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return "none" if self.advantage in ("rloo", "grpo") else "mean_and_std"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if not self.has_value:
            yield from self._without_value()
        elif self.value == "adapter" and self.sets("value_coefficient"):
            yield (
                "value_coefficient",
                "with value: adapter, whose weights and learning rate (value_learning_rate) are "
                "its own",
            )
        if self.advantage != "grpo" and self.sets("group_std"):
            yield "group_std", f"with advantage: {self.advantage}, only with grpo"
        if self.advantage != "reinforce" and self.sets("baseline"):
            yield "baseline", f"with advantage: {self.advantage}, only with reinforce"
        if self.save_iterations >= self.iterations and self.sets("save_iterations"):
            yield (
                "save_iterations",
                f"with {counted(self.iterations, 'iteration')}; none comes before the end",
            )
        if self.max_approx_kl is not None and self.steps_per_iteration() == 1:
            yield "max_approx_kl", "with one epoch of one minibatch, after which nothing is left"

    def _without_value(self) -> Iterator[tuple[str, str]]:
        """Options of a value function that there is none of, and of rewards by token."""
        why = f"with advantage: {self.advantage}, which has no value function"
        names = ("value", "value_coefficient", "value_learning_rate", "value_warmup_iterations")
        for option in (*names, "gae"):
            if self.sets(option):
                yield option, why
        if self.clip.sets("value"):
            yield "clip.value", why
        if self.sets("whiten_rewards"):
            yield (
                "whiten_rewards",
                f"with advantage: {self.advantage}, which takes one reward a response",
            )

    @property
    def rescales_rewards(self) -> bool:
        """Whether one and the same response has another reward in a later iteration."""
        return self.reward_scaling or self.kl.target is not None

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong), as `Step.contradictions`."""
        responses = self.responses_per_iteration()
        if self.minibatches > responses:
            yield (
                "minibatches",
                f"is {self.minibatches}, but an iteration has only {responses} responses",
            )
        if self.advantage in ("rloo", "grpo") and self.samples_per_prompt < 2:
            yield (
                "samples_per_prompt",
                f"is 1, but {self.advantage} compares the responses to a prompt with each other; "
                "set it to 2 or more",
            )
        if self.value_warmup_iterations >= self.iterations:
            yield (
                "value_warmup_iterations",
                f"is {self.value_warmup_iterations}, which leaves none of the {self.iterations} "
                "iterations to the policy",
            )
        if (
            self.rollout_batch_size is not None
            and self.rollout_batch_size < self.samples_per_prompt
        ):
            yield (
                "rollout_batch_size",
                f"is {self.rollout_batch_size}, but the {self.samples_per_prompt} samples of a "
                "prompt are drawn together",
            )
        for option, problem in self.kl.contradictions():
            yield f"kl.{option}", problem
        if self.kl.place == "loss":
            yield from self._rescaled_advantages()

    def _rescaled_advantages(self) -> Iterator[tuple[str, str]]:
        """A KL in the loss means nothing beside advantages that are divided by their spread."""
        why = "rescales the reward but not the KL, whose coefficient then means nothing"
        if self.whitening == "mean_and_std":
            yield "kl.place", f"is loss, but whiten_advantages: mean_and_std {why}; set it to mean"
        elif self.whiten_rewards:
            yield "kl.place", f"is loss, but whiten_rewards {why}; remove it"
        elif self.advantage == "grpo" and self.group_std:
            yield "kl.place", f"is loss, but group_std {why}; set it to false"
