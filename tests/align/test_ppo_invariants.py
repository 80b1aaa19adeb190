"""What must hold before the first update: each invariant is broken on purpose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from align.config_ppo import PPOTrain
from align.engine import Engine
from align.policy_gradient import FailedInvariant, Optimiser
from align.ppo_invariants import agree, check_ends, check_finite
from align.roles import Roles
from align.rollout import Roller, Rollout, Sample
from align.training import NonFiniteError
from preference_data.batches import Group
from reward_models.scalar_head import ScalarHead
from reward_models.scoring import Scores

PROMPTS = [(260, 7, 30), (5,), (9, 8, 7, 6, 5, 4, 3, 2), (40, 41, 42, 43)]


def lengths(groups: Sequence[Group]) -> Scores:
    return Scores([float(len(group.completions[0])) for group in groups])


@pytest.fixture
def optimiser(make_roles: Callable[..., Roles]) -> Optimiser:
    roles = make_roles()
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    train = PPOTrain(prompts_per_iteration=4, max_new_tokens=8, iterations=2)
    return Optimiser(Engine(), roles, Roller(roles, lengths, Engine(), 1.0, 4096), train, 3)


def collecting(optimiser: Optimiser, change: Callable[[Rollout], Rollout]) -> None:
    """Lets the roller's rollouts pass through `change`."""
    collect = optimiser.roller.collect
    object.__setattr__(optimiser.roller, "collect", lambda *given: change(collect(*given)))


def failure(optimiser: Optimiser) -> str:
    with pytest.raises(FailedInvariant) as error:
        optimiser.step(1, PROMPTS)
    assert optimiser.training.steps_done == 0
    return str(error.value)


def test_a_sound_start_passes_and_says_how_sound(optimiser: Optimiser):
    """Rounding alone: the KL is below 1e-4 nats a response, and the sampler's mismatch below 1e-5.
    Every later iteration measures the mismatch, too, though its KL is not 0 any more."""
    metrics = optimiser.step(1, PROMPTS)
    assert abs(metrics["objective/kl"]) < 1e-4
    assert 0 <= metrics["policy/sampler_mismatch"] < 1e-5
    assert 0 <= optimiser.step(2, PROMPTS)["policy/sampler_mismatch"] < 1e-5


def test_another_temperature_in_training_is_seen(optimiser: Optimiser):
    """Sampler and reference at 0.7, the loss at 1: only the first ratio can tell."""
    object.__setattr__(optimiser.roller, "temperature", 0.7)
    message = failure(optimiser)
    assert "the first ratio is not 1; sampling and training must share the temperature" in message


def test_a_reference_with_other_weights_is_seen(optimiser: Optimiser, shake: Callable[..., None]):
    shake(optimiser.roles.parameters_of("policy"))
    message = failure(optimiser)
    assert (
        "a forward of the policy confirms what was sampled, so the reference has other" in message
    )


def test_a_sampler_that_sees_another_distribution_is_seen(optimiser: Optimiser):
    """One token's recorded log-probability is off by 0.01 nats."""

    def shifted(rollout: Rollout) -> Rollout:
        rollout.logprobs[2, 0] += 0.01
        return rollout

    collecting(optimiser, shifted)
    message = failure(optimiser)
    assert "token 0 of response 2" in message and "differs by 0.01 nats" in message
    assert "does not give what was recorded while sampling" in message


def test_dropout_is_seen(optimiser: Optimiser):
    """Dropout in the update alone. LoRA's B is 0 at the start and would hide its own."""
    optimiser.roles.model.get_base_model().base_model.layers[0].self_attn.attention_dropout = 0.5
    update = optimiser.updater.run

    def dropping(lesson: Any) -> dict[str, float]:
        optimiser.roles.train()
        return update(lesson)

    object.__setattr__(optimiser.updater, "run", dropping)
    assert "dropout must be off" in failure(optimiser)


def test_a_score_that_is_not_a_number_is_seen(optimiser: Optimiser):
    def without(rollout: Rollout) -> Rollout:
        return replace(rollout, scores=rollout.scores.index_fill(0, torch.tensor([1]), torch.nan))

    collecting(optimiser, without)
    assert "a score of the first rollout is not a number" in failure(optimiser)
    with pytest.raises(NonFiniteError, match=r"in iteration 2 the score of 1 of 4 .*\(rows 1\)"):
        optimiser.step(2, PROMPTS)


@pytest.mark.parametrize(
    ("completion", "counted", "ended", "sentence"),
    [
        ("5 E", 2, True, None),
        ("5 6", 2, False, None),
        # pad = end, and a mask of `ids != pad`: the end is sampled, but not scored
        ("5 E", 1, True, "has 2 tokens, but 1 of them count"),
        ("5 6", 2, True, "response 0 of the first rollout ended, but its last token is"),
        ("5 E", 2, False, "response 0 of the first rollout did not end, but its last token is"),
        ("E 5 E", 3, True, "response 0 of the first rollout ended, but its last token is"),
    ],
)
def test_the_end_is_scored(
    renderer: Any, completion: str, counted: int, ended: bool, sentence: str | None
):
    end = renderer.tokenizer.eos_token_id
    renderer.tokenizer.pad_token_id = end
    ids = tuple(end if token == "E" else int(token) for token in completion.split())
    numbers = (0.0,) * counted
    sample = Sample(Group((1,), (ids,)), ended, numbers, numbers, None, 1.0)
    if sentence is None:
        check_ends(Rollout.of([sample]), renderer)
    else:
        with pytest.raises(FailedInvariant) as error:
            check_ends(Rollout.of([sample]), renderer)
        assert sentence in str(error.value)


def test_the_log_shows_once_where_the_score_stands(
    optimiser: Optimiser, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "align"):
        optimiser.step(1, PROMPTS)
        optimiser.step(2, PROMPTS)
    [line] = [
        r.getMessage() for r in caplog.records if "reward of its last token" in r.getMessage()
    ]
    sample = optimiser.roller.collect(PROMPTS, _draws(optimiser)).samples[0]
    assert line.startswith("the score of a response is the reward of its last token")
    assert "of the first response" in line and len(sample.logprobs) > 0


def _draws(optimiser: Optimiser) -> torch.Tensor:
    from align.policy import uniforms

    return uniforms(1, len(PROMPTS), optimiser.train.max_new_tokens)


@pytest.mark.parametrize(
    ("dtype", "largest", "mean", "same"),
    [
        (torch.float32, 0.9e-4, 1e-6, True),
        (torch.float32, 1.1e-4, 1e-6, False),
        (torch.bfloat16, 0.3, 1.9e-2, True),
        (torch.bfloat16, 0.3, 2.1e-2, False),
        (torch.float16, 0.3, 2.1e-2, False),
        (torch.float32, float("nan"), float("nan"), False),
        (torch.bfloat16, float("nan"), float("nan"), False),
    ],
)
def test_how_much_rounding_is_allowed_follows_from_the_dtype(
    make_roles: Callable[..., Roles], dtype: torch.dtype, largest: float, mean: float, same: bool
):
    roles = make_roles()
    roles.add("policy", fresh=True, trainable=True)
    roles.model.get_base_model().to(dtype)
    assert agree(largest, mean, roles) == same


def test_what_stands_outside_the_mask_may_be_anything():
    numbers = (0.0, 0.0)
    samples = [
        Sample(Group((1,), ((2, 3),)), True, numbers, numbers, numbers, 1.0),
        Sample(Group((1,), ((2,),)), True, numbers[:1], numbers[:1], numbers[:1], 1.0),
    ]
    rollout = Rollout.of(samples)
    table = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    check_finite(4, rollout, {"reward": table})
    with pytest.raises(NonFiniteError, match=r"in iteration 4 the reward of 1 of 2 .*\(rows 0\)"):
        check_finite(4, rollout, {"reward": table.flip(1)[[1, 0]]})
