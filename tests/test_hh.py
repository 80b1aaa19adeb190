"""configs/hh.yaml on real dialogues, from the transcripts to the exported adapter."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.config import Config, load_config
from preference_data import read_judgements, split

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "hh.yaml"
DATA = os.environ.get("ALIGN_TEST_DATA")
ROWS = 300
SMALL = (
    f"data.hh.limit={ROWS}",
    "base.architecture={hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, vocab_size: 1024}",
    "lora.r=4",
    "steps.pretrain.train={max_steps: 10, train_batch_size: 4, learning_rate: 3e-3, "
    "logging_steps: 5}",
    "steps.sft.train={max_steps: 10, train_batch_size: 4, learning_rate: 3e-3, logging_steps: 5}",
    "steps.reward.train={max_steps: 10, train_batch_size: 8, learning_rate: 3e-3}",
    "steps.dpo.train={max_steps: 10, train_batch_size: 8, learning_rate: 3e-3}",
    "steps.ppo.train={iterations: 3, prompts_per_iteration: 16, max_new_tokens: 12, "
    "max_prompt_length: 256, learning_rate: 3e-3}",
    "steps.evaluate.prompts=20",
    "steps.evaluate.max_new_tokens=12",
    "steps.evaluate.bootstrap=200",
)
PROMISED = {
    "reward": {
        "reward": (
            "accuracy", "accuracy_low", "accuracy_high", "margin", "ece", "brier",
            "length_correlation",
        ),
    },
    "dpo": {
        "dpo": ("accuracy", "margin", "chosen_reward", "rejected_reward"),
        "train": ("loss", "lr", "grad_norm"),
    },
    "ppo": {
        "objective": ("kl", "score", "reward", "entropy"),
        "policy": ("loss", "clip_fraction", "approx_kl", "ratio_mean"),
        "value": ("loss", "explained_variance", "clip_fraction"),
        "response": ("length", "eos_rate", "distinct_2", "top_reply_share"),
        "train": ("lr", "grad_norm"),
        "time": ("rollout", "update"),
    },
}  # fmt: skip
"""Names of metrics by step, and by the part before the slash."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="ALIGN_TEST_DATA does not say where the data is"),
]


@dataclass(frozen=True)
class Run:
    """One run of the configuration, and a second one of the same."""

    config: Config
    folder: Path
    first: dict[str, Any]
    second: dict[str, Any]

    def metrics(self, step: str) -> dict[str, float]:
        return self.first["steps"][step]["metrics"]

    def log(self, step: str) -> list[dict[str, float]]:
        lines = (self.folder / step / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    import torch

    from align import Pipeline

    torch.set_num_threads(1)  # more are slower on tensors this small
    folder = tmp_path_factory.mktemp("hh") / "run"
    path = Path(str(DATA)) / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    config = load_config(CONFIG, [f"data.hh.path={path}", f"output_dir={folder}", *SMALL])
    return Run(config, folder, Pipeline(config).run(), Pipeline(config).run())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_row_is_accounted_for(run: Run):
    report = read_json(run.folder / "data" / "hh" / "import.json")
    assert report["rows_in"] == ROWS == report["rows_out"] + report["rows_quarantined"]
    assert report["rows_quarantined"] == sum(report["by_reason"].values()) == 1
    rows = {name: step["rows"] for name, step in run.first["steps"].items()}
    trained, held_out = split(read_judgements(run.folder / "data" / "hh"), 0.1, "17")
    assert len(held_out) > 10
    assert rows["pretrain"]["in"] == 2 * len(trained)  # both transcripts, of what is not held out
    for step in ("reward", "dpo"):
        assert rows[step]["in"] == report["rows_out"]
    for counts in filter(None, rows.values()):
        assert counts["in"] == counts["out"] + counts["quarantined"]


def test_the_summary_is_as_promised_and_on_disk(run: Run):
    summary = read_json(run.folder / "summary.json")
    assert set(summary) == {"name", "seconds", "steps"}
    assert list(summary["steps"]) == list(run.config.steps)
    for name, step in summary["steps"].items():
        assert set(step) == {"kind", "seconds", "cached", "rows", "metrics"}
        assert step["kind"] == run.config.steps[name].kind
        assert step["metrics"] == run.metrics(name)
        assert all(math.isfinite(value) for value in step["metrics"].values())
        if name != "export":
            assert set(step["rows"]) == {"in", "out", "quarantined"}


def test_a_second_run_finds_everything_done(run: Run):
    assert not any(step["cached"] for step in run.first["steps"].values())
    assert all(step["cached"] for step in run.second["steps"].values())
    for name, step in run.second["steps"].items():
        assert step["metrics"] == run.metrics(name)


@pytest.mark.parametrize("step", PROMISED)
def test_the_metrics_have_the_promised_names(run: Run, step: str):
    names = {f"{group}/{name}" for group, tail in PROMISED[step].items() for name in tail}
    assert names - set(run.metrics(step)) == set()


def test_ppo_starts_at_its_reference_and_then_leaves_it(run: Run):
    """Before the first update the policy is the reference: KL 0, up to float32."""
    first, *_, last = run.log("ppo")
    assert first["step"] == 1
    assert abs(first["objective/kl"]) < 1e-3
    assert abs(last["objective/kl"]) > 1e-3
    assert first["policy/ratio_mean"] == pytest.approx(1, abs=0.05)


def test_win_rates_come_with_intervals(run: Run):
    metrics = run.metrics("evaluate")
    for policy in ("dpo", "ppo"):
        name = f"evaluate/reward/win_rate/{policy}_vs_sft"
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
    assert metrics["evaluate/kl/sft"] == pytest.approx(0, abs=1e-3)


def test_the_reward_model_loads_with_plain_peft(run: Run):
    """Its scores are those of the worst mistakes that the step wrote down."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from preference_data import read_judgements
    from preference_data.rendering import Renderer

    adapter = run.folder / "reward" / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(
        run.folder / "pretrain" / "model", num_labels=1
    )
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(adapter))
    judgements = {
        (row.prompt.text, row.responses[0].text): row
        for row in read_judgements(run.folder / "data" / "hh")
    }
    samples = [
        json.loads(line)
        for line in (run.folder / "reward" / "samples.jsonl").read_text().splitlines()
    ]
    for sample in samples[:3]:
        judgement = judgements[sample["prompt"], sample["chosen"]]
        scores = []
        for response in judgement.responses:
            ids = torch.tensor([renderer.render(judgement.prompt, response).ids])
            with torch.no_grad():
                scores.append(float(model(input_ids=ids).logits))
        expected = [sample["chosen_score"], sample["rejected_score"]]
        assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("step", ["dpo", "ppo"])
def test_a_policy_loads_with_plain_peft(run: Run, step: str):
    """And is another one than where it started, the sft step's."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40)[None]

    def logits(name: str) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(run.folder / "pretrain" / "model")
        model = PeftModel.from_pretrained(base, str(run.folder / name / "adapter")).eval()
        with torch.no_grad():
            return model(ids).logits

    assert (logits(step) - logits("sft")).abs().max() > 1e-3
