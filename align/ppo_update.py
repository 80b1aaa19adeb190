"""The gradient steps on one rollout: epochs x minibatches x parts, on any number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align import losses
from align.config import PPOTrain
from align.engine import Engine, NonFiniteError, Training
from align.ppo_invariants import check_ratio
from align.ptx import Demonstrations
from align.roles import Roles
from align.rollout import Rollout
from preference_data.batches import Group, pack, split_evenly


class Lesson(NamedTuple):
    """What an iteration learns from. Axes: B sequences, R response tokens."""

    iteration: int
    rollout: Rollout
    advantages: Tensor
    """[B, R]"""
    returns: Tensor | None
    """[B, R] what the value function is to predict; None without one"""
    kl_coefficient: float
    """of the KL in the loss; 0 where it is in the reward"""
    value_alone: bool
    """the policy stays as it is"""


class Part(NamedTuple):
    """What some samples' forward pass found."""

    sums: dict[str, float]
    """of each metric over their tokens"""
    drift: tuple[float, float]
    """sum and largest of |log pi - log old| over their tokens, nats"""


@dataclass(frozen=True)
class Updater:
    """Takes the optimiser steps of an iteration."""

    engine: Engine
    roles: Roles
    train: PPOTrain
    training: Training
    seed: int
    demonstrations: Demonstrations | None

    def run(self, lesson: Lesson) -> dict[str, float]:
        """Epochs x minibatches x parts; losses are sums over tokens / the minibatch's tokens.

        Returns means over the tokens that were seen. Raises FailedInvariant if the very first
        ratio is not 1, NonFiniteError for a loss or gradient that is not a number.
        """
        sums: Counter[str] = Counter()
        norms: list[float] = []
        tokens_seen = mismatch = imitation = 0.0
        for minibatch in self._minibatches(lesson):
            tokens = float(lesson.rollout.mask[minibatch].sum())
            imitation += self._imitate(lesson)
            parts = self._backward(lesson, minibatch.tolist(), tokens)
            if not norms:  # nothing was updated yet: any difference is the sampler's
                mismatch = self._mismatch(lesson, parts, tokens)
            norms.append(self.training.step())
            tokens_seen += tokens
            for part in parts:
                sums.update(part.sums)
            if self._too_far(parts, tokens):
                break
        total: Counter[str] = Counter()
        for part in self.engine.gather([dict(sums)]):
            total.update(part)
        found = {name: value / tokens_seen for name, value in total.items()}
        if self.demonstrations is not None and not lesson.value_alone:
            found["ptx/loss"] = sum(self.engine.gather([imitation])) / len(norms)
        rates = self.training.learning_rates
        return {
            **found,
            "policy/sampler_mismatch": mismatch,
            "policy/minibatches": float(len(norms)),
            "train/grad_norm": sum(norms) / len(norms),
            **dict(zip(("train/lr", "train/value_lr"), rates, strict=False)),
        }

    def _minibatches(self, lesson: Lesson) -> Iterator[Tensor]:
        """Rows of each optimiser step: every epoch in a fresh order."""
        for epoch in range(self.train.epochs):
            seed = (self.seed * 1_000_003 + lesson.iteration) * 101 + epoch
            order = torch.randperm(
                len(lesson.rollout.samples), generator=torch.Generator().manual_seed(seed)
            )
            yield from order.tensor_split(self.train.minibatches)

    def _backward(self, lesson: Lesson, minibatch: list[int], tokens: float) -> list[Part]:
        """Gradients of the losses of an optimiser step; this rank's parts of it."""
        found: list[Part] = []
        parts = self._parts([lesson.rollout.samples[i].group for i in minibatch])
        for number, part in enumerate(parts, 1):
            mine = [minibatch[i] for i in part]
            loss, metrics = self._loss(lesson, mine)
            try:
                self.training.backward(loss / tokens, last=number == len(parts))
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{error}, in iteration {lesson.iteration}, rows {mine}"
                ) from None
            found.append(metrics)
        return found

    def _parts(self, groups: Sequence[Group]) -> list[list[int]]:
        """This rank's parts of an optimiser step, each for a forward pass; as many on every rank.

        One process, too, sums the gradients of two parts or more: the sum is the one of two
        processes to the last bit then, as long as each has one part.
        """
        ranks = self.engine.world_size
        return self.engine.share(split_evenly(groups, self.train.tokens_per_forward, max(2, ranks)))

    def _loss(self, lesson: Lesson, mine: list[int]) -> tuple[Tensor, Part]:
        """Summed loss of some samples of the policy and, if there is one, the value function."""
        train, rollout, module = self.train, lesson.rollout, self._module
        if not mine:  # the other ranks wait for this one's backward
            return self._nothing(), Part({}, (0.0, 0.0))
        batch = pack([rollout.samples[i].group for i in mine]).to(self.engine.device)
        at = (torch.tensor(mine)[batch.sequence.cpu()], batch.offset.cpu())

        def tokens_of(table: Tensor) -> Tensor:
            return table[at].to(self.engine.device)

        logprobs, entropy, values = module(
            "policy_and_values", "policy", batch, temperature=train.temperature,
            entropy_gradient=train.entropy_coefficient > 0, value_alone=lesson.value_alone,
        )  # fmt: skip
        old = tokens_of(rollout.logprobs)
        policy = losses.ppo_policy(logprobs, old, tokens_of(lesson.advantages), train.clip.policy)
        metrics = {"policy/loss": policy.loss, "objective/entropy": entropy, **policy.metrics}
        loss = policy.loss.sum()
        if lesson.kl_coefficient > 0:
            penalty = losses.kl_penalty(logprobs, old, tokens_of(rollout.reference))
            loss = loss + lesson.kl_coefficient * penalty.loss.sum()
            metrics |= penalty.metrics
        if train.entropy_coefficient > 0:
            loss = loss - train.entropy_coefficient * entropy.sum()
        if lesson.value_alone:
            loss = 0.0 * loss  # so that every rank has a gradient of every parameter
        if lesson.returns is not None and rollout.values is not None:
            value = losses.ppo_value(
                values, tokens_of(rollout.values), tokens_of(lesson.returns), train.clip.value
            )
            loss = loss + self._value_weight * value.loss.sum()
            metrics |= {"value/loss": value.loss, **value.metrics}
        drift = (logprobs.detach() - old).abs()
        sums = {name: float(by_token.detach().sum()) for name, by_token in metrics.items()}
        return loss, Part(sums, (float(drift.sum()), float(drift.max())))

    @property
    def _module(self) -> Any:
        return self.training.module

    @property
    def _value_weight(self) -> float:
        """1 where the value's weights are its own: they have a learning rate of their own, too."""
        return self.train.value_coefficient if self.train.value == "trunk" else 1.0

    def _nothing(self) -> Tensor:
        nothing = self._module("nothing", "policy", None)
        return nothing + self.roles.nothing("value") if self.roles.has("value") else nothing

    def _imitate(self, lesson: Lesson) -> float:
        """Gradients of `coefficient` times the demonstrations' negative log-likelihood, a mean over
        the step's completion tokens (Ouyang et al. 2022, eq. 2); this rank's share of the mean."""
        if self.demonstrations is None or lesson.value_alone:
            return 0.0
        groups = self.demonstrations.of_step(self.training.steps_done)
        tokens = sum(len(group.completions[0]) for group in groups)
        loss_seen = 0.0
        for part in self._parts(groups):
            if part:
                batch = pack([groups[i] for i in part]).to(self.engine.device)
                loss = -self._module("logprobs", "policy", batch).logprobs.sum() / tokens
            else:
                loss = self._module("nothing", "policy", None)
            coefficient = self.demonstrations.settings.coefficient
            self.training.backward(coefficient * loss, last=False)
            loss_seen += float(loss.detach())
        return loss_seen

    def _mismatch(self, lesson: Lesson, parts: Sequence[Part], tokens: float) -> float:
        """Mean |log ratio| of the first minibatch over all ranks. Raises FailedInvariant if it is
        the first of all and the ratio not 1."""
        found = self.engine.gather([part.drift for part in parts])
        mean = sum(summed for summed, _ in found) / tokens
        if lesson.iteration == 1:
            check_ratio(max(largest for _, largest in found), mean, self.roles)
        return mean

    def _too_far(self, parts: Sequence[Part], tokens: float) -> bool:
        """Whether the minibatch was further from the sampling policy than it may be; the same on
        every rank."""
        limit = self.train.max_approx_kl
        if limit is None:
            return False
        mine = sum(part.sums.get("policy/approx_kl", 0.0) for part in parts)
        return sum(self.engine.gather([mine])) / tokens > limit
