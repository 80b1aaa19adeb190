"""A save is proved by reloading it: fresh objects from the files must compute the same."""

from __future__ import annotations

from pathlib import Path

import torch

from align.base import load_base
from align.roles import Roles, load_head
from align.stage import StageContext
from preference_data.batches import Group, pack
from preference_data.rendering import Rendered


class UnprovedSave(RuntimeError):
    """Files that do not compute what was in memory; the message says by how much."""


def prove_policy(
    context: StageContext, roles: Roles, role: str, saved: Path, row: Rendered
) -> None:
    """Compares log-probabilities of one row. Raises UnprovedSave if they differ by over 1e-4."""
    again = _reload(context, roles, saved)
    batch = pack([Group(row.prompt, (row.completion,))]).to(context.engine.device)
    with torch.no_grad():
        difference = again.logprobs("saved", batch).logprobs - roles.logprobs(role, batch).logprobs
    _judge(saved, "log-probabilities", float(difference.abs().max()))


def prove_scores(context: StageContext, roles: Roles, role: str, saved: Path, group: Group) -> None:
    """Compares the scores of one group. Raises UnprovedSave if they differ by over 1e-4."""
    again = _reload(context, roles, saved, scores=True)
    batch = pack([group]).to(context.engine.device)
    with torch.no_grad():
        difference = again.scores("saved", batch) - roles.scores(role, batch)
    _judge(saved, "scores", float(difference.abs().max()))


def _reload(context: StageContext, roles: Roles, saved: Path, scores: bool = False) -> Roles:
    model = load_base(roles.base_path, context.config.base, context.engine.device)
    fresh = Roles(model, roles.renderer, context.config.lora, roles.base_path)
    fresh.add("saved", weights=saved, head=load_head(saved) if scores else None)
    return fresh.to(context.engine.device).eval()


def _judge(saved: Path, what: str, difference: float) -> None:
    if not difference <= 1e-4:
        raise UnprovedSave(
            f"{saved}: {what} differ by {difference:.2g} after reloading; the save is not kept."
        )
