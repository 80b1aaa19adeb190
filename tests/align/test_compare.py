"""`align compare`: runs side by side, from folders made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_lines, write_object

from align.cli import main
from align.compare import Comparison, Value, compare
from align.config import ConfigError

RATE = "evaluate/gold/win_rate/ppo_vs_sft"


def make(folder: Path, scores: dict[str, list[float]], **changes: Any) -> Path:
    """A run of ppo and evaluate whose policies have these scores by gold on prompts p0, p1, …"""
    config: dict[str, Any] = {
        "name": "one",
        "seed": 1,
        "output_dir": str(folder),
        "data": {"prompts": {"path": "p.jsonl"}},
        "steps": {
            "ppo": {"kind": "ppo", "seed": None, "train": {"iterations": 5, "kl": {"target": 2}}},
            "evaluate": {"kind": "evaluate", "judges": changes.pop("judges", ["gold"])},
        },
    }
    config["steps"]["ppo"]["train"] |= changes.pop("train", {})
    write_object(folder / "run.json", {"name": "one", "config": config | changes})
    for name, metrics in (
        ("ppo", {"objective/kl": 2.0, "time/rollout": 3.0}),
        ("evaluate", {RATE: 0.7, f"{RATE}_low": 0.6, f"{RATE}_high": 0.8}),
    ):
        artifact(folder, name, metrics)
    rows = [
        {"prompt": f"p{i}", "policy": policy, "completion": "c", "gold": score}
        for policy, found in scores.items()
        for i, score in enumerate(found)
    ]
    write_lines(folder / "evaluate/samples.jsonl", rows)
    return folder


def artifact(folder: Path, name: str, metrics: dict[str, float], **more: Any) -> None:
    record = {"kind": name, "metrics": metrics, "seconds": 1.0, "inputs": {}}
    record["rows"] = {"in": 10, "out": 9, "quarantined": 1}
    write_object(folder / name / "artifact.json", record | {"versions": {"torch": "2"}} | more)


def settings(found: Comparison) -> dict[str, list[Any]]:
    return {one.key: one.values for one in found.settings}


def test_only_settings_that_differ_are_shown_and_seeds_stand_apart(tmp_path: Path):
    """The step `dpo`, in one run only, is one line; an option that is null or unknown is none."""
    one = make(tmp_path / "a", {"ppo": [1.0]}, lora={"r": 4, "alpha": 8}, tracking={"wandb": None})
    two = make(tmp_path / "b", {"ppo": [1.0]}, lora={"r": 8, "alpha": 8}, seed=2)
    record = json.loads((two / "run.json").read_text())
    record["config"]["steps"]["dpo"] = {"kind": "dpo", "train": {"beta": 0.1}}
    record["config"]["steps"]["ppo"]["train"]["kl"]["target"] = [1, 2]
    record["config"]["steps"]["ppo"]["seed"] = 7
    write_object(two / "run.json", record)
    found = compare([one, two])
    assert settings(found) == {
        "lora.r": [4, 8],
        "steps.ppo.train.kl.target": [2, [1, 2]],
        "steps.dpo": ["–", "dpo"],
    }
    assert {one.key: one.values for one in found.apart} == {
        "seed": [1, 2],
        "output_dir": [str(one), str(two)],
        "steps.ppo.seed": [None, 7],
    }


def test_versions_and_contents_of_data_are_told_apart(tmp_path: Path):
    one, two = make(tmp_path / "a", {"ppo": [1.0]}), make(tmp_path / "b", {"ppo": [1.0]})
    write_object(one / "data/prompts/import.json", {"sha256": "0" * 64})
    write_object(two / "data/prompts/import.json", {"sha256": "f" * 64})
    artifact(two, "ppo", {}, versions={"torch": "3"})
    artifact(two, "evaluate", {}, versions={"torch": "3"})
    assert [(one.key, one.values) for one in compare([one, two]).made_with] == [
        ("versions.torch", ["2", "3"]),
        ("data.prompts (content)", ["0" * 12, "f" * 12]),
    ]


@pytest.mark.parametrize(
    ("value", "low", "high", "differs"),
    [
        (0.9, 0.85, 0.95, True),  # 0.9 > 0.8, and 0.7 < 0.85
        (0.9, 0.65, 0.99, False),  # the first run's 0.7 is within this one's interval
        (0.75, 0.72, 0.78, False),  # within the first run's 0.6 to 0.8
        (0.5, 0.4, 0.6, True),
    ],
)
def test_a_value_differs_if_each_is_outside_the_others_interval(
    tmp_path: Path, value: float, low: float, high: float, differs: bool
):
    one, two = make(tmp_path / "a", {"ppo": [1.0]}), make(tmp_path / "b", {"ppo": [1.0]})
    artifact(two, "evaluate", {RATE: value, f"{RATE}_low": low, f"{RATE}_high": high})
    step = next(step for step in compare([one, two]).steps if step.name == "evaluate")
    assert step.metrics == {RATE: [Value(0.7, 0.6, 0.8), Value(value, low, high, differs)]}
    assert step.rows == ["9 of 10", "9 of 10"]


def test_a_metric_without_an_interval_is_never_marked_and_times_are_left_out(tmp_path: Path):
    one, two = make(tmp_path / "a", {"ppo": [1.0]}), make(tmp_path / "b", {"ppo": [1.0]})
    artifact(two, "ppo", {"objective/kl": 200.0, "new": 1.0})
    [step] = [step for step in compare([one, two]).steps if step.name == "ppo"]
    assert step.metrics == {"objective/kl": [Value(2.0), Value(200.0)], "new": [None, Value(1.0)]}


def test_paired_win_rate_counts_only_prompts_that_both_answered(tmp_path: Path):
    """On p0 to p3 the second run scores 1 2 0 5 against 0 2 1 4: wins 1, ½, 0, 1 of 4 = 0.625;
    its p4 has no partner."""
    one = make(tmp_path / "a", {"ppo": [0.0, 2.0, 1.0, 4.0]})
    two = make(tmp_path / "b", {"ppo": [1.0, 2.0, 0.0, 5.0, 9.0]})
    [rate] = compare([one, two]).win_rates
    assert (rate.run, rate.policy, rate.against_run, rate.against) == ("b", "ppo", "a", "ppo")
    assert rate.rate == pytest.approx(0.625) and rate.prompts == 4
    assert 0 < rate.low < 0.625 < rate.high < 1  # of four prompts: Wilson's


def test_a_win_rate_and_its_reverse_add_up_to_one(tmp_path: Path):
    scores = [float(i * 7 % 11) for i in range(60)]
    one = make(tmp_path / "a", {"ppo": scores})
    two = make(tmp_path / "b", {"ppo": scores[7:] + scores[:7]})
    [there], [back] = compare([one, two]).win_rates, compare([two, one]).win_rates
    assert there.rate + back.rate == pytest.approx(1)
    assert (there.low + back.high, there.high + back.low) == pytest.approx((1, 1), abs=0.02)
    assert there.prompts == 60


def test_every_prompt_won_is_no_certainty(tmp_path: Path):
    """Of 40 wins of 40, Wilson's lower end is 40 / (40 + 1.959964²) = 0.912380."""
    one, two = make(tmp_path / "a", {"ppo": [0.0] * 40}), make(tmp_path / "b", {"ppo": [1.0] * 40})
    [rate] = compare([one, two]).win_rates
    assert (rate.rate, rate.high) == (1, 1)
    assert rate.low == pytest.approx(40 / (40 + 1.959964**2), abs=1e-5)


def test_equal_prompts_are_paired_in_their_order(tmp_path: Path):
    one, two = make(tmp_path / "a", {}), make(tmp_path / "b", {})
    for folder, scores in ((one, [0, 5]), (two, [1, 4])):
        rows = [{"prompt": "p", "policy": "ppo", "completion": "", "gold": s} for s in scores]
        write_lines(folder / "evaluate/samples.jsonl", rows)
    [rate] = compare([one, two]).win_rates
    assert (rate.rate, rate.prompts) == (0.5, 2)  # 1 > 0 and 4 < 5


def test_policies_without_a_namesake_meet_each_other(tmp_path: Path):
    one = make(tmp_path / "a", {"sft": [0.0], "dpo": [1.0]})
    two = make(tmp_path / "b", {"sft": [1.0], "ppo": [2.0]})
    rates = compare([one, two]).win_rates
    assert [(rate.policy, rate.against) for rate in rates] == [("sft", "sft"), ("ppo", "dpo")]


def test_every_run_meets_the_first(tmp_path: Path):
    runs = [make(tmp_path / name, {"ppo": [float(i)]}) for i, name in enumerate("abc")]
    rates = compare(runs).win_rates
    assert [(rate.run, rate.against_run) for rate in rates] == [("b", "a"), ("c", "a")]


def test_a_reward_model_of_another_making_is_another_judge(tmp_path: Path):
    """The same name, but another fingerprint: its scores are on another scale."""
    runs = [make(tmp_path / name, {"ppo": [1.0]}, judges=["gold", "reward"]) for name in "ab"]
    for run, fingerprint in zip(runs, ("1" * 16, "2" * 16), strict=True):
        artifact(run, "evaluate", {}, inputs={"reward": fingerprint})
        row = {"prompt": "p0", "policy": "ppo", "completion": "", "gold": 0, "reward": 1}
        write_lines(run / "evaluate/samples.jsonl", [row])
    found = compare(runs)
    assert [rate.judge for rate in found.win_rates] == ["gold"]
    assert (
        "The judge reward is not the same in both, so no win rates by it between a and b."
        in found.remarks
    )
    artifact(runs[1], "evaluate", {}, inputs={"reward": "1" * 16})
    assert [rate.judge for rate in compare(runs).win_rates] == ["gold", "reward"]


def test_a_function_that_was_changed_is_another_judge(tmp_path: Path):
    """The same file and name, but another content when the run's evaluation was made. It is the
    second judge of one run and the first of the other."""
    judge = {"function": "score.py:short"}
    one = make(tmp_path / "a", {"ppo": [1.0]}, judges=["gold", judge])
    two = make(tmp_path / "b", {"ppo": [1.0]}, judges=[judge, "gold"])
    for run in (one, two):
        row = {"prompt": "p0", "policy": "ppo", "completion": "", "gold": 0, "short": 1}
        write_lines(run / "evaluate/samples.jsonl", [row])
    artifact(one, "evaluate", {}, files={"judges[1]": "1" * 16})
    artifact(two, "evaluate", {}, files={"judges[0]": "1" * 16})
    assert {rate.judge for rate in compare([one, two]).win_rates} == {"gold", "short"}
    artifact(two, "evaluate", {}, files={"judges[0]": "2" * 16})
    found = compare([one, two])
    assert [rate.judge for rate in found.win_rates] == ["gold"]
    assert (
        "The judge short is not the same in both, so no win rates by it between a and b."
        in found.remarks
    )


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    one, two = make(tmp_path / "a", {"ppo": [1.0]}), make(tmp_path / "b", {"ppo": [1.0]})
    row = {"prompt": "other", "policy": "ppo", "completion": "", "gold": 1}
    write_lines(two / "evaluate/samples.jsonl", [row])
    artifact(two, "sft", {})
    found = compare([one, two])
    assert found.win_rates == []
    assert found.remarks == [
        "sft has a result in b only.",
        "b's ppo and a's ppo have no prompt in common that gold scored, so no win rate between "
        "them.",
    ]
    (two / "evaluate/samples.jsonl").unlink()
    assert (
        "b has no evaluation with samples, so no win rates with it." in compare([one, two]).remarks
    )
    third = make(tmp_path / "c", {"ppo": [1.0]}, judges=[{"function": "f.py:g"}])
    assert (
        "The evaluations have no judge in common, so no win rates between a and c."
        in compare([one, third]).remarks
    )


def test_a_step_of_another_kind_is_not_compared(tmp_path: Path):
    one, two = make(tmp_path / "a", {"ppo": [1.0]}), make(tmp_path / "b", {"ppo": [1.0]})
    artifact(two, "ppo", {}, kind="dpo")
    found = compare([one, two])
    assert [step.name for step in found.steps] == ["evaluate"]
    assert "ppo is a step of different kinds: dpo, ppo." in found.remarks


def test_folders_of_one_name_are_called_by_their_paths(tmp_path: Path):
    runs = [make(tmp_path / name / "run", {"ppo": [1.0]}) for name in "ab"]
    assert compare(runs).runs == [str(run) for run in runs]


def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make(tmp_path / "a", {"ppo": [1.0]})
    other = tmp_path / "b"
    write_object(other / "run.json", {"name": "b", "config": {}})
    for arguments, says in (
        ([run], "compare needs two runs or more; name another run's folder."),
        ([run, tmp_path / "none"], f"{tmp_path}/none is no run folder: it holds no run.json."),
        ([run, run / "../a"], f"{run} is named twice; compare needs different runs."),
        (
            [run, other],
            "a and b have no step in common that has a result; compare needs one of the same name "
            "and kind.",
        ),
    ):
        assert main(["compare", *map(str, arguments)]) == 2
        assert capsys.readouterr().err.strip() == says
        if len(arguments) > 1:
            with pytest.raises(ConfigError):
                compare(arguments)


def test_the_command_prints_tables_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = make(tmp_path / "a", {"ppo": [0.0] * 40})
    two = make(tmp_path / "b", {"ppo": [1.0] * 40}, train={"iterations": 9})
    artifact(two, "evaluate", {RATE: 0.9, f"{RATE}_low": 0.85, f"{RATE}_high": 0.95})
    assert main(["compare", str(one), str(two)]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "steps.ppo.train.iterations 5 9" in shown
    assert f"{RATE} 0.7 [0.6, 0.8] 0.9 [0.85, 0.95]*" in shown
    assert "* outside the 95 % interval of a, whose value is outside this one's." in shown
    assert "gold b: ppo a: ppo 1.00 [0.91, 1.00] 40 better" in shown
    assert main(["compare", "--json", str(one), str(two)]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read == json.loads(json.dumps(compare([one, two]).to_json()))
    assert read["settings"] == [{"key": "steps.ppo.train.iterations", "values": [5, 9]}]


def test_comparing_loads_nothing_heavy(tmp_path: Path):
    runs = [make(tmp_path / name, {"ppo": [float(i)]}) for i, name in enumerate("ab")]
    code = (
        "import sys\nfrom align.cli import main\n"
        f"assert main(['compare', {str(runs[0])!r}, {str(runs[1])!r}]) == 0\n"
        "print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
