"""ZeRO-3: when weights are shards and when they are whole, on two ranks.

Run as a script, this file is one rank of `test_weights_are_gathered_when_they_are_computed_with`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import launchers
import pytest
import torch
from torch import nn

from align.base import load_base, load_renderer
from align.config import Base, Lora
from align.engine import Engine
from align.policy import uniforms
from align.roles import Roles
from align.rollout import Roller
from align.schedules import SCHEDULES
from align.sharded_parameters import Sharded
from align.training import ParameterGroup, Training
from preference_data.batches import Group, pack
from reward_models.scalar_head import ScalarHead
from reward_models.scoring import Scores

ROOT = Path(__file__).resolve().parent.parent
ROWS = [Group((5, 6, 7), ((8, 9), (10,))), Group((4, 3), ((12, 13, 14),))]
PROMPTS = [(5, 6), (7, 8, 9), (4, 5, 6)]
KINDS = ["lora", "full"]


# --- what DeepSpeed is given ---------------------------------------------------------------------


def names_of(module: nn.Module, sharded: Sharded) -> tuple[set[str], set[str]]:
    """(those gathered for a whole pass, those of a trunk) by their names in `module`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    of_a_pass = {names[id(parameter)] for parameter in sharded._parameters.values()}
    return of_a_pass, {names[id(parameter)] for parameter in sharded.trunks.parameters()}


def test_adapters_and_heads_are_gathered_for_a_pass_and_the_base_is_left_out(make_roles: Any):
    roles = make_roles()
    roles.add("policy", fresh=True, trainable=True)
    roles.add("reward", fresh=True, head=ScalarHead(32))
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32))
    trained = roles.parameters_of("policy") + roles.parameters_of("value")
    of_a_pass, trunks = names_of(roles, Sharded(roles, trained))
    assert trunks == set()
    assert len(of_a_pass) == len(trained)
    assert all("policy" in name or "value" in name for name in of_a_pass)


def test_a_copys_layers_are_gathered_one_by_one_but_not_its_language_head(make_roles: Any):
    """The head is asked in blocks of tokens, of which a rank may have more than another."""
    roles = make_roles(lora=None)
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32))
    trained = roles.parameters_of("policy") + roles.parameters_of("value")
    of_a_pass, trunks = names_of(roles, Sharded(roles, trained))
    tied = roles.model.get_output_embeddings().weight is roles.model.get_input_embeddings().weight
    word = "embed_tokens" if tied else "lm_head"
    assert {name.split(".")[0] for name in trunks} == {"copies"}
    assert of_a_pass == {
        "heads.value.weight",
        *(name for name, _ in roles.named_parameters() if "copies" in name and word in name),
    }
    assert len(of_a_pass | trunks) == len(trained)


def test_a_sharded_module_computes_what_the_module_does():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    sharded = Sharded(module, module[1].parameters())
    x = torch.ones(4, 3)
    assert torch.equal(sharded(x), module(x))
    assert {id(p) for p in sharded.parameters()} == {id(p) for p in module[1].parameters()}


# --- two ranks -----------------------------------------------------------------------------------


def training_of(roles: Roles, engine: Engine) -> Training:
    return engine.training(
        roles, [ParameterGroup(roles.parameters_of("policy"), 0.01)], total_steps=3,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0,
        adam_epsilon=1e-2,  # else a gradient of almost 0 moves a weight by its sign
    )  # fmt: skip


def steps(training: Training, engine: Engine) -> list[float]:
    """Losses of two steps on a row for each of two ranks."""
    losses: list[float] = []
    for _ in range(2):
        loss = torch.zeros(())
        for row in engine.share(ROWS):
            found = training.module("logprobs", "policy", pack([row])).logprobs
            loss = loss - found.sum() / 6
        training.backward(loss, last=True)
        losses.append(float(engine.sum(loss.detach())))
        training.step()
    return losses


def gatherings(training: Training, roles: Roles, engine: Engine, tokens: int) -> int:
    """How often DeepSpeed gathers anything in a rollout."""
    from deepspeed.comm import comm

    asked: list[str] = []

    def counted(name: str) -> Any:
        gather = getattr(comm.cdb, name)

        def call(*arguments: Any, **more: Any) -> Any:
            asked.append(name)
            return gather(*arguments, **more)

        return call

    roller = Roller(roles, lambda groups: Scores([0.0] * len(groups)), engine, 1.0, 100)
    names = ("all_gather", "all_gather_into_tensor", "all_gather_coalesced")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(comm.cdb, name, counted(name))
        with training.whole():
            roller.collect(PROMPTS, uniforms(0, len(PROMPTS), tokens))
    return len(asked)


def one_rank(kind: str, base: str, settings: str) -> dict[str, Any]:
    """What a rank sees before, in and after the training of a policy."""
    engine = Engine(deepspeed=settings)
    model = load_base(base, Base(model=base), engine.device)
    roles = Roles(model, load_renderer(base), Lora(r=4, alpha=8) if kind == "lora" else None, base)
    torch.manual_seed(0)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    trained: list[Any] = roles.parameters_of("policy")
    before = [parameter.detach().clone() for parameter in trained]
    linear = torch.nn.functional.linear
    training = training_of(roles, engine)
    found: dict[str, Any] = {"shards": [parameter.ds_tensor.numel() for parameter in trained]}
    found["numbers"] = [tensor.numel() for tensor in before]
    found["empty"] = all(parameter.numel() == 0 for parameter in trained)
    with training.whole(), training.whole():
        same = zip(trained, before, strict=True)
        found["whole"] = all(torch.equal(parameter, tensor) for parameter, tensor in same)
    found["gatherings"] = [gatherings(training, roles, engine, tokens) for tokens in (2, 8)]
    found["live"] = []
    if kind == "full":
        first, second = roles.module("policy").get_submodule("model.layers").children()
        second.register_forward_pre_hook(
            lambda *_: found["live"].append(sum(p.numel() for p in first.parameters()))
        )
    found["losses"] = steps(training, engine)
    found["empty again"] = all(parameter.numel() == 0 for parameter in trained)
    training.close()
    found["plain"] = not any(hasattr(parameter, "ds_id") for parameter in trained)
    found["linear"] = torch.nn.functional.linear is linear
    found["parameters"] = [parameter.detach().clone() for parameter in trained]
    found["more"] = steps(again := training_of(roles, engine), engine)
    again.close()
    found["last"] = [parameter.detach().clone() for parameter in trained]
    engine.close()
    return found


@pytest.fixture(scope="module", params=KINDS)
def ranks(
    request: pytest.FixtureRequest, tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:  # fmt: skip
    """What one process without DeepSpeed (first; of losses and weights) and two ranks found."""
    folder = tmp_path_factory.mktemp("three")
    settings = str(ROOT / "configs" / "deepspeed" / "zero3.json")
    arguments = [request.param, str(tiny_folder), settings]
    for ended in launchers.run_ranks(__file__, folder, *arguments):
        assert ended.code == 0, ended.text
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return [alone(request.param, str(tiny_folder)), *found]


def alone(kind: str, base: str) -> dict[str, Any]:
    engine = Engine()
    model = load_base(base, Base(model=base), engine.device)
    roles = Roles(model, load_renderer(base), Lora(r=4, alpha=8) if kind == "lora" else None, base)
    torch.manual_seed(0)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    found: dict[str, Any] = {"losses": steps(training_of(roles, engine), engine)}
    found["parameters"] = [p.detach().clone() for p in roles.parameters_of("policy")]
    found["more"] = steps(training_of(roles, engine), engine)
    found["last"] = [p.detach().clone() for p in roles.parameters_of("policy")]
    return found


@pytest.mark.slow
def test_weights_are_gathered_when_they_are_computed_with(ranks: list[dict[str, Any]]):
    """Each rank keeps half of every weight, rounded up, and the rest is nothing; whole again, they
    are what they were. After the training nothing of DeepSpeed is left on them."""
    for found in ranks[1:]:
        assert found["shards"] == [-(-numbers // 2) for numbers in found["numbers"]]
        assert found["empty"] and found["empty again"]
        assert found["whole"]
        assert found["plain"] and found["linear"]


@pytest.mark.slow
def test_a_layer_of_a_copy_is_empty_when_the_next_one_is_computed(ranks: list[dict[str, Any]]):
    for found in ranks[1:]:
        assert set(found["live"]) <= {0}
        assert bool(found["live"]) == (len(found["numbers"]) < 28)  # of a Llama of 2 layers: full


@pytest.mark.slow
def test_a_rollout_gathers_as_often_for_two_tokens_as_for_eight(ranks: list[dict[str, Any]]):
    for found in ranks[1:]:
        few, many = found["gatherings"]
        assert few == many
        assert 0 < few <= len(found["numbers"])


@pytest.mark.slow
def test_one_training_after_the_other_is_as_without_deepspeed(ranks: list[dict[str, Any]]):
    expected = ranks[0]
    for found in ranks[1:]:
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["more"] == pytest.approx(expected["more"], abs=1e-5)
        for name in ("parameters", "last"):
            for ours, theirs in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


if __name__ == "__main__":
    torch.save(one_rank(*sys.argv[1:]), f"{os.environ['RANK']}.pt")
