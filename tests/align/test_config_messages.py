"""Every mistake in a configuration is one or two sentences that name its place."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from align.config import ConfigError, build_config, load_columns, load_config
from align.config_yaml import override, parse_yaml
from preference_data.sources import FORMATS, Columns

WHOLE = """
name: whole
output_dir: runs/whole
data:
  text: {path: "builtin:text"}
  demos: {path: "builtin:demonstrations"}
  labels: {path: "builtin:labels"}
  prompts: {path: "builtin:prompts"}
steps:
  pretrain: {kind: pretrain, data: text}
  sft: {kind: sft, data: demos, init: pretrain}
  reward: {kind: reward, data: labels, init: sft}
  dpo: {kind: dpo, data: labels, policy: sft}
  ppo: {kind: ppo, data: prompts, policy: sft, reward: reward}
  evaluate: {kind: evaluate, data: prompts, policies: [base, sft, ppo], baseline: sft,
             judges: [gold, reward, {function: "judge.py:score"}]}
  export: {kind: export, policy: ppo}
"""

TRAIN_OPTIONS = (
    "adam_epsilon, learning_rate, logging_steps, lr_scheduler_type, max_grad_norm, max_length, "
    "max_steps, num_train_epochs, per_device_train_batch_size, train_batch_size, warmup_steps, "
    "weight_decay"
)
KINDS = "dpo, evaluate, export, ppo, pretrain, reward, sft"
DTYPES = "float32, bfloat16, float16"
QUOTES = "it must be text; put it in quotes if it is meant as text."

UNKNOWN_KEY = {
    "sed=3": "sed is not a known key; did you mean 'seed'? Allowed here: base, data, deepspeed, "
    "lora, name, near_duplicates, output_dir, seed, steps, tracking, world.",
    "lora.rank=3": "lora.rank is not a known key; did you mean 'r'? Allowed here: alpha, dropout, r, "
    "target_modules.",
    "lora.layers=3": "lora.layers is not a known key. Allowed here: alpha, dropout, r, "
    "target_modules.",
    "steps.sft.train.learning_rat=1": "steps.sft.train.learning_rat is not a known key; did you "
    f"mean 'learning_rate'? Allowed here: {TRAIN_OPTIONS}.",
    "steps.sft.policy=base": "steps.sft.policy is not a known key; policy belongs to steps of kind "
    "dpo, export, ppo. Allowed here: data, init, kind, seed, train.",
    "steps.dpo.init=sft": "steps.dpo.init is not a known key; init belongs to steps of kind reward, "
    "sft. Allowed here: data, kind, policy, seed, train.",
    "steps.export.train={}": "steps.export.train is not a known key; train belongs to steps of kind "
    "dpo, ppo, pretrain, reward, sft. Allowed here: kind, license, merge, policy, seed.",
    "steps.reward.reward=1": "steps.reward.reward is not a known key; reward belongs to steps of "
    "kind ppo. "
    "Allowed here: data, ensemble, init, kind, overfit_check, require, seed, train.",
    "steps.ppo.train.gae.lambda_=1": "steps.ppo.train.gae.lambda_ is not a known key; did you mean "
    "'lambda'? Allowed here: gamma, lambda.",
    "steps.ppo.reward={functoin: x}": "steps.ppo.reward.functoin is not a known key; did you mean "
    "'function'? Allowed here: batch_size, combine, ensemble, function, model, patience, "
    "std_weight, timeout, token_env, url.",
    "steps.evaluate.judges=[{functoin: x}]": "steps.evaluate.judges[0].functoin is not a known "
    "key; did you mean 'function'? Allowed here: batch_size, combine, ensemble, function, model, "
    "patience, std_weight, timeout, token_env, url.",
    "data.labels.columns={promt: a}": "data.labels.columns.promt is not a known key; did you mean "
    f"'prompt'? Allowed here: {', '.join(sorted(f.name for f in fields(Columns)))}.",
    "tracking.wandb={projcet: a}": "tracking.wandb.projcet is not a known key; did you mean "
    "'project'? Allowed here: entity, log_data, log_model, mode, project.",
}

WRONG_TYPE = {
    "steps.sft.train.learning_rate=fast": "steps.sft.train.learning_rate is 'fast': it must be a "
    "number.",
    "steps.sft.train.learning_rate='1e-4'": "steps.sft.train.learning_rate is '1e-4': it must be a "
    "number.",
    "steps.sft.train.learning_rate=.inf": "steps.sft.train.learning_rate is Infinity: it must be a "
    "finite number.",
    "seed=1.5": "seed is 1.5: it must be a whole number.",
    "seed=true": "seed is true: it must be a whole number.",
    "seed=2026-01-01": "seed is '2026-01-01': it must be a whole number.",
    "name=5": f"name is 5: {QUOTES}",
    "name=": "name is empty: it must be text.",
    "name=''": "name is '': it must be text that is not empty.",
    "steps.export.merge=yes": "steps.export.merge is 'yes': it must be true or false.",
    "lora=5": "lora is 5: it must be a section of keys.",
    "lora.target_modules=5": "lora.target_modules is 5: it must be all-linear or a list.",
    "lora.target_modules=all_linear": "lora.target_modules is 'all_linear': it must be all-linear "
    "or a list; did you mean 'all-linear'?",
    "lora.target_modules=[1]": f"lora.target_modules[0] is 1: {QUOTES}",
    "steps.sft.train=": "steps.sft.train is empty: it must be a section of keys.",
    "steps=[sft]": 'steps is ["sft"]: it must be a section of keys.',
    "steps.sft=5": "steps.sft is 5: it must be a section of keys.",
    "steps.ppo.reward=5": f"steps.ppo.reward is 5: {QUOTES}",
    "steps.evaluate.judges=gold": "steps.evaluate.judges is 'gold': it must be a list.",
    "steps.evaluate.policies=[{a: 1}]": "steps.evaluate.policies[0] is a section of keys: it must "
    "be text.",
    "base.architecture={hidden_size: [1]}": "base.architecture.hidden_size is [1]: it must be a "
    "whole number or a number or true or false or text.",
    "data.labels.columns.prompt=5": f"data.labels.columns.prompt is 5: {QUOTES}",
}

OUT_OF_RANGE = {
    "lora.r=0": "lora.r is 0: it must be more than 0.",
    "steps.ppo.train.gae.lambda=1.5": "steps.ppo.train.gae.lambda is 1.5: it must be at most 1.",
    "lora.dropout=-1": "lora.dropout is -1: it must be at least 0.",
    "steps.reward.train.label_smoothing=0.5": "steps.reward.train.label_smoothing is 0.5: it must "
    "be less than 0.5.",
    "base.dtype=bf16": f"base.dtype is 'bf16': it must be one of {DTYPES}; did you mean "
    "'bfloat16'?",
    "base.dtype=int8": f"base.dtype is 'int8': it must be one of {DTYPES}.",
    "steps.ppo.train.kl.estimator=k3": "steps.ppo.train.kl.estimator is k3 with place reward: there "
    "its gradient is not that of the KL and hardly holds the policy (measured: it ends at a KL of "
    "5.14 where k1 ends at 3.14 and the optimum is 3.02); use k1.",
    "data.labels.columns={labels: {a: frist}}": "data.labels.columns.labels.a is 'frist': it must "
    "be one of first, second, tie, both_good, both_bad, unsure; did you mean 'first'?",
    "data.labels.columns={ranks: [a], label: b}": "data.labels.columns: Map the answers' ranks or "
    "their label, not both.",
    "base.model=builtin:big": "base.model is 'builtin:big': the only built-in model is "
    "builtin:tiny.",
    "steps.ppo.reward={function: judge}": "steps.ppo.reward.function is 'judge': write it as "
    "file.py:name.",
    "data.labels.format=tabel": "data.labels.format is 'tabel': there is no such format; did you "
    f"mean 'table'? Formats: auto, {', '.join(FORMATS)}.",
}

MISSING = {
    "steps.ppo.reward={}": "steps.ppo.reward.function is required and missing.",
    "steps.new={kind: sft}": "steps.new.data is required and missing.",
    "steps.new={data: text}": f"steps.new.kind is required and missing. Allowed: {KINDS}.",
    "steps.sft.kind=stf": f"steps.sft.kind is 'stf'; did you mean 'sft'? Allowed: {KINDS}.",
    "steps.sft.kind=5": f"steps.sft.kind is 5. Allowed: {KINDS}.",
    "data.more={}": "data.more.path is required and missing.",
    "steps={}": "steps is empty; there is nothing to run.",
}

WRONG_INPUT = {
    "steps.ppo.reward=rewrad": "steps.ppo.reward names the step 'rewrad', which does not exist; did "
    "you mean 'reward'? Possible here: reward.",
    "steps.evaluate.judges=[gldo]": "steps.evaluate.judges[0] names the step 'gldo', which does not "
    "exist; did you mean 'gold'? Possible here: reward, gold.",
    "steps.evaluate.baseline=pro": "steps.evaluate.baseline names the step 'pro', which does not "
    "exist; did you mean 'ppo'? Possible here: base, pretrain, sft, dpo, ppo.",
    "steps.ppo.reward=sft": "steps.ppo.reward names 'sft', a step of kind sft, which does not fit. "
    "Possible here: reward.",
    "steps.export.policy=base": "steps.export.policy names the step 'base', which does not exist. "
    "Possible here: sft, reward, dpo, ppo.",
    "steps.sft.init=reward": "steps.sft.init names 'reward', which does not come before 'sft'. "
    "Possible here: base, pretrain.",
    "steps.sft.init=sft": "steps.sft.init names 'sft', which does not come before 'sft'. "
    "Possible here: base, pretrain.",
    "steps.sft.data=demo": "steps.sft.data names the data 'demo', which does not exist; did you "
    "mean 'demos'? Known: text, demos, labels, prompts.",
    "data.prompts.path=builtin:promts": "data.prompts.path is 'builtin:promts'; did you mean "
    "'builtin:prompts'? Built-in data: builtin:text, builtin:demonstrations, builtin:labels, "
    "builtin:prompts.",
    "steps.reward.data=demos": "steps.reward.data needs preferences, but data.demos "
    "(builtin:demonstrations) holds demonstrations. Give it a data source of its own.",
    "data.extra={path: x}": "data.extra is used by no step; remove it. Used are: text, demos, "
    "labels, prompts.",
    "steps.base={kind: sft, data: demos}": "steps.base: this name is taken; call the step "
    "something else.",
    "steps.a/b={kind: sft, data: demos}": "steps: 'a/b' is no name for a folder; use letters, "
    "digits, - and _.",
}

CONTRADICTION = {
    "steps.evaluate.policies=[ppo, ppo]": "steps.evaluate.policies[1] names 'ppo' a second time.",
    "steps.evaluate.policies=[sft]": "steps.evaluate.policies names no policy besides the baseline "
    "'sft'.",
    "steps.sft.train.per_device_train_batch_size=5": "steps.sft.train.per_device_train_batch_size "
    "is 5, which does not divide train_batch_size 32.",
    "steps.ppo.train.minibatches=65": "steps.ppo.train.minibatches is 65, but an iteration has only "
    "64 responses.",
}

NO_EFFECT = {
    "steps.ppo.train.kl.horizon=5": "steps.ppo.train.kl.horizon has no effect without a target; "
    "remove it.",
    "steps.ppo.train.kl={target: 3, coefficient: 0}": "steps.ppo.train.kl.target has no effect on a "
    "coefficient of 0, which is steered by multiplying it; remove it.",
    "steps.sft.train={max_steps: 3, num_train_epochs: 1.0}": "steps.sft.train.num_train_epochs has "
    "no effect beside max_steps; remove it.",
    "data.demos.aggregate=majority": "data.demos.aggregate has no effect because no step reads its "
    "judgements; remove it.",
    "base.revision=main": "base.revision has no effect with a built-in model; remove it.",
    "base={model: some/hub-id, architecture: {hidden_size: 8}}": "base.architecture has no effect "
    "unless model is builtin:tiny; remove it.",
    "data.labels.columns={prompt: a}": "data.labels.columns has no effect for built-in data; remove "
    "it.",
    "data.labels.format=table": "data.labels.format has no effect for built-in data; remove it.",
    "steps.export.seed=1": "steps.export.seed has no effect in an export, which draws nothing at "
    "random; remove it.",
}

OVERRIDE = {
    "seed": "'seed' is no override; write key.path=value.",
    "=3": "'=3' is no override; write key.path=value.",
    "lora..r=3": "'lora..r=3' is no override; write key.path=value.",
    "name.first=3": "name.first leads through name, which is a value and not a section of keys.",
    "steps.pppo.data=3": "steps.pppo.data sets an option of the step 'pppo', which does not exist; "
    "did you mean 'ppo'? The steps: pretrain, sft, reward, dpo, ppo, evaluate, export.",
    "lora={r: 1, r: 2}": "lora, line 1: the key 'r' stands twice in one section, first in line 1.",
    "lora=[": "lora, line 1: expected the node content, but found '<stream end>'.",
}

ALL = {
    **UNKNOWN_KEY,
    **WRONG_TYPE,
    **OUT_OF_RANGE,
    **MISSING,
    **WRONG_INPUT,
    **CONTRADICTION,
    **NO_EFFECT,
    **OVERRIDE,
}


def message_of(change: str) -> str:
    """What the whole configuration's change is refused with."""
    tree = parse_yaml(WHOLE, "whole")
    with pytest.raises(ConfigError) as caught:
        override(tree, change)
        build_config(tree)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("steps.dpo.train.learning_rte", "; did you mean 'learning_rate'?"),
        ("steps.dpo.train.bata", "; did you mean 'beta'?"),
        ("steps.dpo.plicy", "; did you mean 'policy'?"),
        ("steps.evaluate.policy", "; did you mean 'policies'?"),
        ("steps.ppo.train.kl.coeficient", "; did you mean 'coefficient'?"),
        ("ouput_dir", "; did you mean 'output_dir'?"),
        ("lora.lora_alpha", "; did you mean 'alpha'?"),
        ("base.model_name_or_path", "; did you mean 'model'?"),
        ("steps.sft.train.epochs", "; did you mean 'num_train_epochs'?"),
        ("steps.ppo.train.num_epochs", "; did you mean 'epochs'?"),
        ("steps.sft.train.batch_size", "; did you mean 'train_batch_size'?"),
        ("steps.sft.train.warmup_ratio", "; did you mean 'warmup_steps'?"),
        ("steps.ppo.train.kl_coef", "; did you mean 'kl'?"),
        ("steps.ppo.train.kl.kl_coef", "; did you mean 'coefficient'?"),
        ("steps.sft.train.beta", "; beta belongs to steps of kind dpo."),
        ("steps.dpo.train.gae", "; gae belongs to steps of kind ppo."),
        ("steps.sft.judges", "; judges belongs to steps of kind evaluate."),
        ("steps.dpo.dropout", "."),
        ("steps.sft.optimizer", "."),
        ("base.init", "."),
        ("data.text.train", "."),
        ("tracking.data", "."),
    ],
)
def test_an_unknown_key_is_taken_for_what_was_meant_or_for_nothing(key: str, end: str):
    start, _, rest = message_of(f"{key}=1").partition(
        f"{key} is not a known key{end} Allowed here: "
    )
    assert (start, bool(rest)) == ("", True)


def test_the_unchanged_configuration_is_right():
    config = build_config(parse_yaml(WHOLE, "whole"))
    assert len(config.steps) == 7


@pytest.mark.parametrize("change", ALL)
def test_a_mistake_is_named(change: str):
    assert message_of(change) == ALL[change]


@pytest.mark.parametrize("change", ALL)
def test_a_message_is_one_or_two_sentences(change: str):
    message = ALL[change]
    assert re.search(r"[.?]$", message)
    assert 1 <= len(re.findall(r"[.?](?= [A-Z]|$)", message)) <= 2
    assert "\n" not in message


def test_options_without_effect_where_nothing_is_built_in():
    tree = parse_yaml(WHOLE, "whole")
    tree["data"] = {"demos": {"path": "demos.jsonl"}}
    tree["steps"] = {"sft": {"kind": "sft", "data": "demos"}}
    tree["world"] = {"items": 5}
    expected = "world has no effect because no data is built in; remove it."
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(tree)


def test_merging_has_no_effect_without_an_adapter():
    tree = parse_yaml(WHOLE, "whole")
    tree["lora"] = None
    tree["steps"]["export"]["merge"] = True
    expected = (
        "steps.export.merge has no effect with lora: null, because there is no adapter; remove it."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(tree)


def from_file(**source: object) -> dict[str, object]:
    return {
        "name": "own",
        "output_dir": "runs/own",
        "data": {"mine": {"path": "mine.csv", **source}},
        "steps": {"reward": {"kind": "reward", "data": "mine"}},
    }


def test_a_format_that_holds_something_else():
    expected = (
        "data.mine.format is 'prompts', which holds no preferences. "
        f"Possible here: auto, {', '.join(n for n, f in FORMATS.items() if 'preferences' in f.readers)}."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(from_file(format="prompts"))


def test_columns_of_a_format_that_has_none():
    expected = "data.mine.columns has no effect on the format trl; remove it."
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(from_file(format="trl", columns={"prompt": "q"}))
    build_config(from_file(format="table", columns={"prompt": "q"}))


def test_gold_judges_only_the_built_in_world():
    tree = parse_yaml(WHOLE, "whole")
    tree["data"]["prompts"]["path"] = "prompts.jsonl"
    expected = (
        "steps.evaluate.judges names gold, which knows only the built-in world, but "
        "data.prompts.path is 'prompts.jsonl'."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(tree)


def test_preferences_of_an_evaluation_are_for_its_reward_judges():
    tree = parse_yaml(WHOLE, "whole")
    tree["steps"]["evaluate"].update(judges=["gold"], preferences="labels")
    expected = (
        "steps.evaluate.preferences has no effect without a reward step among the judges; "
        "remove it."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        build_config(tree)


# --- the file itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  a: 1\n  a: 2\n", ", line 4: the key 'a' stands twice in one section, first in line 3."),
        ("a: b: c\n", ", line 1: mapping values are not allowed here."),
        ("a:\n\t- b\n", ", line 2: found character '\\t' that cannot start any token."),
        ("a: *b\n", ", line 1: found undefined alias 'b'."),
        ("a: !!python/name:os.system x\n", ", line 1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'."),
        ("[a]: b\n", ", line 1: a list or a section cannot be a key."),
        ("a: \x00\n", " is no YAML: special characters are not allowed."),
        ("[" * 5000, " is no YAML: it is nested too deeply."),
        ("- a\n", " holds no mapping; a configuration starts with `name: …`."),
        ("", " holds no mapping; a configuration starts with `name: …`."),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_as_a_configuration(tmp_path: Path, text: str, message: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}{message}"


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path / 'none.yaml'}: there is no such file."
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read: Is a directory."
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "latin.yaml")
    assert str(caught.value) == f"{tmp_path / 'latin.yaml'} is not UTF-8 text (byte 9)."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.demos.path=none.jsonl", "data.demos.path is 'none.jsonl': there is no such file in {here} or {beside}."),
        ("data.demos.path=part-*.jsonl", "data.demos.path is 'part-*.jsonl': there is no such file in {here} or {beside}."),
        ("data.demos.path=/none/demos.jsonl", "data.demos.path is '/none/demos.jsonl': there is no such file."),
        ("deepspeed=zero2.json", "deepspeed is 'zero2.json': there is no such file in {here} or {beside}."),
        ("steps.ppo.reward={function: 'none.py:score'}", "steps.ppo.reward.function is 'none.py:score': there is no such file in {here} or {beside}."),
        ("base.model=./none", "base.model is './none': there is no such folder."),
    ],
)  # fmt: skip
def test_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
):
    here, beside = tmp_path / "here", tmp_path / "beside"
    here.mkdir()
    beside.mkdir()
    (beside / "judge.py").touch()
    (beside / "config.yaml").write_text(WHOLE)
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError) as caught:
        load_config(beside / "config.yaml", [change])
    assert str(caught.value) == message.format(here=here, beside=beside)


def test_values_that_are_no_plain_data():
    with pytest.raises(ConfigError) as caught:
        build_config({"name": Path("x")})
    assert str(caught.value) == (
        "The configuration holds a value that is not plain data: "
        "Object of type PosixPath is not JSON serializable."
    )


def test_a_mapping_of_columns_names_its_file(tmp_path: Path):
    path = tmp_path / "columns.yaml"
    path.write_text("promt: question\n")
    with pytest.raises(ConfigError) as caught:
        load_columns(path)
    assert str(caught.value).startswith(
        f"{path}: promt is not a known key; did you mean 'prompt'? Allowed here: annotator, "
    )
