"""The members of an ensemble of reward models, trained one after the other on one base.

Each has first weights, an order of rows and, under `resample: bootstrap`, rows of its own, and is
saved below `members/` like a reward model of its own. All of them are one training to the step's
checkpoints: those of a member are counted on from the steps of the members before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.checkpoints import Checkpoint, Checkpoints
from align.ensembles import member_role, member_scores, normalised
from align.progress import progress
from align.rankings import PairIndex, Ranked, pair_index, steps_of_rows
from align.roles import Roles, load_head
from align.stage import StageContext
from align.tracking import Tracker
from align.training import Training
from reward_models.folders import weights_folder
from reward_models.scalar_head import Scoring

FOLDER = "members"
ROLE = "reward"
"""The role that is trained, reported on and saved: of an ensemble, the mean of its members."""

Train = Callable[[StageContext, str, Sequence[Ranked]], None]
"""Makes a role and trains it on rows."""
Save = Callable[[str, Path], Scoring]
"""Saves a role below a folder, proves it, and says how its scores are to be read."""


@dataclass(frozen=True)
class Member:
    """One of the models, before it is trained."""

    number: int
    """from 1"""
    seed: int
    """Of its first weights, the order of its rows, and which they are"""
    rows: Sequence[Ranked]
    first: int
    """Optimiser steps of the members before it"""
    end: int
    """and with its own"""

    @property
    def role(self) -> str:
        return member_role(ROLE, self.number)

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.number}"


def members_of(context: StageContext, rows: Sequence[Ranked]) -> list[Member]:
    """The members of the step's ensemble, for judgements to train on.

    The first has the step's own seed: under `resample: seeds` it is the model of a step without an
    ensemble.
    """
    ensemble = context.step.ensemble
    found: list[Member] = []
    first = 0
    for number in range(1, ensemble.members + 1):
        seed = context.seed if number == 1 else context.seed * 1_000_003 + number
        own = bootstrapped(rows, seed) if ensemble.resample == "bootstrap" else rows
        end = first + len(steps_of_rows(len(own), context.step.train, seed))
        found.append(Member(number, seed, own, first, end))
        first = end
    return found


def bootstrapped(rows: Sequence[Ranked], seed: int) -> list[Ranked]:
    """The judgements of as many prompts as there are, drawn with replacement: those of one prompt
    are not independent, and stay together."""
    by_prompt: dict[str, list[Ranked]] = {}
    for row in rows:
        by_prompt.setdefault(row.judgement.prompt.id, []).append(row)
    prompts = list(by_prompt.values())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(prompts), (len(prompts),), generator=generator).tolist()
    return [row for place in drawn for row in prompts[place]]


def train_members(
    context: StageContext, roles: Roles, rows: Sequence[Ranked], train: Train, save: Save
) -> list[Scoring]:
    """Trains and saves each member; returns how the scores of each are to be read.

    Those that an interrupted run had finished are read back, and the one it was at goes on.
    """
    members = members_of(context, rows)
    done = context.engine.checkpoints.number()
    scorings: list[Scoring] = []
    for member in members:
        if member.number < len(members) and done >= member.end:
            scorings.append(_read_back(context, roles, member))
            continue
        roles.add_mean(ROLE, [member.role])
        of_all = f"member {member.number} of {len(members)}"
        part = progress(of_all, within=(member.first, members[-1].end))
        with part, _as_if_alone(context, member) as alone:
            train(alone, member.role, member.rows)
        roles.freeze(member.role)
        scorings.append(save(member.role, context.folder / member.folder))
        context.engine.barrier()
    roles.add_mean(ROLE, [member.role for member in members])
    return scorings


def _read_back(context: StageContext, roles: Roles, member: Member) -> Scoring:
    weights = weights_folder(context.folder / member.folder)
    head = load_head(weights).to(context.engine.device)
    roles.add(member.role, weights=weights, head=head)
    return Scoring.load(weights)


def disagreement(
    context: StageContext, roles: Roles, rows: Sequence[Ranked], scorings: Sequence[Scoring]
) -> dict[str, float]:
    """Each member's accuracy on the pairs of `rows`, if there are any, and the mean (population)
    standard deviation of the members' normalised scores of a completion."""
    engine = context.engine
    mine = engine.share(rows)
    groups = [row.group for row in mine]
    scores = member_scores(roles, ROLE, groups, engine)
    by_row = engine.gather(_by_row(mine, scores))
    raw = np.concatenate(by_row, axis=1)
    spread = np.std(normalised(raw.tolist(), scorings), axis=0)
    found = {
        f"accuracy/member_{number}": accuracy
        for number, accuracy in enumerate(_accuracies(raw, pair_index(rows)), 1)
    }
    return {**found, "score_std": float(spread.mean())}


def _accuracies(raw: Any, pairs: PairIndex) -> list[float]:
    """[M] of scores [M, N] on weighted pairs; a tie is half right."""
    if not len(pairs.weight):
        return []
    margins = raw[:, pairs.better.long().numpy()] - raw[:, pairs.worse.long().numpy()]
    hits = np.where(margins == 0, 0.5, margins > 0)
    return np.average(hits, axis=1, weights=pairs.weight.numpy()).tolist()


def _by_row(rows: Sequence[Ranked], scores: Sequence[Sequence[float]]) -> list[Any]:
    """[M, K] scores of each row's completions."""
    ends = np.cumsum([len(row.group.completions) for row in rows])
    return np.split(np.array(scores), ends[:-1], axis=1) if rows else []


# --- one member at a time -------------------------------------------------------------------------


@contextlib.contextmanager
def _as_if_alone(context: StageContext, member: Member) -> Iterator[StageContext]:
    """The context of a step that trained this member alone."""
    engine, checkpoints = context.engine, context.engine.checkpoints
    engine.checkpoints = MemberCheckpoints(checkpoints, member.first)
    try:
        yield replace(context, seed=member.seed, tracker=MemberTracker(context.tracker, member))
    finally:
        engine.checkpoints = checkpoints


class MemberCheckpoints(Checkpoints):
    """The step's checkpoints as one member sees them, whose first step comes after `first` others.

    One is written when the member begins: what the members before it have learnt is on the disk.
    """

    def __init__(self, step: Checkpoints, first: int):
        self._step, self._first = step, first

    def number(self) -> int:
        return max(0, self._step.number() - self._first)

    def restore(self, training: Training) -> Checkpoint:
        if self._step.number() >= max(1, self._first):
            found = self._step.restore(training)
            return replace(found, number=max(0, found.number - self._first))
        if self._first:
            self._step.save(self._first, training, {})
        return Checkpoint()

    def save(
        self,
        number: int,
        training: Training,
        state: Mapping[str, Any],
        *,
        mine: Any = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._step.save(self._first + number, training, state, mine=mine, tensors=tensors)


@dataclass(frozen=True)
class MemberTracker:
    """The step's tracker, whose steps one member counts on from those before it."""

    tracker: Tracker
    member: Member

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        named = {**metrics, "train/member": float(self.member.number)}
        self.tracker.log(self.member.first + step, named)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tracker.table(name, rows)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Nothing: the step ends after its last member."""
