"""Ensembles of reward models on one base: trained, saved, resumed, and read in one packed pass."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import json
import math
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ONE_LAYER, world_of
from step_files import metrics_of

from align.config import Config, ConfigError, build_config
from align.members import _accuracies, bootstrapped, members_of
from align.pipeline import Pipeline
from align.rankings import PairIndex, Ranked
from align.report_card import ReportCard
from align.roles import Roles
from align.select import load_scores
from align.training import Training
from preference_data.batches import Group, pack
from preference_data.records import Prompt, Response
from reward_models import RewardModel
from reward_models.scalar_head import ScalarHead

STEPS = 5
RANKING = {
    "max_steps": STEPS, "train_batch_size": 4, "learning_rate": 1e-2, "max_length": 96,
    "logging_steps": 2, "save_steps": 2,
}  # fmt: skip
PPO = {"iterations": 2, "prompts_per_iteration": 6, "max_new_tokens": 6, "learning_rate": 1e-2}


def tree(folder: Path | str, ensemble: Any, **more: Any) -> dict[str, Any]:
    """A reward step on the built-in world; `more` are other steps. Dropout: the random state
    counts, too."""
    return {
        "name": "together",
        "output_dir": str(folder),
        "base": {"architecture": ONE_LAYER},
        "lora": {"r": 2, "alpha": 4, "dropout": 0.2},
        "world": world_of(30),
        "data": {
            "labels": {"path": "builtin:labels"},
            **({"prompts": {"path": "builtin:prompts", "test_fraction": 0.3}} if "ppo" in more else {}),
        },
        "steps": {
            "reward": {"kind": "reward", "data": "labels", "ensemble": ensemble, "train": RANKING},
            **more,
        },
    }  # fmt: skip


def ppo(reward: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "ppo", "data": "prompts", "reward": reward, "train": PPO, **more}


def evaluate(*judges: Any) -> dict[str, Any]:
    return {
        "kind": "evaluate", "data": "prompts", "policies": ["ppo"], "baseline": "base",
        "judges": list(judges), "prompts": 4, "max_new_tokens": 6, "preferences": "labels",
        "bootstrap": 20,
    }  # fmt: skip


def weights_of(step: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(step)): path.read_bytes()
        for path in sorted(step.rglob("*"))
        if path.suffix == ".safetensors" or path.name == "scoring.json"
    }


# --- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ensemble", "steps", "message"),
    [
        ({"members": 1}, {}, "steps.reward.ensemble.members is 1: it must be at least 2."),
        ({"resample": "bag"}, {}, "steps.reward.ensemble.resample is 'bag': it must be one of bootstrap, seeds."),
        (None, {"ppo": ppo({"ensemble": "reward"})}, "steps.ppo.reward.ensemble names 'reward', which is one model; give that step an ensemble."),
        ({}, {"ppo": ppo({"ensemble": "rewrd"})}, "steps.ppo.reward.ensemble names the step 'rewrd', which does not exist; did you mean 'reward'? Possible here: reward."),
        ({}, {"ppo": ppo({"ensemble": 3})}, "steps.ppo.reward.ensemble is 3: it must be a list."),
        ({}, {"ppo": ppo({"ensemble": "reward", "std_weight": 2.0})}, "steps.ppo.reward.std_weight has no effect unless combine is mean_minus_std; remove it."),
        ({}, {"ppo": ppo("reward", judge={"ensemble": ["gold", "reward"]})}, "steps.ppo.judge.ensemble[0] names gold, which is no member of an ensemble; let it judge alone."),
        ({}, {"ppo": ppo("reward", judge="reward")}, "steps.ppo.judge is the reward itself, whose score is logged as objective/score anyway; name another, or remove it."),
    ],
)  # fmt: skip
def test_a_mistake_in_an_ensemble_is_named(ensemble: Any, steps: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as error:
        build_config(tree("runs/x", ensemble, **steps))
    assert str(error.value) == message


def test_responses_must_leave_a_cut_prompt_room():
    """A reward model that cuts prompts to 8 tokens before a response of 8 reads no prompt at all;
    one that cuts nothing is asked nothing of the kind."""
    found = tree("runs/x", None, ppo=ppo("reward"))
    found["steps"]["ppo"]["train"] = {**PPO, "max_new_tokens": 8}
    found["steps"]["reward"]["train"] = {**RANKING, "max_length": 8}
    build_config(found)
    found["steps"]["reward"]["train"]["truncation"] = "left"
    with pytest.raises(ConfigError) as error:
        build_config(found)
    assert str(error.value) == (
        "steps.ppo.train.max_new_tokens is 8, which leaves a prompt no room in the max_length of 8 "
        "that the reward model 'reward' reads; lower it, or raise that."
    )
    found["steps"]["ppo"]["train"]["max_new_tokens"] = 7
    build_config(found)


# --- what each member is trained on ---------------------------------------------------------------


def rows_of(prompts: str) -> list[Ranked]:
    """A judgement for each letter, of the prompt that the letter names."""

    def row(name: str) -> Ranked:
        judgement: Any = SimpleNamespace(prompt=SimpleNamespace(id=name), weight=1.0)
        return Ranked(judgement, Group((1,), ((2,),)), ())

    return [row(name) for name in prompts]


def names(rows: Any) -> str:
    return "".join(row.judgement.prompt.id for row in rows)


def test_a_bootstrap_draws_prompts_and_keeps_their_judgements_together():
    """Four prompts with 3, 2, 1 and 1 judgements: four draws, each with all of its prompt's."""
    rows = rows_of("aabbacd")
    for seed in range(20):
        drawn = names(bootstrapped(rows, seed))
        count = Counter(drawn)
        draws = {name: count[name] / size for name, size in zip("abcd", (3, 2, 1, 1), strict=True)}
        assert sum(draws.values()) == 4
        assert all(times == int(times) for times in draws.values())
        assert drawn == names(bootstrapped(rows, seed))
    assert len({names(bootstrapped(rows, seed)) for seed in range(20)}) > 10


def test_a_prompt_is_left_out_of_a_bootstrap_about_as_often_as_of_any():
    """(1 - 1/n)^n of the prompts, for n = 50: 0.364; its standard error over 200 draws of 50 is
    below 0.005."""
    rows = rows_of("".join(chr(200 + i) for i in range(50)))
    shares = [1 - len(set(names(bootstrapped(rows, seed)))) / 50 for seed in range(200)]
    assert statistics.fmean(shares) == pytest.approx(0.364, abs=0.02)


def test_members_differ_in_seed_and_the_first_has_the_step_s():
    train = build_config(tree("runs/x", {})).steps["reward"].train  # type: ignore[union-attr]

    def members(resample: str) -> Any:
        ensemble = SimpleNamespace(members=3, resample=resample)
        step = SimpleNamespace(ensemble=ensemble, train=train)
        return members_of(SimpleNamespace(step=step, seed=17), rows_of("abcdefgh"))  # type: ignore[arg-type]

    seeds = members("seeds")
    assert [names(member.rows) for member in seeds] == ["abcdefgh"] * 3
    assert seeds[0].seed == 17 and len({member.seed for member in seeds}) == 3
    assert [(member.first, member.end) for member in seeds] == [(0, 5), (5, 10), (10, 15)]
    assert len({names(member.rows) for member in members("bootstrap")}) == 3


# --- read in one packed pass ----------------------------------------------------------------------


def test_a_mean_of_roles_reads_a_batch_as_each_role_does(
    make_roles: Callable[..., Roles], shake: Callable[..., None]
):
    roles = make_roles()
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        roles.add(name, fresh=True, trainable=True, head=ScalarHead(32))
        shake(roles.parameters_of(name), seed)
    roles.add_mean("all", ("one", "two", "three"))
    roles.add_mean("second", ("two",))
    batch = pack([Group((5, 6, 7), ((8, 9), (10,))), Group((5, 9), ((11, 12, 13),))])
    with torch.no_grad():
        each = [roles.scores(name, batch) for name in ("one", "two", "three")]
        found = roles.member_scores("all", batch)
        mean = roles.scores("all", batch)
        assert torch.equal(roles.scores("second", batch), each[1])
    assert torch.allclose(found, torch.stack(each), atol=1e-6)
    assert torch.allclose(mean, (each[0] + each[1] + each[2]) / 3, atol=1e-6)
    assert float((each[0] - each[1]).abs().min()) > 1e-3
    assert roles.members("all") == ("one", "two", "three") and roles.members("two") == ("two",)


def test_a_frozen_role_is_trained_no_more(make_roles: Callable[..., Roles]):
    roles = make_roles()
    for name in ("one", "two"):
        roles.add(name, fresh=True, trainable=True, head=ScalarHead(32))
    roles.freeze("one")
    assert roles.parameters_of("one") == []
    assert len(roles.parameters_of("two")) > 1


# --- a whole run ----------------------------------------------------------------------------------

COMBINED = {"ensemble": "reward", "combine": "min"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an ensemble of three as the reward and among the judges."""
    folder = tmp_path_factory.mktemp("run") / "run"
    file = folder.parent / "code.py"
    file.write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    short = {"function": f"{file}:short"}
    judge = {"ensemble": ["reward", short], "combine": "mean_minus_std"}
    config = tree(
        folder, {"members": 3, "resample": "seeds"},
        ppo=ppo(COMBINED, judge=judge), evaluate=evaluate("reward", COMBINED, short),
    )  # fmt: skip
    Pipeline(build_config(config)).run()
    return folder


def test_the_first_member_of_other_seeds_is_the_model_of_a_step_alone(tmp_path: Path):
    """To the last bit, dropout included; the others are not."""
    config = tree(tmp_path / "run", {"members": 3, "resample": "seeds"})
    config["steps"]["alone"] = {**config["steps"]["reward"], "ensemble": None}
    Pipeline(build_config(config)).run()
    alone, together = (weights_of(tmp_path / "run" / name) for name in ("alone", "reward"))
    head = "adapter/adapter_model.safetensors"
    assert together[f"members/1/{head}"] == alone[head]
    assert len({together[f"members/{number}/{head}"] for number in (1, 2, 3)}) == 3


def test_what_an_ensemble_s_step_reports(run: Path):
    """The mean's accuracy, each member's, and how far they are apart; lines of all members in one
    file, counted on."""
    found = json.loads((run / "reward/artifact.json").read_text())["metrics"]
    assert {"reward/accuracy", "reward/score_std"} <= found.keys()
    assert [name for name in found if name.startswith("reward/accuracy/")] == [
        f"reward/accuracy/member_{number}" for number in (1, 2, 3)
    ]
    assert found["reward/score_std"] > 0
    lines = metrics_of(run / "reward")
    assert [line["step"] for line in lines] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert [line["train/member"] for line in lines] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_each_member_is_a_reward_model_of_its_own(run: Path):
    """As plain transformers and peft load it; together they are one whose score is the mean of
    theirs, on one base in memory."""
    prompts = ["What is the capital of France?", "Hello! Name a colour."]
    answers = ["Paris.", "I do not know that."]
    alone = [
        RewardModel.from_pretrained(run / f"reward/members/{number}").score(prompts, answers)
        for number in (1, 2, 3)
    ]
    model = RewardModel.from_pretrained(run / "reward")
    found = model.score(prompts, answers)
    assert found == pytest.approx(
        [statistics.fmean(row) for row in zip(*alone, strict=True)], abs=1e-5
    )
    assert len({round(row[0], 6) for row in alone}) == 3
    assert [one.score(prompts, answers) for one in model.members] == [
        pytest.approx(row, abs=1e-6) for row in alone
    ]
    bases = [
        {p.data_ptr() for n, p in one._model.named_parameters() if ".lora_" not in n}
        for one in model.members
    ]
    assert bases[0] == bases[1] == bases[2]


@pytest.mark.parametrize(("side", "temperature"), [("held-out", 0.5), ("training", 1.0)])
def test_the_temperature_of_an_ensemble_is_stored_with_its_members(
    run: Path, tmp_path: Path, side: str, temperature: float
):
    """It is fitted on the mean of their scores, and read with it; that of pairs which the model
    was trained on says nothing of others."""
    shutil.copytree(run / "reward/members", tmp_path / "members")
    card = json.loads((run / "reward/report_card.json").read_text()) | {"side": side}
    card["calibration"]["temperature"] = 0.5
    tracker = SimpleNamespace(table=lambda *_: None)
    context: Any = SimpleNamespace(folder=tmp_path, tracker=tracker)
    ReportCard(card, {}, []).write(context)
    model = RewardModel.from_pretrained(tmp_path, base=str(run / "base"))
    assert [one.scoring.temperature for one in (model, *model.members)] == [temperature] * 4
    won, lost = model.score(["Name a colour."] * 2, ["Red.", "I do not know."])
    assert model.probability(["Name a colour."], ["Red."], ["I do not know."]) == pytest.approx(
        [1 / (1 + math.exp((lost - won) / temperature))]
    )


def test_a_selection_asks_each_member(run: Path):
    """So that one folder is enough to select by the disagreement of its members."""
    prompts, answers = [Prompt.from_text("Name a colour.")], [Response.from_text("Red.")]
    each = [score(prompts, answers)[0] for score in load_scores([run / "reward"])]
    model = RewardModel.from_pretrained(run / "reward")
    assert each == pytest.approx(
        [one.score(prompts, answers)[0] for one in model.members], abs=1e-6
    )
    assert len(set(each)) == 3


def test_disagreement_is_logged_and_ensembles_judge(run: Path):
    lines = metrics_of(run / "ppo")
    assert all(line["objective/score_std"] > 0 for line in lines)
    assert all(line["judge/score"] < 0 for line in lines)  # less the deviation from a length
    found = json.loads((run / "evaluate/artifact.json").read_text())["metrics"]
    assert 0 <= found["evaluate/reward/accuracy"] <= 1
    assert found["evaluate/ensemble/score/ppo"] < found["evaluate/reward/score/ppo"]  # min < mean
    assert found["evaluate/short/score/ppo"] < 0


def test_an_ensemble_of_full_models(tmp_path: Path):
    config = tree(tmp_path / "run", {"members": 2}, ppo=ppo("reward"))
    Pipeline(build_config({**config, "lora": None})).run()
    models = [
        RewardModel.from_pretrained(tmp_path / f"run/reward/members/{number}") for number in (1, 2)
    ]
    assert [(tmp_path / f"run/reward/members/{n}/model").is_dir() for n in (1, 2)] == [True] * 2
    together = RewardModel.from_pretrained(tmp_path / "run/reward")
    asked = ["What is the capital of France?"], ["Paris."]
    each = [model.score(*asked)[0] for model in models]
    assert together.score(*asked)[0] == pytest.approx(sum(each) / 2, abs=1e-5)
    assert each[0] != each[1]


# --- killed and resumed ---------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a life."""


def killed_after(config: Config, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends after so many optimiser steps."""
    whole, taken = Training.step, 0

    def step(training: Training) -> float:
        nonlocal taken
        if taken == steps:
            raise Killed
        taken += 1
        return whole(training)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "step", step)
        Pipeline(config).run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Pipeline(build_config(tree(folder / "run", {"members": 3}))).run()
    return folder / "run/reward"


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        (3, 13),  # goes on after 2 of the first
        (5, 10),  # the second had just begun
        (6, 10),
        (8, 8),  # after 2 of the second, which are 7 in all
        (14, 1),
    ],
)
def test_an_ensemble_that_is_killed_comes_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, left: int
):
    """What is complete is not trained again: so many steps are left."""
    config = build_config(tree(tmp_path / "run", {"members": 3}))
    killed_after(config, taken, monkeypatch)
    killed_after(config, left - 1, monkeypatch)  # and once more, one step before the end
    steps = 0
    own = Training.step

    def counted(training: Training) -> float:
        nonlocal steps
        steps += 1
        return own(training)

    monkeypatch.setattr(Training, "step", counted)
    Pipeline(config).run()
    assert steps <= 2
    step = tmp_path / "run/reward"
    assert weights_of(step) == weights_of(whole)
    assert metrics_of(step) == metrics_of(whole)
    assert not (step / "checkpoints").exists()


def test_members_come_back_in_the_order_of_their_numbers(tmp_path: Path):
    from align.artifacts import Artifact

    for number in (10, 2, 1):
        (tmp_path / f"members/{number}/adapter").mkdir(parents=True)
    artifact = Artifact("reward", "reward", tmp_path, "", {})
    assert [place.parent.name for place in artifact.members] == ["1", "2", "10"]
    assert artifact.adapter is None


def test_each_member_s_accuracy():
    """Of one pair that weighs 1 and one that weighs 3: all right, the heavy one a tie (a half), the
    light one alone, none."""
    index = PairIndex(
        torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([1.0, 3.0]), torch.ones(2),
        torch.zeros(2),
    )  # fmt: skip
    scores = [[2, 1, 5, 4], [2, 1, 4, 4], [2, 1, 3, 4], [0, 1, 3, 4]]
    assert _accuracies(np.array(scores), index) == [1.0, 2.5 / 4, 0.25, 0.0]
    assert _accuracies(np.zeros((2, 0)), PairIndex(*[torch.zeros(0)] * 5)) == []
