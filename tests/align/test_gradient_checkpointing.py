"""Layers that are computed again in the backward pass give the numbers of layers that are kept.

The trap is two adapters on one base: whichever is active in the backward pass is what a layer would
be computed again with, and nobody would hear of it. One test falls into it on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import GPT, GROUPED, SMALL, VOCABULARY
from small_runs import TWO_LAYERS, world_of
from step_files import metrics_of
from torch import Tensor

from align import adapters
from align.base import checkpointed_layers, load_base
from align.config import Base, ConfigError, Lora, build_config
from align.logits import token_logprobs
from align.pipeline import Pipeline
from align.policy import respond, uniforms
from align.roles import Roles
from preference_data import attention, piecewise
from preference_data.attention import hidden_states
from preference_data.batches import Group, pack
from preference_data.rendering import Renderer
from reward_models.scalar_head import ScalarHead

MakeRoles = Callable[..., Roles]

SIX_LAYERS = {**GROUPED, "num_hidden_layers": 6}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48,
       "vocab_size": VOCABULARY, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
       "dropout": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "gpt2": ("gpt2", GPT),
    "gpt_neox": ("gpt_neox", SMALL),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
}
LORA = Lora(r=4, alpha=8)
MODES = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
GPT2_SAYS = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft sets it
BATCH = pack(
    [
        Group((5, 6, 7, 8, 9), ((10, 11, 12), (13, 14), (15,))),
        Group((16, 17), ((18, 19, 20, 21), (22, 23))),
        Group((24,), ((25, 26, 27),)),
    ],
    row_tokens=16,
)


@pytest.fixture(autouse=True)
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the first group is three pieces more than a prompt, the second one under a mask."""
    monkeypatch.setattr(piecewise, "SHORT", 8)
    monkeypatch.setattr(piecewise, "NEIGHBOURS", 8)


def model_of(kind: str, settings: Mapping[str, Any], attention: str = "sdpa") -> Any:
    """Random, and far enough from 0 for its tokens to differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **settings), dtype=torch.float32, attn_implementation=attention
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def build(
    kind: str, settings: Mapping[str, Any], renderer: Renderer, lora: Lora | None, on: bool
) -> Roles:
    """Policy, reward and value as PPO has them, each computing something else; the same weights
    with checkpointing on and off."""
    model = model_of(kind, settings)
    if on:
        switch_on(model)
    roles = Roles(model, renderer, lora, kind)
    torch.manual_seed(1)
    roles.add("policy", fresh=True, trainable=True)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    for role in ("policy", "reward", "value"):
        for parameter in roles.parameters_of(role):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return roles.eval()


def switch_on(model: Any) -> None:
    """As `load_base` does for base.gradient_checkpointing."""
    from align.base import _mark_layers

    _mark_layers("model", model)
    assert checkpointed_layers(model)


def both(family: str, renderer: Renderer, lora: Lora | None) -> tuple[Roles, Roles]:
    """(on, off)"""
    kind, settings = FAMILIES[family]
    on, off = (build(kind, settings, renderer, lora, on) for on in (True, False))
    return on, off


def gradients(loss: Tensor, roles: Roles, *names: str) -> list[Tensor]:
    parameters = [p for role in names for p in roles.parameters_of(role)]
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    assert max(float(tensor.abs().max()) for tensor in theirs) > 0.05  # there is something to see
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


class Calls:
    """How often a model's layers are entered; computed again, they need not be left."""

    def __init__(self, *modules: torch.nn.Module):
        self.count = 0
        for module in modules:
            for name, part in module.named_modules():
                if name.endswith("mlp"):
                    part.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


# --- the same numbers -----------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("family", FAMILIES)
@GPT2_SAYS
def test_one_role_has_the_same_loss_and_gradients(
    family: str, lora: Lora | None, renderer: Renderer
):
    """Scores and log-probabilities to the last bit, in evaluation mode; every layer twice."""
    on, off = both(family, renderer, lora)
    calls = Calls(on)
    for what, role in (("scores", "reward"), ("logprobs", "policy"), ("values", "value")):
        found = []
        for roles in (on, off):
            numbers = roles(what, role, BATCH)
            numbers = numbers.logprobs if what == "logprobs" else numbers
            loss = numbers.square().mean()
            found.append((numbers, gradients(loss, roles, role)))
        (ours, our_gradients), (theirs, their_gradients) = found
        assert torch.equal(ours, theirs)
        close(our_gradients, their_gradients)
    assert calls.count == 3 * 2 * 2


@MODES
@pytest.mark.parametrize("family", FAMILIES)
@GPT2_SAYS
def test_two_roles_in_one_loss_have_the_same_gradients(
    family: str, lora: Lora | None, renderer: Renderer
):
    """As PPO has them, with a third one active in the backward pass."""
    found = []
    for roles in both(family, renderer, lora):
        logprobs, entropy, values = roles("policy_and_values", "policy", BATCH, temperature=0.7)
        loss = logprobs.square().mean() + entropy.mean() + values.square().mean()
        with roles.active("reward"):
            found.append([loss.detach(), *gradients(loss, roles, "policy", "value")])
    close(*found)


def test_plain_checkpointing_of_two_adapters_is_wrong(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
):
    """The trap, so that the test above can fail: transformers' own switch computes every layer
    again with the adapter of the reward model, which no loss here has seen. (Under a mask: it knows
    no attention piece by piece, and would say so.)"""
    monkeypatch.setattr(attention, "_goes_piecewise", lambda *_: False)

    def found(checkpointed: bool) -> list[Tensor]:
        roles = build("llama", GROUPED, renderer, LORA, on=False)
        base = roles.model.get_base_model()
        if checkpointed:
            switch_on(base)
            base.train()  # nothing in it drops out
        with roles.active("policy") as model:
            hidden = hidden_states(model, BATCH).flatten(0, 1)[BATCH.predict_at]
            logprobs = token_logprobs(hidden, model.get_output_embeddings(), BATCH.targets).logprobs
        with roles.active("value") as model:
            values = roles.head("value")(hidden_states(model, BATCH).flatten(0, 1))
        loss = logprobs.square().mean() + values.square().mean()
        with roles.active("reward"):
            return gradients(loss, roles, "policy", "value")

    pairs = zip(found(True), found(False), strict=True)
    assert max(float((mine - other).abs().max()) for mine, other in pairs) > 0.1


def test_a_graph_can_be_gone_through_twice(renderer: Renderer):
    """Each backward pass computes the layers again, with the same adapter."""
    on, off = both("llama", renderer, LORA)
    found = []
    for roles in (on, off):
        loss = roles("logprobs", "policy", BATCH).logprobs.square().mean()
        parameters = roles.parameters_of("policy")
        with roles.active("value"):
            first = torch.autograd.grad(loss, parameters, retain_graph=True)
            second = torch.autograd.grad(loss, parameters)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        found.append(list(second))
    close(*found)


def test_logits_are_computed_again_with_their_own_adapter(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
):
    """A language head with adapters, in blocks of 5 positions that are not kept: the gradients are
    those of one block that is, on or off."""
    found = []
    for on, block in ((True, 5), (False, 5), (False, 100)):
        monkeypatch.setattr("align.logits.LOGITS_AT_ONCE", block * VOCABULARY)
        lora = Lora(r=4, alpha=8, target_modules=("q_proj", "lm_head"))
        roles = build("llama", GROUPED, renderer, lora, on)
        logprobs = roles("logprobs", "policy", BATCH).logprobs
        with roles.active("reward"):
            found.append(gradients(logprobs.square().mean(), roles, "policy"))
    close(found[0], found[2])
    close(found[1], found[2])


def test_an_input_without_a_gradient_does_not_cut_the_graph(renderer: Renderer):
    """Frozen embeddings ask for none, and stay so: the first layer's adapter gets its gradient all
    the same."""
    on, _ = both("llama", renderer, LORA)
    asked: list[bool] = []
    with on.active("policy") as model:
        model.get_input_embeddings().register_forward_hook(
            lambda _, __, output: asked.append(output.requires_grad)
        )
    on("logprobs", "policy", BATCH).logprobs.sum().backward()
    assert asked == [False]
    first = [
        p for name, p in on.model.named_parameters() if "layers.0." in name and ".policy." in name
    ]
    assert len(first) == 14  # A and B of 7 linear layers
    assert all(p.grad is not None and bool(p.grad.any()) for p in first)


def test_dropout_of_the_adapter_is_drawn_the_same_twice(renderer: Renderer):
    """reward and dpo train with it: what the forward pass dropped, the second one drops."""
    found = []
    for on in (True, False):
        roles = build("llama", GROUPED, renderer, Lora(r=4, alpha=8, dropout=0.5), on).train()
        draws = []
        for seed in (3, 4):
            torch.manual_seed(seed)
            loss = roles("logprobs", "policy", BATCH).logprobs.square().mean()
            draws.append(gradients(loss, roles, "policy"))
        assert max(float((a - b).abs().max()) for a, b in zip(*draws, strict=True)) > 1e-2
        found.append([tensor for draw in draws for tensor in draw])
    close(*found)


def test_a_layer_that_drops_out_by_itself_does_not_in_evaluation_mode(renderer: Renderer):
    """OPT's layers have a dropout of their own. transformers checkpoints in training mode alone;
    PPO needs evaluation mode, or its first ratio would not be 1."""
    found = []
    for on in (True, False):
        roles = build("opt", OPT, renderer, LORA, on)
        logprobs = roles("logprobs", "policy", BATCH).logprobs
        found.append([logprobs.detach(), *gradients(logprobs.square().mean(), roles, "policy")])
        assert not any(module.training for module in roles.modules())
    close(*found)


def test_what_was_switched_is_switched_back_after_an_error(renderer: Renderer):
    on, _ = both("llama", renderer, LORA)
    before = [layer._gradient_checkpointing_func for layer in checkpointed_layers(on)]

    def fail(*_: Any) -> None:
        raise RuntimeError("in between")

    with on.active("policy") as model:
        handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in between"):
        on("logprobs", "policy", BATCH)
    handle.remove()
    assert not any(module.training for module in on.modules())
    assert before == [layer._gradient_checkpointing_func for layer in checkpointed_layers(on)]


# --- what it is for, and what it must not touch ---------------------------------------------------


@MODES
def test_less_is_kept_for_the_backward_pass(lora: Lora | None, renderer: Renderer):
    """Bytes of all tensors, weights aside, that the graph of a loss holds on six layers."""

    def kept(on: bool) -> int:
        roles = build("llama", SIX_LAYERS, renderer, lora, on)
        weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
        found: dict[int, int] = {}
        held: list[Tensor] = []  # so that no storage is counted as another's

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            roles("policy_and_values", "policy", BATCH, temperature=1.0)
        return sum(found.values())

    share = kept(True) / kept(False)
    print(f"kept: {share:.2f}")
    assert share < 0.6


def test_sampling_keeps_its_cache(make_roles: MakeRoles):
    """With checkpointing on, the same responses, one token a step after the prompt; also where
    a gradient is not switched off before the role is made active, as in a rollout."""
    prompts, draws = [(5, 6, 7), (8, 9)], uniforms(1, 2, 6)
    answers = []
    for on in (False, True):
        roles = make_roles()
        if on:
            switch_on(roles.model)
        roles.add("policy", fresh=True, trainable=True)
        roles.eval()  # the new adapter is not yet
        widths: list[int] = []
        with roles.active("policy") as model:
            model.model.layers[0].mlp.register_forward_pre_hook(
                lambda _, inputs, seen=widths: seen.append(inputs[0].shape[1])
            )
            answers.append(respond(model, prompts, draws, roles.renderer, 1.0))
        assert widths[0] == 3 + 2  # the prompts in one row
        assert set(widths[1:]) == {1}
    assert answers[0] == answers[1]


def test_nothing_is_computed_again_where_no_gradient_is_wanted(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
):
    on, _ = both("llama", renderer, LORA)
    monkeypatch.setattr(adapters, "checkpoint", None)
    with torch.no_grad():
        on("logprobs", "policy", BATCH)
    with pytest.raises(TypeError):  # so that this can fail
        on("logprobs", "policy", BATCH)


def test_the_option_switches_it_on(tiny_folder: Path, renderer: Renderer):
    """In the base and, under full fine-tuning, in each copy of it."""
    path = str(tiny_folder)
    for on in (False, True):
        base = Base(model=path, gradient_checkpointing=on)
        model = load_base(path, base, torch.device("cpu"))
        roles = Roles(model, renderer, None, path)
        roles.add("policy", fresh=True, trainable=True)
        assert len(checkpointed_layers(model)) == (2 if on else 0)
        assert len(checkpointed_layers(roles.copies["policy"])) == (2 if on else 0)


def test_a_base_without_such_layers_is_refused(tmp_path: Path):
    """The option would have no effect on it."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "vocab_size": 97, "intermediate_multiple_size": 1, "max_position_embeddings": 64,
                "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
    model_of("gpt_neox_japanese", settings, "eager").save_pretrained(tmp_path)
    path = str(tmp_path)
    base = Base(model=path, attention="eager", gradient_checkpointing=True)
    with pytest.raises(ConfigError, match=r"base\.gradient_checkpointing is true, but the layers"):
        load_base(path, base, torch.device("cpu"))


# --- whole steps ----------------------------------------------------------------------------------


def pipeline(folder: Path, lora: dict[str, Any] | None, on: bool) -> Pipeline:
    """A run of every kind of step that trains."""
    short = {"max_steps": 3, "train_batch_size": 8, "learning_rate": 1e-2, "max_length": 96}
    tree = {
        "name": "steps",
        "output_dir": str(folder),
        "base": {"gradient_checkpointing": on, "architecture": TWO_LAYERS},
        "lora": lora,
        "near_duplicates": None,
        "world": world_of(30, items=40),
        "data": {
            "text": {"path": "builtin:text"},
            "demonstrations": {"path": "builtin:demonstrations"},
            "labels": {"path": "builtin:labels", "test_fraction": 0.3},
            "prompts": {"path": "builtin:prompts"},
        },
        "steps": {
            "pretrain": {"kind": "pretrain", "data": "text", "train": short},
            "sft": {"kind": "sft", "data": "demonstrations", "init": "pretrain", "train": short},
            "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": short},
            "dpo": {"kind": "dpo", "data": "labels", "policy": "sft", "train": short},
            "ppo": {
                "kind": "ppo", "data": "prompts", "policy": "sft", "reward": "reward",
                "train": {"iterations": 2, "prompts_per_iteration": 8, "max_new_tokens": 8,
                          "learning_rate": 1e-3},
            },
        },
    }  # fmt: skip
    return Pipeline(build_config(tree))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a layer was checkpointed, by the roles and by trl's trainer."""
    import transformers.modeling_utils as theirs

    seen = {"roles": 0, "trainer": 0}
    for who, module in (("roles", adapters), ("trainer", theirs)):
        real = module.checkpoint

        def counted(*inputs: Any, who: str = who, real: Any = real, **settings: Any) -> Any:
            seen[who] += 1
            return real(*inputs, **settings)

        monkeypatch.setattr(module, "checkpoint", counted)
    return seen


@pytest.mark.parametrize("lora", [{"r": 4, "alpha": 8, "dropout": 0.2}, None], ids=["lora", "full"])
def test_every_step_trains_to_the_same_numbers(
    tmp_path: Path, passes: dict[str, int], lora: dict[str, Any] | None
):
    """Pretraining, SFT, the reward model, DPO and PPO: each line that they log."""
    pipeline(tmp_path / "off", lora, on=False).run()
    assert passes == {"roles": 0, "trainer": 0}
    pipeline(tmp_path / "on", lora, on=True).run()
    assert min(passes.values()) > 0
    for step in ("pretrain", "sft", "reward", "dpo", "ppo"):
        ours, theirs = metrics_of(tmp_path / "on" / step), metrics_of(tmp_path / "off" / step)
        assert len(ours) == len(theirs) > 0
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-6, abs=1e-6, nan_ok=True), step
