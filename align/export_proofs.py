"""What an exported folder computes, loaded as a stranger loads it, against what was trained.

A policy is compared by its logits, a reward model by its scores, both in float32 and on ids from
the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.base import load_base, load_renderer
from align.config import Base, Lora
from align.proofs import UnprovedSave
from align.roles import Roles, load_head
from preference_data.batches import Group, pack
from reward_models import RewardModel
from reward_models.folders import SCORING_FILE
from reward_models.loading import without_warnings

TOLERANCE = 1e-4
"""Largest change of a logit or a score, against the largest one where that is over 1."""
CPU = torch.device("cpu")


def is_reward_model(weights: Path) -> bool:
    """Whether an `adapter/` or `model/` folder holds a reward model rather than a policy."""
    return (weights / SCORING_FILE).is_file()


def probe(weights: Path, base: Base) -> Tensor:
    """[4, 16] ids from the whole vocabulary of the model in `weights`.

    None is the padding token: transformers would look for the end of a sequence before it.
    """
    from transformers import AutoConfig

    whole = weights.name == "model"
    where, revision = (str(weights), None) if whole else (base.model, base.revision)
    config = AutoConfig.from_pretrained(where, revision=revision).get_text_config()
    ids = torch.linspace(0, config.vocab_size - 1, 64).long().view(4, 16)
    padding = {config.pad_token_id, load_renderer(str(weights)).tokenizer.pad_token_id} - {None}
    for _ in padding:
        for one in padding:
            ids[ids == one] = (one + 1) % config.vocab_size
    return ids


def trained_outputs(weights: Path, base: Base, rows: Tensor) -> Tensor:
    """What the step's own files compute, loaded as the stages load them: [4, 16, V] or [4, 1]."""
    scorer = is_reward_model(weights)
    if weights.name == "model":
        if scorer:
            return _scores(RewardModel.from_pretrained(weights), rows)[0]
        return plain_outputs(load_base(str(weights), Base(), CPU), rows)
    # A GPU's machine need not be able to compile for its CPU.
    model = load_base(base.model, base.model_copy(update={"compile": False}), CPU)
    roles = Roles(model, load_renderer(str(weights)), Lora(), base.model).eval()
    roles.add("exported", weights=weights, head=load_head(weights) if scorer else None)
    if scorer:
        with torch.no_grad():
            return roles.scores("exported", pack(_groups(rows)))[:, None]
    with roles.active("exported") as active:
        return plain_outputs(active, rows)


def load_plain(weights: Path, base: Base, scorer: bool) -> Any:
    """A folder of weights with plain transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
    if not (weights / "adapter_config.json").is_file():
        return kind.from_pretrained(weights, dtype=torch.float32)
    head = {"num_labels": 1} if scorer else {}
    with without_warnings():  # the base has no scalar head, which is no news: the adapter brings it
        model = kind.from_pretrained(
            base.model, revision=base.revision, dtype=torch.float32, **head
        )
    return PeftModel.from_pretrained(model, str(weights))


@torch.no_grad()
def plain_outputs(model: Any, rows: Tensor) -> Tensor:
    """[4, 16, V] logits of a language model, or [4, 1] scores: each row alone, because without a
    padding token transformers scores no more than one."""
    model.eval()
    return torch.cat([model(input_ids=row[None], use_cache=False).logits.float() for row in rows])


def compare(what: Path, outputs: Tensor, trained: Tensor) -> float:
    """The largest change. Raises UnprovedSave if it is above TOLERANCE."""
    difference = float((outputs - trained).abs().max() / trained.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        named, made = ("scores", "reward model") if trained.ndim == 2 else ("logits", "policy")
        raise UnprovedSave(
            f"{what}: {named} differ by {difference:.2g} from those of the {made} that was "
            f"trained; the export is not kept."
        )
    return difference


def compare_reward_model(folder: Path, trained: Sequence[Tensor], rows: Tensor) -> float:
    """The same of `RewardModel.from_pretrained(folder)`, for the [4, 1] of each of its members."""
    try:
        found = _scores(RewardModel.from_pretrained(folder), rows)
    except (OSError, ValueError) as error:
        raise UnprovedSave(f"{folder} cannot be loaded again: {error}") from error
    if len(found) != len(trained):
        raise UnprovedSave(f"{folder} holds {len(found)} reward models and not {len(trained)}.")
    return max(compare(folder, one, other) for one, other in zip(found, trained, strict=True))


def check_tokenizer(weights: Path, trained: Path) -> None:
    """Raises UnprovedSave if text would be read otherwise than in training."""
    expected = load_renderer(str(trained)).fingerprint()
    if load_renderer(str(weights)).fingerprint() != expected:
        raise UnprovedSave(f"{weights} holds another tokenizer than {trained}.")


def _scores(model: RewardModel, rows: Tensor) -> list[Tensor]:
    """[4, 1] of each member, or of the one model."""
    return [torch.tensor(scores)[:, None] for scores in model.member_scores(_groups(rows))]


def _groups(rows: Tensor) -> list[Group]:
    return [Group(tuple(row[:8]), (tuple(row[8:]),)) for row in rows.tolist()]
