"""Every number is over all ranks' rows, never a mean of ranks' means.

Run as a script, this file is one rank of `test_two_ranks_with_unequal_rows_say_what_one_says`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launchers
import pytest
import torch
from torch import Tensor

from align.advantages import KLController, RunningStatistics, kl_shaped_rewards, reinforce
from align.engine import Engine
from align.ppo_metrics import describe
from align.ranking_meter import Meter
from align.rollout import Roller, Rollout, Sample
from align.tensors import masked_mean, rescale, standardize
from preference_data.batches import Group

PROMPTS = [(row,) for row in range(5)]
SCORES = [1.0, 2.0, 3.0, 4.0, 100.0]
LENGTHS = [1, 3, 2, 5, 4]
"""Response tokens of each row; rank 0 of two has the rows 0, 2 and 4."""


class Written(Roller):
    """A roller whose responses are written down; how they are dealt to ranks is the real one's."""

    def _sample(self, prompts: Sequence[tuple[int, ...]], draws: Tensor) -> list[Sample]:
        return [
            Sample(
                group=Group((row,), (tuple(range(LENGTHS[row])),)),
                ended=row != 3,
                logprobs=tuple(0.1 * row * t for t in range(LENGTHS[row])),
                reference=(0.0,) * LENGTHS[row],
                values=tuple(0.5 * t for t in range(LENGTHS[row])),
                score=SCORES[row],
            )
            for (row,) in prompts
        ]


def rollout_of(engine: Engine) -> Rollout:
    roles: Any = None
    roller = Written(roles, lambda _: pytest.fail("scored"), engine, 1.0, 100, batch_size=1)
    return roller.collect(PROMPTS, torch.zeros(5, 8))


def statistics(engine: Engine) -> dict[str, Any]:
    """What an iteration of PPO and a log line of reward or DPO say."""
    rollout = rollout_of(engine)
    running, kl = RunningStatistics(), KLController(0.1, target=1.0, horizon=10)
    running.update(rollout.scores)
    kl.update(float(rollout.kl.mean()), len(rollout.samples))
    rewards = kl_shaped_rewards(
        rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, kl.coefficient
    )
    return {
        "whitened": standardize(rewards, rollout.mask),
        "rescaled": rescale(rewards, rollout.mask),
        "baseline": reinforce(rollout.scores, float(rollout.scores.mean())),
        "running": (running.mean, running.scale),
        "coefficient": kl.coefficient,
        "described": describe(rollout, rewards, rewards),
        "logged": logged(engine),
    }


def logged(engine: Engine) -> dict[str, float]:
    """Of the scores as a metric of pairs that weigh 1, 2, 3, 4 and 5."""
    lines: list[dict[str, float]] = []
    tracker = SimpleNamespace(log=lambda number, metrics: lines.append(dict(metrics)))
    context: Any = SimpleNamespace(engine=engine, tracker=tracker)
    meter = Meter(context)
    mine = engine.share(range(5))
    scores = torch.tensor([SCORES[row] for row in mine])
    weights = torch.tensor([row + 1.0 for row in mine])
    meter.add({"score": scores}, weights, tokens=len(mine))
    meter.add_means({"above_3": ((scores > 3).float(), (scores > 1).float())})
    meter.step(15.0)
    meter.log(1, {})
    [line] = lines
    del line["train/tokens_per_second"]
    return line


def _assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        assert found == expected


def test_two_ranks_with_unequal_rows_say_what_one_says(tmp_path: Path):
    """Gloo, 3 rows on one rank and 2 on the other: whitened rewards, running statistics, the KL
    controller and every logged number equal the one process's to the last bit."""
    for ended in launchers.run_ranks(__file__, tmp_path):
        assert ended.code == 0, ended.text
    alone = statistics(Engine())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            _assert_same(found[name], expected)


def test_what_they_say_by_hand():
    """Scores 1, 2, 3, 4, 100: mean 22. Weighed 1 to 5: (1 + 4 + 9 + 16 + 500) / 15 = 106 / 3. Of
    the 4 scores above 1, 2 are above 3. Lengths 1, 3, 2, 5, 4: mean 3. The KL of row r is the sum
    of 0.1 r t: 0, 0.3, 0.2, 3 and 2.4, mean 1.18; it is 18 % over its target, so the coefficient
    is 0.1 (1 + 0.18 * 5 / 10) = 0.109."""
    found = statistics(Engine())
    assert found["described"]["objective/score"] == pytest.approx(22)
    assert found["described"]["objective/kl"] == pytest.approx(1.18)
    assert found["described"]["response/length"] == pytest.approx(3)
    assert found["running"][0] == pytest.approx(22)
    assert found["coefficient"] == pytest.approx(0.109)
    assert found["logged"] == pytest.approx({"score": 106 / 3, "above_3": 0.5})


def test_the_mean_of_the_ranks_means_is_another_number():
    """Rows 0, 2, 4 and rows 1, 3: the scores' means are 104 / 3 and 3, their mean 18.83, not 22. A
    response token of the one rank would weigh more than one of the other, too, and whitened apart
    each rank's tokens would have the mean 0."""
    rollout = rollout_of(Engine())
    shares = [[0, 2, 4], [1, 3]]
    naive = sum(float(rollout.scores[share].mean()) for share in shares) / 2
    assert naive == pytest.approx((104 / 3 + 3) / 2)
    assert abs(naive - 22) > 3
    rewards = kl_shaped_rewards(
        rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.1
    )
    whole = standardize(rewards, rollout.mask)
    apart = torch.zeros_like(whole)
    for share in shares:
        apart[share] = standardize(rewards[share], rollout.mask[share])
    assert float((whole - apart).abs().max()) > 0.1
    of_shares = [float(masked_mean(whole[share], rollout.mask[share])) for share in shares]
    assert min(map(abs, of_shares)) > 0.1
    # 7 tokens on rank 0, 8 on rank 1: weighed by them, the shares' means are the mean, 0.
    assert 7 * of_shares[0] + 8 * of_shares[1] == pytest.approx(0, abs=1e-5)


def _one_rank() -> None:
    engine = Engine()
    torch.save(statistics(engine), f"{engine.rank}.pt")
    engine.close()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    _one_rank()
