"""Compiled layers give the numbers of those that were written, and sampling leaves them alone."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import GROUPED
from torch import Tensor
from torch._dynamo.utils import counters

from align import compiling
from align.compiling import compile_later, compiled
from align.config import ConfigError, Lora
from align.policy import respond, uniforms
from align.roles import Roles
from preference_data import piecewise
from preference_data.batches import Group, pack
from preference_data.rendering import Renderer

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8)
pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
        reason="torch.compile needs a C++ compiler and Python's headers",
    ),
    pytest.mark.filterwarnings("default"),  # the compiler warns of much, and fails where it may not
]
SHORT = [
    Group((5, 6, 7, 8), ((9, 10, 11), (12, 13))),
    Group((16, 17), ((18, 19), (22, 23, 24, 25))),
]
LONG = [
    Group(tuple(range(5, 30)), (tuple(range(30, 50)), tuple(range(50, 62)))),
    Group((16, 17), (tuple(range(18, 48)),)),
]
"""17 tokens in pieces under a mask, and 89: without a compiler adapters are folded into the weights
of one only. No number is that of another axis, which a compiler would take to be the same."""


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def roles_of(renderer: Renderer, lora: Lora | None = LORA) -> Roles:
    """A policy on a model with random weights whose layers will be compiled."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **GROUPED)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    compile_later(model, CPU)
    counters.clear()
    roles = Roles(model, renderer, lora, "llama")
    roles.add("policy", fresh=True, trainable=True)
    for parameter in roles.parameters_of("policy"):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return roles.eval()


def numbers(roles: Roles, groups: list[Group]) -> list[Tensor]:
    """Log-probabilities, and the gradients of what is trained."""
    logprobs, _ = roles.logprobs("policy", pack(groups))
    gradients = torch.autograd.grad(logprobs.square().mean(), roles.parameters_of("policy"))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    return [logprobs.detach(), *gradients]


@pytest.mark.parametrize("lora", [LORA, None], ids=["LoRA", "full"])
def test_the_numbers_are_the_same_and_new_lengths_are_compiled_already(
    lora: Lora | None, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(piecewise, "SHORT", 20)  # the longest group is several pieces
    roles = roles_of(renderer, lora)
    with torch.compiler.set_stance("force_eager"):
        expected = [numbers(roles, groups) for groups in (SHORT, LONG)]
    assert not counters["stats"]
    made = 0
    for groups, theirs in zip((SHORT, LONG), expected, strict=True):
        for ours, other in zip(numbers(roles, groups), theirs, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
        made = made or counters["stats"]["unique_graphs"]
    assert made > 0 and not counters["graph_break"]
    assert 2 * made <= compiling.VARIANTS
    for groups in (SHORT[:1], LONG[:1], [*SHORT, *SHORT], [*LONG, *SHORT]):
        numbers(roles, groups)
    assert counters["stats"]["unique_graphs"] == made


def test_sampling_compiles_nothing_and_draws_the_same(renderer: Renderer):
    roles = roles_of(renderer)
    draws = uniforms(0, 2, 12)

    def sample() -> object:
        with roles.active("policy") as model:
            return respond(model, [(5, 6, 7), (8, 9)], draws, renderer, 1.0)

    before = sample()
    assert not counters["stats"]
    with torch.no_grad():
        roles.logprobs("policy", pack(SHORT))
    made = counters["stats"]["unique_graphs"]
    assert made > 0
    assert sample() == before
    assert counters["stats"]["unique_graphs"] == made


def test_a_model_that_asks_for_nothing_is_left_alone(renderer: Renderer):
    roles = roles_of(renderer)
    roles.model.get_base_model().compiles_layers = False  # type: ignore[operator, union-attr]
    numbers(roles, SHORT)
    with roles.active("policy") as model:
        assert not compiled(model)
    assert not counters["stats"]["unique_graphs"]


def test_without_a_compiler_the_setting_is_named(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no g++ found\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        ConfigError, match=r"base\.compile is true, but .* no g\+\+ found\. Install"
    ):
        compile_later(torch.nn.Linear(2, 2), CPU)


def test_the_reason_is_the_one_of_the_backend(monkeypatch: pytest.MonkeyPatch):
    class BackendFailed(RuntimeError):
        inner_exception = FileNotFoundError()

    def broken(*_: Any, **__: Any) -> Any:
        raise BackendFailed("backend='inductor' raised:\nFileNotFoundError")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"compiled here: BackendFailed\. Install"):
        compile_later(torch.nn.Linear(2, 2), CPU)
    BackendFailed.inner_exception = FileNotFoundError("no cc\nsecond line")
    with pytest.raises(ConfigError, match=r"compiled here: no cc\. Install"):
        compile_later(torch.nn.Linear(2, 2), CPU)


def test_a_model_without_such_layers_is_refused():
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="odd")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"model \(odd\) has no layers that could be compiled"):
        compile_later(model, CPU)
