"""The folder to hand on: it computes what was trained, anybody can load it, its card is true."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from align.artifacts import Artifact, Rows, write_json
from align.config import Base, ConfigError
from align.model_card import model_card
from align.policy import load_policy
from align.proofs import UnprovedSave
from align.stages.export import export_folder
from align.summary import read_run

WIN_RATE = {
    "evaluate/reward/win_rate/ppo_vs_sft": 0.75,
    "evaluate/reward/win_rate/ppo_vs_sft_low": 0.625,
    "evaluate/reward/win_rate/ppo_vs_sft_high": 0.875,
    "evaluate/kl/ppo": 3.25,
    "evaluate/kl/sft": 0.0,
}
CONFIG = {
    "base": {"model": "builtin:tiny", "revision": None},
    "lora": {"r": 4, "alpha": 8.0},
    "data": {"labels": {"test_fraction": 0.25, "license": "CC-BY-4.0"}},
    "steps": {
        "sft": {"kind": "sft", "data": "labels", "train": {"learning_rate": 0.001}},
        "reward": {"kind": "reward", "data": "labels", "init": "sft"},
        "ppo": {
            "kind": "ppo", "policy": "sft", "reward": "reward",
            "train": {"iterations": 7, "temperature": 0.5, "kl": {"coefficient": 0.05}},
        },
        "evaluate": {
            "kind": "evaluate", "data": "labels", "temperature": 1.0, "max_new_tokens": 8,
        },
    },
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path, tiny_folder: Path, make_roles: Callable[..., Any], shake: Any) -> Path:
    """A run as the pipeline leaves it, made by hand: base, data, sft, reward, ppo, evaluate."""
    run = tmp_path / "run"
    shutil.copytree(tiny_folder, run / "base")
    write_json(run / "run.json", {"name": "rivers", "config": CONFIG})
    roles = make_roles()
    roles.base_path = str(run / "base")
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.parameters_of("policy"))

    def finish(name: str, kind: str, inputs: tuple[str, ...], **facts: Any) -> None:
        path = run / name.replace(".", "/")
        prints = {other: f"{other}-1" for other in inputs}
        Artifact(name, kind, path, f"{name}-1", prints, base=roles.base_path, **facts).save()

    finish("base", "base", ())
    finish("data.labels", "data", ())
    report = {
        "files": ["/private/somebody/labels.csv"], "format": "table", "limit": None,
        "rows_in": 1234, "rows_out": 1230, "rows_quarantined": 4,
        "by_reason": {"label_unknown": 3, "empty_prompt": 1},
    }  # fmt: skip
    write_json(run / "data/labels/import.json", report)
    roles.save("policy", run / "ppo")
    finish("sft", "sft", ("base", "data.labels"), metrics={"train/loss": 1.5}, seed=3)
    interval = {"reward/accuracy": 0.7, "reward/accuracy_low": 0.6, "reward/accuracy_high": 0.8}
    finish("reward", "reward", ("base", "sft", "data.labels"), metrics=interval)
    finish(
        "ppo", "ppo", ("base", "sft", "reward", "data.labels"), metrics={"objective/kl": 3.5},
        rows=Rows(20, 19, 1), versions={"torch": "2.13.0"},
    )  # fmt: skip
    finish("evaluate", "evaluate", ("ppo", "sft"), metrics=WIN_RATE, rows=Rows(30, 30))
    return run


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 60, 7, 200, 9]])).logits


def trained(run_dir: Path) -> torch.Tensor:
    """What the step's own adapter computes, folded in by hand: W + (alpha / r) B A."""
    model = AutoModelForCausalLM.from_pretrained(run_dir / "base")
    state = load_file(run_dir / "ppo/adapter/adapter_model.safetensors")
    weights = model.state_dict()
    downs = [name for name in state if name.endswith("lora_A.weight")]
    for name in downs:
        target = re.sub(r"^base_model\.model\.(.*)\.lora_A\.weight$", r"\1.weight", name)
        weights[target] += 8 / 4 * state[name.replace("lora_A", "lora_B")] @ state[name]
    assert len(downs) == 2 * 7  # layers x linear modules of each
    return logits(model)


def front_of(card: str) -> dict[str, Any]:
    """The card's front matter, as the hub's own library reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def run_the_snippet(card: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The names that the card's Python leaves behind, and what it printed as "printed"."""
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return {**names, "printed": capsys.readouterr().out}


def test_adapter_and_merged_weights_compute_what_was_trained(run_dir: Path, tmp_path: Path):
    from peft import PeftModel

    export = export_folder(run_dir / "ppo", tmp_path / "out", merge=True)
    bare = logits(AutoModelForCausalLM.from_pretrained(run_dir / "base"))
    shutil.rmtree(run_dir)  # the export leans on nothing of it
    adapted = logits(
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(export / "base"), str(export / "adapter")
        )
    )
    merged = logits(AutoModelForCausalLM.from_pretrained(export / "merged"))
    assert (adapted - bare).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=0)


def test_the_logits_are_those_of_the_low_rank_update(run_dir: Path, tmp_path: Path):
    export = export_folder(run_dir / "ppo", tmp_path / "out", merge=True)
    merged = logits(AutoModelForCausalLM.from_pretrained(export / "merged"))
    torch.testing.assert_close(merged, trained(run_dir), atol=1e-5, rtol=0)


def test_the_adapter_names_the_base_that_comes_with_it(run_dir: Path, tmp_path: Path):
    export = export_folder(run_dir / "ppo", tmp_path / "out", merge=True)
    config = json.loads((export / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(export / "base")
    assert not (export / "base/artifact.json").exists()
    assert (export / "merged/tokenizer.json").is_file()
    modes = {oct(path.stat().st_mode & 0o777) for path in export.rglob("*") if path.is_file()}
    assert modes == {"0o644"}


def test_an_export_that_was_moved_brings_its_base(run_dir: Path, tmp_path: Path):
    export = export_folder(run_dir / "ppo", tmp_path / "out")
    expected = trained(run_dir)
    shutil.rmtree(run_dir)
    (tmp_path / "elsewhere").mkdir()
    model, _ = load_policy(export.rename(tmp_path / "elsewhere" / "mine"))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_a_run_that_was_moved_can_be_exported(run_dir: Path, tmp_path: Path):
    moved = run_dir.rename(tmp_path / "elsewhere")
    export = export_folder(moved / "ppo", tmp_path / "out")
    assert (export / "base/config.json").is_file()
    shutil.rmtree(moved / "base")
    with pytest.raises(ConfigError, match=r"/run/base, the base under .*, is not there any more"):
        export_folder(moved / "ppo", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_the_card_s_snippet_runs_in_the_folder(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    export = export_folder(run_dir / "ppo", tmp_path / "out")
    monkeypatch.chdir(export)
    left = run_the_snippet((export / "README.md").read_text(), capsys)
    torch.testing.assert_close(logits(left["model"]), trained(run_dir), atol=1e-5, rtol=0)
    assert left["text"] == "Question: Hello\nAnswer:\n"
    assert left["printed"].strip()
    assert "temperature=0.5" in (export / "README.md").read_text()  # PPO's own


def test_the_card_is_written_from_the_run_s_records(run_dir: Path, tmp_path: Path):
    export = export_folder(run_dir / "ppo", tmp_path / "out", license="apache-2.0")
    card = (export / "README.md").read_text()
    front = front_of(card)
    assert front["license"] == "apache-2.0" and front["library_name"] == "peft"
    assert front["tags"] == ["ppo", "rlhf", "lora"] and "base_model" not in front
    [result] = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "labels, held out", "type": "labels"}
    assert result["metrics"] == [
        {
            "type": "win_rate",
            "value": 0.75,
            "name": "Win rate against sft, judged by reward (95 % interval 0.625 to 0.875)",
        }
    ]
    for fact in (
        "| labels.csv | table | 1,234 | 1,230 | 4 (label_unknown 3, empty_prompt 1) | 25 % |",
        " | 25 % | CC-BY-4.0 |\n",
        "`train.iterations=7`",
        "`train.kl.coefficient=0.05`",
        "19 of 20 rows, the others too long or unreadable; seed 0.",
        "| reward/accuracy | 0.7 | 0.6 to 0.8 |",
        "evaluate: 30 held-out prompts",
        "| reward | ppo against sft | 0.750 | 0.625 to 0.875 |",
        "The judge reward is the reward that ppo was optimised for",
        "| kl | 3.25 |",
        "Adapters: r 4, alpha 8.0.",
        "torch 2.13.0.",
    ):
        assert fact in card
    assert "/private/somebody" not in card
    assert str(tmp_path) not in card


def test_the_settings_are_those_that_a_step_was_made_with(run_dir: Path):
    """Not those of a configuration that was changed since, and of which only another step ran."""
    made = Artifact.load(run_dir / "ppo")
    assert made is not None
    then = {"kind": "ppo", "reward": "other", "train": {"iterations": 70, "temperature": 0.75}}
    made = dataclasses.replace(made, settings=then)
    made.save()
    card = model_card(made, read_run(run_dir), Base(model="owner/base"), run_dir / "ppo", None)
    assert "`train.iterations=70`" in card and "iterations=7`" not in card
    assert "temperature=0.75, top_k" in card
    assert "is the reward that ppo was optimised for" not in card


def test_no_folder_of_the_machine_is_shown(tmp_path: Path):
    from align.model_card import shown

    for recorded, told in (
        (f"{tmp_path}/score.py:name", "score.py:name"),
        (f"output_dir={tmp_path}/runs/a", "output_dir=a"),
        ("{'url': 'http://judge:80/a/b'}", "{'url': 'http://judge:80/a/b'}"),
        ("{'model': '/models/x', 'weight': 0.5}", "{'model': 'x', 'weight': 0.5}"),
        (f"file://{tmp_path}/score.py", "score.py"),
        ("Qwen/Qwen2.5-0.5B configs/a.yaml", "Qwen/Qwen2.5-0.5B configs/a.yaml"),
    ):
        assert shown(recorded) == told


def test_nothing_in_a_chat_template_ends_its_block(run_dir: Path, tmp_path: Path):
    """A base from elsewhere brings its own: it must not write into the card."""
    template = "{{ messages }}\n~~~~\n# A title\n~~~~~~ and so on\n"
    (run_dir / "ppo/adapter/chat_template.jinja").write_text(template)
    record = read_run(run_dir)
    made = Artifact.load(run_dir / "ppo")
    assert made is not None
    card = model_card(made, record, Base(model="owner/base"), run_dir / "ppo", None)
    [block] = re.findall(r"^(~~~+)jinja\n(.*?)\n\1\n", card, re.DOTALL | re.MULTILINE)
    assert block[1] == template and len(block[0]) == 7


def test_facts_of_another_policy_are_left_out(run_dir: Path, tmp_path: Path):
    """ppo was trained again (another fingerprint), sft too: neither is what the records tell of."""
    ppo = Artifact.load(run_dir / "ppo")
    assert ppo is not None
    inputs = {**ppo.inputs, "sft": "sft-2"}
    dataclasses.replace(ppo, fingerprint="ppo-2", inputs=inputs).save()
    card = (export_folder(run_dir / "ppo", tmp_path / "out") / "README.md").read_text()
    assert "The run holds no evaluation of exactly this policy." in card
    assert "0.750" not in card
    assert "No longer on record, or made again since: sft." in card
    assert "### reward" in card and "### sft" not in card


def test_whole_weights_are_copied(
    run_dir: Path, tmp_path: Path, make_roles: Any, shake: Any, monkeypatch: Any, capsys: Any
):
    roles = make_roles(lora=None)
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.parameters_of("policy"))
    shutil.rmtree(run_dir / "ppo/adapter")
    roles.save("policy", run_dir / "ppo")
    with pytest.raises(ConfigError, match="no adapter to merge"):
        export_folder(run_dir / "ppo", tmp_path / "out", merge=True)
    export = export_folder(run_dir / "ppo", tmp_path / "out")
    assert sorted(path.name for path in export.iterdir()) == ["README.md", "export.json", "model"]
    monkeypatch.chdir(export)
    left = run_the_snippet((export / "README.md").read_text(), capsys)
    with roles.active("policy") as model:
        torch.testing.assert_close(logits(left["model"]), logits(model), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # all that peft says of "lost"
@pytest.mark.parametrize("harm", ["halved", "lost"])
def test_a_copy_that_computes_something_else_is_not_kept(
    harm: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from align.stages import export

    copy = export._copy

    def harmful(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name == "adapter":
            path = target / "adapter_model.safetensors"
            state = load_file(path)
            one = next(name for name in state if "lora_B" in name)
            tensor = state.pop(one)
            save_file(state if harm == "lost" else {**state, one: tensor / 2}, path)

    monkeypatch.setattr(export, "_copy", harmful)
    with pytest.raises(UnprovedSave, match=r"adapter: logits differ by [0-9.]+ from those"):
        export_folder(run_dir / "ppo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_step_that_proves_nothing_leaves_no_weights(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its folder stays, with what else is in it."""
    from align.stages import export

    def refused(*_: Any) -> float:
        raise UnprovedSave("the logits differ")

    folder = run_dir / "export"
    folder.mkdir()
    (folder / "alerts.jsonl").touch()
    made = Artifact.load(run_dir / "ppo")
    context: Any = SimpleNamespace(
        step=SimpleNamespace(policy="ppo", merge=False, license=None), inputs={"ppo": made},
        folder=folder, engine=SimpleNamespace(from_main=lambda make: make()),
    )  # fmt: skip
    monkeypatch.setattr(export, "compare", refused)
    with pytest.raises(UnprovedSave):
        export.run(context)
    assert [path.name for path in folder.iterdir()] == ["alerts.jsonl"]


def test_a_merge_that_computes_something_else_is_not_kept(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from peft import PeftModel

    def forgets_to_merge(self: Any, *_: Any, **__: Any) -> Any:
        return self.unload()

    monkeypatch.setattr(PeftModel, "merge_and_unload", forgets_to_merge, raising=False)
    with pytest.raises(UnprovedSave, match=r"merged: logits differ by [0-9.]+ from those"):
        export_folder(run_dir / "ppo", tmp_path / "out", merge=True)


def test_what_cannot_be_exported_is_refused_in_a_sentence(run_dir: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="kind evaluate, which leaves nothing to export"):
        export_folder(run_dir / "evaluate", tmp_path / "out")
    with pytest.raises(ConfigError, match="reward holds neither an adapter nor a model"):
        export_folder(run_dir / "reward", tmp_path / "out")
    (tmp_path / "artifact.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="is of another version of this toolkit; run it again"):
        export_folder(tmp_path, tmp_path / "out")
    (tmp_path / "artifact.json").unlink()
    with pytest.raises(ConfigError, match=r"is no finished step: it holds no artifact\.json"):
        export_folder(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        export_folder(run_dir / "ppo", tmp_path / "full")
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


def test_the_step_exports_into_its_own_folder(run_dir: Path):
    """`run` with a context that holds no more than the step needs."""
    from types import SimpleNamespace

    from align.stages import export

    folder = run_dir / "export"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    context: Any = SimpleNamespace(
        step=SimpleNamespace(policy="ppo", merge=True, license=None),
        inputs={"ppo": Artifact.load(run_dir / "ppo")},
        folder=folder,
        engine=SimpleNamespace(from_main=lambda make: make()),
    )
    result = export.run(context)
    assert result.base == str(folder / "base")
    # A and B of seven linear modules in each of two layers.
    assert result.metrics["export/tensors"] == 2 * 7 * 2
    sizes = [
        path.stat().st_size
        for part in ("adapter", "base", "merged")
        for path in (folder / part).iterdir()
    ]
    assert result.metrics["export/bytes"] == sum(sizes)
    assert result.metrics["export/merge_difference"] < 1e-5
    assert result.metrics["export/reload_difference"] < 1e-6
