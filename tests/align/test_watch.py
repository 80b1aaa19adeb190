"""What watches PPO: real runs of a toy on the built-in world, with rewards and judges of text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import TWO_LAYERS

from align.config import ConfigError, build_config
from align.doctor import Course

Reward = Callable[[str, str], str]


def tree(folder: Path, reward: Any, **ppo: Any) -> dict[str, Any]:
    """A ppo step on the bare base; `ppo` are options of the step, `train` added to its settings."""
    train = {
        "iterations": 4, "prompts_per_iteration": 8, "max_new_tokens": 8, "learning_rate": 0.01,
        "lr_scheduler_type": "constant", **ppo.pop("train", {}),
    }  # fmt: skip
    step = {"kind": "ppo", "data": "prompts", "reward": reward, "train": train, **ppo}
    return {
        "name": "watched",
        "output_dir": str(folder),
        "base": {"architecture": TWO_LAYERS},
        "lora": {"r": 4, "alpha": 8},
        "world": {"documents": 10, "demonstrations": 10, "items": 20, "prompts": 40},
        "data": {"prompts": {"path": "builtin:prompts"}},
        "steps": {"ppo": step},
    }


def run(config: dict[str, Any]) -> dict[str, float]:
    from align.pipeline import Pipeline

    return Pipeline(build_config(config)).run()["steps"]["ppo"]["metrics"]


def history(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def write(tmp_path: Path) -> Reward:
    """`write(name, body)` gives the `file.py:name` of a function of prompts and completions."""

    def make(name: str, body: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(f"calls = []\n\n\ndef {name}(prompts, completions):\n    {body}\n")
        return f"{path}:{name}"

    return make


def test_the_judge_sees_every_iterations_responses_and_trains_nothing(
    tmp_path: Path, write: Reward
):
    """The judge scores what the reward scores, twice as high: the log shows it, and the policy is
    the one without a judge to the last bit."""
    short = {"function": write("short", "return [-len(c) / 10 for c in completions]")}
    judge = {"function": write("judge", "return [-len(c) / 5 for c in completions]")}
    run(tree(tmp_path / "judged", short, judge=judge))
    run(tree(tmp_path / "alone", short))
    for line in history(tmp_path / "judged"):
        assert line["judge/score"] == pytest.approx(2 * line["objective/score"], abs=1e-5)
    assert "judge/score" not in history(tmp_path / "alone")[0]
    assert adapter(tmp_path / "judged") == adapter(tmp_path / "alone")


def test_gold_and_a_reward_step_judge(tmp_path: Path, write: Reward):
    """Gold's mean is that of gold_score over the logged samples; a reward step is a role that
    stays as it is."""
    from preference_data.synthetic import gold_score

    zero = {"function": write("zero", "return [0.0] * len(prompts)")}
    run(tree(tmp_path / "gold", zero, judge="gold", train={"iterations": 1}))
    lines = (tmp_path / "gold/ppo/samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 8
    expected = sum(gold_score(s["prompt"], s["completion"]) for s in samples) / 8
    assert history(tmp_path / "gold")[0]["judge/score"] == pytest.approx(expected, abs=1e-6)
    config = tree(tmp_path / "step", zero, judge="other", train={"iterations": 1})
    config["data"]["labels"] = {"path": "builtin:labels"}
    train = {"max_steps": 2, "train_batch_size": 4}
    config["steps"] = {"other": {"kind": "reward", "data": "labels", "train": train}} | config[
        "steps"
    ]
    assert math.isfinite(run(config)["judge/score"])


def test_a_stop_keeps_the_policy_that_was_judged_best(
    tmp_path: Path, write: Reward, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The judge likes the second rollout best; the doctor stops at the third. The second rollout is
    of the policy after one update, which is what a run of one iteration ends with."""
    short = {"function": write("short", "return [-len(c) / 10 for c in completions]")}
    body = "calls.append(1); return [[1.0, 5.0, 2.0, 9.0][len(calls) - 1]] * len(prompts)"
    judge = {"function": write("judge", body)}
    monkeypatch.setattr("align.doctor.RULES", ((third, "stop"),))
    ill = {"stop_when_ill": True}
    metrics = run(tree(tmp_path / "stopped", short, judge=judge, train=ill))
    assert metrics["ppo/stopped_at"] == 3 and metrics["ppo/best_iteration"] == 2
    assert metrics["ppo/findings"] == 1 and metrics["judge/score"] == 5
    lines = history(tmp_path / "stopped")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert metrics["objective/kl"] == pytest.approx(lines[1]["objective/kl"])
    found = run(tree(tmp_path / "one", short, train={"iterations": 1}))
    assert "ppo/stopped_at" not in found and found["ppo/findings"] == 0
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "one")
    findings = json.loads((tmp_path / "stopped/ppo/findings.json").read_text())["findings"]
    assert [finding["text"] for finding in findings] == ["too far; lower it."]
    page = (tmp_path / "stopped/report.html").read_text(encoding="utf-8")
    assert "ppo, iteration 3 on: third: too far; lower it." in page
    shown(tmp_path / "stopped")
    assert "ppo, iteration 3 on: third: too far; lower it." in capsys.readouterr().out


def test_without_the_option_a_finding_stops_nothing(
    tmp_path: Path, write: Reward, monkeypatch: pytest.MonkeyPatch
):
    zero = {"function": write("zero", "return [0.0] * len(prompts)")}
    monkeypatch.setattr("align.doctor.RULES", ((third, "stop"),))
    metrics = run(tree(tmp_path / "on", zero))
    assert len(history(tmp_path / "on")) == 4
    assert metrics["ppo/findings"] == 1 and "ppo/stopped_at" not in metrics


def third(course: Course) -> str | None:
    return "too far; lower it." if len(course.rows) >= 3 else None


def adapter(folder: Path) -> bytes:
    return (folder / "ppo/adapter/adapter_model.safetensors").read_bytes()


def shown(folder: Path) -> None:
    from align.console import show_summary

    show_summary(json.loads((folder / "summary.json").read_text()), folder)


@pytest.mark.parametrize(("doubtful", "values"), [(0, [math.nan, 2.0]), (2, [math.nan, 4.0, 9.0])])
def test_the_best_policy_goes_on_from_a_checkpoint(doubtful: int, values: list[float]):
    """1, then 3, then NaN, then 2: the second is the best, whatever is done in between. So it is
    before 4 and 9, where the newest two are doubtful."""
    import torch

    from align.watch import BestPolicy

    weight = torch.nn.Parameter(torch.zeros(2))
    whole, first = BestPolicy([weight], doubtful), BestPolicy([weight], doubtful)

    def iterate(best: BestPolicy, iteration: int, value: float) -> None:
        with torch.no_grad():
            weight.fill_(iteration)
        best.remember()
        best.judge(iteration, value, {"objective/kl": iteration / 10, "broken": math.nan})

    for best in (whole, first):
        for iteration, value in enumerate([1.0, 3.0], 1):
            iterate(best, iteration, value)
    second = BestPolicy([weight], doubtful)
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second.load_state(state, tensors | {"another": torch.ones(1)})
    for best in (whole, second):
        for iteration, value in enumerate(values, 3):
            iterate(best, iteration, value)
        best.restore()
        found = best.chosen
        assert found is not None and found.iteration == 2 and weight.tolist() == [2, 2]
        assert found.metrics["objective/kl"] == 0.2 and math.isnan(found.metrics["broken"])
    empty = BestPolicy([weight])
    again = BestPolicy([weight])
    again.load_state(empty.state(), empty.tensors())
    again.restore()
    assert again.chosen is None and weight.tolist() == [2, 2]


def test_where_all_are_doubtful_the_oldest_is_chosen():
    """Ill from the first iteration on: the policy that was started from is the least so."""
    import torch

    from align.watch import BestPolicy

    weight = torch.nn.Parameter(torch.zeros(1))
    best = BestPolicy([weight], doubtful=3)
    for iteration in (1, 2, 3):
        with torch.no_grad():
            weight.fill_(iteration)
        best.remember()
        best.judge(iteration, float(iteration), {})
    best.restore()
    assert weight.item() == 1


def test_without_a_judge_a_stop_goes_back_before_the_illness(
    tmp_path: Path, write: Reward, monkeypatch: pytest.MonkeyPatch
):
    """The reward rises in every iteration, 1 to 6; the doctor speaks at the sixth. What lasted
    three iterations was there in the fourth: the third is kept."""
    body = "calls.append(1); return [float(len(calls))] * len(prompts)"
    rising = {"function": write("rising", body)}
    monkeypatch.setattr("align.doctor.RULES", ((sixth, "stop"),))
    train = {"iterations": 8, "stop_when_ill": True, "missing_eos_penalty": 0.0,
             "kl": {"coefficient": 0.0}}  # fmt: skip
    metrics = run(tree(tmp_path / "stopped", rising, train=train))
    assert metrics["ppo/stopped_at"] == 6 and metrics["ppo/best_iteration"] == 3
    assert metrics["objective/reward"] == pytest.approx(3)


def sixth(course: Course) -> str | None:
    return "too far; lower it." if len(course.rows) >= 6 else None


@pytest.mark.parametrize(
    ("reward", "judge", "said"),
    [
        (
            {"function": "a.py:f"},
            {"function": "a.py:f"},
            "steps.ppo.judge is the reward itself, whose score is logged as objective/score "
            "anyway; name another, or remove it.",
        ),
        (
            {"function": "a.py:f"},
            "gol",
            "steps.ppo.judge names the step 'gol', which does not exist; did you mean 'gold'? "
            "Possible here: gold.",
        ),
    ],
)
def test_judges_that_cannot_be(tmp_path: Path, reward: Any, judge: Any, said: str):
    with pytest.raises(ConfigError) as error:
        build_config(tree(tmp_path, reward, judge=judge))
    assert str(error.value) == said


def test_gold_knows_only_the_built_in_world(tmp_path: Path):
    config = tree(tmp_path, {"function": "a.py:f"}, judge="gold")
    config["data"]["prompts"] = {"path": "prompts.jsonl"}
    del config["world"]
    with pytest.raises(ConfigError) as error:
        build_config(config)
    assert str(error.value) == (
        "steps.ppo.judge names gold, which knows only the built-in world, but data.prompts.path is "
        "'prompts.jsonl'."
    )
