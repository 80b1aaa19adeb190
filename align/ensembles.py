"""A reward step on the base of the roles: its one model, or the members of its ensemble.

A member is a role of its own, an adapter and a head, and all of them read a batch that is laid out
once. Members that disagree about an answer have not seen its like (Coste et al. 2024,
arXiv:2310.02743).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from align.engine import Engine
from align.progress import tracked
from align.roles import Roles, load_head
from align.stage import StageContext
from preference_data.batches import Group, distinct, join_prompts, pack, split_by_tokens
from reward_models.scalar_head import Scoring


def reward_weights(context: StageContext, step: str) -> tuple[Path, ...]:
    """The `adapter/` or `model/` of each member of a reward step, or of its one model."""
    if members := context.inputs[step].members:
        return members
    weights = context.weights_of(step)
    assert weights is not None
    return (weights,)


def reward_scorings(context: StageContext, step: str, renderer: str) -> tuple[Scoring, ...]:
    """How the scores of each member are read.

    Raises ValueError if they were trained with another tokenizer or chat template than that of the
    fingerprint `renderer`.
    """
    found = tuple(map(Scoring.load, reward_weights(context, step)))
    for scoring in found:
        scoring.check(renderer, f"the reward model {step!r}")
    return found


def add_reward_step(context: StageContext, roles: Roles, step: str, role: str) -> None:
    """The reward model of `step` as a frozen role; that of an ensemble is the mean of its members,
    which are roles as well."""
    weights = reward_weights(context, step)
    if len(weights) == 1:
        roles.add(role, weights=weights[0], head=load_head(weights[0]))
        return
    names = [member_role(role, number) for number in range(1, len(weights) + 1)]
    for name, folder in zip(names, weights, strict=True):
        roles.add(name, weights=folder, head=load_head(folder))
    roles.add_mean(role, names)


def member_role(role: str, number: int) -> str:
    """What the member of this number (from 1) is called among the roles, unlike any usual step."""
    return f"member_{number}_of_{role}"


@torch.no_grad()
def member_scores(
    roles: Roles, role: str, groups: Sequence[Group], engine: Engine, tokens: int | None = None
) -> list[list[float]]:
    """[M][B] raw scores that each of the role's members (or the role itself, M = 1) gives every
    sequence of `groups`, in forwards of at most `tokens` (None: as many as suit the device). A
    batch is laid out once for all."""
    scores: list[list[float]] = [[] for _ in roles.members(role)]
    single, places = distinct(groups)
    joined = join_prompts(single)
    parts = split_by_tokens(joined, engine.tokens_per_forward(tokens))
    for part in tracked(list(parts), "scoring", "batches"):
        batch = pack([joined[i] for i in part]).to(engine.device)
        rows = roles.member_scores(role, batch).float().cpu().tolist()
        for member, row in zip(scores, rows, strict=True):
            member += row
    return [[member[place] for place in places] for member in scores]


def normalised(scores: Sequence[Sequence[float]], scorings: Sequence[Scoring]) -> list[list[float]]:
    """[M][B] (raw - mean) / std, by each member's own mean and spread."""
    return [
        [(score - scoring.mean) / scoring.std for score in row]
        for row, scoring in zip(scores, scorings, strict=True)
    ]
