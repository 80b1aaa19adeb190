"""A trained reward model, or an ensemble of them, as what scores text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preference_data.attention import hidden_states
from preference_data.batches import (
    Group,
    PackedBatch,
    distinct,
    join_prompts,
    pack,
    split_by_tokens,
)
from preference_data.counts import counted
from preference_data.forward_size import tokens_at_once
from preference_data.records import Message, Prompt, Response
from preference_data.rendering import Renderer
from reward_models.folders import member_folders, weights_folder
from reward_models.loading import folder_of, load_scorer, refuse_pickles, share_base
from reward_models.scalar_head import ADAPTER_FILE, ScalarHead, Scoring, load_head, sequence_scores
from reward_models.scoring import Tracked, untracked

AnyPrompt = str | Prompt | Sequence[Mapping[str, Any]]
"""Text of a user, a conversation, or one as messages with `role` and `content`."""


class RewardModel:
    """A reward model loaded with plain transformers and peft, for scoring text.

    Nothing is unpickled: weights are read from safetensors alone.
    """

    def __init__(
        self, model: Any, renderer: Renderer, scoring: Scoring, head: ScalarHead,
        members: Sequence[RewardModel] = (),
    ):  # fmt: skip
        self._model = model.eval()
        self._renderer = renderer
        self._head = head.requires_grad_(False).to(model.device)
        self.scoring = scoring
        self.members = tuple(members)
        """Of an ensemble, whose score is the mean of theirs; empty for a single model."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str | None = None,
        revision: str | None = None,
        base_revision: str | None = None,
    ) -> RewardModel:
        """Loads a reward step's folder (or its `adapter/` or `model/`), or a model on the hub.

        An ensemble's folder is loaded with all its members, adapters on one base in memory.
        `base` replaces the base model that the adapter names; `dtype` is the Transformer's, the
        head stays in float32; `attention` is transformers' `attn_implementation`; `revision` and
        `base_revision` are of the hub. Raises FileNotFoundError if there is no reward model, or its
        base is gone; ValueError if the tokenizer does not match it, or its head or its weights are
        not there as they should be.
        """
        from transformers import AutoTokenizer

        if folders := member_folders(Path(path)):
            each: list[RewardModel] = []
            for one in folders:
                each.append(
                    cls.from_pretrained(
                        one,
                        base=base,
                        device=device,
                        dtype=dtype,
                        attention=attention,
                        base_revision=base_revision,
                    )
                )
                if (weights_folder(one) / ADAPTER_FILE).is_file():
                    share_base(each[-1]._model, each[0]._model)
            return cls._mean_of(each)
        folder = folder_of(path, revision)
        refuse_pickles(folder)
        head = load_head(folder)
        renderer = Renderer(AutoTokenizer.from_pretrained(str(folder)))
        scoring = Scoring.load(folder)
        scoring.check(renderer.fingerprint(), str(path))
        options = {"dtype": dtype, "use_safetensors": True, "attn_implementation": attention}
        model = load_scorer(folder, base, base_revision, options)
        return cls(model if device is None else model.to(device), renderer, scoring, head)

    @property
    def device(self) -> torch.device:
        return self._model.device

    @classmethod
    def _mean_of(cls, members: Sequence[RewardModel]) -> RewardModel:
        first = members[0]
        mean, std = (
            sum(getattr(member.scoring, name) for member in members) / len(members)
            for name in ("mean", "std")
        )
        scoring = replace(first.scoring, mean=mean, std=std)
        return cls(first._model, first._renderer, scoring, first._head, members)

    def score(
        self,
        prompts: Sequence[AnyPrompt],
        completions: Sequence[str | Response],
        *,
        tokens_per_forward: int | None = None,
    ) -> list[float]:
        """The raw score of each completion of the prompt beside it: text, or a conversation.

        A forward pass holds at most so many tokens, or one conversation; by default 1024 on a CPU,
        8192 elsewhere. Equal prompts are computed once. Raises ValueError if the lists differ in
        length, or, naming the row (from 0), if a text cannot be rendered or is longer than the
        model was trained to read. A model that was trained with `truncation: left` reads the end of
        a prompt that is too long, as much as fits before this one completion.
        """
        if len(prompts) != len(completions):
            raise ValueError(
                f"{counted(len(prompts), 'prompt')}, but {counted(len(completions), 'completion')}."
            )
        groups: list[Group] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                groups.append(self.group_of(prompt, completion))
            except ValueError as error:
                where = f"row {row}: " if len(prompts) > 1 else ""
                raise ValueError(f"{where}{error}") from error
        return self.score_groups(groups, tokens_per_forward)

    def probability(
        self, prompts: Sequence[AnyPrompt], a: Sequence[str | Response], b: Sequence[str | Response]
    ) -> list[float]:
        """How probable it is that people prefer `a` to `b` as an answer to the prompt beside them:
        sigmoid((score(a) - score(b)) / temperature), with the temperature that fits held-out pairs
        (Bradley and Terry 1952). Raises ValueError as `score` does."""
        if not len(prompts) == len(a) == len(b):
            raise ValueError(
                f"{counted(len(prompts), 'prompt')}, but {len(a)} and "
                f"{counted(len(b), 'completion')}."
            )
        scores = self.score([*prompts, *prompts], [*a, *b])
        return [
            1 / (1 + math.exp(min((lost - won) / self.scoring.temperature, 700.0)))
            for won, lost in zip(scores[: len(a)], scores[len(a) :], strict=True)
        ]

    def normalised(self, scores: Sequence[float]) -> list[float]:
        """(score - mean) / std over the training completions: what a policy is optimised for."""
        return [(score - self.scoring.mean) / self.scoring.std for score in scores]

    def rewards(
        self, groups: Sequence[Group], tokens_per_forward: int | None = None
    ) -> list[float]:
        """What PPO is given for these groups by a reward step: normalised scores; of an ensemble
        the mean of its members', each normalised by itself."""
        models = self.members or (self,)
        raw = self.member_scores(groups, tokens_per_forward)
        each = [model.normalised(scores) for model, scores in zip(models, raw, strict=True)]
        return [sum(row) / len(row) for row in zip(*each, strict=True)]

    def without_control(self, completion: str) -> str:
        """The completion less the control tokens that it spells out, which `score` refuses."""
        return self._renderer.without_control(completion)

    def group_of(self, prompt: AnyPrompt, completion: str | Response) -> Group:
        """The ids that are scored. Raises ValueError if there are none, or too many."""
        row = self._renderer.render(_as_prompt(prompt), _as_response(completion))
        return self._fitting(Group(row.prompt, (row.completion,)))

    def check_room(self, prompt: AnyPrompt, tokens: int) -> None:
        """That a completion of so many tokens, whatever they are, can be scored after the prompt.
        Raises ValueError."""
        self._fitting(Group(self._renderer.prompt(_as_prompt(prompt)), ((0,) * tokens,)))

    def _fitting(self, group: Group) -> Group:
        group = self.scoring.cut(group, self._renderer.tokenizer.bos_token_id)
        if len(group) > self.scoring.max_length:
            raise ValueError(
                f"a conversation of {len(group)} tokens is longer than the "
                f"{self.scoring.max_length} that this reward model reads"
            )
        return group

    def score_groups(
        self, groups: Sequence[Group], tokens_per_forward: int | None = None
    ) -> list[float]:
        """The raw score of every completion, group after group: of ids that `group_of` gave."""
        each = self.member_scores(groups, tokens_per_forward)
        return [sum(row) / len(row) for row in zip(*each, strict=True)]

    @torch.no_grad()
    def batch_scores(self, batch: PackedBatch) -> Tensor:
        """[B] raw scores of a batch on the model's device; of an ensemble, those of its first."""
        return sequence_scores(hidden_states(self._model, batch), self._head, batch)

    def member_scores(
        self,
        groups: Sequence[Group],
        tokens_per_forward: int | None = None,
        tracked: Tracked = untracked,
    ) -> list[list[float]]:
        """[M][B] the same of each member, or of the one model (M = 1); `tracked` is around the
        forward passes.

        They are laid out by the length of their prompts, each conversation once, for all members.
        """
        models = self.members or (self,)
        single, places = distinct(groups)
        order = sorted(
            range(len(single)),
            key=lambda one: (len(single[one].prompt), single[one].prompt, len(single[one])),
        )
        joined = join_prompts([single[one] for one in order])
        tokens = tokens_per_forward or tokens_at_once(self.device.type)
        found: list[list[float]] = [[] for _ in models]
        for part in tracked(list(split_by_tokens(joined, tokens))):
            batch = pack([joined[one] for one in part]).to(self.device)
            for scores, model in zip(found, models, strict=True):
                scores += model.batch_scores(batch).tolist()
        at = {one: place for place, one in enumerate(order)}
        return [[scores[at[one]] for one in places] for scores in found]


def _as_prompt(prompt: AnyPrompt) -> Prompt:
    if isinstance(prompt, str):
        return Prompt.from_text(prompt)
    return prompt if isinstance(prompt, Prompt) else Prompt(tuple(map(_message, prompt)))


def _as_response(completion: str | Response) -> Response:
    return Response.from_text(completion) if isinstance(completion, str) else completion


def _message(turn: Mapping[str, Any]) -> Message:
    if not {"role", "content"} <= turn.keys():
        raise ValueError(f"a message has role and content, not {', '.join(turn) or 'nothing'}")
    return Message.from_json(turn)
