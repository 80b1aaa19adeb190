"""An exported reward model scores as the step's: with this toolkit, and with plain libraries."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.artifacts import Artifact, write_json
from align.config import ConfigError, Lora
from align.proofs import UnprovedSave
from align.stages import export
from align.stages.export import export_folder
from reward_models import RewardModel
from reward_models.scalar_head import ScalarHead, Scoring

FOLDER = "/of/ada"
"""Of what the labels were read from: no card names it."""
CONFIG = {
    "base": {"model": "builtin:tiny", "revision": None},
    "lora": {"r": 4, "alpha": 8.0},
    "seed": 5,
    "data": {"labels": {"test_fraction": 0.25, "path": f"{FOLDER}/labels.csv"}},
    "steps": {"reward": {"kind": "reward", "data": "labels", "init": "base"}},
}
METRICS = {
    "reward/accuracy": 0.8, "reward/accuracy_low": 0.75, "reward/accuracy_high": 0.85,
    "reward/ece": 0.04, "reward/pairs": 120.0,
}  # fmt: skip
PROMPTS = ["Hello", "What is the capital of France?", "Name the colour of snow."]
ANSWERS = ["Hello! What can I do for you?", "The capital of France is Paris.", "I do not know."]

Make = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, tiny_folder: Path, make_roles: Any, shake: Any) -> Make:
    """`make_run(members=0, lora=True)`: a run with a trained reward step, made by hand."""

    def make(members: int = 0, lora: bool = True) -> Path:
        run = tmp_path / "run"
        shutil.copytree(tiny_folder, run / "base")
        config = CONFIG if lora else {**CONFIG, "lora": None}
        write_json(run / "run.json", {"name": "rivers", "config": config, "command": "align run"})
        report = {
            "files": [f"{FOLDER}/labels.csv"], "format": "table", "limit": None,
            "rows_in": 40, "rows_out": 39, "rows_quarantined": 1, "by_reason": {"empty": 1},
        }  # fmt: skip
        write_json(run / "data/labels/import.json", report)
        Artifact("data.labels", "data", run / "data/labels", "labels-1", {}).save()
        for number in range(1, members + 1) if members else [0]:
            roles = make_roles(lora=Lora(r=4, alpha=8) if lora else None)
            roles.base_path = str(run / "base")
            head = ScalarHead(roles.model.config.hidden_size)
            roles.add("reward", fresh=True, trainable=True, head=head)
            shake(roles.parameters_of("reward"), seed=number)
            scoring = Scoring(
                roles.renderer.fingerprint(), 64, 0.5 + number, 2.0, "left", temperature=1.5
            )
            below = run / "reward" / (f"members/{number}" if members else "")
            roles.save("reward", below, scoring)
        Artifact(
            "reward", "reward", run / "reward", "reward-1", {"data.labels": "labels-1"},
            base=str(run / "base"), metrics=METRICS, versions={"torch": "2.13.0"},
        ).save()  # fmt: skip
        return run

    return make


def scores(path: Path) -> list[float]:
    return RewardModel.from_pretrained(path).score(PROMPTS, ANSWERS)


def close(one: list[float], other: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-5, rtol=0)


def snippets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The names that each piece of the card's Python leaves behind, run in the folder."""
    monkeypatch.chdir(folder)
    found: list[dict[str, Any]] = []
    for code in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        names: dict[str, Any] = {}
        exec(code, names)
        found.append(names)
    return found


def test_adapter_head_and_merged_weights_score_as_the_step(make_run: Make, tmp_path: Path):
    run = make_run()
    trained = scores(run / "reward")
    assert max(trained) - min(trained) > 0.1
    out = export_folder(run / "reward", tmp_path / "out", merge=True)
    shutil.rmtree(run)  # the export leans on nothing of it
    close(scores(out), trained)
    close(scores(out / "merged"), trained)
    model = RewardModel.from_pretrained(out / "merged")
    assert model.scoring == RewardModel.from_pretrained(out).scoring
    assert (model.scoring.mean, model.scoring.std, model.scoring.truncation) == (0.5, 2.0, "left")


@pytest.mark.parametrize("lora", [True, False])
def test_the_card_s_code_scores_as_the_step(
    lora: bool, make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the toolkit, and with plain transformers (and peft): "Hello" and one answer."""
    run = make_run(lora=lora)
    [trained, *_] = scores(run / "reward")
    out = export_folder(run / "reward", tmp_path / "out")
    toolkit, plain = snippets(out, monkeypatch)
    assert ("PeftModel" in plain) == lora
    close([toolkit["score"], plain["score"]], [trained, trained])


def test_whole_weights_are_copied_with_their_head(make_run: Make, tmp_path: Path):
    run = make_run(lora=False)
    trained = scores(run / "reward")
    out = export_folder(run / "reward", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "export.json", "model"]
    close(scores(out), trained)


def test_an_ensemble_is_one_folder(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(members=2)
    trained = RewardModel.from_pretrained(run / "reward")
    expected = trained.score(PROMPTS, ANSWERS)
    groups = [trained.group_of(*row) for row in zip(PROMPTS, ANSWERS, strict=True)]
    first, second = trained.member_scores(groups)
    out = export_folder(run / "reward", tmp_path / "out", merge=True)
    for folder in (out, out / "merged"):
        close(scores(folder), expected)
    assert len(RewardModel.from_pretrained(out / "merged").members) == 2
    toolkit, plain = snippets(out, monkeypatch)
    close([toolkit["score"], plain["score"]], [(first[0] + second[0]) / 2, first[0]])


def test_the_card_tells_what_the_step_measured(make_run: Make, tmp_path: Path):
    from huggingface_hub import ModelCard

    out = export_folder(make_run() / "reward", tmp_path / "out", license="My own terms, 2026")
    card = (out / "README.md").read_text()
    front = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
    assert (front["license"], front["license_name"]) == ("other", "my-own-terms-2026")
    assert front["pipeline_tag"] == "text-classification"
    [result] = front["model-index"][0]["results"]
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [
        ("accuracy", 0.8),
        ("ece", 0.04),
    ]
    for fact in (
        "| reward/accuracy | 0.8 | 0.75 to 0.85 |",
        "| labels | labels.csv | table | 40 | 39 | 1 (empty 1) | 25 % |",
        "sigmoid((a - b) / 1.5)",
        "mean 0.5 and standard deviation 2",
        "at most 64 tokens were read in training; longer ones lost the beginning",
        "`align run` made it",
        "| reward | `reward-1` |",
        "{{ 'Question: ' + message['content']",
    ):
        assert fact in card
    assert FOLDER not in card and str(tmp_path) not in card


@pytest.mark.parametrize("harm", ["head", "adapter"])
def test_a_copy_that_scores_otherwise_is_not_kept(
    harm: str, make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run()
    copy = export._copy

    def harmful(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name == "adapter":
            path = target / "adapter_model.safetensors"
            state = load_file(path)
            name = next(one for one in state if (".score." in one) == (harm == "head"))
            name = name.replace("lora_A", "lora_B")
            save_file({**state, name: state[name] / 2}, path)

    monkeypatch.setattr(export, "_copy", harmful)
    with pytest.raises(UnprovedSave, match=r"adapter: scores differ by [0-9.]+ from those"):
        export_folder(run / "reward", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_step_exports_a_reward_step(make_run: Make):
    run = make_run(members=2)
    (run / "export").mkdir()
    context: Any = SimpleNamespace(
        step=SimpleNamespace(policy="reward", merge=False, license=None),
        inputs={"reward": Artifact.load(run / "reward")},
        folder=run / "export",
        engine=SimpleNamespace(from_main=lambda make: make()),
    )
    result = export.run(context)
    # A and B of seven linear modules in each of two layers, and a head; twice.
    assert result.metrics["export/tensors"] == 2 * (2 * 7 * 2 + 1)
    assert result.metrics["export/reload_difference"] < 1e-6
    assert len(RewardModel.from_pretrained(run / "export").members) == 2


def test_a_reward_step_may_be_named_by_an_export_step():
    from align.config import build_config

    tree = {
        "name": "small",
        "output_dir": "runs/small",
        "data": {"labels": {"path": "builtin:labels", "license": "CC0-1.0"}},
        "steps": {
            "reward": {"kind": "reward", "data": "labels"},
            "export": {"kind": "export", "policy": "reward"},
        },
    }
    assert build_config(tree).data["labels"].license == "CC0-1.0"
    tree["steps"]["export"]["policy"] = "base"
    with pytest.raises(ConfigError, match="Possible here: reward"):
        build_config(tree)
