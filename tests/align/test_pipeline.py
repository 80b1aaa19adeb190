"""The pipeline on the built-in world with a very small model: every step real, seconds long."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import TWO_LAYERS, world_of

from align.config import Config, ConfigError, build_config
from align.pipeline import Pipeline, StepError
from align.summary import read_run
from align.tasks import clusters_of, tasks_of

TRAIN = {"max_steps": 3, "train_batch_size": 8, "learning_rate": 1e-3, "max_length": 96}


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of every kind of step; `changes` replaces values by dotted path, with __."""
    config: dict[str, Any] = {
        "name": "small",
        "output_dir": str(folder),
        "base": {"architecture": dict(TWO_LAYERS)},
        "lora": {"r": 4, "alpha": 8},
        "world": world_of(60),
        "data": {
            "text": {"path": "builtin:text"},
            "demonstrations": {"path": "builtin:demonstrations"},
            "labels": {"path": "builtin:labels"},
            "prompts": {"path": "builtin:prompts", "test_fraction": 0.3},
        },
        "steps": {
            "pretrain": {"kind": "pretrain", "data": "text", "train": TRAIN},
            "sft": {"kind": "sft", "data": "demonstrations", "init": "pretrain", "train": TRAIN},
            "reward": {"kind": "reward", "data": "labels", "init": "sft", "train": TRAIN},
            "dpo": {"kind": "dpo", "data": "labels", "policy": "sft", "train": TRAIN},
            "ppo": {
                "kind": "ppo",
                "data": "prompts",
                "policy": "sft",
                "reward": "reward",
                "train": {
                    "iterations": 2,
                    "prompts_per_iteration": 8,
                    "max_new_tokens": 12,
                    "learning_rate": 1e-3,
                },
            },
            "evaluate": {
                "kind": "evaluate",
                "data": "prompts",
                "preferences": "labels",
                "policies": ["sft", "dpo", "ppo"],
                "baseline": "sft",
                "judges": ["gold", "reward"],
                "prompts": 8,
                "max_new_tokens": 12,
            },
            "export": {"kind": "export", "policy": "ppo"},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return config


def config(folder: Path, **changes: Any) -> Config:
    return build_config(tree(folder, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run folder with every step done, and the summary that the run returned."""
    folder = tmp_path_factory.mktemp("run") / "small"
    return folder, Pipeline(config(folder)).run()


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    import shutil

    folder = tmp_path / "small"
    shutil.copytree(finished[0], folder)
    return folder


def cached(summary: dict[str, Any]) -> dict[str, bool]:
    return {name: step["cached"] for name, step in summary["steps"].items()}


def test_a_run_leaves_what_the_contract_names(finished: tuple[Path, dict[str, Any]]):
    folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary["steps"]) == [
        "pretrain", "sft", "reward", "dpo", "ppo", "evaluate", "export",
    ]  # fmt: skip
    for name, step in summary["steps"].items():
        assert set(step) == {"kind", "seconds", "cached", "rows", "metrics"}, name
        assert all(math.isfinite(value) for value in step["metrics"].values()), name
        assert (folder / name / "artifact.json").is_file()
    assert (folder / "report.html").stat().st_size > 10_000
    for name in ("objective/kl", "objective/score", "policy/loss", "value/explained_variance"):
        assert name in summary["steps"]["ppo"]["metrics"]
    metrics = summary["steps"]["evaluate"]["metrics"]
    for judge in ("gold", "reward"):
        name = f"evaluate/{judge}/win_rate/ppo_vs_sft"
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert 0 <= metrics["evaluate/reward/gold_accuracy"] <= 1


def test_rows_in_are_rows_out_or_quarantined(finished: tuple[Path, dict[str, Any]]):
    folder, summary = finished
    for step in summary["steps"].values():
        if step["rows"]:
            assert step["rows"]["in"] == step["rows"]["out"] + step["rows"]["quarantined"]
    report = json.loads((folder / "data/labels/import.json").read_text())
    with (folder / "world/labels.csv").open(newline="") as file:
        import csv

        assert report["rows_in"] == len(list(csv.DictReader(file)))


def test_before_its_first_update_the_policy_is_the_reference(
    finished: tuple[Path, dict[str, Any]],
):
    folder, _ = finished
    first = json.loads((folder / "ppo/metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl"]) < 1e-4
    assert first["policy/ratio_mean"] == pytest.approx(1, abs=0.05)


def test_a_second_run_does_nothing(finished: tuple[Path, dict[str, Any]]):
    folder, _ = finished
    before = (folder / "ppo/artifact.json").stat().st_mtime_ns
    summary = Pipeline(config(folder)).run()
    assert all(cached(summary).values())
    assert (folder / "ppo/artifact.json").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_bits(finished: tuple[Path, dict[str, Any]], tmp_path: Path):
    folder, summary = finished
    again = Pipeline(config(tmp_path / "again")).run()
    for name in ("pretrain", "sft", "reward", "dpo", "ppo"):
        file = (
            "model/model.safetensors"
            if name == "pretrain"
            else ("adapter/adapter_model.safetensors")
        )
        assert (folder / name / file).read_bytes() == (
            tmp_path / "again" / name / file
        ).read_bytes()
    timed = ("time/", "train/tokens_per_second", "export/")
    for name, step in summary["steps"].items():
        for metric, value in step["metrics"].items():
            if not metric.startswith(timed):
                assert again["steps"][name]["metrics"][metric] == value, (name, metric)


def test_a_licence_changes_the_card_alone(tmp_path: Path):
    """It is written on the model card, and nothing is trained for it."""
    plain = tree(tmp_path / "run")
    licensed = {**plain, "data": {**plain["data"]}}
    licensed["data"]["labels"] = {**plain["data"]["labels"], "license": "cc-by-4.0"}
    before, after = (
        {task.name: task.fingerprint for task in tasks_of(build_config(one))}
        for one in (plain, licensed)
    )
    assert {name for name in before if before[name] != after[name]} == {"export"}


def test_a_changed_setting_runs_its_step_and_what_stands_on_it(copied: Path):
    changed = config(copied, steps__ppo__train__iterations=1)
    plan = {row["name"]: row["state"] for row in Pipeline(changed).plan()}
    assert {name for name, state in plan.items() if state != "done"} == {
        "ppo", "evaluate", "export",
    }  # fmt: skip
    summary = Pipeline(changed).run()
    assert cached(summary) == {
        "pretrain": True, "sft": True, "reward": True, "dpo": True,
        "ppo": False, "evaluate": False, "export": False,
    }  # fmt: skip


def test_force_runs_a_step_again_and_what_stands_on_it(copied: Path):
    summary = Pipeline(config(copied)).run(force=["dpo"])
    assert [name for name, done in cached(summary).items() if not done] == [
        "dpo", "evaluate", "export",
    ]  # fmt: skip


def test_only_runs_one_step_and_keeps_the_others_in_the_summary(copied: Path):
    summary = Pipeline(config(copied)).run(only="evaluate")
    assert cached(summary) == {"evaluate": False}
    assert set(json.loads((copied / "summary.json").read_text())["steps"]) >= {"ppo", "evaluate"}


def test_a_step_keeps_the_settings_that_it_was_made_with(copied: Path):
    """`run.json` holds those of the last run, in which only another step ran.

    How often it saves changes nothing of what it makes, and is no part of it.
    """
    settings = config(copied).steps["ppo"].model_dump(mode="json", by_alias=True)
    assert settings["train"].pop("save_iterations") == 10
    Pipeline(config(copied, steps__ppo__train__iterations=9)).run(only="reward")
    run = json.loads((copied / "run.json").read_text())["config"]["steps"]["ppo"]
    assert run["train"]["iterations"] == 9 != settings["train"]["iterations"]
    [ppo] = (step for step in read_run(copied).steps if step.name == "ppo")
    assert ppo.settings == settings


def test_only_refuses_to_stand_on_what_is_out_of_date(copied: Path):
    changed = config(copied, steps__sft__train={**TRAIN, "max_steps": 2})
    with pytest.raises(ConfigError) as error:
        Pipeline(changed).run(only="dpo")
    assert str(error.value) == (
        "--only dpo needs the step 'sft', which is not done (its settings changed); run it first."
    )


def test_until_kind_leaves_out_what_that_kind_does_not_need(copied: Path):
    summary = Pipeline(config(copied)).run(until_kind="dpo")
    assert set(summary["steps"]) == {"pretrain", "sft", "dpo"}


def test_an_unknown_step_is_named(copied: Path):
    with pytest.raises(ConfigError) as error:
        Pipeline(config(copied)).run(only="pppo")
    assert str(error.value).startswith("there is no step 'pppo'; did you mean 'ppo'?")


@pytest.mark.slow
def test_a_killed_run_goes_on(copied: Path):
    """kill -9 while ppo runs: no artifact is left of it; the next run does ppo and what follows."""
    path = copied.parent / "config.json"
    path.write_text(json.dumps(tree(copied, steps__ppo__train__iterations=4000)))
    command = [sys.executable, "-m", "align.cli", "run", str(path)]
    with (copied.parent / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    metrics = copied / "ppo/metrics.jsonl"
    old = metrics.stat().st_mtime_ns
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if metrics.is_file() and metrics.stat().st_mtime_ns != old and metrics.stat().st_size:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (copied.parent / "log").read_text()
    assert not (copied / "ppo/artifact.json").exists()
    plan = {row["name"]: row["state"] for row in Pipeline(config(copied)).plan()}
    assert plan["ppo"] == "run"
    summary = Pipeline(config(copied)).run()
    assert cached(summary)["dpo"] and not cached(summary)["ppo"]
    assert (copied / "ppo/artifact.json").is_file()


def test_with_wandb_every_step_leaves_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Offline, as without a key; test_tracking.py reads such files back."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "small"
    Pipeline(config(folder, tracking__wandb={"project": "tests"})).run(until_kind="ppo")
    for step in ("pretrain", "sft", "reward", "ppo"):
        [run] = (folder / step / "wandb").rglob("run-*.wandb")
        assert run.stat().st_size > 1000, step


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused(copied: Path):
    with pytest.raises(ConfigError) as error:
        Pipeline(config(copied, name="other"))
    assert str(error.value) == (
        f"output_dir {str(copied)!r} belongs to the run 'small', not to 'other'; "
        f"choose another folder."
    )


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError) as error:
        Pipeline(config(tmp_path))
    assert str(error.value) == (
        f"output_dir {str(tmp_path)!r} is not empty and holds no run; choose another folder."
    )


def test_a_missing_data_file_is_named_before_anything_runs(tmp_path: Path):
    broken = tree(tmp_path / "run", data__labels={"path": str(tmp_path / "no.csv")})
    with pytest.raises(ConfigError) as error:
        Pipeline(build_config(broken))
    assert str(error.value) == f"data.labels.path: there is no file {str(tmp_path / 'no.csv')!r}."
    assert not (tmp_path / "run").exists()


def test_a_model_folder_without_a_tokenizer_is_named(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
):
    import shutil

    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(finished[0] / "pretrain/model" / name, model / name)
    broken = tree(tmp_path / "run", base={"model": str(model)})
    del broken["world"]["documents"]
    with pytest.raises(ConfigError) as error:
        Pipeline(build_config(broken)).run()
    assert f"base.model {str(model)!r} has no tokenizer that can be loaded" in str(error.value)


def test_a_full_disk_is_named_and_leaves_no_artifact(copied: Path, monkeypatch: pytest.MonkeyPatch):
    """safetensors hides the system's error in its text; it must come out as what it is."""
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr("align.roles.save_file", full)
    with pytest.raises(OSError) as error:
        Pipeline(config(copied)).run(force=["dpo"])
    assert error.value.errno == errno.ENOSPC
    assert not (copied / "dpo/artifact.json").exists()


def test_a_reward_that_is_not_a_number_stops_the_run(
    copied: Path, tmp_path: Path, make_reward: Callable[[str], str]
):
    reward = make_reward("[float('nan')] * len(prompts)")
    with pytest.raises(StepError) as error:
        Pipeline(config(copied, steps__ppo__reward={"function": reward})).run(only="ppo")
    assert str(error.value).startswith(
        "step ppo failed: the reward function score gave nan in row 0 (prompt "
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"steps__evaluate__max_prompt_length": 2},
            r"^steps\.evaluate\.max_prompt_length is 2, and none of 8 prompts of data\.prompts",
        ),
        (
            {"steps__ppo__train__max_prompt_length": 2},
            r"^steps\.ppo\.train\.max_prompt_length is 2, and none of \d+ prompts of data\.pro",
        ),
        (
            {"steps__evaluate__max_new_tokens": 4000},
            r"^steps\.evaluate: the longest prompt and max_new_tokens are \d+ tokens together",
        ),
        (
            {"data__prompts__test_fraction": 1e-9},
            r"^steps\.evaluate: data\.prompts has \d+ prompts, and none falls into the held-out",
        ),
    ],
)
def test_prompts_that_a_late_step_cannot_use_stop_the_run_before_the_first(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    """Once the data are imported; no step has begun, and a run of that step alone says the same."""
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=message):
        Pipeline(config(folder, **changes)).run()
    assert (folder / "data" / "prompts" / "artifact.json").is_file()
    assert not (folder / "pretrain" / "metrics.jsonl").exists()


def test_an_evaluation_of_two_bases_begins_nothing(tmp_path: Path):
    """A policy on the base as it is, against one that stands on what was pretrained."""
    pipeline = Pipeline(config(tmp_path / "run", steps__evaluate__policies=["ppo", "base"]))
    message = (
        r"^steps\.evaluate\.policies\[1\] names 'base', which stands on base, but the baseline "
        r"'sft' stands on pretrain; one evaluation needs one base\.$"
    )
    for call in (pipeline.plan, pipeline.run):
        with pytest.raises(ConfigError, match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_rows_that_are_all_too_long_are_named(copied: Path):
    with pytest.raises(StepError) as error:
        Pipeline(config(copied, steps__sft__train={**TRAIN, "max_length": 3})).run(only="sft")
    assert str(error.value) == (
        "step sft failed: no row is left to train on: all are longer than max_length 3, cannot be "
        "rendered, or are held out."
    )


def test_a_function_as_the_reward_sees_the_prompt_and_the_completion(
    copied: Path, make_reward: Callable[[str], str]
):
    """The function's scores are the ones in the metrics: here the share of prompts with a '?'."""
    reward = make_reward("[1.0 if '?' in p and isinstance(c, str) else 0.0 for p, c in rows]")
    summary = Pipeline(config(copied, steps__ppo__reward={"function": reward})).run(only="ppo")
    assert 0 < summary["steps"]["ppo"]["metrics"]["objective/score"] <= 1


@pytest.fixture
def make_reward(tmp_path: Path) -> Callable[[str], str]:
    def write(expression: str) -> str:
        file = tmp_path / "my_reward.py"
        file.write_text(
            "def score(prompts, completions):\n"
            "    rows = list(zip(prompts, completions, strict=True))\n"
            f"    return {expression}\n"
        )
        return f"{file}:score"

    return write


# --- splits and several annotators ----------------------------------------------------------------


def test_near_duplicates_of_two_sources_are_on_one_side(tmp_path: Path):
    """A prompt of 60 words in one source, and with one word changed in another. The steps follow
    what the clusters are, not from how many sources they were made."""
    words = [f"word{i}" for i in range(60)]
    prompts = {"first": words, "second": [*words[:59], "end"], "third": ["something", "else"]}
    for name, text in prompts.items():
        row = {"prompt": " ".join(text), "completion": "Yes."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    settings = tree(
        tmp_path / "run",
        data={
            name: {"path": str(tmp_path / f"{name}.jsonl"), "test_fraction": 0.0}
            for name in ("first", "second")
        },
        steps={
            f"on_{name}": {"kind": "sft", "data": name, "train": {**TRAIN, "max_length": 1024}}
            for name in ("first", "second")
        },
    )
    del settings["world"]
    Pipeline(build_config(settings)).run()
    clusters = json.loads((tmp_path / "run" / "splits" / "clusters.json").read_text())
    assert clusters_of(build_config(settings)) == clusters
    assert clusters_of(build_config({**settings, "near_duplicates": None})) == {}
    assert len(clusters) == 2 and len(set(clusters.values())) == 1
    from preference_data.near_duplicates import Clusters
    from preference_data.records import Prompt
    from preference_data.splits import split_of

    found = Clusters(clusters)
    for salt in map(str, range(20)):
        sides = {
            split_of(Prompt.from_text(" ".join(prompts[name])), 0.5, salt, found)
            for name in ("first", "second")
        }
        assert len(sides) == 1


def test_a_reward_model_trains_on_what_several_annotators_say_together(
    copied: Path, finished: tuple[Path, dict[str, Any]]
):
    """One judgement an item instead of one an annotator, with the probability as its label."""
    summary = Pipeline(config(copied, data__labels__aggregate="dawid_skene")).run(
        until_kind="reward"
    )
    assert cached(summary) == {"pretrain": False, "sft": False, "reward": False}
    rows = [
        json.loads(line)
        for line in (copied / "data" / "labels" / "aggregated.jsonl").read_text().splitlines()
    ]
    every = (copied / "data" / "labels" / "judgements.jsonl").read_text().splitlines()
    assert len({row["item_id"] for row in rows}) == len(rows) < len(every)
    assert {row["annotator_kind"] for row in rows} == {"human_aggregate"}
    assert all(0 <= row["probability"] <= 1 for row in rows if len(row["responses"]) == 2)
    assert summary["steps"]["reward"]["rows"]["in"] == len(rows)
    assert finished[1]["steps"]["reward"]["rows"]["in"] == len(every)
