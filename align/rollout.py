"""Prompts and roles to a Rollout: what PPO learns from, every field with its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from math import ceil

import torch
from torch import Tensor

from align.adapters import merged
from align.engine import Engine
from align.policy import Response, respond
from align.progress import tracked
from align.roles import Roles
from preference_data.batches import (
    Group,
    PackedBatch,
    distinct,
    join_prompts,
    pack,
    split_by_tokens,
)
from reward_models.scoring import Scores

Scorer = Callable[[Sequence[Group]], Scores]
"""Groups of one completion each -> a score each, and what it was made of."""


@dataclass(frozen=True)
class Sample:
    """One response with everything known of it at sampling time; T tokens, its end included."""

    group: Group
    ended: bool
    logprobs: tuple[float, ...]
    """[T] under the policy that sampled it, nats"""
    reference: tuple[float, ...]
    """[T] under the reference, nats"""
    values: tuple[float, ...] | None
    """[T] value of the state each token was drawn in; None where nothing estimates it"""
    score: float
    """of the whole response, before any penalty"""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """what the score was made of, by what it is logged as below `objective/`"""


@dataclass(frozen=True)
class Rollout:
    """All ranks' samples. Axes: B sequences, R response tokens."""

    samples: tuple[Sample, ...]
    mask: Tensor
    """[B, R] True on the response's tokens"""
    logprobs: Tensor
    """[B, R] nats, 0 outside the mask"""
    reference: Tensor
    """[B, R] nats, 0 outside the mask"""
    values: Tensor | None
    """[B, R] 0 outside the mask; None where nothing estimates it"""
    scores: Tensor
    """[B]"""
    ended: Tensor
    """[B] bool"""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Rollout:
        longest = max(len(sample.logprobs) for sample in samples)

        def table(name: str) -> Tensor:
            return torch.tensor(
                [
                    [*getattr(sample, name), *[0.0] * (longest - len(sample.logprobs))]
                    for sample in samples
                ]
            )

        lengths = torch.tensor([len(sample.logprobs) for sample in samples])
        return cls(
            samples=tuple(samples),
            mask=torch.arange(longest)[None, :] < lengths[:, None],
            logprobs=table("logprobs"),
            reference=table("reference"),
            values=None if samples[0].values is None else table("values"),
            scores=torch.tensor([sample.score for sample in samples]),
            ended=torch.tensor([sample.ended for sample in samples]),
        )

    @property
    def score_parts(self) -> dict[str, Tensor]:
        """[B] by what they are logged as below `objective/`; empty for a single reward."""
        return {
            name: torch.tensor([sample.parts[name] for sample in self.samples])
            for name in self.samples[0].parts
        }

    @property
    def kl(self) -> Tensor:
        """[B] log pi - log ref summed over the response (k1), nats."""
        return (self.logprobs - self.reference).sum(dim=1)


@dataclass(frozen=True)
class Roller:
    """Makes rollouts with the roles policy, reference and, if there is one, value, and a scorer."""

    roles: Roles
    scorer: Scorer
    engine: Engine
    temperature: float
    tokens_per_forward: int | None
    """None: as many as suit the device."""
    batch_size: int | None = None
    """Responses a rank samples at a time; None: its whole share."""

    def collect(self, prompts: Sequence[tuple[int, ...]], draws: Tensor) -> Rollout:
        """Responds to every prompt with its row of `draws` [B, max_new_tokens], over all ranks."""
        batches = self._batches(prompts)
        mine = [
            self._sample([prompts[i] for i in rows], draws[rows])
            for rows in self.engine.share(batches)
        ]
        samples = {
            row: sample
            for rows, found in zip(batches, self.engine.gather(mine), strict=True)
            for row, sample in zip(rows, found, strict=True)
        }
        return Rollout.of([samples[row] for row in range(len(prompts))])

    def _batches(self, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Rows that are sampled together, as many batches for each rank; a prompt's samples, which
        stand side by side, stay together.

        Rounding depends on a batch's shape. Where one and many ranks have the same batches, they
        therefore draw the same tokens to the last bit.
        """
        ranks = self.engine.world_size
        together = [list(rows) for _, rows in groupby(range(len(prompts)), prompts.__getitem__)]
        at_once = max(1, (self.batch_size or len(prompts)) // max(map(len, together)))
        count = ceil(len(together) / at_once / ranks) * ranks
        return [list(chain.from_iterable(together[first::count])) for first in range(count)]

    def _sample(self, prompts: Sequence[tuple[int, ...]], draws: Tensor) -> list[Sample]:
        if not prompts:
            return []
        with self.roles.active("policy") as model, merged(model):
            responses = respond(
                model, prompts, draws, self.roles.renderer, self.temperature,
                read=self.roles.trunk_head("value", "policy"),
            )  # fmt: skip
        groups = [
            Group(prompt, (response.ids,))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self._evaluate(groups, responses)

    def _evaluate(self, groups: list[Group], responses: list[Response]) -> list[Sample]:
        reference = packed_tokens(
            groups,
            lambda batch: self.roles.logprobs("reference", batch, self.temperature).logprobs,
            self.engine,
            self.tokens_per_forward,
        )
        values = [response.values for response in responses]
        if self.roles.has("value") and values[0] is None:
            found = packed_tokens(
                groups,
                lambda batch: self.roles.values("value", batch),
                self.engine,
                self.tokens_per_forward,
            )
            values = [tuple(row) for row in found]
        scores = self.scorer(groups)
        names = list(scores.parts)
        parts = [
            dict(zip(names, row, strict=True)) for row in zip(*scores.parts.values(), strict=True)
        ] or [{}] * len(groups)
        return [
            Sample(group, response.ended, response.logprobs, tuple(ref), value, score, part)
            for group, response, ref, value, score, part in zip(
                groups, responses, reference, values, scores.values, parts, strict=True
            )
        ]


@torch.no_grad()
def packed_tokens(
    groups: Sequence[Group],
    compute: Callable[[PackedBatch], Tensor],
    engine: Engine,
    tokens: int | None = None,
) -> list[list[float]]:
    """`compute`'s [N] numbers for every sequence of `groups`, in forwards of at most `tokens`
    (None: as many as suit the device)."""
    found: list[list[float]] = []
    groups = join_prompts(groups)
    parts = split_by_tokens(groups, engine.tokens_per_forward(tokens))
    for part in tracked(list(parts), "reading", "batches"):
        batch = pack([groups[i] for i in part]).to(engine.device)
        flat = compute(batch).float().cpu()
        found += [
            piece.tolist() for piece in flat.split(torch.bincount(batch.sequence.cpu()).tolist())
        ]
    return found


@torch.no_grad()
def packed_scores(
    roles: Roles, role: str, groups: Sequence[Group], engine: Engine, tokens: int | None = None
) -> list[float]:
    """The role's raw score of every sequence of `groups`, in forwards of at most `tokens` (None: as
    many as suit the device); equal conversations are computed once."""
    scores: list[float] = []
    single, places = distinct(groups)
    joined = join_prompts(single)
    parts = split_by_tokens(joined, engine.tokens_per_forward(tokens))
    for part in tracked(list(parts), "scoring", "batches"):
        batch = pack([joined[i] for i in part]).to(engine.device)
        scores += roles.scores(role, batch).float().cpu().tolist()
    return [scores[place] for place in places]
