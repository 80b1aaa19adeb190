"""Roles on one base: apart while they train, the same numbers after a reload by plain libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.config import Lora
from align.roles import Roles, load_head
from preference_data.batches import Group, PackedBatch, pack
from preference_data.records import Prompt, Response
from preference_data.rendering import Renderer
from reward_models import RewardModel
from reward_models.scalar_head import ScalarHead, Scoring, value_head_from

MakeRoles = Callable[..., Roles]
Shake = Callable[..., None]
BATCH = pack([Group((260, 5, 6), ((7, 8, 9), (10, 1))), Group((11,), ((12, 13),))])
MODES = pytest.mark.parametrize("lora", [Lora(r=4, alpha=8), None], ids=["lora", "full"])


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def all_four(make_roles: MakeRoles, shake: Shake, lora: Lora | None) -> Roles:
    """Policy, reference, reward and value as PPO has them, each computing something else."""
    roles = make_roles(lora)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    for seed, role in enumerate(("policy", "reward", "value")):
        shake(roles.parameters_of(role), seed)
    return roles


# --- apart ----------------------------------------------------------------------------------------


@MODES
def test_fresh_role_is_the_bare_base_to_the_last_bit(make_roles: MakeRoles, lora: Lora | None):
    """A new adapter's B is 0; a copy is a copy. So KL is exactly 0 before the first update."""
    roles = make_roles(lora)
    alone = roles.model(input_ids=BATCH.input_ids[:, :4], use_cache=False).logits
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    ours, reference = (
        roles.logprobs(role, BATCH, entropy="value") for role in ("policy", "reference")
    )
    assert ours.entropy is not None and reference.entropy is not None
    assert torch.equal(ours.logprobs, reference.logprobs)
    assert torch.equal(ours.entropy, reference.entropy)
    with roles.active("reference") as model:
        assert torch.equal(model(input_ids=BATCH.input_ids[:, :4], use_cache=False).logits, alone)


@MODES
def test_training_one_role_moves_no_other(make_roles: MakeRoles, shake: Shake, lora: Lora | None):
    """After a step on the policy alone, the others compute the same bits; the policy does not."""
    roles = all_four(make_roles, shake, lora)

    def numbers() -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                "reference": roles.logprobs("reference", BATCH).logprobs,
                "reward": roles.scores("reward", BATCH),
                "value": roles.values("value", BATCH),
                "policy": roles.logprobs("policy", BATCH).logprobs,
            }

    before = numbers()
    optimizer = torch.optim.SGD(roles.parameters_of("policy"), lr=0.5)
    roles.logprobs("policy", BATCH).logprobs.sum().backward()
    optimizer.step()
    after = numbers()
    for role in ("reference", "reward", "value"):
        assert torch.equal(before[role], after[role]), role
    assert (before["policy"] - after["policy"]).abs().max() > 1e-3


@MODES
@pytest.mark.parametrize("role", ["policy", "reward", "value"])
def test_gradients_reach_the_roles_own_parameters_alone(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, role: str
):
    roles = all_four(make_roles, shake, lora)
    compute = {"policy": lambda: roles.logprobs("policy", BATCH).logprobs.sum()}
    compute["reward"] = lambda: roles.scores("reward", BATCH).sum()
    compute["value"] = lambda: roles.values("value", BATCH).sum()
    compute[role]().backward()
    own = {id(parameter) for parameter in roles.parameters_of(role)}
    touched = {id(p) for p in roles.parameters() if p.grad is not None and bool(p.grad.any())}
    assert touched <= own
    # A head reads no logits, so under full fine-tuning a language head of its own may rest.
    assert len(touched) >= len(own) - 1


def test_two_adapters_in_one_loss_have_the_gradients_of_two_losses(
    make_roles: MakeRoles, shake: Shake
):
    """PPO sums a policy and a value loss before one backward."""
    roles = all_four(make_roles, shake, Lora(r=4, alpha=8))
    parameters = [*roles.parameters_of("policy"), *roles.parameters_of("value")]

    def policy_loss() -> Tensor:
        return roles.logprobs("policy", BATCH, 0.7).logprobs.sum()

    def value_loss() -> Tensor:
        return roles.values("value", BATCH).square().sum()

    logprobs, _, values = roles("policy_and_values", "policy", BATCH, temperature=0.7)
    together = torch.autograd.grad(logprobs.sum() + values.square().sum(), parameters)
    apart = [
        torch.autograd.grad(loss(), roles.parameters_of(role))
        for role, loss in (("policy", policy_loss), ("value", value_loss))
    ]
    for ours, alone in zip(together, [*apart[0], *apart[1]], strict=True):
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("outer", ["reference", "policy", "reward"])
def test_active_restores_what_was_active(make_roles: MakeRoles, shake: Shake, outer: str):
    """Nested and after an error; and `requires_grad` of no adapter is touched on the way."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    roles = all_four(make_roles, shake, Lora(r=4, alpha=8))

    def state() -> tuple[list[list[str]], list[bool]]:
        layers = [m for m in roles.modules() if isinstance(m, BaseTunerLayer)]
        return (
            [list(layer.active_adapters) for layer in layers],
            [parameter.requires_grad for parameter in roles.parameters()],
        )

    start = state()
    with roles.active(outer):
        inside = state()
        with pytest.raises(RuntimeError, match="in between"), roles.active("value"):
            assert state()[0] == [["value"]] * len(start[0])
            raise RuntimeError("in between")
        assert state() == inside
    assert state() == start
    assert inside[0] == [[] if outer == "reference" else [outer]] * len(start[0])


def test_full_fine_tuning_gives_every_role_a_copy(make_roles: MakeRoles):
    """No storage is shared, the base stays frozen, and what is saved is a whole model."""
    roles = make_roles(None)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
    places = [
        {parameter.data_ptr() for parameter in module.parameters()}
        for module in (roles.model, roles.copies["policy"], roles.copies["value"])
    ]
    assert not (places[0] & places[1] or places[0] & places[2] or places[1] & places[2])
    assert not any(parameter.requires_grad for parameter in roles.model.parameters())
    assert len(roles.parameters_of("policy")) == len(list(roles.model.parameters()))
    assert roles.parameters_of("reference") == []


def test_adapter_may_hold_the_name_of_another(make_roles: MakeRoles, shake: Shake):
    """`value` and `value_old` are two roles: neither's parameters are counted as the other's."""
    roles = make_roles()
    roles.add("value", fresh=True, trainable=True, head=ScalarHead(32))
    roles.add("value_old", fresh=True, trainable=False, head=ScalarHead(32))
    assert len(roles.parameters_of("value")) == 2 * 2 * 7 + 1  # A, B of 2 layers x 7, and the head
    assert roles.parameters_of("value_old") == []


def test_a_role_exists_once_and_a_head_where_it_was_given(make_roles: MakeRoles):
    roles = make_roles()
    roles.add("policy", fresh=True)
    with pytest.raises(ValueError, match="'policy' exists already"):
        roles.add("policy")
    with pytest.raises(ValueError, match="'policy' has no scalar head"):
        roles.scores("policy", BATCH)


@MODES
def test_nothing_adds_zero_gradients(make_roles: MakeRoles, shake: Shake, lora: Lora | None):
    """A rank without rows takes part in the step with gradients of exactly 0."""
    roles = all_four(make_roles, shake, lora)
    loss = roles("nothing", "value", None)
    loss.backward()
    assert loss.item() == 0.0
    for parameter in roles.parameters_of("value"):
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(parameter.grad is None for parameter in roles.parameters_of("policy"))


@MODES
@pytest.mark.parametrize("role", ["policy", "value"])
def test_an_idle_rank_comes_the_same_way_as_the_others(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, role: str
):
    """Its loss is 0 with gradients of exactly 0, which reach the same parameters in the same order
    as those of rows: sharded gradients are summed in that order, some at a time."""
    order: dict[str, list[str]] = {}
    for way in ("idle", "rows"):
        roles = all_four(make_roles, shake, lora)
        names = {id(parameter): name for name, parameter in roles.named_parameters()}
        reached = order.setdefault(way, [])
        for parameter in roles.parameters_of(role):
            parameter.register_post_accumulate_grad_hook(
                partial(lambda to, names, one: to.append(names[id(one)]), reached, names)
            )
        if way == "idle":
            loss = roles("idle", role, None)
        elif role == "value":
            loss = roles("values", role, BATCH).square().mean()
        else:
            loss = -roles("logprobs", role, BATCH).logprobs.mean()
        loss.backward()
        found = [p.grad for p in roles.parameters_of(role) if p.grad is not None]
        assert any(bool(grad.any()) for grad in found) == (way == "rows")
    assert order["idle"] == order["rows"]
    assert len(order["idle"]) > 10


def test_temperature_divides_the_logits(make_roles: MakeRoles):
    """log softmax(z / T)[y] of the whole conversation, from the model's own logits."""
    roles = make_roles()
    roles.add("policy")
    batch = pack([Group((5, 6), ((7, 8),))])
    logits = roles.model(torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits[0, 1:3]
    for temperature in (0.5, 1.0, 2.0):
        logprobs = (logits / temperature).log_softmax(-1)
        expected = torch.stack([logprobs[0, 7], logprobs[1, 8]])
        ours = roles.logprobs("policy", batch, temperature, "value")
        torch.testing.assert_close(ours.logprobs, expected, rtol=0, atol=1e-5)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(ours.entropy, entropy, rtol=0, atol=1e-4)


# --- save, and load with other people's code ------------------------------------------------------

PROMPTS = ["What is the capital of France?", "What is the opposite of hot?"]
ANSWERS = ["The capital of France is Paris.", "cold"]


def rendered(renderer: Renderer) -> list[Group]:
    groups = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        row = renderer.render(Prompt.from_text(prompt), Response.from_text(answer))
        groups.append(Group(row.prompt, (row.completion,)))
    return groups


def scored(roles: Roles, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        return roles.scores("reward", batch)


def saved_reward(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, folder: Path
) -> tuple[Path, Roles]:
    roles = make_roles(lora)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    shake(roles.parameters_of("reward"))
    scoring = Scoring(roles.renderer.fingerprint(), max_length=64, mean=0.25, std=2.0)
    return roles.save("reward", folder, scoring), roles


@MODES
def test_reward_model_loads_with_plain_transformers_and_peft(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path, tiny_folder: Path
):
    """Their own pooling at the last real token, their own reading of the adapter, head included."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    saved, roles = saved_reward(make_roles, shake, lora, tmp_path)
    ours = scored(roles, pack(rendered(roles.renderer)))
    if lora is None:
        assert saved.name == "model"
        model: Any = AutoModelForSequenceClassification.from_pretrained(saved)
    else:
        assert saved.name == "adapter"
        base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
        model = PeftModel.from_pretrained(base, str(saved))
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    texts = [
        roles.renderer.tokenizer.decode([*group.prompt, *group.completions[0]])
        for group in rendered(roles.renderer)
    ]
    inputs = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.squeeze(-1)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert (ours[0] - ours[1]).abs() > 1e-2  # not two equal numbers by chance


@MODES
def test_reward_model_class_gives_the_same_scores(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path
):
    saved, roles = saved_reward(make_roles, shake, lora, tmp_path)
    ours = scored(roles, pack(rendered(roles.renderer))).tolist()
    for path in (tmp_path, saved, str(tmp_path)):  # the step's folder, or what is in it
        model = RewardModel.from_pretrained(path)
        assert model.score(PROMPTS, ANSWERS) == pytest.approx(ours, abs=1e-6)
        assert (model.scoring.mean, model.scoring.std) == (0.25, 2.0)


@MODES
def test_saved_role_is_what_the_next_step_starts_from(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path
):
    """Reward and value in PPO: the same hidden states, and the head as saved."""
    saved, roles = saved_reward(make_roles, shake, lora, tmp_path)
    ours = scored(roles, BATCH)
    later = make_roles(lora)
    later.add("reward", weights=saved, head=load_head(saved))
    torch.testing.assert_close(scored(later, BATCH), ours, rtol=0, atol=1e-6)
    assert later.parameters_of("reward") == []
    # The critic starts as the normalised reward: (score - .25) / 2 at the last token.
    scoring = Scoring.load(saved)
    value = value_head_from(load_head(saved), scoring)
    later.add("value", weights=saved, trainable=True, head=value)
    with torch.no_grad():
        hidden = later.hidden("value", BATCH).flatten(0, 1)[BATCH.last_at]
        torch.testing.assert_close(value(hidden), (ours - 0.25) / 2, rtol=0, atol=1e-6)


@MODES
def test_policy_loads_with_plain_transformers_and_peft(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path, tiny_folder: Path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    roles = all_four(make_roles, shake, lora)
    saved = roles.save("policy", tmp_path)
    if lora is None:
        model: Any = AutoModelForCausalLM.from_pretrained(saved)
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        model = PeftModel.from_pretrained(base, str(saved))
    group = Group((260, 5, 6), ((7, 8, 9),))
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[260, 5, 6, 7, 8, 9]]), use_cache=False).logits
        theirs = logits[0, 2:5].log_softmax(-1)[torch.arange(3), torch.tensor([7, 8, 9])]
        ours = roles.logprobs("policy", pack([group])).logprobs
        bare = roles.logprobs("reference", pack([group])).logprobs
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert (ours - bare).abs().max() > 1e-2


@MODES
def test_saved_policy_is_where_the_next_step_starts(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path
):
    """To the last bit, language head included (tied to the embedding in this base), as policy and
    as reference at once."""
    roles = all_four(make_roles, shake, lora)
    saved = roles.save("policy", tmp_path)
    later = make_roles(lora)
    later.add("reference", weights=saved)
    later.add("policy", weights=saved, fresh=True, trainable=True)
    ours = roles.logprobs("policy", BATCH).logprobs
    assert torch.equal(later.logprobs("policy", BATCH).logprobs, ours)
    assert torch.equal(later.logprobs("reference", BATCH).logprobs, ours)
    assert later.parameters_of("reference") == []
    assert len(later.parameters_of("policy")) == len(roles.parameters_of("policy"))


def test_saved_adapter_names_its_base_and_its_task(
    make_roles: MakeRoles, shake: Shake, tmp_path: Path, tiny_folder: Path
):
    saved, _ = saved_reward(make_roles, shake, Lora(r=4, alpha=8), tmp_path)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["score"]
    assert config["inference_mode"] is True
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_saved_adapter_names_the_revision_of_its_base(
    make_roles: MakeRoles, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """And chat asks for that one: the newest weights are others."""
    from transformers import AutoModelForCausalLM

    from align.policy import load_policy

    base = make_roles()
    roles = Roles(base.model, base.renderer, Lora(r=4, alpha=8), str(tiny_folder), "abc123")
    roles.add("policy", fresh=True)
    saved = roles.save("policy", tmp_path)
    assert json.loads((saved / "adapter_config.json").read_text())["revision"] == "abc123"
    asked: list[Any] = []
    load = AutoModelForCausalLM.from_pretrained

    def spied(name: str, **options: Any) -> Any:
        asked.append(options.get("revision"))
        return load(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spied)
    load_policy(saved)
    assert asked == ["abc123"]


def test_saving_does_not_disturb_the_role(make_roles: MakeRoles, shake: Shake, tmp_path: Path):
    roles = all_four(make_roles, shake, Lora(r=4, alpha=8))
    before, trained = weights_of(roles), len(roles.parameters_of("policy"))
    roles.save("policy", tmp_path)
    after = weights_of(roles)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(roles.parameters_of("policy")) == trained > 0


def test_adapter_of_another_base_is_refused(make_roles: MakeRoles, shake: Shake, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    saved, _ = saved_reward(make_roles, shake, Lora(r=4, alpha=8), tmp_path)
    file = saved / "adapter_model.safetensors"
    state = load_file(file)
    name = next(name for name in state if "layers.1." in name)
    state[name.replace("layers.1.", "layers.7.")] = state.pop(name)
    save_file(state, file)
    with pytest.raises(ValueError, match="does not fit"):
        make_roles().add("reward", weights=saved, head=ScalarHead(32))


def test_adapter_that_lacks_a_tensor_is_refused(
    make_roles: MakeRoles, shake: Shake, tmp_path: Path
):
    """Half an adapter (of a base with fewer layers, or a save cut short) would compute something,
    and nothing like what was trained: what is not in the file stays as a fresh adapter is."""
    from safetensors.torch import load_file, save_file

    saved, _ = saved_reward(make_roles, shake, Lora(r=4, alpha=8), tmp_path)
    file = saved / "adapter_model.safetensors"
    state = load_file(file)
    save_file({name: t for name, t in state.items() if "layers.1." not in name}, file)
    with pytest.raises(ValueError, match="does not fit"):
        make_roles().add("reward", weights=saved, head=ScalarHead(32))


@MODES
def test_the_end_of_a_sequence_is_read(
    make_roles: MakeRoles, shake: Shake, lora: Lora | None, tmp_path: Path
):
    """With pad = eos, transformers pools before the end and a score does not see it (pad and eos
    are two tokens here). So the score with and without the end differs, in memory and reloaded."""
    _, roles = saved_reward(make_roles, shake, lora, tmp_path)
    tokenizer = roles.renderer.tokenizer
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    [group, _] = rendered(roles.renderer)
    [ids] = group.completions
    assert ids[-1] == tokenizer.eos_token_id
    both = pack([Group(group.prompt, (ids, ids[:-1]))])
    with_end, without = scored(roles, both).tolist()
    assert abs(with_end - without) > 1e-2
    assert RewardModel.from_pretrained(tmp_path).score(PROMPTS[:1], ANSWERS[:1]) == pytest.approx(
        [with_end], abs=1e-6
    )
