"""One iteration of policy optimisation after the other: rollout, advantages, update.

The steps are numbered in `Optimiser.step`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from align import losses
from align.advantages import KLController, gae, k3, kl_shaped_rewards
from align.config import PPOTrain
from align.engine import SCHEDULES, Engine, ParameterGroup, Training
from align.policy import uniforms
from align.roles import Roles
from align.rollout import Roller, Rollout
from align.tensors import masked_mean, standardize
from preference_data.batches import pack, split_evenly


class FailedInvariant(RuntimeError):
    """Something that must hold before the first update does not; the message says what."""


@dataclass
class Optimiser:
    """One PPO iteration after the other."""

    engine: Engine
    roles: Roles
    roller: Roller
    train: PPOTrain
    seed: int
    kl: KLController = field(init=False)
    training: Training = field(init=False)
    rollout: Rollout = field(init=False)

    def __post_init__(self) -> None:
        train = self.train
        self.kl = KLController(train.kl.coefficient, train.kl.target, train.kl.horizon)
        self.training = self.engine.training(
            self.roles,
            [
                ParameterGroup(self.roles.parameters_of("policy"), train.learning_rate),
                ParameterGroup(self.roles.parameters_of("value"), train.value_learning_rate),
            ],
            total_steps=train.iterations * train.epochs * train.minibatches,
            schedule=SCHEDULES[train.lr_scheduler_type](),
            max_grad_norm=train.max_grad_norm,
            adam_epsilon=train.adam_epsilon,
        )

    def step(self, iteration: int, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """1 respond, score, reference log-probabilities and values; 2 rewards per token;
        3 advantages; 4 epochs of minibatches; 5 the KL coefficient."""
        clock = [time.monotonic()]
        draws = uniforms(self.seed * 1_000_003 + iteration, len(prompts), self.train.max_new_tokens)
        self.rollout = rollout = self.roller.collect(prompts, draws)  # 1
        clock.append(time.monotonic())
        if iteration == 1:
            self._check_first(rollout)
        scores = self._penalised(rollout)
        rewards = kl_shaped_rewards(  # 2
            scores, rollout.logprobs, rollout.reference, rollout.mask, self.kl.coefficient
        )
        advantages, returns = gae(  # 3
            rewards, rollout.values, rollout.mask, self.train.gae.gamma, self.train.gae.lambda_
        )
        standard = standardize(advantages, rollout.mask)
        update = self._update(iteration, rollout, standard, returns)  # 4
        clock.append(time.monotonic())
        metrics = {
            **_describe(rollout, rewards, returns),
            **update,
            "objective/kl_coefficient": self.kl.coefficient,
            "time/rollout": clock[1] - clock[0],
            "time/update": clock[2] - clock[1],
        }
        self.kl.update(metrics["objective/kl"], len(rollout.samples))  # 5
        return metrics

    def _penalised(self, rollout: Rollout) -> Tensor:
        """[B] scores, clipped, less the penalty where the response does not end."""
        scores = rollout.scores
        if self.train.score_clip is not None:
            scores = scores.clamp(-self.train.score_clip, self.train.score_clip)
        return scores - self.train.missing_eos_penalty * (~rollout.ended).float()

    def _check_first(self, rollout: Rollout) -> None:
        """Before any update the policy is the reference: KL 0 and ratio 1, or something is wrong.

        Raises FailedInvariant.
        """
        drift = float((rollout.logprobs - rollout.reference).abs().max())
        if drift > 1e-2:
            raise FailedInvariant(
                f"before the first update a token's log-probability under the policy differs from "
                f"the reference's by {drift:.3g} nats; sampling and scoring do not see the same "
                f"distribution"
            )
        if not bool(torch.isfinite(rollout.scores).all()):
            raise FailedInvariant("a score of the first rollout is not a number")

    def _update(
        self, iteration: int, rollout: Rollout, advantages: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Epochs x minibatches x parts; losses are sums over tokens / the minibatch's tokens."""
        sums: Counter[str] = Counter()
        norms: list[float] = []
        tokens_seen = 0.0
        for epoch in range(self.train.epochs):
            seed = (self.seed * 1_000_003 + iteration) * 101 + epoch
            order = torch.randperm(
                len(rollout.samples), generator=torch.Generator().manual_seed(seed)
            )
            for minibatch in order.chunk(self.train.minibatches):
                tokens = float(rollout.mask[minibatch].sum())
                parts = self._parts(rollout, minibatch.tolist())
                for number, mine in enumerate(parts, 1):
                    loss, metrics = self._loss(rollout, mine, advantages, returns)
                    self.training.backward(loss / tokens, last=number == len(parts))
                    sums.update(metrics)
                norms.append(self.training.step())
                tokens_seen += tokens
        total: Counter[str] = Counter()
        for part in self.engine.gather([dict(sums)]):
            total.update(part)
        rates = self.training.learning_rates
        return {
            **{name: value / tokens_seen for name, value in total.items()},
            "train/grad_norm": sum(norms) / len(norms),
            "train/lr": rates[0],
            "train/value_lr": rates[1],
        }

    def _parts(self, rollout: Rollout, minibatch: list[int]) -> list[list[int]]:
        """This rank's parts of the minibatch, each for a forward pass; as many on every rank.

        One process, too, sums the gradients of two parts or more: the sum is the one of two
        processes to the last bit then, as long as each has one part.
        """
        groups = [rollout.samples[i].group for i in minibatch]
        ranks = self.engine.world_size
        parts = split_evenly(groups, self.train.tokens_per_forward, max(2, ranks))
        return self.engine.share([[minibatch[i] for i in part] for part in parts])

    def _loss(
        self, rollout: Rollout, mine: list[int], advantages: Tensor, returns: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Summed policy and value loss of some samples, and summed metrics."""
        module: Any = self.training.module
        if not mine:  # the other ranks wait for this one's backward
            return module("nothing", "policy", None) + self.roles.nothing("value"), {}
        batch = pack([rollout.samples[i].group for i in mine]).to(self.engine.device)
        at = (torch.tensor(mine)[batch.sequence.cpu()], batch.offset.cpu())

        def tokens_of(table: Tensor) -> Tensor:
            return table[at].to(self.engine.device)

        logprobs, entropy, values = module(
            "policy_and_values", "policy", batch, temperature=self.train.temperature
        )
        policy = losses.ppo_policy(
            logprobs, tokens_of(rollout.logprobs), tokens_of(advantages), self.train.clip.policy
        )
        value = losses.ppo_value(
            values, tokens_of(rollout.values), tokens_of(returns), self.train.clip.value
        )
        metrics = {
            "policy/loss": policy.loss,
            "value/loss": value.loss,
            "objective/entropy": entropy,
            **policy.metrics,
            **value.metrics,
        }
        return (
            policy.loss.sum() + value.loss.sum(),
            {name: float(values.detach().sum()) for name, values in metrics.items()},
        )


def _describe(rollout: Rollout, rewards: Tensor, returns: Tensor) -> dict[str, float]:
    """Numbers about a rollout; the KL is summed over a response, then averaged."""
    replies = [sample.group.completions[0] for sample in rollout.samples]
    bigrams = [pair for ids in replies for pair in pairwise(ids)]
    errors = torch.where(rollout.mask, returns - rollout.values, 0.0)
    spread = masked_mean(
        (returns - masked_mean(returns, rollout.mask)).square(), rollout.mask
    ).clamp(min=1e-8)
    return {
        "objective/kl": float(rollout.kl.mean()),
        "objective/kl_k3": float(
            (k3(rollout.logprobs, rollout.reference) * rollout.mask).sum(1).mean()
        ),
        "objective/score": float(rollout.scores.mean()),
        "objective/reward": float(rewards.sum(1).mean()),
        "response/length": float(rollout.mask.sum(1).float().mean()),
        "response/eos_rate": float(rollout.ended.float().mean()),
        "response/distinct_2": len(set(bigrams)) / max(1, len(bigrams)),
        "response/top_reply_share": max(Counter(replies).values()) / len(replies),
        "value/explained_variance": float(1 - masked_mean(errors.square(), rollout.mask) / spread),
    }
