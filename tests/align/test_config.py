"""Reading a configuration: scalars, overrides, files, defaults and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config import (
    Config,
    ConfigError,
    Lora,
    PPOTrain,
    RankingTrain,
    TextTrain,
    build_config,
    json_schema,
    load_columns,
    load_config,
)
from align.config_yaml import parse_yaml
from preference_data.forward_size import tokens_at_once
from preference_data.sources.columns.mapping import Columns, Constant, Graded, Matching

SMALL = """
name: small
output_dir: runs/small
data:
  pairs: {path: "builtin:demonstrations"}
steps:
  sft: {kind: sft, data: pairs}
"""


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small(**sections: object) -> Config:
    return build_config({**parse_yaml(SMALL, "small"), **sections})


# --- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("-2.5e-3", -0.0025),
        ("5.", 5.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        # Text in YAML 1.2; PyYAML alone makes booleans, 90, 8, a date and None of them.
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("2026-01-31", "2026-01-31"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("'1e-4'", "1e-4"),
    ],
)
def test_yaml_scalars_are_those_of_1_2(text: str, value: object):
    read = parse_yaml(text, "here")
    assert (read, type(read)) == (value, type(value))


def test_keys_are_what_is_written():
    assert parse_yaml("{1: first, 2.0: second, no: tie, null: unsure}", "here") == {
        "1": "first",
        "2.0": "second",
        "no": "tie",
        "null": "unsure",
    }


def test_a_merged_key_may_be_set_again():
    text = "{shared: &s {a: 1, b: 2}, own: {<<: *s, b: 3}}"
    assert parse_yaml(text, "here")["own"] == {"a": 1, "b": 3}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_config(path).name == "small"


# --- overrides -----------------------------------------------------------------------------------


def test_overrides_replace_and_add_in_order(tmp_path: Path):
    path = write(tmp_path, SMALL)
    config = load_config(
        path,
        [
            "steps.sft.train.learning_rate=1e-3",
            "lora=null",
            "seed=3",
            "seed=4",
            "base.attention=eager",
        ],
    )
    step = config.steps["sft"]
    assert step.kind == "sft"
    assert step.train.learning_rate == 1e-3
    assert (config.lora, config.seed, config.base.attention) == (None, 4, "eager")


def test_an_override_may_add_a_step_and_its_data(tmp_path: Path):
    path = write(tmp_path, SMALL)
    config = load_config(
        path, ["data.labels.path=builtin:labels", "steps.reward={kind: reward, data: labels}"]
    )
    assert list(config.steps) == ["sft", "reward"]
    assert config.run_as("labels") == "preferences"


def test_an_override_keeps_equal_signs_in_the_value(tmp_path: Path):
    assert load_config(write(tmp_path, SMALL), ["name=a=b"]).name == "a=b"


# --- values --------------------------------------------------------------------------------------


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    config = small(lora={"alpha": 8, "target_modules": ["q_proj", "v_proj"]})
    assert config.lora == Lora(alpha=8.0, target_modules=("q_proj", "v_proj"))


def test_warmup_is_a_share_or_a_number_of_steps():
    for written, read in ((0.1, 0.1), (20, 20.0)):
        config = small(
            steps={"sft": {"kind": "sft", "data": "pairs", "train": {"warmup_steps": written}}}
        )
        step = config.steps["sft"]
        assert step.kind == "sft"
        assert step.train.warmup_steps == read


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        small().seed = 3  # type: ignore[misc]


def test_plain_data_is_complete_and_reads_back_under_the_file_s_names():
    tree = parse_yaml(SMALL, "small")
    tree["data"]["prompts"] = {"path": "builtin:prompts"}
    tree["steps"]["ppo"] = {
        "kind": "ppo",
        "data": "prompts",
        "policy": "sft",
        "reward": {"function": "judge.py:score"},
        "train": {"gae": {"lambda": 0.5}},
    }
    plain = build_config(tree).to_plain()
    assert plain["seed"] == 17
    assert plain["steps"]["ppo"]["train"]["gae"] == {"gamma": 1.0, "lambda": 0.5}
    assert json.loads(json.dumps(plain)) == plain
    assert Config.model_validate(plain).to_plain() == plain


def test_micro_batches_divide_the_batch_exactly():
    """32 rows over 2 ranks are 16 a rank, in forward passes of 16, or of 4 when asked for."""
    train = TextTrain(train_batch_size=32)
    assert train.micro_batch_size(2, longest=10, device="cpu") == 16
    assert train.micro_batch_size(2, longest=250, device="cpu") == 4
    assert train.micro_batch_size(2, longest=250, device="cuda") == 16
    assert train.micro_batch_size(2, longest=9000, device="cuda") == 1
    odd = TextTrain(train_batch_size=15)
    assert odd.micro_batch_size(1, longest=250, device="cpu") == 3
    four = TextTrain(train_batch_size=32, per_device_train_batch_size=4)
    assert four.micro_batch_size(2, longest=1000, device="cpu") == 4
    with pytest.raises(ConfigError, match=r"^train_batch_size 32 does not divide by 3 ranks\.$"):
        TextTrain(train_batch_size=32).micro_batch_size(3, longest=10, device="cpu")
    with pytest.raises(ConfigError, match="32 does not divide the 16 rows that a rank takes"):
        TextTrain(train_batch_size=32, per_device_train_batch_size=32).micro_batch_size(
            2, longest=10, device="cpu"
        )


@pytest.mark.parametrize(
    ("section", "option"),
    [
        (TextTrain, "per_device_train_batch_size"),
        (RankingTrain, "tokens_per_forward"),
        (PPOTrain, "tokens_per_forward"),
    ],
)
def test_descriptions_name_the_tokens_that_forward_passes_hold(section: Any, option: str):
    said = " ".join(section.model_fields[option].description.split())
    assert all(str(tokens_at_once(device)) in said for device in ("cpu", "cuda"))


def test_a_source_is_read_as_the_richest_kind_that_is_asked_of_it():
    sources = {"labels": {"path": "labels.csv"}, "other": {"path": "other.jsonl"}}
    steps = {
        "sft": {"kind": "sft", "data": "other"},
        "reward": {"kind": "reward", "data": "labels"},
        "ppo": {"kind": "ppo", "data": "labels", "reward": "reward"},
    }
    config = small(data=sources, steps=steps)
    assert config.run_as("labels") == "preferences"
    assert config.run_as("other") == "demonstrations"


def test_a_format_without_what_is_asked_is_read_as_what_it_holds():
    """A table of labels is no text, but its conversations are."""
    labels = {"path": "labels.csv", "format": "table"}
    steps = {"pretrain": {"kind": "pretrain", "data": "labels"}}
    assert small(data={"labels": labels}, steps=steps).run_as("labels") == "preferences"
    labels["format"] = "text"
    assert small(data={"labels": labels}, steps=steps).run_as("labels") == "text"


def test_built_in_labels_stay_labels_when_only_their_prompts_are_used():
    steps = {"ppo": {"kind": "ppo", "data": "pairs", "reward": {"function": "judge.py:score"}}}
    config = small(data={"pairs": {"path": "builtin:labels"}}, steps=steps)
    assert config.run_as("pairs") == "preferences"


# --- files ---------------------------------------------------------------------------------------

FILES = """
name: files
output_dir: runs/files
deepspeed: zero.json
data:
  labels: {path: "labels*.csv"}
  prompts: {path: prompts.jsonl}
steps:
  ppo: {kind: ppo, data: prompts, reward: {function: "judge.py:score"}}
  reward: {kind: reward, data: labels}
"""


def test_files_are_found_in_the_working_directory_first_then_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, beside = tmp_path / "here", tmp_path / "beside"
    write(here, "{}", "prompts.jsonl")
    for name in ("prompts.jsonl", "labels1.csv", "judge.py", "zero.json"):
        write(beside, "{}", name)
    monkeypatch.chdir(here)
    config = load_config(write(beside, FILES))
    step = config.steps["ppo"]
    assert step.kind == "ppo"
    assert config.data["prompts"].path == "prompts.jsonl"
    assert config.data["labels"].path == str(beside / "labels*.csv")
    assert config.deepspeed == str(beside / "zero.json")
    assert step.reward == type(step.reward)(function=f"{beside / 'judge.py'}:score")  # type: ignore[call-arg]


def test_further_folders_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "root"
    write(root, "{}", "configs/zero.json")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write(root, SMALL + "deepspeed: configs/zero.json\n", "configs/config.yaml")
    assert load_config(path, folders=[root]).deepspeed == str(root / "configs/zero.json")


def test_a_base_is_a_folder_where_there_is_one_and_a_hub_id_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beside, here = tmp_path / "beside", tmp_path / "here"
    (beside / "models" / "mine").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    path = write(beside, SMALL)
    assert load_config(path, ["base.model=models/mine"]).base.model == str(beside / "models/mine")
    assert load_config(path, ["base.model=some/hub-id"]).base.model == "some/hub-id"


def test_the_output_folder_may_be_below_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert small(output_dir="~/runs").output_dir == "/somewhere/runs"


def test_a_mapping_of_columns_has_a_file_of_its_own(tmp_path: Path):
    path = write(tmp_path, "prompt: question\nresponses: [a, b]\nlabels: {1: first, 2: second}\n")
    columns = load_columns(path)
    assert (columns.prompt, columns.responses) == ("question", ("a", "b"))
    assert columns.labels == {"1": "first", "2": "second"}
    text = """
prompt: info.question
responses: {pattern: "ans_(.+)"}
ranks: {pattern: 'rank_(.+)'}
criterion: {constant: helpful}
strength: {column: sure, lowest: 1, highest: 5}
"""
    assert load_columns(write(tmp_path, text)) == Columns(
        prompt="info.question", responses=Matching("ans_(.+)"), ranks=Matching("rank_(.+)"),
        criterion=Constant("helpful"), strength=Graded("sure", 1.0, 5.0),
    )  # fmt: skip


def test_a_mapping_may_be_copied_with_the_line_above_it(tmp_path: Path):
    text = "columns:\n  prompt: question\n  scale: [1, 2, 3]\n"
    assert load_columns(write(tmp_path, text)) == Columns(prompt="question", scale=(1, 2, 3))
    with pytest.raises(ConfigError, match="columns is not a known key"):
        load_columns(write(tmp_path, text + "label: better\n"))


def test_columns_that_say_themselves_which_is_better(tmp_path: Path):
    text = "prompt: question\nresponses: [chosen, rejected]\nbest: first\n"
    assert load_columns(write(tmp_path, text)).best == "first"
    text = 'responses: [response]\nlabel: rating\nthumbs: {"1": up, "0": down}\n'
    assert load_columns(write(tmp_path, text)).thumbs == {"1": "up", "0": "down"}


def test_the_items_of_a_form_may_lie_beside_its_mapping(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item,prompt\n")
    text = "wide: {columns: 'Q (?P<item>.*)', items: items.csv}\nlabels: {A: first}\n"
    path = write(tmp_path, text)
    wide = load_columns(path).wide
    assert wide is not None and wide.items == str(tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("responses: {pattren: x}", "pattren is not a known key; did you mean 'pattern'?"),
        ("wide: {colums: x}", "wide.colums is not a known key; did you mean 'columns'?"),
        ("scale: {first: -3}", "scale.second is required and missing."),
        ("labels: {a: frist}", "unsure; did you mean 'first'?"),
        ("responses: {pattern: x}", "pattern 'x' needs one group in parentheses, as in"),
        ("ranks: [a]\nlabel: b", "Map the answers' ranks or their label, not both."),
    ],
)
def test_a_mistake_in_a_mapping_is_named(tmp_path: Path, text: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        load_columns(write(tmp_path, text))
    assert sentence in str(caught.value)


# --- schema --------------------------------------------------------------------------------------


def test_the_shipped_schema_is_the_configuration_s():
    """`align schema > align/schema.json` brings it up to date."""
    shipped = Path(__file__).parents[2] / "align" / "schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == json_schema()


def test_the_schema_is_closed_and_every_option_is_explained():
    schema = json_schema()
    sections = {name: part for name, part in schema["$defs"].items() if "properties" in part}
    assert {"Lora", "PPOTrain", "Columns", "Evaluate"} <= set(sections)
    unexplained = []
    for name, section in [("Config", schema), *sections.items()]:
        assert section["additionalProperties"] is False, name
        unexplained += [
            f"{name}.{option}"
            for option, about in section["properties"].items()
            if "description" not in about
            and "$ref" not in about
            and option != "kind"
            and name != "Columns"
        ]
    assert unexplained == []
    assert "lambda" in sections["GAE"]["properties"]


def test_a_layer_is_compiled_or_computed_again(tmp_path: Path):
    path = write(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"base\.compile has no effect where nothing but"):
        load_config(path, ["base.compile=true"])
    used = SMALL.replace("builtin:demonstrations", "builtin:labels").replace("sft", "reward")
    path = write(tmp_path, used)
    load_config(path, ["base.compile=true"])
    with pytest.raises(
        ConfigError, match=r"base\.compile and base\.gradient_checkpointing are both"
    ):
        load_config(path, ["base.compile=true", "base.gradient_checkpointing=true"])


def test_weights_in_half_precision_are_not_trained_without_a_copy(tmp_path: Path):
    """At 1e-5 most of a step is less than bfloat16's 1/256 of a weight. Adapters are in float32."""
    path = write(tmp_path, SMALL)
    load_config(path, ["base.dtype=bfloat16"])
    with pytest.raises(ConfigError, match=r"base\.dtype is bfloat16, in which steps\.sft would"):
        load_config(path, ["base.dtype=bfloat16", "lora=null"])
