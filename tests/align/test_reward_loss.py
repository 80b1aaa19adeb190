"""What a reward step makes of its judgements: pairs, ties, rankings, ratings; and the parameter of
ties, from its start to the disk."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import ONE_LAYER
from torch import Tensor

from align.config import ConfigError, Lora, build_config
from align.config_train import RewardTrain
from align.engine import Engine
from align.pipeline import Pipeline
from align.rankings import Ranked, Weighted, fit_rankings, pair_index
from align.reward_loss import RewardLoss, Scale, loss_for, rating_scales, tie_fields, tie_share
from align.roles import Roles
from align.training import Training
from preference_data.batches import Group, PackedBatch, pack
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response
from reward_models import RewardModel
from reward_models.losses import tie_of, tie_start
from reward_models.scalar_head import ScalarHead

LOG_2, LOG_4 = math.log(2.0), math.log(4.0)


def row(*ranks: int | None, weight: float = 1.0, first: int = 5, **fields: Any) -> Ranked:
    answers = tuple(Response.from_text(f"answer {place}") for place in range(len(ranks)))
    judgement = Judgement(Prompt.from_text("Why?"), answers, ranks, weight=weight, **fields)
    completions = tuple((first + place, first + 1) for place in range(len(ranks)))
    return Ranked(judgement, Group((first,), completions), judgement.ordered_pairs())


def loss_of(
    rows: list[Ranked], scores: list[float], tie: float | None = None, **settings: Any
) -> tuple[Weighted, Tensor]:
    """The loss on rows that were given these scores, one after the other; and the scores."""
    train = RewardTrain(**{"center_coefficient": 0.0, **settings})
    given = torch.tensor(scores, requires_grad=True)
    parameter = None if tie is None else torch.nn.Parameter(torch.tensor([tie]))
    scales = rating_scales(rows, "labels") if train.loss == "regression" else {}
    batch = pack([one.group for one in rows])
    loss = RewardLoss(train, rows, parameter, scales)
    return loss(lambda *_: given, batch, pair_index(rows), range(len(rows))), given


def total(found: Weighted) -> float:
    return float((found.weight * found.loss.detach()).sum())


def means(found: Weighted) -> dict[str, float]:
    return {
        name: float((values * weights).sum() / weights.sum())
        for name, (values, weights) in found.metrics.items()
        if weights.sum()
    }


# --- by what is made of a judgement ---------------------------------------------------------------


def test_ties_after_davidson_by_hand():
    """Scores log 4 and 0, nu = .5: a win 2/3, a tie 1/6. A judgement of each, weights 1 and 3:
    -log 2/3 + 3 log 6. Of the four, three said tie; the model says 1/6."""
    found, _ = loss_of(
        [row(1, 2), row(1, 1, weight=3.0)], [LOG_4, 0.0] * 2, tie_of("davidson", 0.5)
    )
    assert total(found) == pytest.approx(math.log(1.5) + 3 * math.log(6.0), abs=1e-5)
    assert means(found) == pytest.approx(
        {
            "reward/accuracy": 1.0, "reward/margin": LOG_4, "reward/tie_margin": LOG_4,
            "reward/tie_parameter": 0.5, "reward/tie_share": 0.75, "reward/tie_predicted": 1 / 6,
            "reward/tie_log_loss": (math.log(1.5) + 3 * math.log(6.0)) / 4,
        },
        abs=1e-5,
    )  # fmt: skip


def test_a_ranking_with_ties_is_the_mean_of_all_its_pairs():
    """Ranks 1 2 2 of equal scores, nu = 1: P = 1/3 of everything, log 3 on each of 3 pairs that
    weigh 2 together."""
    found, _ = loss_of([row(1, 2, 2, weight=2.0)], [0.0] * 3, 0.0)
    torch.testing.assert_close(
        found.loss.detach(), torch.full((3,), math.log(3)), rtol=0, atol=1e-6
    )
    assert total(found) == pytest.approx(2 * math.log(3), abs=1e-5)


@pytest.mark.parametrize(("ties", "expected"), [("drop", 0.0), ("half", LOG_2)])
def test_ties_that_are_no_model(ties: str, expected: float):
    """A win at the odds 4 to 1 and a tie of equal scores: log 1.25, and nothing or log 2."""
    found, _ = loss_of([row(1, 2), row(1, 1)], [LOG_4, 0.0, 1.0, 1.0], ties=ties)
    assert total(found) == pytest.approx(math.log(1.25) + expected, abs=1e-5)
    assert len(found.loss) == (1 if ties == "drop" else 2)


def test_a_soft_label_is_read_through_the_ties_but_tells_nothing_of_them():
    """4 : 1 : 1: the first has 3/4 with half of the ties. Label .75: its entropy, no gradient for
    the score, and none for the tie parameter; beside it a hard win has both."""
    soft = row(1, 2, probability=0.75)
    rows = [soft, row(1, 2, weight=2.0)]
    found, scores = loss_of(rows, [LOG_4, 0.0, LOG_4, 0.0], tie_of("davidson", 0.5))
    assert found.loss[0].item() == pytest.approx(0.5623351, abs=1e-6)
    found.loss[0].backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-6
    assert means(found)["reward/tie_share"] == 0.0
    assert found.metrics["reward/tie_share"][1].tolist() == [0.0, 2.0]


def test_a_soft_tie_is_its_label():
    """Half of the votes and ties for each, or .6 for the first; both ranked 1 1, without a model:
    -.6 log .8 - .4 log .2 at the odds of 4 to 1."""
    found, _ = loss_of([row(1, 1, probability=0.6)], [LOG_4, 0.0])
    assert total(found) == pytest.approx(0.6 * math.log(1.25) + 0.4 * math.log(5), abs=1e-5)


def test_rankings_after_plackett_and_luce():
    """Strengths 3 2 1 in this order, one not ranked, weight 2; a pair; and a soft pair at even odds
    with a label of .75. 2 * (log 2 + log 1.5) / 2 + log 1.25 + log 2. Accuracy by pairs."""
    rows = [row(1, 2, 3, None, weight=2.0), row(2, 1), row(1, 2, probability=0.75)]
    scores = [math.log(3), LOG_2, 0.0, 9.0, 0.0, LOG_4, 1.0, 1.0]
    found, _ = loss_of(rows, scores, loss="plackett_luce")
    assert total(found) == pytest.approx(math.log(3) + math.log(1.25) + LOG_2, abs=1e-5)
    assert means(found)["reward/accuracy"] == pytest.approx(3 / 4, abs=1e-6)


def test_two_answers_cost_the_same_under_both_losses():
    rows = [row(1, 2), row(2, 1, weight=0.3, first=20), row(2, 1, probability=0.2, first=30)]
    settings = {"center_coefficient": 0.1}
    pairs, one = loss_of(rows, [1.0, -0.4, 0.2, 0.3, 2.0, 1.0], **settings)
    lists, other = loss_of(rows, [1.0, -0.4, 0.2, 0.3, 2.0, 1.0], loss="plackett_luce", **settings)
    assert total(pairs) == pytest.approx(total(lists), abs=1e-5)
    for found in (pairs, lists):
        (found.weight * found.loss).sum().backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("ranking", True), ("best_of", False)])
def test_the_losers_of_a_best_of_are_not_drawn_together(kind: str, expected: bool):
    """Scores 0 2 0, the first is best: only if 2 and 3 tie does the third gain by a higher score
    more than its rival does by a lower one."""
    found, scores = loss_of([row(1, 2, 2, kind=kind)], [0.0, 2.0, 0.0], loss="plackett_luce")
    found.loss.sum().backward()
    assert scores.grad is not None
    assert (float(scores.grad[2]) < 0) is expected


def test_ratings_by_hand():
    """On 0..4 the ratings 1 and 3 have mean 2 and spread 1: -1 and 1. Scores 0 and 3 are wrong by 1
    and 2: 1 and 4, half of the weight 2 each. A thumb up of the score log 3: -log 3/4."""
    pair = row(2, 1, scores=(1.0, 3.0), scale="0..4", kind="rating", weight=2.0)
    thumb = row(None, kind="binary", scores=(1.0,))
    found, _ = loss_of([pair, thumb], [0.0, 3.0, math.log(3)], loss="regression")
    assert total(found) == pytest.approx(5 + math.log(4 / 3), abs=1e-5)
    assert means(found) == pytest.approx(
        {
            "reward/accuracy": 1.0, "reward/margin": 3.0, "reward/rating_error": 2.5,
            "reward/thumb_accuracy": 1.0,
        },
        abs=1e-5,
    )  # fmt: skip


def test_each_scale_is_standardised_alone():
    """1 and 3 of 4: mean 2, spread 1. 10, 20 and 60: mean 30, spread sqrt(1400 / 3) = 21.602469."""
    rows = [
        row(2, 1, scores=(1.0, 3.0), scale="0..4", kind="rating"),
        row(3, 2, 1, scores=(10.0, 20.0, 60.0), kind="rating"),
        row(None, kind="binary", scores=(1.0,)),
    ]
    scales = rating_scales(rows, "labels")
    assert scales["0..4"] == Scale(2.0, 1.0)
    assert scales[None] == pytest.approx((30.0, 21.602469), abs=1e-5)
    with pytest.raises(DataError, match=r"all 1 rating to train on on the scale 0\.\.4 are 3"):
        rating_scales([row(None, scores=(3.0,), scale="0..4", kind="rating")], "labels")


def test_a_ranking_with_ties_costs_one_prompt_and_its_completions():
    """Whatever the loss: one forward of 1 + 4 * 2 tokens, 4 scores."""
    one = row(1, 2, 2, None, scores=(3.0, 2.0, 2.0, 1.0))
    calls: list[tuple[int, int]] = []

    def module(what: str, role: str, batch: PackedBatch) -> Tensor:
        calls.append((batch.tokens, batch.sequences))
        return torch.zeros(batch.sequences)

    for loss in ("bradley_terry", "plackett_luce", "regression"):
        train = RewardTrain(loss=loss)  # type: ignore[arg-type]
        scales: dict[str | None, Scale] = {None: Scale(2.0, 1.0)}
        RewardLoss(train, [one], None, scales)(module, pack([one.group]), pair_index([one]), [0])
    assert calls == [(9, 4)] * 3


# --- the parameter --------------------------------------------------------------------------------


def context_of(**settings: Any) -> Any:
    return SimpleNamespace(
        step=SimpleNamespace(train=RewardTrain(**settings), data="labels"),
        engine=Engine(), seed=3, tracker=SimpleNamespace(log=lambda *_: None),
    )  # fmt: skip


def test_the_parameter_starts_from_the_share_of_ties():
    """Weights 1 of a win, 1 of a ranking with one tie in three pairs, 2 of a tie: 7/3 of 4."""
    rows = [row(1, 2), row(1, 2, 2), row(1, 1, weight=2.0), row(1, 1, probability=0.5)]
    assert tie_share(rows) == pytest.approx(7 / 12, abs=1e-6)
    head = ScalarHead(4)
    loss = loss_for(context_of(), rows, head)
    assert head.tie is not None and loss.tie is head.tie
    assert head.tie.detach().tolist() == pytest.approx([tie_start("davidson", 7 / 12)], abs=1e-6)
    assert tie_fields(loss.train, head.tie) == {
        "ties": "davidson",
        "tie_parameter": pytest.approx(2 * 7 / 5, abs=1e-5),  # 2 s / (1 - s)
    }
    [group] = loss.apart
    assert group.parameters[0] is head.tie and group.learning_rate == 0.01


@pytest.mark.parametrize("ties", [None, "davidson", "rao_kupper"])
def test_without_ties_nothing_is_learned_of_them(ties: Any):
    """Rankings and soft labels, even of ties: plain Bradley-Terry, and nothing is stored."""
    rows = [row(1, 2), row(1, 1, probability=0.5), row(1, 2, 3)]
    head = ScalarHead(4)
    loss = loss_for(context_of(ties=ties), rows, head)
    assert loss.tie is head.tie is None and not loss.apart
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert tie_fields(loss.train, head.tie) == {}


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_training_finds_how_many_ties_there_are(make_roles: Callable[..., Roles], ties: Any):
    """70 % wins of answers that the model learns to tell apart, 30 % ties of answers that it learns
    to find alike. At the scores in the end, the parameter has moved to where as many ties are
    expected as there are."""
    rows = [row(1, 2, first=5) for _ in range(7)] + [row(1, 1, first=40) for _ in range(3)]
    torch.manual_seed(0)
    roles = make_roles(Lora(r=4, alpha=8))
    head = ScalarHead(32)
    roles.add("reward", fresh=True, trainable=True, head=head)
    context = context_of(
        max_steps=80, train_batch_size=10, learning_rate=0.01, ties=ties, tie_learning_rate=0.1,
        logging_steps=1,
    )  # fmt: skip
    loss = loss_for(context, rows, head)
    assert loss.tie is not None
    start = float(loss.tie.detach())
    last = fit_rankings(context, roles, "reward", rows, loss, loss.apart)
    assert abs(float(loss.tie.detach()) - start) > 0.3
    assert last["reward/tie_share"] == pytest.approx(0.3, abs=1e-6)
    assert last["reward/tie_predicted"] == pytest.approx(0.3, abs=0.04)
    assert last["reward/tie_log_loss"] < 0.3
    assert last["reward/tie_margin"] < 0.3 < last["reward/margin"]


# --- the whole step -------------------------------------------------------------------------------

TREE: dict[str, Any] = {
    "name": "ties", "near_duplicates": None,
    "base": {"architecture": ONE_LAYER},
    "lora": {"r": 2, "alpha": 4, "dropout": 0.2},
    "data": {"labels": {"test_fraction": 0.3}},
    "steps": {
        "reward": {
            "kind": "reward", "data": "labels",
            "train": {
                "max_steps": 6, "train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 4,
                "save_steps": 2,
            },
        }
    },
}  # fmt: skip


def tree_of(tmp_path: Path, rows: list[dict[str, Any]], **train: Any) -> dict[str, Any]:
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(one) + "\n" for one in rows))
    tree = copy.deepcopy(TREE)
    tree["output_dir"] = str(tmp_path / "run")
    tree["data"]["labels"]["path"] = str(labels)
    tree["steps"]["reward"]["train"] |= train
    return tree


def tied_rows() -> list[dict[str, Any]]:
    labels = ["A", "B", "tie", "A", "B", "A", "tie", "A", "A", "tie"]
    return [
        {
            "prompt": f"What is number {number}?", "response_a": f"It is {number}.",
            "response_b": "I do not know.", "label": labels[number % 10],
        }
        for number in range(50)
    ]  # fmt: skip


def result(tree: dict[str, Any]) -> dict[str, Any]:
    return Pipeline(build_config(tree)).run()["steps"]["reward"]


def left(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "run" / "reward" / "adapter"
    names = ("adapter_model.safetensors", "scoring.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_an_interrupted_training_of_ties_comes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It breaks at step 5 and goes on from the checkpoint at 3: adapter, head and parameter, the
    means that were half done, the metrics."""
    wholes, brokens = tmp_path / "whole", tmp_path / "broken"
    wholes.mkdir()
    brokens.mkdir()
    whole = result(tree_of(wholes, tied_rows(), save_steps=3))
    step, calls = Training.step, 0

    def breaks(self: Training) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return step(self)

    tree = tree_of(brokens, tied_rows(), save_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", breaks)
        with pytest.raises(KeyboardInterrupt):
            result(tree)
    assert [path.name for path in (brokens / "run/reward/checkpoints").iterdir()] == ["00000003"]
    again = result(tree)
    assert left(brokens) == left(wholes)
    assert {**again["metrics"], "train/tokens_per_second": 0} == {
        **whole["metrics"], "train/tokens_per_second": 0
    }  # fmt: skip
    lines = [
        [json.loads(line) for line in (place / "run/reward/metrics.jsonl").read_text().splitlines()]
        for place in (wholes, brokens)
    ]
    for mine, other in zip(*lines, strict=True):
        for name in ("train/loss", "reward/tie_parameter", "reward/tie_share", "reward/margin"):
            assert mine[name] == other[name], name


def test_what_a_step_says_and_stores_of_ties(tmp_path: Path):
    """Every judgement is trained on or held out; the parameter that was learned is stored, and the
    chances that it gives sum to 1."""
    found = result(tree_of(tmp_path, tied_rows()))
    assert found["rows"] == {"in": 50, "out": 50, "quarantined": 0}
    metrics = found["metrics"]
    model = RewardModel.from_pretrained(tmp_path / "run" / "reward")
    assert model.scoring.ties == "davidson"
    assert metrics["reward/tie_parameter"] == pytest.approx(model.scoring.tie_parameter, abs=1e-6)
    assert 0 < metrics["reward/tie_predicted"] < 1 and metrics["reward/tie_margin"] >= 0
    chances = model.scoring.chances(*model.score(["What?"] * 2, ["This.", "That."]))
    assert sum(chances) == pytest.approx(1.0, abs=1e-9) and min(chances) > 0


def test_ties_train_no_policy_and_the_account_says_so(tmp_path: Path):
    """15 of 50 are ties."""
    tree = tree_of(tmp_path, tied_rows())
    train = tree["steps"].pop("reward")["train"]
    tree["steps"]["dpo"] = {"kind": "dpo", "data": "labels", "train": train}
    found = Pipeline(build_config(tree)).run()["steps"]["dpo"]
    assert found["rows"] == {"in": 50, "out": 35, "quarantined": 15}


def test_thumbs_on_single_answers_train_a_reward_model(tmp_path: Path):
    """Answers that say what was asked are good, others bad. No pair is anywhere."""
    rows = [
        {
            "prompt": f"What is number {number}?", "label": number % 3 > 0,
            "completion": "Yes, that." if number % 3 else "I do not know.",
        }
        for number in range(60)
    ]  # fmt: skip
    tree = tree_of(tmp_path, rows, loss="regression", max_steps=40)
    found = result(tree)
    assert found["rows"] == {"in": 60, "out": 60, "quarantined": 0}
    assert found["metrics"]["reward/thumb_accuracy"] > 0.9
    model = RewardModel.from_pretrained(tmp_path / "run" / "reward")
    good, bad = model.score(["What is number 7?"] * 2, ["Yes, that.", "I do not know."])
    assert good > bad and model.scoring.ties is None


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"loss": "regression", "margin_from_scores": 0.5},
            "steps.reward.train.margin_from_scores has no effect on regression; remove it.",
        ),
        (
            {"loss": "regression", "ties": "half"},
            "steps.reward.train.ties has no effect on regression; remove it.",
        ),
        (
            {"loss": "plackett_luce", "label_smoothing": 0.1},
            "steps.reward.train.label_smoothing has no effect on plackett_luce; remove it.",
        ),
        (
            {"ties": "half", "tie_learning_rate": 0.1},
            "steps.reward.train.tie_learning_rate has no effect but on ties davidson and "
            "rao_kupper of loss bradley_terry; remove it.",
        ),
        (
            {"loss": "plackett_luce", "ties": "rao_kupper"},
            "steps.reward.train.ties is rao_kupper, a model of two answers, but loss is "
            "plackett_luce; choose half or drop, or loss bradley_terry.",
        ),
        (
            {"ties": "davidson", "margin_from_scores": 0.5},
            "steps.reward.train.margin_from_scores asks for margins of its own, but under ties "
            "davidson those that end in ties are learned; choose ties half or drop.",
        ),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, train: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as error:
        build_config(tree_of(tmp_path, [], **train))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("train", "ties", "model", "trains"),
    [
        ({}, "davidson", "davidson", "ties"),
        ({"ties": "rao_kupper"}, "rao_kupper", "rao_kupper", "ties"),
        ({"ties": "drop"}, "drop", None, "pairs"),
        ({"margin_from_scores": 0.1}, "half", None, "ties"),
        ({"loss": "plackett_luce"}, "half", None, "ties"),
        ({"loss": "plackett_luce", "ties": "drop"}, "drop", None, "pairs"),
        ({"loss": "regression"}, "davidson", None, "ratings"),
    ],
)
def test_what_is_made_of_ties(train: dict[str, Any], ties: str, model: str | None, trains: str):
    section = RewardTrain(**train)
    assert (section.ties_as, section.tie_model, section.trains) == (ties, model, trains)
