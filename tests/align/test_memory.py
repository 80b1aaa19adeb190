"""Memory before a run: shapes, what autograd keeps, what ranks hold, what fits a card."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import builtin
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from align import base as base_module
from align import logits
from align.base import load_base
from align.cli import main
from align.config import Base, Config, ConfigError, Lora, build_config
from align.engine import Engine
from align.memory import activations, packing
from align.memory.activations import Activations, Pass
from align.memory.architecture import UnknownBase, read_architecture
from align.memory.cards import GIB, Card, alternatives, card_of
from align.memory.packing import layout_of, parts_of
from align.memory.plan import plan_memory
from align.memory.rows import Rows, count_rows, load_renderer
from align.memory.sharding import Held, Sharding, held
from align.memory.steps import Estimator
from align.pipeline import Pipeline
from align.roles import Roles
from align.schedules import SCHEDULES
from align.training import ParameterGroup
from preference_data import attention, batches
from preference_data.batches import Group, pack, split_evenly
from preference_data.records import Judgement, Prompt, Response
from preference_data.rendering import Renderer
from reward_models.scalar_head import ScalarHead

# peft says so of GPT-2's layers, and then does what is right.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")

LLAMA = {
    "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 400, "max_position_embeddings": 512,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **LLAMA, "tie_word_embeddings": False},
    "tied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **LLAMA, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **LLAMA, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400,
        "n_positions": 512, "n_inner": 80,
    },
}  # fmt: skip
ADAPTERS: dict[str, Lora | None] = {
    "full": None,
    "all-linear": Lora(r=4),
    "rank 3": Lora(r=3),
    "attention alone": Lora(r=4, target_modules=("q_proj", "v_proj", "c_attn")),
    "dropout": Lora(r=4, dropout=0.1),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folder_of(name, **changes)` saves a random model of these shapes once."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str, **changes: Any) -> Path:
        folder = root / "-".join([name, *(f"{k}={v}" for k, v in changes.items())])
        if not folder.exists():
            shape = {**MODELS[name], **changes}
            config = AutoConfig.for_model(shape.pop("model_type"), **shape)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(folder)
        return folder

    return make


def roles_on(folder: Path, lora: Lora | None, renderer: Any, dtype: Any = "float32") -> Roles:
    base = load_base(str(folder), Base(model=str(folder), dtype=dtype), torch.device("cpu"))
    return Roles(base, renderer, lora, str(folder))


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", ADAPTERS)
@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_without_loading_them(
    folder_of: Callable[..., Path], renderer: Renderer, name: str, lora: str
):
    folder = folder_of(name)
    found = read_architecture(Base(model=str(folder)), folder)
    roles = roles_on(folder, ADAPTERS[lora], renderer)
    assert found.parameters == sum(p.numel() for p in roles.model.parameters())
    assert found.largest == max(p.numel() for p in roles.model.parameters())
    roles.add("policy", fresh=True, trainable=True)
    own = sum(p.numel() for p in roles.parameters_of("policy"))
    settings = ADAPTERS[lora]
    assert own == (found.parameters if settings is None else found.adapter_parameters(settings))


def test_adapter_parameters_by_hand(folder_of: Callable[..., Path]):
    """A of q_proj is 4 x 32 and B is 32 x 4, so 256 numbers, the same for v_proj; 2 layers."""
    folder = folder_of("llama")
    found = read_architecture(Base(model=str(folder)), folder)
    assert found.adapter_parameters(Lora(r=4, target_modules=("q_proj", "v_proj"))) == 2 * 2 * 256


def test_the_built_in_base_is_known_before_it_is_built(tmp_path: Path):
    base = Base(architecture={"hidden_size": 40, "num_key_value_heads": 1})
    found = read_architecture(base, tmp_path / "run")
    base_module.build_tiny(tmp_path / "base", base, ["some text"], seed=0)
    built = read_architecture(Base(model=str(tmp_path / "base")), tmp_path)
    words = (found.vocab_size - built.vocab_size) * 40  # its tokenizer learned fewer
    assert found.parameters - words == built.parameters
    assert set(found.shapes) == set(built.shapes)


@pytest.mark.parametrize(
    ("model", "why"),
    [("nobody/nothing", "is not downloaded yet"), ("{folder}", "has no config.json")],
)
def test_a_base_whose_shapes_are_unknown(tmp_path: Path, model: str, why: str):
    with pytest.raises(UnknownBase, match=why):
        read_architecture(Base(model=model.format(folder=tmp_path)), tmp_path)


# --- what autograd keeps -------------------------------------------------------------------------


def kept_by(roles: Roles, batch: Any) -> float:
    """Bytes of the storages that autograd keeps for a backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            found[place] = tensor
        return tensor

    roles.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _ = roles.hidden("policy", batch)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", ADAPTERS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("answers", [(20,), (20, 11), None])
def test_a_layer_keeps_what_autograd_keeps(
    folder_of: Callable[..., Path], renderer: Renderer, name: str, lora: str, dtype: Any,
    answers: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """The difference between models of 3 layers and of 2 is what a layer keeps: piece by piece with
    one answer a prompt or two, which read its keys where they lie, or masked."""
    if answers is None:
        monkeypatch.setattr(attention, "_goes_piecewise", lambda *_: False)
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    chance = random.Random(0)
    sizes = answers or (20,)
    groups = [
        Group((5, 6, 7), tuple(tuple(chance.choices(range(9, 99), k=size)) for size in sizes))
        for _ in range(9)
    ]
    batch = pack(groups)
    folders = [folder_of(name, **{layers: count}) for count in (2, 3)]
    found = []
    for folder in folders:
        roles = roles_on(folder, ADAPTERS[lora], renderer, dtype)
        roles.add("policy", fresh=True, trainable=True)
        found.append(kept_by(roles, batch))
    base = read_architecture(Base(model=str(folders[0])), folders[0])
    size = 4 if dtype == "float32" else 2
    acts = Activations(base, size, ADAPTERS[lora], checkpointing=False)
    tokens = batch.tokens if answers else batch.input_ids.numel()
    row = batch.input_ids.shape[1]
    one, two = (acts.backward(Pass(n * tokens, row, pieces=bool(answers))) for n in (1, 2))
    assert two - 2 * one == pytest.approx(0, abs=1e-6)  # all is proportional to the tokens
    masked = 0 if answers else row
    assert acts.kept(masked) * tokens == pytest.approx(found[1] - found[0], rel=0.02)


def test_a_layer_by_hand(folder_of: Callable[..., Path]):
    """D = A = 32, F = 80, H = 4, r irrelevant (folded), float32, rows of 10 tokens: norms 2 (4 D +
    4) = 264; queries, keys, values and output 4 x 4 x 32 = 512, 4 H = 16, mask 4 x 10 = 40; the
    gated MLP 3 x 4 x 80 = 960; inputs 4 (2 x 32 + 80) = 576. In all 2368 bytes a token."""
    folder = folder_of("llama")
    base = read_architecture(Base(model=str(folder)), folder)
    assert Activations(base, 4, Lora(), checkpointing=False).kept(10) == 2368


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(folder_of: Callable[..., Path]):
    """With 2 layers of 2368 bytes a token and an input of 4 x 32 each, 100 tokens: 2 x 2368 x 100
    become (2 x 128 + 2368) x 100; all else is the same."""
    folder = folder_of("llama")
    base = read_architecture(Base(model=str(folder)), folder)
    batch = Pass(100, 10)
    plain = Activations(base, 4, Lora(), checkpointing=False).backward(batch)
    again = Activations(base, 4, Lora(), checkpointing=True).backward(batch)
    assert plain - again == pytest.approx(100 * (2 * 2368 - 2 * 128 - 2368))


def test_the_cache_by_hand(folder_of: Callable[..., Path]):
    """2 layers, keys and values of 2 heads of 8 numbers, 4 bytes: 256 bytes a token."""
    folder = folder_of("qwen2")
    base = read_architecture(Base(model=str(folder)), folder)
    assert Activations(base, 4, None, checkpointing=False).cache(3, 10) == 3 * 10 * 256


# --- what ranks hold -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "ranks", "expected"),
    [
        (None, 4, Held(4400, 4000, 8000)),
        (0, 4, Held(4400, 4000, 8000)),
        (1, 4, Held(4400, 4000, 3000)),
        (2, 4, Held(4400, 1000, 3000)),
        (3, 4, Held(1400, 1000, 3000)),
        (1, 1, Held(4400, 4000, 12000)),
    ],
)
def test_theory_by_hand(stage: int | None, ranks: int, expected: Held):
    """1000 trained numbers of 4 bytes and 400 frozen bytes: weights 4400, gradients 4000, two
    moments 8000; ZeRO adds a float32 copy (12 bytes a number) and divides by 4."""
    assert held(400, 1000, 4, Sharding(ranks, stage)) == expected


def test_zero_3_shards_frozen_weights_of_a_trainer():
    """(400 + 4000) / 4; other stages do not."""
    assert held(400, 1000, 4, Sharding(4, 3), all_sharded=True).parameters == 1100
    assert held(400, 1000, 4, Sharding(4, 2), all_sharded=True).parameters == 4400


def test_half_precision_under_zero_has_weights_in_float32():
    """1000 numbers of 2 bytes: moments and weights in float32 are 12 each; plain AdamW keeps its
    two moments as the weights are."""
    assert held(0, 1000, 2, Sharding(1, 0)).optimizer == 12000
    assert held(0, 1000, 2, Sharding()).optimizer == 4000


@pytest.mark.parametrize("lora", ["full", "all-linear"])
def test_training_holds_what_theory_says(
    folder_of: Callable[..., Path], renderer: Renderer, lora: str
):
    folder, settings = folder_of("qwen2"), ADAPTERS[lora]
    engine = Engine()
    roles = roles_on(folder, settings, renderer)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    training = engine.training(
        roles, [ParameterGroup(roles.parameters_of("reward"), 1e-3)], total_steps=1,
        schedule=SCHEDULES["constant"](), max_grad_norm=1.0,
    )  # fmt: skip
    batch = pack([Group((5, 6), ((7, 8), (9,)))])
    # The language head of a copy gets no gradient from scores.
    loss = roles.scores("reward", batch).sum() + 0 * roles.logprobs("reward", batch).logprobs.sum()
    training.backward(loss, last=True)
    training.step()
    base = read_architecture(Base(model=str(folder)), folder)
    own = base.parameters if settings is None else base.adapter_parameters(settings)
    theory = held(4 * base.parameters, own + 32, 4, Sharding())
    assert engine.memory() == {f"memory/{what}": size for what, size in vars(theory).items()}
    engine.begin_memory()
    assert engine.memory() == {}


# --- packing -------------------------------------------------------------------------------------


def test_rows_are_laid_out_as_the_packed_batch():
    chance = random.Random(1)
    for _ in range(20):
        lengths = [chance.randint(2, 90) for _ in range(chance.randint(1, 40))]
        groups = [Group((1,), ((2,) * (length - 1),)) for length in lengths]
        found = layout_of(lengths)
        shape = pack(groups).input_ids.shape
        assert (found.tokens, found.row, found.used) == (shape.numel(), shape[1], sum(lengths))
        limit, ranks = chance.randint(50, 400), chance.randint(1, 3)
        parts = split_evenly(groups, limit, ranks)
        dealt = [[len(groups[i]) for i in part] for part in parts if part]
        assert parts_of(lengths, limit, ranks) == dealt


def test_sizes_that_light_modules_repeat_are_those_of_the_heavy_ones():
    assert (activations.LOGITS_AT_ONCE, activations.ROWS_AT_ONCE) == (
        logits.LOGITS_AT_ONCE, logits.ROWS_AT_ONCE,
    )  # fmt: skip
    assert packing.EVEN_LENGTH == batches.EVEN_LENGTH


# --- steps ---------------------------------------------------------------------------------------


def configured(base: Path | str, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "small",
        "output_dir": "nowhere",
        "base": {"model": str(base)},
        "lora": {"r": 4},
        "data": builtin("demonstrations", "labels", "prompts"),
        "steps": {
            "sft": {"kind": "sft", "data": "demonstrations"},
            "reward": {"kind": "reward", "data": "labels", "init": "sft"},
            "dpo": {"kind": "dpo", "data": "labels", "policy": "sft"},
            "ppo": {"kind": "ppo", "data": "prompts", "policy": "sft", "reward": "reward"},
            "evaluate": {
                "kind": "evaluate", "data": "prompts", "policies": ["dpo", "ppo"],
                "baseline": "sft", "judges": ["reward"],
            },
            "export": {"kind": "export", "policy": "ppo"},
        },
        **changes,
    }  # fmt: skip
    return build_config(tree)


def estimator(
    folder: Path, rows: Mapping[str, Rows] | None = None, ranks: Sharding | None = None, **more: Any
) -> Estimator:
    config = configured(folder, **more)
    base = read_architecture(config.base, folder)
    return Estimator(config, base, ranks or Sharding(), rows or {})


def test_four_roles_share_a_base(folder_of: Callable[..., Path]):
    """PPO holds the base once and adapters of policy, reference, reward and value, of which two
    are trained: gradients of 2 x 4 bytes a number, and moments of twice that."""
    found = estimator(folder_of("llama"))
    own = 4 * found.base.adapter_parameters(Lora(r=4))
    [update] = [use for use in found.step("ppo").phases if use.phase == "update"]
    assert update.parameters == 4 * found.base.parameters
    assert (update.adapters, update.gradients, update.optimizer) == (4 * own, 2 * own, 4 * own)


def test_full_fine_tuning_holds_a_copy_for_each_role(folder_of: Callable[..., Path]):
    """The base, and policy, reference, reward and value: 5 times the weights; 2 are trained."""
    found = estimator(folder_of("llama"), lora=None)
    own = 4 * found.base.parameters
    [update] = [use for use in found.step("ppo").phases if use.phase == "update"]
    assert (update.parameters, update.gradients, update.optimizer) == (5 * own, 2 * own, 4 * own)


def test_prompts_that_are_all_too_long_are_as_unknown(folder_of: Callable[..., Path]):
    folder, rows = folder_of("llama"), Rows(2, (9_000, 9_001), 0.0, (9_000, 9_001))
    found = estimator(folder, {"prompts": rows})
    for step in ("ppo", "evaluate"):
        assert found.step(step) == estimator(folder).step(step)


def test_ranks_share_what_is_sharded(folder_of: Callable[..., Path]):
    folder = folder_of("llama")
    alone = estimator(folder, ranks=Sharding(1, 2)).step("dpo").phases[0]
    shared = estimator(folder, ranks=Sharding(4, 2)).step("dpo").phases[0]
    assert shared.optimizer == alone.optimizer / 4
    assert shared.parameters == alone.parameters


def test_smaller_passes_hold_less(folder_of: Callable[..., Path]):
    folder = folder_of("llama")
    rows = Rows(100, tuple(range(40, 140)), 0.5, tuple(range(30, 130)))
    totals = []
    for tokens in (8192, 2048, 512):
        only = {"reward": {"kind": "reward", "data": "labels", "train": {
            "tokens_per_forward": tokens, "train_batch_size": 128}}}  # fmt: skip
        data = {"labels": {"path": "builtin:labels"}}
        totals.append(
            estimator(folder, {"labels": rows}, steps=only, data=data).step("reward").peak
        )
    sizes = [use.activations for use in totals]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3 * sizes[1] > 9 * sizes[2] * 0.9


# --- cards ---------------------------------------------------------------------------------------


def test_cards_by_name_and_by_size():
    assert card_of("24") == Card("24 GiB", 24 * GIB)
    assert card_of("RTX4090").size == pytest.approx(23.5 * GIB)
    with pytest.raises(ConfigError, match="did you mean 'rtx4090'"):
        card_of("rtx409")
    with pytest.raises(ConfigError, match="GiB"):
        card_of("-3")


@pytest.mark.parametrize("step", ["sft", "reward", "dpo", "ppo"])
def test_what_is_proposed_fits(folder_of: Callable[..., Path], step: str):
    """On a card of half of what a step takes, and each proposal changes what it says."""
    found = replace(estimator(folder_of("llama"), lora=None), on_gpu=True)
    card = Card("half", found.step(step).peak.total / 2)
    assert card.verdict(found.step(step)) == "no"
    proposed = alternatives(found, step, card)
    assert proposed
    for one in proposed:
        assert one.memory.peak.total * 1.15 <= card.size
        assert len(set(one.settings)) == len(one.settings) <= 3


def test_proposed_rows_of_a_pass_divide_the_batch(folder_of: Callable[..., Path]):
    """Of 18 rows: 9, 3 and 1, which halves would miss."""
    only = {"sft": {"kind": "sft", "data": "demonstrations", "train": {"train_batch_size": 18}}}
    data = {"demonstrations": {"path": "builtin:demonstrations"}}
    found = replace(estimator(folder_of("llama"), steps=only, data=data, lora=None), on_gpu=True)
    card = Card("small", found.step("sft").peak.total * 0.8)
    [rows] = [
        setting.rpartition("=")[2]
        for one in alternatives(found, "sft", card)
        for setting in one.settings
        if "per_device" in setting
    ]
    assert int(rows) in (9, 3, 1)


def test_a_proposal_is_what_the_command_line_takes(folder_of: Callable[..., Path]):
    """The estimate with the proposed settings in the configuration is the proposal's."""
    folder = folder_of("llama")
    found = replace(estimator(folder), on_gpu=True)
    card = Card("small", found.step("dpo").peak.total / 3)
    one = alternatives(found, "dpo", card)[0]
    tree = found.config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    from align.config_yaml import override

    for setting in one.settings:
        override(tree, setting)
    changed = Estimator(build_config(tree), found.base, Sharding(), {}, on_gpu=True)
    assert changed.step("dpo").peak == one.memory.peak


# --- rows and the command line -------------------------------------------------------------------


def test_rows_are_counted_with_the_tokens_of_training(
    tiny_folder: Path, renderer: Renderer, tmp_path: Path
):
    import orjson

    judgements = [
        Judgement(Prompt.from_text("Why? " * n), tuple(map(Response.from_text, "ab")), (1, 2))
        for n in (1, 4)
    ]
    text = b"\n".join(orjson.dumps(judgement.to_json()) for judgement in judgements)
    (tmp_path / "judgements.jsonl").write_bytes(text + b"\n")
    light = load_renderer(tiny_folder)
    assert light is not None
    found = count_rows(tmp_path, "preferences", light)
    rows = [[renderer.render(j.prompt, r) for r in j.responses] for j in judgements]
    lengths = [len(first.prompt) + sum(len(r.completion) for r in (first, *rest))
               for first, *rest in rows]  # fmt: skip
    assert found is not None
    assert found.lengths == tuple(lengths)
    assert found.conversations == tuple(max(map(len, row)) for row in rows)
    assert found.over(found.conversations[0]) == 0.5


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%Y')[:0] }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        [
            {"name": "x", "template": ""},
            {"name": "default", "template": "{{ messages[0].content }}"},
        ],
    ],
)
def test_templates_are_rendered_as_transformers_does(
    template: Any, tiny_folder: Path, tmp_path: Path
):
    shutil.copytree(tiny_folder, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "base" / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "chat_template": template}
    path.write_text(json.dumps(settings))
    light = load_renderer(tmp_path / "base")
    heavy = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert light is not None
    prompt = Prompt.from_text("Why <b>?")
    assert light.prompt(prompt) == Renderer(heavy).prompt(prompt)


def test_a_template_that_cannot_be_used_makes_rows_unknown(tiny_folder: Path, tmp_path: Path):
    import orjson

    prompt = orjson.dumps(Prompt.from_text("Why?").to_json())
    (tmp_path / "prompts.jsonl").write_bytes(prompt + b"\n")
    shutil.copytree(tiny_folder, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages[0].a.b }}")
    light = load_renderer(tmp_path / "base")
    assert light is not None
    assert count_rows(tmp_path, "prompts", light) is None


def test_plan_names_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import yaml

    config = configured("builtin:tiny", output_dir=str(tmp_path / "run"))
    tree = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", str(tmp_path / "small.yaml"), "--card", "0.2"]) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(line.startswith("dpo ") and line.endswith(" no") for line in lines)
    assert any("dpo would fit with" in line for line in lines)
    assert any("base.gradient_checkpointing=true" in line for line in lines)
    assert main(["plan", str(tmp_path / "small.yaml"), "--card", "huge"]) == 2
    assert not (tmp_path / "run").exists()


def test_an_unknown_base_says_why(tmp_path: Path):
    config = configured("nobody/nothing", output_dir=str(tmp_path / "run"))
    found = plan_memory(config, tmp_path / "run", world_size=1)
    assert found.steps == () and found.unknown == "nobody/nothing is not downloaded yet"


def test_a_plan_imports_no_torch(tmp_path: Path):
    code = (
        "import sys\n"
        "from align.config import load_config\n"
        "from align.pipeline import Pipeline\n"
        f"config = load_config('configs/quickstart.yaml', ['output_dir={tmp_path / 'run'}'])\n"
        "found = Pipeline(config).memory_plan(2)\n"
        "assert len(found.steps) == len(config.steps)\n"
        "print(*sorted({'torch', 'transformers', 'peft', 'deepspeed'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_a_pipeline_plans_for_its_own_folder(tmp_path: Path):
    config = configured("builtin:tiny", output_dir=str(tmp_path / "run"))
    found = Pipeline(config).memory_plan(1)
    assert [step.name for step in found.steps] == list(config.steps)
