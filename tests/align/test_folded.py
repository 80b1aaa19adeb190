"""LoRA in one function gives peft's own numbers, and leaves alone what it cannot compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from small_models import GPT, GROUPED
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from align.adapters import merged
from align.config import Lora
from align.roles import Roles
from preference_data.batches import Group, pack
from preference_data.rendering import Renderer
from reward_models import folded
from reward_models.folded import FoldedLinear, fold
from reward_models.scalar_head import ScalarHead

FAMILIES: dict[str, dict[str, Any]] = {"llama": GROUPED, "gpt2": GPT}
GPT2_SAYS = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft sets it
BATCH = pack(
    [
        Group(tuple(range(5, 25)), (tuple(range(30, 50)), tuple(range(50, 62)))),
        Group((16, 17), ((18, 19, 20, 21), (22, 23))),
    ]
)
"""60 tokens: Llama's keys and values, 32 x 16, are folded; wider layers have too few of them."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every forward in one function."""
    seen: list[int] = []
    before = folded._Folded.forward

    def counted(*arguments: Any) -> Tensor:
        seen.append(len(seen))
        return before(*arguments)

    monkeypatch.setattr(folded._Folded, "forward", staticmethod(counted))
    return seen


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the weights that adapters were folded into, in order."""
    seen: list[torch.Size] = []
    before = folded._folded

    def counted(weight: Tensor, *rest: Any) -> Tensor:
        seen.append(weight.shape)
        return before(weight, *rest)

    monkeypatch.setattr(folded, "_folded", counted)
    return seen


def roles_of(family: str, renderer: Renderer, rank: int = 4, alpha: int = 8, **more: Any) -> Roles:
    """Policy and value with adapters that differ, on a model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **FAMILIES[family]), dtype=torch.float32,
        attn_implementation="sdpa",
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    if more.pop("checkpointed", False):
        from align.base import _mark_layers

        _mark_layers(family, model)
    roles = Roles(model, renderer, Lora(r=rank, alpha=alpha, **more), family)
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    for role in ("policy", "value"):
        for parameter in roles.parameters_of(role):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return roles.eval()


def by_peft(roles: Roles) -> Roles:
    """A copy whose layers are peft's again."""
    roles = copy.deepcopy(roles)
    part: Any
    for part in roles.modules():
        if type(part) is FoldedLinear:
            part.__class__ = lora.Linear  # type: ignore[assignment] - as it was
    return roles


def numbers(roles: Roles) -> list[Tensor]:
    """Log-probabilities and values in one loss, as PPO has them, and the gradients of both roles;
    the other role is active in the backward pass."""
    logprobs, _, values = roles("policy_and_values", "policy", BATCH, temperature=0.7)
    assert values is not None
    loss = logprobs.square().mean() + values.square().mean()
    parameters = [*roles.parameters_of("policy"), *roles.parameters_of("value")]
    with roles.active("value"):
        return [logprobs, values, *torch.autograd.grad(loss, parameters)]


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    """To a share of the largest number of each tensor."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        largest = float(other.detach().abs().max())
        assert largest > 0
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * largest)


def layer_of(
    kind: type[nn.Module] = nn.Linear, size: tuple[int, int] = (4, 12), **more: Any
) -> Any:
    """A model of one layer with an adapter that computes something."""
    torch.manual_seed(0)
    base: Any = nn.Linear(*size) if kind is nn.Linear else Conv1D(size[1], size[0])
    settings = {"r": 2, "lora_alpha": 6, "fan_in_fan_out": kind is not nn.Linear, **more}
    model: Any = get_peft_model(nn.Sequential(base), LoraConfig(target_modules=["0"], **settings))  # type: ignore[arg-type]
    fold(model)
    layer = model.get_base_model()[0]
    for parameter in layer.lora_B.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("always", [False, True], ids=["by tokens", "folded"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (4, 8), (20, 10)])
@pytest.mark.parametrize("family", FAMILIES)
@GPT2_SAYS
def test_two_roles_in_one_graph_have_pefts_numbers(
    family: str, rank: int, alpha: int, checkpointed: bool, always: bool, renderer: Renderer,
    calls: list[int], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Ranks below and above the width of keys; every layer once a role, and once more where it is
    computed again. The model is in double precision, its heads' outputs in single."""
    if always:
        monkeypatch.setattr(folded, "_folding_pays", lambda *_: True)
    roles = roles_of(family, renderer, rank, alpha, checkpointed=checkpointed)
    roles.model.double()
    theirs = numbers(by_peft(roles))
    assert not calls
    close(numbers(roles), theirs)
    layers = sum(isinstance(part, FoldedLinear) for part in roles.modules())
    assert len(calls) == (4 if checkpointed else 2) * layers


@pytest.mark.parametrize("family", FAMILIES)
@GPT2_SAYS
def test_in_single_precision_only_rounding_differs(family: str, renderer: Renderer):
    roles = roles_of(family, renderer)
    close(numbers(roles), numbers(by_peft(roles)), 1e-5)


@pytest.mark.parametrize("tokens", [5, 50])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_one_layer_has_pefts_numbers(kind: type[nn.Module], tokens: int):
    """Few tokens and many, in single precision."""
    layer = layer_of(kind)
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert len(trained) == 2
    x = torch.randn(tokens, 4, requires_grad=True)
    found = []
    for forward in (FoldedLinear.forward, lora.Linear.forward):
        y = forward(layer, x)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *trained])])
    close(*found)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_the_truth_as_pefts(dtype: torch.dtype, kind: type[nn.Module]):
    """Errors as a share of the true numbers' length: a rounding is 2^-9 of a bfloat16 at most,
    2^-12 of a float16, and an output is rounded twice by both."""
    step = torch.finfo(dtype).eps / 2
    layer = layer_of(kind, (64, 96), r=4)
    layer.base_layer.to(dtype)
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    x = torch.randn(300, 64).to(dtype).requires_grad_()
    weights = torch.randn(300, 96).to(dtype)

    def numbers_of(forward: Callable[..., Tensor], layer: Any, x: Tensor) -> list[Tensor]:
        trained = [p for p in layer.parameters() if p.requires_grad]
        y = forward(layer, x)
        return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *trained])]

    truth = numbers_of(lora.Linear.forward, copy.deepcopy(layer).double(), x.double())
    theirs = numbers_of(lora.Linear.forward, layer, x)
    ours = numbers_of(FoldedLinear.forward, layer, x)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert mine.dtype == other.dtype
        error, of_peft = (float((a.double() - true).norm() / true.norm()) for a in (mine, other))
        assert error <= max(1.1 * of_peft, 1.5 * step)


@pytest.mark.parametrize("tokens", [2, 50])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("strided", [True, False], ids=["strided", "whole"])
def test_what_comes_out_may_be_changed_in_place(strided: bool, bias: bool, tokens: int):
    """As OLMo does with its queries and keys; also of an input with gaps in memory."""
    layer = layer_of().double()
    layer.base_layer.bias = layer.base_layer.bias if bias else None
    trained = [p for p in layer.parameters() if p.requires_grad]
    x = torch.randn(tokens, 2, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for forward in (FoldedLinear.forward, lora.Linear.forward):
        y = forward(layer, x.transpose(0, 1) if strided else x).clamp_(min=-0.5)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *trained])])
    close(*found)


def test_a_layer_of_one_number():
    """W = 2, B A = 5 * 3, s = 1/2: y = 9.5 x. For x = 1, 2 and a gradient of 1: x gets 9.5,
    B s A sum(x) = 4.5, and A s B sum(x) = 7.5."""
    layer = layer_of(size=(1, 1), r=2, lora_alpha=1)
    with torch.no_grad():
        layer.base_layer.weight.fill_(2.0)
        layer.base_layer.bias.fill_(1.0)
        layer.lora_A["default"].weight.copy_(torch.tensor([[3.0], [0.0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[5.0, 0.0]]))
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.tolist() == [[10.5], [20.0]]
    assert x.grad is not None and x.grad.tolist() == [[9.5], [9.5]]
    assert layer.lora_B["default"].weight.grad.tolist() == [[4.5, 0.0]]
    assert layer.lora_A["default"].weight.grad.tolist() == [[7.5], [0.0]]


@pytest.mark.parametrize("tokens", [3, 9])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_gradients_are_those_of_finite_differences(
    kind: type[nn.Module], tokens: int, folds: list[torch.Size]
):
    """In double precision, for an input of three axes; folded and beside the layer."""
    layer = layer_of(kind).double()
    x = torch.randn(2, tokens, 4, dtype=torch.float64, requires_grad=True)
    factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *factors))
    assert bool(folds) == (tokens == 9)


def test_a_frozen_adapter_gets_no_gradient_and_keeps_no_input():
    layer = layer_of().requires_grad_(False)
    x = torch.randn(9, 4, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = layer(x)
    (ours,) = torch.autograd.grad(y.square().sum(), [x])
    theirs = torch.autograd.grad(lora.Linear.forward(layer, x).square().sum(), [x])
    close([ours], list(theirs))
    assert x.shape not in kept
    assert not layer(x.detach()).requires_grad


def test_nothing_as_wide_as_the_layer_is_kept():
    """Per layer the input, the weight and the factors; y and W' are not among them."""
    layer = layer_of(size=(4, 12))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(17, 4, requires_grad=True))
    assert sorted(map(tuple, kept)) == [(2, 4), (12, 2), (12, 4), (17, 4)]


def test_the_same_bits_twice(renderer: Renderer):
    roles = roles_of("llama", renderer)
    assert all(map(torch.equal, numbers(roles), numbers(roles)))


def test_what_is_active_decides(renderer: Renderer, calls: list[int]):
    """Switching between adapters and none; without one, the base alone computes."""
    roles = roles_of("llama", renderer)
    theirs = by_peft(roles)
    roles.add("reference")
    theirs.add("reference")
    for role in ("policy", "value", "policy"):
        close([roles.hidden(role, BATCH)], [theirs.hidden(role, BATCH)])
    count = len(calls)
    assert torch.equal(roles.hidden("reference", BATCH), theirs.hidden("reference", BATCH))
    ids = BATCH.input_ids
    found = []
    for one in (roles, theirs):
        with one.active("policy") as model, merged(model):
            found.append(model(input_ids=ids).logits)
    assert torch.equal(*found)
    assert len(calls) == count == 3 * 14


# --- what is left to peft -------------------------------------------------------------------------


def two_active(layer: Any) -> None:
    layer.update_layer("more", 2, lora_alpha=6, config=LoraConfig(r=2, lora_alpha=6))
    layer._active_adapter = ["default", "more"]


def listened_to(layer: Any) -> None:
    layer.base_layer.register_forward_hook(lambda *_: None)


LEFT: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "dropout in training": ({"lora_dropout": 0.5}, lambda layer: layer.train()),
    "DoRA": ({"use_dora": True}, lambda layer: None),
    "a bias of the adapter": ({"lora_bias": True}, lambda layer: None),
    "two active": ({}, two_active),
    "none active": ({}, lambda layer: setattr(layer, "_active_adapter", [])),
    "switched off": ({}, lambda layer: layer.enable_adapters(False)),
    "merged": ({}, lambda layer: layer.merge()),
    "a finer type beside the factors": ({}, lambda layer: layer.base_layer.double()),
    "a trained weight": ({}, lambda layer: layer.base_layer.requires_grad_(True)),
    "a trained bias": ({}, lambda layer: layer.base_layer.bias.requires_grad_(True)),
    "a hook": ({}, listened_to),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_more_than_one_plain_adapter_is_left_to_peft(case: str, calls: list[int]):
    """To the last bit, gradients included."""
    settings, change = LEFT[case]
    layer = layer_of(**settings)
    change(layer)
    found = []
    for forward in (FoldedLinear.forward, lora.Linear.forward):
        torch.manual_seed(1)
        x = torch.randn(9, 4, dtype=layer.base_layer.weight.dtype, requires_grad=True)
        y = forward(layer, x)
        trained = [p for p in layer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(y.square().sum(), [x, *trained], materialize_grads=True)
        found.append([y, *gradients])
    assert not calls
    assert all(map(torch.equal, *found))


def test_under_autocast_peft_computes(calls: list[int]):
    layer = layer_of()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(9, 4)).dtype == torch.bfloat16
    assert not calls


def test_dropout_that_does_not_drop_is_no_reason(calls: list[int]):
    """A role is evaluated without it."""
    layer = layer_of(lora_dropout=0.5)
    x = torch.randn(9, 4)
    close([layer(x)], [lora.Linear.forward(layer, x)])
    assert calls


def test_only_many_tokens_are_worth_a_fold(folds: list[torch.Size]):
    """6 tokens have 24 numbers in and 72 out, twice as many as a weight of 4 x 12."""
    layer = layer_of(size=(4, 12))
    layer(torch.randn(2, 3, 4))
    assert not folds
    layer(torch.randn(7, 4))
    assert folds == [(12, 4)]


# --- what is saved --------------------------------------------------------------------------------


def test_what_is_saved_is_pefts(renderer: Renderer, tmp_path: Path):
    """The same files to the last byte, parameters of the same names, and a copy that computes."""
    roles = roles_of("llama", renderer)
    theirs = by_peft(roles)
    assert list(roles.state_dict()) == list(theirs.state_dict())
    ours = roles.save("policy", tmp_path / "ours")
    other = theirs.save("policy", tmp_path / "theirs")
    names = sorted(path.name for path in ours.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert all((ours / name).read_bytes() == (other / name).read_bytes() for name in names)
    again = copy.deepcopy(roles)
    assert torch.equal(again.hidden("policy", BATCH), roles.hidden("policy", BATCH))


def test_other_layers_stay_what_they_are():
    """Embeddings have adapters of another kind, and no weight that a product could hold."""
    model: Any = get_peft_model(
        nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)),
        LoraConfig(target_modules=["0", "1"], r=2),
    )  # type: ignore[arg-type]
    fold(model)
    fold(model)  # again, after another adapter
    base = model.get_base_model()
    assert type(base[0]) is lora.Embedding
    assert type(base[1]) is FoldedLinear
