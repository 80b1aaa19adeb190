"""PPO and DPO as a user runs them, on worlds whose best policy is known in closed form.

From a YAML file to a saved adapter that plain transformers and peft load: whatever is wrong on the
way (a token that does not count, a KL that does not pull, a save that loses something) leaves the
policy short of the optimum. tests/benchmarks/optimum.py has more worlds, and faults put in on
purpose.
"""

from __future__ import annotations

import math
from typing import Any

import enumerable
import pytest
import torch

SEEDS = (1, 2)


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"world{seed}")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("world")
    return enumerable.World.draw(folder, request.param)


def test_the_optimum_of_two_responses_by_hand():
    """Two responses, ref 1/2 each, gold 0 and beta log 3: Z = (1 + 3) / 2 = 2, pi* = (1/4, 3/4).

    J* = beta log 2, J_ref = beta log(3) / 2, KL* = log(1/2) / 4 + 3 log(3/2) / 4 = 0.130812. All of
    the mass on the second response has J = beta (log 3 - log 2) and KL log 2, so its fraction is
    (log(3/2) - log(3)/2) / (log 2 - log(3)/2) = -0.143841 / 0.143841 = -1.
    """
    beta = enumerable.BETA
    reference = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    gold = torch.tensor([0.0, beta * math.log(3)], dtype=torch.float64)
    best = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    sure = torch.tensor([1e-300, 1.0], dtype=torch.float64).log()

    assert enumerable.standing(reference, reference, gold).fraction == pytest.approx(0, abs=1e-9)
    at_best = enumerable.standing(best, reference, gold)
    assert at_best.fraction == pytest.approx(1, abs=1e-9)
    assert at_best.kl == pytest.approx(0.130812, abs=1e-6)
    assert at_best.best_kl == pytest.approx(0.130812, abs=1e-6)
    at_one = enumerable.standing(sure, reference, gold)
    assert at_one.kl == pytest.approx(math.log(2), abs=1e-9)
    assert at_one.fraction == pytest.approx(-1, abs=1e-5)


def test_what_is_missing_is_the_kl_to_the_best_policy(world: Any):
    """J* - J(pi) = beta KL(pi || pi*) for any policy, here for one drawn at random."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(world.reference.shape, generator=generator, dtype=torch.float64)
    reference, policy = world.reference, enumerable.normal(world.reference + noise)
    best = enumerable.normal(reference + world.gold / enumerable.BETA)

    def apart(one: torch.Tensor) -> float:
        return float((one.exp() * (one - best)).sum())

    found = enumerable.standing(policy, reference, world.gold)
    assert found.fraction == pytest.approx(1 - apart(policy) / apart(reference), abs=1e-6)


def test_every_response_is_in_the_world(world: Any):
    """1 + 9 + 81 responses end after 1, 2 and 3 tokens, 9^3 do not; their probabilities sum to 1,
    so that nothing else can be sampled. Answers are those that end, but for the empty one."""
    assert len(set(world.responses)) == len(world.responses) == 1 + 9 + 81 + 729
    assert float(world.reference.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert int(world.answers.sum()) == 9 + 81


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_ppo_reaches_the_regularised_optimum(world: Any, lora: bool):
    found = world.standing(enumerable.train(world, "ppo", lora, seed=1))
    assert found.fraction >= 0.98
    assert abs(found.kl - found.best_kl) < 0.4


@pytest.mark.slow
def test_dpo_reaches_the_same_optimum_from_pairs(world: Any):
    """Among answers: pairs say nothing of responses that are empty or do not end."""
    policy = enumerable.train(world, "dpo", True, seed=1)
    found = world.standing(policy, world.answers)
    assert found.fraction >= 0.95
    assert abs(found.kl - found.best_kl) < 0.4
