"""The optimiser step and the processes around it: no result depends on how rows were split.

Run as a script, this file is one rank of `test_two_processes_train_what_one_does`.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import launchers
import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from align import process_group
from align.config import ConfigError
from align.engine import Engine
from align.process_group import wait_for_all
from align.schedules import SCHEDULES
from align.training import NonFiniteError, ParameterGroup, Training

# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "warmup", "total", "factors"),
    [
        # warm-up over w steps: (t + 1) / (w + 1); after it linear: (T - t) / (T - w)
        ("linear", 0.0, 4, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 2.0, 6, [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 0.5, 4, [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),  # a share: half of 4 steps
        ("linear", 0.3, 4, [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),  # 1.2 steps are 2
        # half a cosine: (1 + cos(pi (t - w) / (T - w))) / 2
        ("cosine", 0.0, 4, [1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
        ("cosine", 1.0, 3, [0.5, 1.0, 0.5, 0.0]),
        ("constant", 0.0, 3, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 3.0, 5, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(name: str, warmup: float, total: int, factors: list[float]):
    factor = SCHEDULES[name](warmup)
    assert [factor(t, total) for t in range(len(factors))] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0, 50.0])
def test_no_step_of_any_schedule_is_lost_or_negative(name: str, warmup: float):
    """Even of a single step, and of a warm-up longer than the training."""
    for total in (1, 2, 20):
        factors = [SCHEDULES[name](warmup)(t, total) for t in range(total)]
        assert all(0 < factor <= 1 for factor in factors)


# --- one process ----------------------------------------------------------------------------------


def line() -> nn.Linear:
    """y = 2 x, one parameter."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    return module


def training_of(module: nn.Module, **settings: Any) -> Training:
    given = {
        "total_steps": 4, "schedule": SCHEDULES["constant"](), "max_grad_norm": 1.0, **settings
    }  # fmt: skip
    groups = [ParameterGroup(list(module.parameters()), 0.1)]
    return Engine().training(module, groups, **given)


def test_first_step_of_adamw_by_hand():
    """Gradient 3 of norm 3, clipped to 1: m = .1, v = .001; both are corrected to 1.

    Step: lr * 1 / (sqrt(1) + eps) with eps .25: .1 / 1.25 = .08, so the weight is 2 - .08 = 1.92.
    The norm before clipping is returned. Weight decay .5 first takes lr * .5 * 2 = .1: 1.82.
    """
    for decay, expected in ((0.0, 1.92), (0.5, 1.82)):
        module = line()
        training = training_of(module, adam_epsilon=0.25, weight_decay=decay)
        training.backward(module(torch.tensor([3.0])).sum(), last=True)
        assert training.step() == pytest.approx(3.0, abs=1e-5)
        assert module.weight.item() == pytest.approx(expected, abs=1e-5)
        assert training.steps_done == 1


def test_a_gradient_below_the_limit_is_not_scaled():
    """Adam's first step is the same for any scale of the gradient, so the epsilon is made large:
    gradient .5 gives .1 * .5 / (.5 + 1) = .0333333; clipped to .25: .1 * .25 / 1.25 = .02."""
    for limit, expected in ((1.0, 2 - 0.0333333), (0.25, 2 - 0.02)):
        module = line()
        training = training_of(module, adam_epsilon=1.0, max_grad_norm=limit)
        training.backward(module(torch.tensor([0.5])).sum(), last=True)
        assert training.step() == pytest.approx(0.5, abs=1e-6)
        assert module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_parts_of_a_step_add_up():
    """Three backward passes and one are one gradient; the next step starts from nothing."""
    rows = torch.tensor([[0.3], [-0.1], [0.7]])
    parts, whole = line(), line()
    split, together = training_of(parts), training_of(whole)
    for _ in range(3):
        for number, row in enumerate(rows, 1):
            split.backward(parts(row).sum() / 3, last=number == 3)
        together.backward(whole(rows).sum() / 3, last=True)
        assert split.step() == pytest.approx(together.step(), abs=1e-7)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-7)


def test_the_learning_rate_follows_the_schedule_in_every_group():
    """Peaks .1 and .01, linear to 0 in 4 steps; the rate of a step is that before it is counted."""
    a, b = line(), line()
    training = Engine().training(
        nn.ModuleList([a, b]),
        [ParameterGroup(list(a.parameters()), 0.1), ParameterGroup(list(b.parameters()), 0.01)],
        total_steps=4,
        schedule=SCHEDULES["linear"](),
        max_grad_norm=1.0,
    )
    seen = []
    for _ in range(4):
        seen.append(tuple(training.learning_rates))
        training.backward((a(torch.ones(1)) + b(torch.ones(1))).sum(), last=True)
        training.step()
        assert [g["lr"] for g in training.optimizer.param_groups] == pytest.approx(seen[-1])
    flat = [rate for rates in seen for rate in rates]
    assert flat == pytest.approx([0.1, 0.01, 0.075, 0.0075, 0.05, 0.005, 0.025, 0.0025])


def test_a_group_that_begins_later_has_a_schedule_of_its_own():
    """Linear to 0 in 6 steps for one, in the last 4 of them for the other. Steps 3 and 4 are
    skipped: the last step has the rate of the last place, 1/4 and 1/6 of the peak."""
    a, b = line(), line()
    groups = [
        ParameterGroup(list(a.parameters()), 0.4, first_step=2),
        ParameterGroup(list(b.parameters()), 0.6),
    ]
    training = Engine().training(
        nn.ModuleList([a, b]), groups, total_steps=6, schedule=SCHEDULES["linear"](),
        max_grad_norm=1.0,
    )  # fmt: skip
    seen: list[float] = []
    for place in (0, 1, 2, 5):
        training.skip(place - training.steps_done)
        seen += training.learning_rates
        training.backward((a(torch.ones(1)) + b(torch.ones(1))).sum(), last=True)
        training.step()
    assert seen == pytest.approx([0.0, 0.6, 0.0, 0.5, 0.4, 0.4, 0.1, 0.1], abs=1e-6)
    assert training.learning_rates == [0.0, 0.0]


def test_the_moments_of_a_group_begin_with_its_first_step():
    """Two steps of gradient 0, then 3, clipped to 1: as in the first step by hand, .1 * 1 / 1.25 =
    .08. Were the zeros counted: m = .1 / (1 - .9^3) = .369, v = .001 / (1 - .999^3) = .334, and
    .1 * .369 / (.578 + .25) = .0446."""
    module = line()
    training = Engine().training(
        module, [ParameterGroup(list(module.parameters()), 0.1, first_step=2)], total_steps=9,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0, adam_epsilon=0.25,
    )  # fmt: skip
    for x in (0.0, 0.0, 3.0):
        training.backward(module(torch.tensor([x])).sum(), last=True)
        training.step()
    assert module.weight.item() == pytest.approx(2 - 0.08, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_stops_before_anything_changes(bad: float):
    module = line()
    training = training_of(module)
    training.backward(module(torch.ones(1)).sum(), last=True)
    training.step()
    before = module.weight.detach().clone()
    with pytest.raises(NonFiniteError, match=f"the loss is {bad} at optimiser step 2"):
        training.backward(module(torch.tensor([bad])).sum(), last=True)
    assert torch.equal(module.weight, before)
    assert module.weight.grad is None or not module.weight.grad.any()


def test_a_non_finite_gradient_stops_before_anything_changes():
    """sqrt at 0 is finite, its gradient is not."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    training = training_of(module)
    training.backward(module(torch.ones(1)).sqrt().sum(), last=True)
    with pytest.raises(NonFiniteError, match=r"the gradient norm is .* at optimiser step 1"):
        training.step()
    assert module.weight.item() == 0.0
    assert training.steps_done == 0


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_gather_is_the_inverse_of_share(count: int, world: int, monkeypatch: pytest.MonkeyPatch):
    """Ranks differ by one item at most, and what they hold comes back in the first order."""
    items = list(range(count))
    engines = []
    for rank in range(world):
        engine = Engine()
        engine.rank, engine.world_size = rank, world
        engines.append(engine)
    shares = [engine.share(items) for engine in engines]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def all_gather(parts: list[Any], mine: list[int]) -> None:
        assert mine in shares
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    for engine, share in zip(engines, shares, strict=True):
        assert engine.gather(share) == items


ROWS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
STEPS = ([0, 1, 2, 3, 4], [5], [6, 7, 8])
"""Rows of each optimiser step: of the second, one rank of two has none."""


def train_rows(engine: Engine) -> dict[str, Any]:
    """3 steps of a small network on this rank's rows of each step; sums divided by all rows."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    training = engine.training(
        module,
        [ParameterGroup(list(module.parameters()), 0.1)],
        total_steps=3,
        schedule=SCHEDULES["linear"](),
        max_grad_norm=0.5,
        adam_epsilon=1e-2,  # else Adam's first step hides a wrong scale of the gradient
    )
    norms, losses = [], []
    for rows in STEPS:
        mine = engine.share(rows)
        loss = sum((p * 0.0).sum() for p in module.parameters())  # a rank without rows
        if mine:
            loss = loss + (module(ROWS[mine]).squeeze(-1) - ROWS[mine].sum(1)).square().sum()
        assert isinstance(loss, Tensor)
        training.backward(loss / len(rows), last=True)
        losses.append(engine.sum(loss.detach()).item())
        norms.append(training.step())
    return {
        "parameters": [p.detach().clone() for p in module.parameters()],
        "norms": norms,
        "losses": losses,
        "gathered": engine.gather([f"row {i}" for i in engine.share(range(5))]),
        "from_main": engine.from_main(lambda: f"made by {engine.rank}"),
    }


def test_two_processes_train_what_one_does(tmp_path: Path):
    """Gloo, rows 5 + 1 + 3 over two ranks: parameters, norms and losses as of all rows at once.

    Also: gather keeps the order, from_main is rank 0's on both, and an error of rank 0's reaches
    both instead of leaving one waiting.
    """
    for ended in launchers.run_ranks(__file__, tmp_path):
        assert ended.code == 0, ended.text
    alone = train_rows(Engine())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for ours, expected in zip(found["parameters"], alone["parameters"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], abs=1e-5)
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert found["gathered"] == alone["gathered"] == [f"row {i}" for i in range(5)]
        assert found["from_main"] == "made by 0"
        assert found["error"] == "rank 0 could not"
        assert found["non_finite"] == "the gradient norm is nan at optimiser step 1"


def _errors(engine: Engine) -> dict[str, str]:
    """What a rank is told when something goes wrong on the other."""

    def fail() -> None:
        raise ConfigError("rank 0 could not")

    found = {}
    try:
        engine.from_main(fail)
    except ConfigError as error:
        found["error"] = str(error)
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    training = training_of_engine(engine, module)
    value = module(torch.ones(1)).sum()
    # Rank 1's gradient alone is not a number (0 * inf); both must stop.
    training.backward(value.sqrt() * 0.0 if engine.rank == 1 else value, last=True)
    try:
        training.step()
    except NonFiniteError as error:
        found["non_finite"] = str(error)
    return found


def training_of_engine(engine: Engine, module: nn.Module) -> Training:
    return engine.training(
        module,
        [ParameterGroup(list(module.parameters()), 0.1)],
        total_steps=1,
        schedule=SCHEDULES["constant"](),
        max_grad_norm=1.0,
    )


def _one_rank() -> None:
    engine = Engine()
    torch.save({**train_rows(engine), **_errors(engine)}, f"{engine.rank}.pt")
    engine.close()


def test_ranks_wait_for_the_last_one_before_they_watch_each_other():
    """torchrun's store is there before any rank is: one may come minutes after the others."""
    store, waited = HashStore(), list[int]()

    def come(rank: int) -> None:
        wait_for_all(store, rank, 3)
        waited.append(rank)

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert waited == []
    come(2)
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(waited) == [0, 1, 2]


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_group, "JOINED_WITHIN", timedelta(seconds=0.3))
    store = HashStore()
    store.set("joined/1", "")
    with pytest.raises(RuntimeError, match=r"^rank 2, 3 did not come within 0\.005 minutes$"):
        wait_for_all(store, 0, 4)


def test_a_world_that_is_not_there_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Launched as two, but the process group has one: the silent failure of a half-set launch."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    engine = Engine()
    engine.world_size = 2
    with pytest.raises(
        RuntimeError, match="2 processes were launched, but the process group has 1"
    ):
        engine._check_world()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ('{"optimizer": {}}', "sets 'optimizer'"),
        ('{"scheduler": {}}', "sets 'scheduler'"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage to 4; use 1, 2 or 3"),
        (None, "there is no file"),
    ],
)
def test_deepspeed_files_that_cannot_be_honoured(text: str | None, sentence: str, tmp_path: Path):
    path = tmp_path / "zero.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        Engine(deepspeed=str(path))


if __name__ == "__main__":
    _one_rank()
