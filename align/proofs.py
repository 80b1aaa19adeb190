"""A save is proved by reloading it: fresh objects from the files must compute the same."""

from __future__ import annotations

from pathlib import Path

import torch

from align.base import DTYPES, load_base
from align.roles import Roles
from align.stage import StageContext
from preference_data.batches import Group, pack
from preference_data.rendering import Rendered
from reward_models.reward_model import RewardModel


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
    """Compares the scores of one group with those of the model as users load it, with plain
    transformers and peft and with the tokenizer that lies beside it.

    Raises UnprovedSave if they differ by over 1e-4, or the head is not in the files, is empty, or
    has an adapter on it.
    """
    batch = pack([group]).to(context.engine.device)
    with torch.no_grad():
        difference = _plain(context, roles, saved).batch_scores(batch) - roles.scores(role, batch)
    _judge(saved, "scores", float(difference.abs().max()))


def _reload(context: StageContext, roles: Roles, saved: Path) -> Roles:
    model = load_base(roles.base_path, context.config.base, context.engine.device)
    fresh = Roles(model, roles.renderer, context.config.lora, roles.base_path)
    fresh.add("saved", weights=saved)
    return fresh.to(context.engine.device).eval()


def _plain(context: StageContext, roles: Roles, saved: Path) -> RewardModel:
    base = context.config.base
    try:
        return RewardModel.from_pretrained(
            saved,
            base=roles.base_path,
            base_revision=base.revision if roles.base_path == base.model else None,
            device=context.engine.device,
            dtype=DTYPES[base.dtype],
            attention="sdpa" if base.attention == "auto" else base.attention,
        )
    except (OSError, ValueError) as error:
        raise UnprovedSave(f"{saved} cannot be loaded again: {error} The save is not kept.") from (
            error
        )


def _judge(saved: Path, what: str, difference: float) -> None:
    if not difference <= 1e-4:
        raise UnprovedSave(
            f"{saved}: {what} differ by {difference:.2g} after reloading; the save is not kept."
        )
