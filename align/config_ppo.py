"""How PPO trains: its settings, from sampling to the KL penalty."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import ConfigDict, Field

from align.config_section import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
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
