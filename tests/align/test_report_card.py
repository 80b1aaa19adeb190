"""The reward step's report card, its requirements, and the check that it can learn by heart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import TWO_LAYERS

from align.config import ConfigError, build_config
from align.pipeline import Pipeline, StepError
from align.report_reward import card_view
from align.requirements import Requirements
from preference_data.quarantine import DataError
from reward_models.scalar_head import Scoring

TRAIN = {"max_steps": 6, "train_batch_size": 16, "learning_rate": 3e-3, "max_length": 96}


def tree(folder: Path, test_fraction: float = 0.4, **reward: Any) -> dict[str, Any]:
    """A reward model and PPO against it; `reward` are options of the reward step."""
    return {
        "name": "card",
        "output_dir": str(folder),
        "base": {"architecture": TWO_LAYERS},
        "lora": {"r": 4, "alpha": 8},
        "world": {"items": 120},
        "data": {"labels": {"path": "builtin:labels", "test_fraction": test_fraction}},
        "steps": {
            "reward": {"kind": "reward", "data": "labels", "train": TRAIN, **reward},
            "ppo": {
                "kind": "ppo", "data": "labels", "reward": "reward",
                "train": {"iterations": 1, "prompts_per_iteration": 4, "max_new_tokens": 4},
            },
        },
    }  # fmt: skip


def pipeline(folder: Path, **options: Any) -> Pipeline:
    return Pipeline(build_config(tree(folder, **options)))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("card") / "run"
    return folder, pipeline(folder).run()


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the finished run without its ppo step, whose base lies where it lay."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "ppo")
    return folder


def test_the_card_is_the_steps_artifact(finished: tuple[Path, dict[str, Any]]):
    folder, summary = finished
    card, metrics = read(folder / "reward/report_card.json"), summary["steps"]["reward"]["metrics"]
    assert card["side"] == "held-out" and card["format"] == 1
    assert metrics["reward/accuracy"] == card["accuracy"]["value"]
    assert metrics["reward/accuracy_low"] < metrics["reward/accuracy"]
    assert metrics["reward/pairs"] == card["pairs"]
    assert metrics["reward/ece_calibrated"] == card["calibration"]["after"]["ece"]
    assert metrics["reward/train_accuracy"] == card["training_accuracy"]
    # Several annotators judge an item of this world, and rankings and pairs come with ties.
    assert card["annotators"]["pairwise"]["people"]["value"] > 0.6
    assert card["ties"]["pairs"] > 0
    assert {row["group"] for row in card["breakdowns"]["answers"]} == {"2 answers", "4 answers"}
    assert card["overfit_check"] is None


def test_a_judgements_pairs_and_votes_are_counted_right(finished: tuple[Path, dict[str, Any]]):
    """Pairs of the held-out judgements, counted again from the data; every reliability bin and
    every length bin holds each of them once."""
    folder, _ = finished
    card = read(folder / "reward/report_card.json")
    for when in ("before", "after"):
        curve = card["calibration"][when]["curve"]
        assert sum(point["pairs"] for point in curve) == card["pairs"]
        assert sum(point["share"] for point in curve) == pytest.approx(1)
    assert sum(row["pairs"] for row in card["length"]["by_difference"]) == card["pairs"]
    for rows in card["breakdowns"].values():
        assert sum(row["pairs"] for row in rows) == card["pairs"]
    assert (
        sum(row["votes"] for row in card["annotators"]["annotators"])
        == (card["annotators"]["votes"])
    )


def test_worst_mistakes_are_mistakes_and_say_where_they_are(
    finished: tuple[Path, dict[str, Any]],
):
    folder, _ = finished
    lines = (folder / "reward/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    gaps = [row["rejected_score"] - row["chosen_score"] for row in rows]
    assert 0 < len(rows) <= 20 and gaps == sorted(gaps, reverse=True) and gaps[-1] > 0
    assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == len(rows)
    assert rows[0]["source"].startswith("labels.csv, row ")


def test_the_temperature_is_stored_with_the_model(finished: tuple[Path, dict[str, Any]]):
    folder, _ = finished
    card = read(folder / "reward/report_card.json")
    stored = Scoring.load(folder / "reward/adapter").temperature
    assert stored == card["calibration"]["temperature"] != 1.0


def test_a_card_without_a_training_pair_is_shown(finished: tuple[Path, dict[str, Any]]):
    card = read(finished[0] / "reward/report_card.json")
    words = []
    for accuracy in (0.625, None):
        view = card_view(card | {"training_accuracy": accuracy})
        assert view is not None
        words.append(view.measures[0].says)
    assert words[0] == f"{words[1]}; on training pairs 0.62"


def test_tables_for_trackers_are_plain_rows(finished: tuple[Path, dict[str, Any]]):
    folder, _ = finished
    lines = (folder / "reward/breakdowns.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {"answers", "length difference", "annotator"} <= {row["breakdown"] for row in rows}
    assert len({tuple(row) for row in rows}) == 1
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in rows)


def test_votes_are_found_behind_an_aggregate(tmp_path: Path):
    """Aggregated judgements name the method; the card still knows who said what, and the file."""
    config = tree(tmp_path / "run")
    config["data"]["labels"]["aggregate"] = "majority"
    del config["steps"]["ppo"]
    Pipeline(build_config(config)).run()
    card = read(tmp_path / "run/reward/report_card.json")
    assert len(card["annotators"]["annotators"]) > 2
    assert card["annotators"]["votes"] > card["pairs"] / 3
    assert "source" not in card["breakdowns"]  # one file, known through the votes


# --- requirements ---------------------------------------------------------------------------------

METRICS = {
    "reward/accuracy": 0.62, "reward/accuracy_low": 0.55, "reward/accuracy_high": 0.69,
    "reward/length_baseline": 0.6, "reward/above_length_baseline": 0.02,
    "reward/above_length_baseline_low": -0.03, "reward/above_length_baseline_high": 0.07,
    "reward/ece": 0.08, "reward/pairs": 200.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ({"accuracy": 0.62}, None),
        ({"accuracy": 0.63}, "accuracy asks for 0.63, and its accuracy is 0.620 [0.550, 0.690]"),
        ({"accuracy_low": 0.55}, None),
        ({"accuracy_low": 0.56}, "accuracy_low asks for 0.56"),
        ({"above_length_baseline": True}, "length alone gets 0.600"),
        ({"ece": 0.08}, None),
        ({"ece": 0.07}, "ece allows 0.07, and it is 0.080"),
        ({"pairs": 200}, None),
        ({"pairs": 201}, "pairs asks for 201, and 200 are held out"),
    ],
)
def test_each_requirement_at_its_edge(requirement: dict[str, Any], reason: str | None):
    found = Requirements(**requirement).unmet(METRICS)
    assert (not found) if reason is None else (len(found) == 1 and reason in found[0])
    assert Requirements(**requirement).unmet({}) != []  # nothing was held out


def test_above_the_baseline_is_above_it_without_doubt():
    clear = METRICS | {"reward/above_length_baseline_low": 0.001}
    assert Requirements(above_length_baseline=True).unmet(clear) == []


def test_a_model_that_shows_too_little_stops_the_run(
    copied: Path, finished: tuple[Path, dict[str, Any]]
):
    """Its step is done and stays done, with summary and report; ppo is not begun, neither now nor
    when the step is cached, nor when ppo alone is asked for. Without the requirement it runs, and
    nothing is trained again."""
    before = (copied / "reward/artifact.json").stat().st_mtime_ns
    (copied / "summary.json").unlink()
    strict = {"require": {"accuracy": 0.99, "pairs": 10}}
    with pytest.raises(StepError, match=r"step reward .* accuracy asks for 0.99.*report.html"):
        pipeline(copied, **strict).run()
    summary = read(copied / "summary.json")
    assert list(summary["steps"]) == ["reward"]
    assert summary["steps"]["reward"]["cached"]
    assert "Report card" in (copied / "report.html").read_text()
    assert not (copied / "ppo").exists()
    with pytest.raises(StepError, match=r"accuracy asks for 0\.99"):
        pipeline(copied, **strict).run(only="ppo")
    reasons = {row["name"]: row["reason"] for row in pipeline(copied, **strict).plan()}
    assert reasons["reward"].startswith("stops the run: accuracy asks for 0.99")
    done = pipeline(copied, require={"accuracy": 0.01}).run()
    assert (copied / "reward/artifact.json").stat().st_mtime_ns == before
    assert done["steps"]["reward"]["metrics"] == finished[1]["steps"]["reward"]["metrics"]
    assert not done["steps"]["ppo"]["cached"]


def test_a_run_that_trains_first_is_stopped_too(tmp_path: Path):
    folder = tmp_path / "run"
    with pytest.raises(StepError, match=r"steps\.reward\.require"):
        pipeline(folder, require={"pairs": 100_000}).run()
    assert (folder / "reward/artifact.json").is_file() and (folder / "summary.json").is_file()
    assert not (folder / "ppo").exists()


def test_a_requirement_needs_held_out_pairs(tmp_path: Path):
    """It is said before anything is trained."""
    folder = tmp_path / "run"
    with pytest.raises(DataError, match=r"steps\.reward\.require needs held-out pairs.*fraction"):
        pipeline(folder, test_fraction=0.0, require={"accuracy": 0.6}).run()
    assert not (folder / "reward/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("require", "where"),
    [
        ({}, r"steps\.reward\.require has no effect"),
        ({"above_length_baseline": False}, r"require\.above_length_baseline has no effect"),
        ({"accuracy": 0.6, "accuracy_low": 0.6}, r"require\.accuracy has no effect beside"),
        ({"accuracy": 60}, r"steps\.reward\.require\.accuracy"),
        ({"accurracy": 0.6}, "did you mean 'accuracy'"),
    ],
)
def test_requirements_that_mean_nothing_are_errors(require: dict[str, Any], where: str):
    with pytest.raises(ConfigError, match=where):
        build_config(tree(Path("x"), require=require))


# --- learning by heart ----------------------------------------------------------------------------


def test_the_check_learns_and_leaves_the_real_training_as_it_was(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
):
    """To the last bit: the same adapter and the same numbers as without it."""
    folder, summary = finished
    other = tmp_path / "run"
    config = tree(other, overfit_check=6)
    del config["steps"]["ppo"]
    metrics = Pipeline(build_config(config)).run()["steps"]["reward"]["metrics"]
    check = read(other / "reward/report_card.json")["overfit_check"]
    assert check["accuracy"] == 1.0 and check["steps"] < 200 and 6 <= check["pairs"] < 12
    assert metrics == summary["steps"]["reward"]["metrics"]
    weights = "reward/adapter/adapter_model.safetensors"
    assert (other / weights).read_bytes() == (folder / weights).read_bytes()


def test_a_model_that_cannot_learn_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """With a learning rate of 1e-12 nothing moves: the check ends at its limit, short of 1."""
    monkeypatch.setattr("align.overfit_check.MOST_STEPS", 20)
    config = tree(tmp_path / "run", overfit_check=12)
    del config["steps"]["ppo"]
    config["steps"]["reward"]["train"] = TRAIN | {"learning_rate": 1e-12}
    Pipeline(build_config(config)).run()
    check = read(tmp_path / "run/reward/report_card.json")["overfit_check"]
    assert check["steps"] == 20 and check["accuracy"] < 1
    assert "that it was to learn by heart" in caplog.text
    assert "could not learn" in (tmp_path / "run/report.html").read_text()
