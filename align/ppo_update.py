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
from align.engine import Engine
from align.ppo_invariants import check_ratio
from align.progress import tracked
from align.ptx import Demonstrations
from align.roles import Roles
from align.rollout import Rollout
from align.training import NonFiniteError, Training
from preference_data.batches import Group, PackedBatch, pack, split_evenly


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


NO_DRIFT = (0.0, 0.0)
NO_PART = Part({}, NO_DRIFT)


class Loss(NamedTuple):
    """A loss of some samples with a backward pass of its own."""

    summed: Tensor
    """[] over their tokens"""
    part: Part
    last: bool = True
    """of these samples"""


class Some(NamedTuple):
    """Some samples of a rollout as a batch; N response tokens."""

    batch: PackedBatch
    at: tuple[Tensor, Tensor]
    """[N] the rows and columns of their tokens in the rollout's tables"""

    @classmethod
    def of(cls, lesson: Lesson, rows: Sequence[int], device: torch.device) -> Some:
        batch = pack([lesson.rollout.samples[i].group for i in rows]).to(device)
        return cls(batch, (torch.tensor(rows)[batch.sequence.cpu()], batch.offset.cpu()))

    def tokens_of(self, table: Tensor) -> Tensor:
        """[N] out of [B, R]."""
        return table[self.at].to(self.batch.targets.device)


def sums_of(name: str, loss: losses.LossOutput) -> dict[str, float]:
    """The loss, as `name`, and its metrics, each summed over tokens."""
    by_token = {name: loss.loss, **loss.metrics}
    return {name: float(values.detach().sum()) for name, values in by_token.items()}


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
        steps = tracked(
            self._minibatches(lesson), "update", "steps", total=self.train.steps_per_iteration()
        )
        for minibatch in steps:
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
        self.training.skip(self.train.steps_per_iteration() - len(norms))
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
            for loss in self._losses(lesson, mine):
                last = loss.last and number == len(parts)
                try:
                    self.training.backward(loss.summed / tokens, last)
                except NonFiniteError as error:
                    raise NonFiniteError(
                        f"{error}, in iteration {lesson.iteration}, rows {mine}"
                    ) from None
                found.append(loss.part)
        return found

    def _parts(self, groups: Sequence[Group]) -> list[list[int]]:
        """This rank's parts of an optimiser step, each for a forward pass; as many on every rank.

        One process, too, sums the gradients of two parts or more: the sum is the one of two
        processes to the last bit then, as long as each has one part.
        """
        tokens = self.engine.tokens_per_forward(self.train.tokens_per_forward)
        return self.engine.share(split_evenly(groups, tokens, max(2, self.engine.world_size)))

    def _losses(self, lesson: Lesson, mine: list[int]) -> Iterator[Loss]:
        """Losses of some samples, as many on every rank: of a value function with weights of its
        own, then of the policy. The activations of one are gone before those of the next are
        made."""
        if not mine:  # the other ranks wait for this one's backward
            if self._value_apart:
                yield Loss(self._module("idle", "value", None), NO_PART, last=False)
            yield Loss(self._module("idle", "policy", None) + self._no_value(), NO_PART)
            return
        some = Some.of(lesson, mine, self.engine.device)
        if self._value_apart:
            values = self._module("values", "value", some.batch)
            value = self._value_loss(lesson, some, values)
            yield Loss(value.loss.sum(), Part(sums_of("value/loss", value), NO_DRIFT), last=False)
        yield self._policy_loss(lesson, some)

    def _policy_loss(self, lesson: Lesson, some: Some) -> Loss:
        """Of the policy, and of a value head on its trunk."""
        train = self.train
        logprobs, entropy, values = self._module(
            "policy_and_values", "policy", some.batch, temperature=train.temperature,
            entropy_gradient=train.entropy_coefficient > 0, value_alone=lesson.value_alone,
            own_values=False,
        )  # fmt: skip
        old = some.tokens_of(lesson.rollout.logprobs)
        advantages = some.tokens_of(lesson.advantages)
        policy = losses.ppo_policy(logprobs, old, advantages, train.clip.policy)
        sums = sums_of("policy/loss", policy)
        sums["objective/entropy"] = float(entropy.detach().sum())
        loss = policy.loss.sum()
        if lesson.kl_coefficient > 0:
            reference = some.tokens_of(lesson.rollout.reference)
            penalty = losses.kl_penalty(logprobs, old, reference)
            loss = loss + lesson.kl_coefficient * penalty.loss.sum()
            sums |= sums_of("policy/kl_loss", penalty)
        if train.entropy_coefficient > 0:
            loss = loss - train.entropy_coefficient * entropy.sum()
        if lesson.value_alone:
            loss = 0.0 * loss  # so that every rank has a gradient of every parameter
        if values is not None:
            value = self._value_loss(lesson, some, values)
            loss = loss + train.value_coefficient * value.loss.sum()
            sums |= sums_of("value/loss", value)
        drift = (logprobs.detach() - old).abs()
        return Loss(loss + self._no_value(), Part(sums, (float(drift.sum()), float(drift.max()))))

    def _value_loss(self, lesson: Lesson, some: Some, values: Tensor) -> losses.LossOutput:
        assert lesson.returns is not None and lesson.rollout.values is not None
        old, returns = some.tokens_of(lesson.rollout.values), some.tokens_of(lesson.returns)
        return losses.ppo_value(values, old, returns, self.train.clip.value)

    @property
    def _module(self) -> Any:
        return self.training.module

    @property
    def _value_apart(self) -> bool:
        """Whether the value has weights, and with them a learning rate, of its own."""
        return self.train.has_value and self.train.value == "adapter"

    def _no_value(self) -> Tensor | float:
        """0, under a sharded optimiser with a gradient of 0 for a value function of its own: its
        last backward pass must reach every parameter."""
        wanted = self.training.last_reaches_all and self._value_apart
        return self.roles.nothing("value") if wanted else 0.0

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
                loss = self._module("idle", "policy", None, values=False)
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
