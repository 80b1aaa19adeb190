"""One iteration of policy optimisation after the other: rollout, advantages, update.

The steps are numbered in `Optimiser.step`; the update is in `align.ppo_update`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from align.advantages import (
    KLController,
    RunningStatistics,
    by_token,
    gae,
    grpo,
    kl_shaped_rewards,
    reinforce,
    rloo,
)
from align.config import PPOTrain
from align.engine import Engine
from align.policy import uniforms
from align.ppo_invariants import (
    FailedInvariant,
    check_finite,
    check_first_rollout,
    say_where_the_score_stands,
)
from align.ppo_metrics import describe
from align.ppo_update import Lesson, Updater
from align.ptx import Demonstrations
from align.roles import Roles
from align.rollout import Roller, Rollout
from align.schedules import SCHEDULES
from align.tensors import centre, rescale, standardize
from align.training import ParameterGroup, Training

__all__ = ["FailedInvariant", "Optimiser"]


@dataclass
class Optimiser:
    """One PPO iteration after the other."""

    engine: Engine
    roles: Roles
    roller: Roller
    train: PPOTrain
    seed: int
    demonstrations: Demonstrations | None = None
    """Mixed into every step of the policy (`ptx`)."""
    kl: KLController = field(init=False)
    scores: RunningStatistics = field(init=False, default_factory=RunningStatistics)
    """Of all scores so far (`reward_scaling`)."""
    rewards: RunningStatistics = field(init=False, default_factory=RunningStatistics)
    """Of the responses' rewards in all earlier rollouts (`baseline: running`)."""
    training: Training = field(init=False)
    updater: Updater = field(init=False)
    rollout: Rollout = field(init=False)

    def __post_init__(self) -> None:
        train = self.train
        self.kl = KLController(train.kl.coefficient, train.kl.target, train.kl.horizon)
        steps = train.steps_per_iteration()
        policy = self.roles.parameters_of("policy")
        warm = train.value_warmup_iterations * steps
        groups = [ParameterGroup(policy, train.learning_rate, first_step=warm)]
        if train.has_value:
            value = self.roles.parameters_of("value")
            groups.append(ParameterGroup(value, train.value_learning_rate))
        self.training = self.engine.training(
            self.roles,
            groups,
            total_steps=train.iterations * steps,
            schedule=SCHEDULES[train.lr_scheduler_type](train.warmup_steps),
            max_grad_norm=train.max_grad_norm,
            adam_epsilon=train.adam_epsilon,
        )
        self.updater = Updater(
            self.engine, self.roles, train, self.training, self.seed, self.demonstrations
        )

    def to_json(self) -> dict[str, Any]:
        """What later iterations depend on besides weights and optimiser: for a checkpoint."""
        return {
            "kl_coefficient": self.kl.coefficient,
            "scores": self.scores.to_json(),
            "rewards": self.rewards.to_json(),
        }

    def load_json(self, plain: Mapping[str, Any]) -> None:
        """Takes up what `to_json` gave."""
        self.kl.coefficient = plain["kl_coefficient"]
        self.scores = RunningStatistics.from_json(plain["scores"])
        self.rewards = RunningStatistics.from_json(plain["rewards"])

    def step(self, iteration: int, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """1 respond, score, reference log-probabilities and values; 2 rewards per token;
        3 advantages; 4 epochs of minibatches; 5 the KL coefficient.

        Raises FailedInvariant in the first iteration, NonFiniteError in any.
        """
        clock = [time.monotonic()]
        draws = uniforms(self.seed * 1_000_003 + iteration, len(prompts), self.train.max_new_tokens)
        with self.training.whole():
            self.rollout = rollout = self.roller.collect(prompts, draws)  # 1
            clock.append(time.monotonic())
            if iteration == 1:
                check_first_rollout(rollout, self.roles, self.roller.temperature)
                say_where_the_score_stands(rollout, self.roles.renderer)
        charged = self.kl.coefficient if self.train.kl.place == "reward" else 0.0
        rewards = kl_shaped_rewards(  # 2
            self._shaped_scores(rollout), rollout.logprobs, rollout.reference, rollout.mask, charged
        )
        check_finite(iteration, rollout, {"score": rollout.scores, "reward": rewards})
        if self.train.whiten_rewards:
            rewards = rescale(rewards, rollout.mask)
        advantages, returns = self._advantages(rollout, rewards)  # 3
        check_finite(iteration, rollout, {"advantage": advantages})
        advantages = self._whitened(advantages, rollout.mask)
        update = self.updater.run(  # 4
            Lesson(
                iteration, rollout, advantages, returns,
                kl_coefficient=self.kl.coefficient - charged,
                value_alone=iteration <= self.train.value_warmup_iterations,
            )
        )  # fmt: skip
        clock.append(time.monotonic())
        metrics = {
            **describe(rollout, rewards, returns),
            **update,
            "objective/kl_coefficient": self.kl.coefficient,
            "time/rollout": clock[1] - clock[0],
            "time/update": clock[2] - clock[1],
        }
        if self.train.reward_scaling:
            metrics["objective/score_scale"] = self.scores.scale
        self.kl.update(metrics["objective/kl"], len(rollout.samples))  # 5
        return metrics

    def _shaped_scores(self, rollout: Rollout) -> Tensor:
        """[B] scores, scaled, clipped, less the penalty where the response does not end."""
        scores = rollout.scores
        if self.train.reward_scaling:
            self.scores.update(scores)
            scores = scores / self.scores.scale
        if self.train.score_clip is not None:
            scores = scores.clamp(-self.train.score_clip, self.train.score_clip)
        return scores - self.train.missing_eos_penalty * (~rollout.ended).float()

    def _advantages(self, rollout: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, R] advantages, and the returns where a value function learns them."""
        if not self.train.has_value:
            return by_token(self._by_response(rewards.sum(dim=1)), rollout.mask), None
        assert rollout.values is not None, "the rollout has no values"
        settings = self.train.gae
        return gae(rewards, rollout.values, rollout.mask, settings.gamma, settings.lambda_)

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """[B, R] over the whole rollout; after the returns, which are of the plain advantages."""
        if self.train.whitening == "mean_and_std":
            return standardize(advantages, mask)
        return centre(advantages, mask) if self.train.whitening == "mean" else advantages

    def _by_response(self, rewards: Tensor) -> Tensor:
        """[B] advantages of responses from their rewards [B], without a value function."""
        train = self.train
        if train.advantage == "rloo":
            return rloo(rewards, train.samples_per_prompt)
        if train.advantage == "grpo":
            return grpo(rewards, train.samples_per_prompt, train.group_std)
        # The first rollout has no earlier one.
        earlier = train.baseline == "running" and self.rewards.count > 0
        baseline = self.rewards.mean if earlier else float(rewards.mean())
        self.rewards.update(rewards)
        return reinforce(rewards, baseline)
