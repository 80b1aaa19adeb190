"""What watches a policy while it is optimised: a judge, the doctor, and the best policy so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from align.doctor import Doctor
from align.judges import GOLD, Judge, add_judge, make_judge
from align.rewards import Sampled
from align.roles import Roles
from align.rollout import Rollout
from align.stage import StageContext
from preference_data.records import Prompt

KEPT = "best_policy/"
"""Before the number of each of its tensors in a checkpoint."""


class BestPolicy:
    """A copy on the CPU of the policy whose rollout scored best.

    An iteration's numbers are those of the policy that it began with, before its updates: that one
    is remembered at the beginning and kept if the numbers turn out best. Every rank holds the copy.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.iteration = 0
        """Whose rollout it was; 0 as long as there is none"""
        self.metrics: dict[str, float] = {}
        self._value = -math.inf
        self._parameters = parameters
        self._before: list[Tensor] = []
        self._kept: list[Tensor] = []

    def remember(self) -> None:
        """Copies the policy as it is now."""
        self._before = [p.detach().to("cpu", copy=True) for p in self._parameters]

    def judge(self, iteration: int, value: float, metrics: Mapping[str, float]) -> None:
        """Keeps what was remembered if `value` is the highest so far; NaN never is."""
        if value > self._value:
            self.iteration, self._value, self.metrics = iteration, value, dict(metrics)
            self._kept = self._before

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the kept policy into the parameters, if there is one."""
        for parameter, kept in zip(self._parameters, self._kept, strict=bool(self._kept)):
            parameter.copy_(kept)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps besides `tensors`, as plain JSON; None if there is nothing."""
        if not self.iteration:
            return None
        metrics = {name: v if math.isfinite(v) else None for name, v in self.metrics.items()}
        return {"iteration": self.iteration, "value": self._value, "metrics": metrics}

    def tensors(self) -> dict[str, Tensor]:
        return {f"{KEPT}{number}": tensor for number, tensor in enumerate(self._kept)}

    def load_state(self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `state` and `tensors`, among which there may be others."""
        if state is None:
            return
        self.iteration, self._value = state["iteration"], state["value"]
        self.metrics = {n: math.nan if v is None else v for n, v in state["metrics"].items()}
        self._kept = [tensors[f"{KEPT}{number}"] for number in range(len(self._parameters))]


class Watch:
    """Looks at every iteration of a ppo step, on every rank alike.

    Made before the optimiser, because a judge that is a reward step becomes a role. `begin` and
    `look` go around each iteration; `stopped_at` ends the loop; `end` makes the step's result.
    """

    def __init__(
        self, context: StageContext, roles: Roles, prompts: Mapping[tuple[int, ...], Prompt]
    ) -> None:
        step, main = context.step, context.engine.is_main
        self.stopped_at: int | None = None
        """The iteration with a finding that ends the training"""
        self._roles = roles
        self._prompts = prompts
        self._doctor = Doctor(
            context.name,
            step.train.max_new_tokens,
            context.folder if main else None,
            speaks=main,
        )
        self._judge = _judge(context, roles)
        self._best = BestPolicy(roles.parameters_of("policy")) if step.train.stop_when_ill else None

    def begin(self) -> None:
        """Before an iteration."""
        if self._best is not None:
            self._best.remember()

    def look(
        self, iteration: int, rollout: Rollout, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The iteration's metrics with the judge's mean score and the error of the KL."""
        found = dict(metrics)
        if len(rollout.samples) > 1:
            found["objective/kl_error"] = float(rollout.kl.std()) / math.sqrt(len(rollout.samples))
        if self._judge is not None:
            scores = self._judge(self._answers(rollout))
            found["judge/score"] = math.fsum(scores) / len(scores)
        self._doctor.log(iteration, found)
        if self._best is not None:
            value = found.get("judge/score", found["objective/reward"])
            self._best.judge(iteration, value, found)
            if self._doctor.grave is not None:
                self.stopped_at = iteration
        return found

    def end(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The step's result: `metrics` are those of the last iteration.

        After a stop the best policy is put back, and the result is that of its iteration.
        """
        found = dict(metrics)
        if self._best is not None and self.stopped_at is not None:
            if self._best.iteration:
                self._best.restore()
                found = {**self._best.metrics, "ppo/best_iteration": float(self._best.iteration)}
            found["ppo/stopped_at"] = float(self.stopped_at)
        return {**found, "ppo/findings": float(len(self._doctor.findings))}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides `tensors`, as plain JSON; there is none after a stop."""
        return {
            "doctor": self._doctor.state(),
            "best": None if self._best is None else self._best.state(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the CPU; empty unless the best policy is kept."""
        return {} if self._best is None else self._best.tensors()

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` and `tensors` gave."""
        self._doctor.load_state(state["doctor"])
        if self._best is not None:
            self._best.load_state(state["best"], tensors)

    def _answers(self, rollout: Rollout) -> list[Sampled]:
        return [
            Sampled(
                self._prompts[sample.group.prompt],
                self._roles.renderer.decode(sample.group.completions[0]),
                sample.group,
            )
            for sample in rollout.samples
        ]


def _judge(context: StageContext, roles: Roles) -> Judge | None:
    judge = context.step.judge
    if judge is None:
        return None
    if isinstance(judge, str) and judge != GOLD:
        add_judge(context, roles, judge, "judge")
        roles.to(context.engine.device).eval()
    tokens = context.step.train.tokens_per_forward
    return make_judge(context, roles, judge, "judge", tokens, "judge")
