"""A table as a person brings it, through configs/csv.yaml: from the file to the adapter."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from align.config import load_config
from preference_data import Columns, read_judgements, read_preferences, split

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "csv.yaml"
HEADER = ("rater", "question", "answer_1", "answer_2", "better", "took (s)")
SMALL = (
    "base.architecture={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, vocab_size: 512}",
    "lora.r=4",
    "data.labels.test_fraction=0.2",
    "steps.pretrain.train.max_steps=4",
    "steps.sft.train={max_steps: 3, train_batch_size: 4}",
    "steps.reward.train={max_steps: 3, train_batch_size: 4}",
    "steps.dpo.train={max_steps: 3, train_batch_size: 4, learning_rate: 0.01}",
    "steps.ppo.train={iterations: 2, prompts_per_iteration: 8, max_new_tokens: 6, "
    "learning_rate: 0.01}",
    "steps.evaluate.prompts=6",
    "steps.evaluate.max_new_tokens=6",
    "steps.evaluate.bootstrap=50",
)
BAD = {
    "label_unknown": ("zoe", "Is water wet?", "Yes.", "No.", "3", "4"),
    "label_missing": ("zoe", "Is ice cold?", "Yes.", "No.", "", "4"),
    "empty_prompt": ("zoe", " ", "Yes.", "No.", "1", "4"),
}


def rows() -> list[tuple[str, ...]]:
    """60 good rows, every sixth a tie, and one row of each fault in BAD."""
    made: list[tuple[str, ...]] = []
    for i in range(60):
        question = f'What is {i} plus {i}, and why?\nSay "please", not ""now"".'
        right = f"It is {2 * i}.\n\n- {i}, then {i} again;\n- that is all."
        wrong = f'"{i}", they said; or was it {i + 1}?'
        label = "0" if i % 6 == 2 else "12"[i % 2]
        answers = (wrong, right) if label == "2" else (right, wrong)
        made.append((("ada", "bo")[i % 2], question, *answers, label, str(i)))
    return [*made[:7], *BAD.values(), *made[7:]]


def write(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows()])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from align import Pipeline

    torch.set_num_threads(1)  # more are slower on tensors this small
    folder = tmp_path_factory.mktemp("csv")
    write(folder / "labels.csv")
    config = load_config(
        CONFIG,
        [f"data.labels.path={folder / 'labels.csv'}", f"output_dir={folder / 'run'}", *SMALL],
    )
    Pipeline(config).run()
    return folder / "run"


def test_the_configuration_s_mapping_reads_the_table(tmp_path: Path):
    write(tmp_path / "labels.csv")
    config = load_config(CONFIG, [f"data.labels.path={tmp_path / 'labels.csv'}"])
    columns = config.data["labels"].columns
    assert isinstance(columns, Columns)
    with (
        pytest.warns(UserWarning, match=r"Not read in .*took \(s\)"),
        pytest.warns(UserWarning, match="3 rows of .* were left out"),
    ):
        judgements = read_preferences(tmp_path / "labels.csv", columns=columns)
    assert [judgement.prompt.text for judgement in judgements] == [
        row[1] for row in rows() if row not in BAD.values()
    ]
    assert judgements[0].responses[0].text == "It is 0.\n\n- 0, then 0 again;\n- that is all."


def test_every_row_is_accounted_for(run_dir: Path):
    """63 rows: 10 ties (i = 2, 8, …, 56), then 30 even and 30 odd less the ties, which are even."""
    report = read_json(run_dir / "data" / "labels" / "import.json")
    assert report["by_reason"] == dict.fromkeys(sorted(BAD), 1)
    assert (report["rows_in"], report["rows_out"], report["rows_quarantined"]) == (63, 60, 3)
    assert report["by_label"] == {"first": 20, "second": 30, "tie": 10}
    assert report["by_annotator"] == {"ada": 30, "bo": 30}
    quarantined = [
        json.loads(line)
        for line in (run_dir / "data/labels/quarantine.jsonl").read_text().splitlines()
    ]
    assert [(row["row"], row["reason"]) for row in quarantined] == [
        (8, "label_unknown"), (9, "label_missing"), (10, "empty_prompt"),
    ]  # fmt: skip
    rows_of = {
        name: step["rows"] for name, step in read_json(run_dir / "summary.json")["steps"].items()
    }
    trained, held_out = split(read_judgements(run_dir / "data" / "labels"), 0.2, "17")
    assert len(held_out) > 3
    texts = 2 * len(trained)  # answers, each whole; what is held out is not read
    assert rows_of["pretrain"] == {"in": texts, "out": texts, "quarantined": 0}
    assert rows_of["reward"] == {"in": 60, "out": 60, "quarantined": 0}
    assert rows_of["dpo"] == {"in": 60, "out": 50, "quarantined": 10}  # ties


def test_every_step_leaves_its_artifact(run_dir: Path):
    config = load_config(CONFIG, [f"data.labels.path={run_dir.parent / 'labels.csv'}"])
    kinds = {name: read_json(run_dir / name / "artifact.json")["kind"] for name in config.steps}
    assert kinds == {name: step.kind for name, step in config.steps.items()}
    for name in ("sft", "reward", "dpo", "ppo", "export"):
        assert (run_dir / name / "adapter" / "adapter_model.safetensors").is_file()


def test_the_exported_adapter_loads_and_is_what_ppo_trained(run_dir: Path):
    """As a stranger would: by the merged weights, and by the adapter on the base beside it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = run_dir / "export"
    base = AutoModelForCausalLM.from_pretrained(export / "base")
    ids = AutoTokenizer.from_pretrained(export / "adapter")(
        "What is 3 plus 3?", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        bare = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(export / "adapter"))(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(export / "merged")(ids).logits
    assert (adapted - bare).abs().max() > 1e-3
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=0)


def test_the_card_tells_the_facts_of_the_run(run_dir: Path):
    card = (run_dir / "export" / "README.md").read_text(encoding="utf-8")
    assert (
        "| labels | labels.csv | table | 63 | 60 | 3 "
        "(empty_prompt 1, label_missing 1, label_unknown 1) | 20 % |"
    ) in card
    rate = read_json(run_dir / "evaluate" / "artifact.json")["metrics"][
        "evaluate/reward/win_rate/ppo_vs_sft"
    ]
    assert f"| reward | ppo against sft | {rate:.3f} |" in card
