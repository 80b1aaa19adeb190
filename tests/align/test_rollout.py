"""A rollout: what was known of each response when it was sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from align.config import Lora
from align.engine import Engine
from align.policy import uniforms
from align.roles import Roles
from align.rollout import (
    Roller,
    Rollout,
    Sample,
    packed_scores,
    packed_tokens,
)
from preference_data.batches import Group, pack
from reward_models.scalar_head import ScalarHead
from reward_models.scoring import Scores

PROMPTS = [(260, 7, 30), (5,), (9, 8, 7, 6, 5, 4, 3, 2), (40, 41, 42, 43)]


@pytest.fixture
def roles(make_roles: Callable[..., Roles], shake: Callable[..., None]) -> Roles:
    roles = make_roles(Lora(r=4, alpha=8))
    for parameter in roles.model.parameters():
        parameter.data *= 3
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("reward", fresh=True, head=ScalarHead(32))
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    for seed, role in enumerate(("policy", "value")):
        shake(roles.parameters_of(role), seed)
    return roles


def lengths(groups: Sequence[Group]) -> Scores:
    """A scorer that is easy to check: the number of tokens of the response."""
    return Scores([float(len(group.completions[0])) for group in groups])


def roller(roles: Roles, tokens: int = 4096, temperature: float = 0.8) -> Roller:
    return Roller(roles, lengths, Engine(), temperature, tokens)


def test_tables_by_hand():
    """Two samples of 2 and 1 tokens. KL: (-1 + 1.5) + (-2 + 1) = -.5, and -.5 + .75 = .25."""
    long = Sample(Group((1,), ((2, 3),)), True, (-1.0, -2.0), (-1.5, -1.0), (0.1, 0.2), 3.0)
    short = Sample(Group((4,), ((5,),)), False, (-0.5,), (-0.75,), (0.4,), -1.0)
    rollout = Rollout.of([long, short])
    assert rollout.mask.tolist() == [[True, True], [True, False]]
    assert rollout.logprobs.tolist() == [[-1.0, -2.0], [-0.5, 0.0]]
    assert rollout.reference.tolist() == [[-1.5, -1.0], [-0.75, 0.0]]
    torch.testing.assert_close(rollout.values, torch.tensor([[0.1, 0.2], [0.4, 0.0]]))
    assert rollout.scores.tolist() == [3.0, -1.0]
    assert rollout.ended.tolist() == [True, False]
    assert rollout.kl.tolist() == [-0.5, 0.25]


def test_every_number_is_that_of_the_role_alone(roles: Roles):
    """Each response scored alone, with its own role and the sampler's temperature, to 1e-4."""
    rollout = roller(roles).collect(PROMPTS, uniforms(1, len(PROMPTS), 12))
    assert [sample.group.prompt for sample in rollout.samples] == PROMPTS
    for row, sample in enumerate(rollout.samples):
        batch = pack([sample.group])
        count = len(sample.group.completions[0])
        with torch.no_grad():
            policy = roles.logprobs("policy", batch, 0.8).logprobs
            reference = roles.logprobs("reference", batch, 0.8).logprobs
            values = roles.values("value", batch)
        for ours, expected in (
            (rollout.logprobs, policy), (rollout.reference, reference), (rollout.values, values),
        ):  # fmt: skip
            torch.testing.assert_close(ours[row, :count], expected, rtol=0, atol=1e-4)
            assert not ours[row, count:].any()
        assert rollout.mask[row].sum() == count
        assert rollout.scores[row] == count
    assert (rollout.logprobs - rollout.reference).abs().max() > 0.01


def test_a_fresh_policy_has_no_kl_to_its_reference(make_roles: Callable[..., Roles]):
    """Sampled from a cache, evaluated packed: less than 1e-4 nats a token."""
    roles = make_roles()
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    rollout = roller(roles).collect(PROMPTS, uniforms(2, len(PROMPTS), 12))
    assert (rollout.logprobs - rollout.reference).abs().max() < 1e-4


@pytest.mark.parametrize("tokens", [1, 30])
def test_small_forwards_change_nothing(roles: Roles, tokens: int):
    """In float64, as float32 rounds values of 10 by 2e-5 here, adapters folded in or beside."""
    roles.model.double()
    draws = uniforms(3, len(PROMPTS), 12)
    whole, parts = (
        roller(roles).collect(PROMPTS, draws),
        roller(roles, tokens).collect(PROMPTS, draws),
    )
    assert torch.equal(whole.logprobs, parts.logprobs)
    torch.testing.assert_close(parts.reference, whole.reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.values, whole.values, rtol=0, atol=1e-5)


def test_numbers_come_back_in_the_order_of_sequences(roles: Roles):
    """Groups of 2, 1 and 3 completions in forwards of at most 8 tokens, against one of all."""
    groups = [
        Group((5, 6), ((7, 8), (9,))),
        Group((10, 11, 12, 13), ((14, 15, 16),)),
        Group((17,), ((18,), (19, 20), (21, 22, 23))),
    ]
    batch = pack(groups)
    with torch.no_grad():
        scores = roles.scores("reward", batch).tolist()
        logprobs = batch.table(roles.logprobs("policy", batch).logprobs)
    assert packed_scores(roles, "reward", groups, Engine(), 8) == pytest.approx(scores, abs=1e-5)
    found = packed_tokens(groups, lambda part: roles.logprobs("policy", part).logprobs, Engine(), 8)
    assert [len(row) for row in found] == [2, 1, 3, 1, 2, 3]
    for ours, expected in zip(found, logprobs.tolist(), strict=True):
        assert ours == pytest.approx(expected[: len(ours)], abs=1e-5)


def test_two_ranks_collect_what_one_does_to_the_last_bit(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
):
    """3 prompts in batches of at most 2, over ranks 0 and 1: rows 0 and 2, and row 1."""
    draws = uniforms(4, 3, 10)

    def rolled(rank: int, ranks: int, gather: Callable[[list[list[Sample]]], Any]) -> Rollout:
        engine = Engine()
        engine.rank, engine.world_size = rank, ranks
        monkeypatch.setattr(engine, "gather", gather)
        return Roller(roles, lengths, engine, 0.8, 4096, 2).collect(PROMPTS[:3], draws)

    alone = rolled(0, 1, list)
    found: list[list[list[Sample]]] = []

    def keep(mine: list[list[Sample]]) -> list[list[Sample]]:
        found.append(mine)
        raise InterruptedError

    for rank in range(2):
        with pytest.raises(InterruptedError):
            rolled(rank, 2, keep)
    assert [[len(batch) for batch in mine] for mine in found] == [[2], [1]]
    together = rolled(0, 2, lambda mine: [*mine, *found[1]])
    assert together.samples == alone.samples


def test_a_prompts_samples_stay_together_within_the_batch_size(roles: Roles):
    """5 prompts with 4 samples each, 10 at a time: 2 prompts a batch. 8 with 8, 4 at a time: 1."""
    engine = Engine()

    def sizes(prompts: int, samples: int, batch_size: int) -> list[int]:
        rows = [(n,) for n in range(prompts) for _ in range(samples)]
        roller = Roller(roles, lengths, engine, 1.0, 4096, batch_size)
        return [len(batch) for batch in roller._batches(rows)]

    assert sizes(5, 4, 10) == [8, 8, 4]
    assert sizes(8, 8, 4) == [8] * 8
    assert sizes(6, 1, 4) == [3, 3]
