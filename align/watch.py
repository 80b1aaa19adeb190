"""What watches a policy while it is optimised: a judge, the doctor, and the best policy so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.doctor import LASTING, Doctor
from align.judges import GOLD, Judge, add_judge, make_judge
from align.rewards import Sampled
from align.roles import Roles
from align.rollout import Rollout
from align.stage import StageContext
from align.tracking.protocol import send_alert
from preference_data.records import Prompt

KEPT = "best_policy/"
"""Before the iteration and the number of each of their tensors in a checkpoint."""


@dataclass(frozen=True)
class Judged:
    """A policy, and the iteration whose rollout it made."""

    iteration: int
    value: float
    metrics: dict[str, float]
    weights: list[Tensor]


class BestPolicy:
    """A copy on the CPU of the policy whose rollout scored best.

    An iteration's numbers are those of the policy that it began with, before its updates: that one
    is remembered at the beginning and kept if the numbers turn out best. Every rank holds the copy.

    The newest `doubtful` policies are not chosen from unless there is no other. Where the value is
    the reward itself, it is highest just when the policy falls ill, and an illness is only seen
    when it has lasted.
    """

    def __init__(self, parameters: list[nn.Parameter], doubtful: int = 0) -> None:
        self._parameters = parameters
        self._doubtful = doubtful
        self._before: list[Tensor] = []
        self._best: Judged | None = None
        self._newest: list[Judged] = []
        """The doubtful ones, the oldest first"""

    @property
    def chosen(self) -> Judged | None:
        """The best, or the oldest of the doubtful ones where there is none yet."""
        return self._best or next(iter(self._newest), None)

    def remember(self) -> None:
        """Copies the policy as it is now."""
        self._before = [p.detach().to("cpu", copy=True) for p in self._parameters]

    def judge(self, iteration: int, value: float, metrics: Mapping[str, float]) -> None:
        """Keeps what was remembered if `value` is the highest so far; one that is not finite never
        is."""
        if not math.isfinite(value):
            return
        self._newest.append(Judged(iteration, value, dict(metrics), self._before))
        if len(self._newest) > self._doubtful:
            found = self._newest.pop(0)
            if self._best is None or found.value > self._best.value:
                self._best = found

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the chosen policy into the parameters, if there is one."""
        if self.chosen is not None:
            for parameter, kept in zip(self._parameters, self.chosen.weights, strict=True):
                parameter.copy_(kept)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides `tensors`, as plain JSON."""
        best = None if self._best is None else _plain(self._best)
        return {"best": best, "newest": [_plain(one) for one in self._newest]}

    def tensors(self) -> dict[str, Tensor]:
        held = self._newest if self._best is None else [self._best, *self._newest]
        return {
            f"{KEPT}{one.iteration}/{number}": tensor
            for one in held
            for number, tensor in enumerate(one.weights)
        }

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `state` and `tensors`, among which there may be others."""

        def judged(plain: Mapping[str, Any]) -> Judged:
            metrics = {n: math.nan if v is None else v for n, v in plain["metrics"].items()}
            names = (f"{KEPT}{plain['iteration']}/{n}" for n in range(len(self._parameters)))
            weights = [tensors[name] for name in names]
            return Judged(plain["iteration"], plain["value"], metrics, weights)

        self._best = None if state["best"] is None else judged(state["best"])
        self._newest = [judged(plain) for plain in state["newest"]]


def _plain(one: Judged) -> dict[str, Any]:
    """All but the weights, as JSON; numbers that are not finite are None."""
    metrics = {name: v if math.isfinite(v) else None for name, v in one.metrics.items()}
    return {"iteration": one.iteration, "value": one.value, "metrics": metrics}


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
        self._tracker = context.tracker
        self._doctor = Doctor(
            context.name,
            step.train.max_new_tokens,
            context.folder if main else None,
            speaks=main,
        )
        self._judge = _judge(context, roles)
        self._best = None
        if step.train.stop_when_ill:
            doubtful = LASTING if self._judge is None else 0
            self._best = BestPolicy(roles.parameters_of("policy"), doubtful)

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
        known = len(self._doctor.findings)
        self._doctor.log(iteration, found)
        for finding in self._doctor.findings[known:]:
            level = "error" if finding.severity == "stop" else "warning"
            text = f"iteration {finding.step}: {finding.text}"
            send_alert(self._tracker, finding.name.replace("_", " "), text, level)
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
            best = self._best.chosen
            if best is not None:
                self._best.restore()
                found = {**best.metrics, "ppo/best_iteration": float(best.iteration)}
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
    return make_judge(context, roles, judge, "judge", "judge", tokens)
