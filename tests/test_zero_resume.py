"""Checkpoints of sharded trainings: the same tensors whatever wrote them, exact where it goes on.

Run as a script, this file is one rank of `ranks`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import launchers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.base import load_base, load_renderer
from align.config import Base, Lora
from align.engine import Engine
from align.roles import Roles
from align.schedules import SCHEDULES
from align.training import ParameterGroup, Training
from preference_data.batches import Group, pack
from reward_models.scalar_head import ScalarHead

ROOT = Path(__file__).resolve().parent.parent
ROWS = [Group((5, 6, 7), ((8, 9), (10,))), Group((4, 3), ((12, 13, 14),))]
STAGES = (1, 2, 3)


def training_of(kind: str, base: str, engine: Engine) -> Training:
    """Of a policy and a value function with a bias: parameters that no number of ranks divides.
    The policy's schedule begins with the third step."""
    model = load_base(base, Base(model=base), engine.device)
    roles = Roles(model, load_renderer(base), Lora(r=3, alpha=8) if kind == "lora" else None, base)
    torch.manual_seed(0)
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    return engine.training(
        roles,
        [
            ParameterGroup(roles.parameters_of("policy"), 0.01, first_step=2),
            ParameterGroup(roles.parameters_of("value"), 0.01),
        ],
        total_steps=4, schedule=SCHEDULES["linear"](), max_grad_norm=1.0,
        adam_epsilon=1e-2,  # else a gradient of almost 0 moves a weight by its sign
    )  # fmt: skip


def take_steps(training: Training, engine: Engine) -> None:
    """Two steps on a row for each of two ranks."""
    for _ in range(2):
        mine = engine.share(ROWS)
        for place, row in enumerate(mine, 1):
            batch = pack([row])
            value = (training.module("values", "value", batch) - 1).square().sum()
            training.backward(value / 6, last=False)
            policy = -training.module("logprobs", "policy", batch).logprobs.sum()
            training.backward(policy / 6 + untouched(training), place == len(mine))
        training.step()


def untouched(training: Training) -> Tensor | float:
    if not training.last_reaches_all or training.engine.deepspeed is None:
        return 0.0
    value = list(training.parameters[-1:])
    return sum((0.0 * p).sum() for p in value) + torch.zeros(())


def state_of(training: Training) -> dict[str, Tensor]:
    return {name: t.detach().clone().contiguous() for name, t in training.state().items()}


def one_rank(kind: str, base: str, folder: str) -> None:
    """Writes, for each stage, the states after two and four steps, after four with a restart after
    the second, and after a restart from a process without DeepSpeed."""
    shipped = ROOT / "configs" / "deepspeed"
    engines = [Engine(deepspeed=str(shipped / f"zero{stage}.json")) for stage in STAGES]
    for stage, engine in zip(STAGES, engines, strict=True):
        start = Path(folder, f"{stage}_")
        training = training_of(kind, base, engine)
        take_steps(training, engine)
        write(training, f"{start}2")
        take_steps(training, engine)
        write(training, f"{start}4")
        training.close()
        engine.barrier()
        for name, source in (("again", f"{start}2"), ("from_plain", f"{folder}/plain_2")):
            training = training_of(kind, base, engine)
            training.restore(load_file(f"{source}.safetensors"))
            take_steps(training, engine)
            write(training, f"{start}{name}")
            training.close()
    engines[0].close()  # it has joined the process group, and watches the other rank


def write(training: Training, path: str) -> None:
    state = state_of(training)
    if training.engine.is_main:
        save_file(state, f"{path}.safetensors")
    else:
        assert set(state) <= {"steps_done"}


@pytest.fixture(scope="module", params=["lora", "full"])
def ranks(
    request: pytest.FixtureRequest, tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:  # fmt: skip
    """(kind, folder with the states that two ranks and a process without DeepSpeed wrote)"""
    folder, engine = tmp_path_factory.mktemp("states"), Engine()
    training = training_of(request.param, str(tiny_folder), engine)
    for steps in (2, 4):
        take_steps(training, engine)
        write(training, str(folder / f"plain_{steps}"))
    arguments = [request.param, str(tiny_folder), str(folder)]
    for ended in launchers.run_ranks(__file__, folder, *arguments):
        assert ended.code == 0, ended.text
    return request.param, folder


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_state_is_that_of_a_process_without_deepspeed(stage: int, ranks: tuple[str, Path]):
    """Names, shapes and numbers; the policy's moments begin anew with its first step."""
    _, folder = ranks
    for steps in (2, 4):
        found = load_file(folder / f"{stage}_{steps}.safetensors")
        _assert_close(found, load_file(folder / f"plain_{steps}.safetensors"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_restart_changes_no_bit(stage: int, ranks: tuple[str, Path]):
    _, folder = ranks
    found = load_file(folder / f"{stage}_again.safetensors")
    _assert_close(found, load_file(folder / f"{stage}_4.safetensors"), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ranks_go_on_from_one_process_and_one_from_ranks(
    stage: int, ranks: tuple[str, Path], tiny_folder: Path
):
    kind, folder = ranks
    expected = load_file(folder / "plain_4.safetensors")
    _assert_close(load_file(folder / f"{stage}_from_plain.safetensors"), expected, 1e-5)
    training = training_of(kind, str(tiny_folder), Engine())
    training.restore(load_file(folder / f"{stage}_2.safetensors"))
    take_steps(training, training.engine)
    _assert_close(state_of(training), expected, 1e-5)


if __name__ == "__main__":
    one_rank(*sys.argv[1:])
