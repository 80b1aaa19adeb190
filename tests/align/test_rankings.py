"""Judgements as pairs of ids: their weights, their order in training, and the loop on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import TWO_LAYERS, world_of
from torch import Tensor

from align import rankings
from align.config import DPOTrain, Lora, RankingTrain, build_config
from align.config_train import RewardTrain
from align.engine import Engine
from align.losses import LossOutput
from align.pipeline import Pipeline
from align.rankings import (
    PairIndex,
    Ranked,
    by_group,
    check_gaps,
    fit_rankings,
    load_rankings,
    pair_index,
    steps_of_rows,
    tie_index,
    tied_pairs,
)
from align.reward_loss import loss_for
from align.roles import Roles
from align.stages import dpo, evaluate, reward
from align.training import Training
from preference_data import attention, forward_size
from preference_data.batches import Group, PackedBatch, pack
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response
from preference_data.rendering import Renderer
from preference_data.sources.store import AGGREGATED_FILE
from preference_data.splits import split
from reward_models import RewardModel
from reward_models.losses import bradley_terry
from reward_models.scalar_head import ScalarHead, Scoring, Truncation


def judged(*ranks: int | None, prompt: str = "Why?", weight: float = 1.0) -> Judgement:
    answers = tuple(
        Response.from_text(text) for text in ("one", "two", "three", "four")[: len(ranks)]
    )
    return Judgement(Prompt.from_text(prompt), answers, ranks, weight=weight)


def ranked(*pairs: tuple[int, int], k: int, weight: float = 1.0, first: int = 5) -> Ranked:
    """K completions of different lengths after a prompt of one token, with these pairs."""
    completions = tuple(tuple(range(first + i, first + 2 * i + 1)) for i in range(k))
    return Ranked(judged(*range(1, k + 1), weight=weight), Group((first,), completions), pairs)


# --- pairs ----------------------------------------------------------------------------------------


def test_pair_index_by_hand():
    """Rows of 2, 3 and 2 completions are sequences 0-1, 2-4 and 5-6.

    The second has weight 2 for its 3 pairs: 2/3 each, so that it counts as 2 and not as 3.
    """
    index = pair_index(
        [
            ranked((1, 0), k=2),
            ranked((0, 1), (0, 2), (2, 1), k=3, weight=2.0),
            ranked((0, 1), k=2, weight=0.5),
        ]
    )
    assert index.better.tolist() == [1, 2, 2, 4, 5]
    assert index.worse.tolist() == [0, 3, 4, 3, 6]
    expected = torch.tensor([1.0, 2 / 3, 2 / 3, 2 / 3, 0.5])
    torch.testing.assert_close(index.weight, expected, rtol=0, atol=1e-7)
    assert index.weight.sum().item() == pytest.approx(3.5, abs=1e-6)


def test_a_soft_label_follows_the_better_answer():
    """P(first) = .2: the second is the better one with .8."""
    second = replace(judged(2, 1), probability=0.2)
    row = Ranked(second, Group((1,), ((2,), (3,))), ((1, 0),))
    assert pair_index([row, ranked((0, 1), k=2)]).label.tolist() == pytest.approx([0.8, 1.0])


def rated(*scores: float | None, ranks: tuple[int | None, ...], prompt: str = "Why?") -> Judgement:
    return replace(judged(*ranks, prompt=prompt), scores=scores)


def test_gaps_by_hand():
    """Ratings 4, 1.5, none and 3 of answers ranked 1, 2, 3 and 1: 4 over 1.5 is 2.5, over none is
    unknown; 3 over 1.5 is 1.5. Where the worse one is rated higher, and without ratings: 0."""
    judgement = rated(4.0, 1.5, None, 3.0, ranks=(1, 2, 3, 1))
    group = Group((1,), ((2,), (3,), (4,), (5,)))
    four = Ranked(judgement, group, judgement.ordered_pairs())
    assert four.pairs == ((0, 1), (0, 2), (1, 2), (3, 1), (3, 2))
    wrong = Ranked(rated(1.0, 2.0, ranks=(1, 2)), Group((1,), ((2,), (3,))), ((0, 1),))
    index = pair_index([four, wrong, ranked((0, 1), k=2)])
    assert index.gap.tolist() == [2.5, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0]


def test_k_wise_loss_is_the_mean_over_explicit_pairs():
    """One forward of K = 4 scores against all 6 pairs scored apart: value and gradient of each
    score. (Ouyang et al. 2022, eq. 1: 1 / C(K, 2) times the sum.)"""
    order = [2, 0, 3, 1]  # completion 2 is the best
    pairs = tuple((order[a], order[b]) for a, b in combinations(range(4), 2))
    scores = torch.randn(4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    index = pair_index([ranked(*pairs, k=4)])
    losses = bradley_terry(scores[index.better], scores[index.worse])
    together = (index.weight * losses).sum()
    explicit = sum(torch.log1p(torch.exp(scores[j] - scores[i])) for i, j in pairs) / 6
    assert isinstance(explicit, Tensor)
    torch.testing.assert_close(together, explicit, rtol=0, atol=1e-6)
    [ours] = torch.autograd.grad(together, scores)
    [theirs] = torch.autograd.grad(explicit, scores)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_tie_index_by_hand():
    """Ranks 2 1 1 None give (1, 0), (2, 0) and the tie (1, 2), each a third of the weight 3; a tie
    of two is a pair of its own; a soft tie keeps its .6."""
    four = Ranked(judged(2, 1, 1, None, weight=3.0), Group((1,), ((2,),) * 4), ((1, 0), (2, 0)))
    tie = Ranked(judged(1, 1), Group((1,), ((2,), (3,))), ())
    soft = replace(tie, judgement=replace(tie.judgement, probability=0.6))
    index, tied = tie_index([four, tie, soft])
    assert tied.tolist() == [False, False, True, True, True]
    assert index.better.tolist() == [1, 2, 1, 4, 6]
    assert index.worse.tolist() == [0, 0, 2, 5, 7]
    torch.testing.assert_close(index.weight, torch.ones(5), rtol=0, atol=1e-7)
    assert index.label.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.6])
    assert pair_index([four, tie, soft]).better.tolist() == [1, 2]


def test_without_a_pair_the_index_is_empty():
    tie = Ranked(judged(1, 1), Group((1,), ((2,), (3,))), ())
    index = pair_index([tie])
    assert torch.zeros(2)[index.better].tolist() == []
    assert index.weight.sum() == 0


@pytest.mark.parametrize(
    ("judgement", "ties"),
    [
        (judged(1, 1), ((0, 1),)),
        (replace(judged(1, 1), outcome="both_bad"), ((0, 1),)),
        (replace(judged(1, 1), ranks=(None, None), outcome="unsure"), ()),
        (judged(1, 2, 2, None), ((1, 2),)),
        (replace(judged(2, 1, 2), kind="best_of"), ()),  # its losers were not compared
        (judged(1, 1, 1), ((0, 1), (0, 2), (1, 2))),
    ],
)
def test_what_a_tie_is(judgement: Judgement, ties: tuple[tuple[int, int], ...]):
    assert tied_pairs(judgement) == ties


def test_flat_numbers_go_back_to_their_rows():
    rows = [ranked((0, 1), k=2), ranked((0, 1), k=3)]
    assert [part.tolist() for part in by_group(rows, [1, 2, 3, 4, 5])] == [[1, 2], [3, 4, 5]]


# --- the order of training ------------------------------------------------------------------------


def test_every_row_comes_once_an_epoch():
    """7 rows in steps of 3 for 3 epochs: 7 steps, all full, each row 3 times; the first 7 rows
    drawn are one whole epoch, the next 7 another in another order."""
    steps = steps_of_rows(7, RankingTrain(num_train_epochs=3, train_batch_size=3), seed=1)
    assert [len(step) for step in steps] == [3] * 7
    flat = [row for step in steps for row in step]
    epochs = [flat[:7], flat[7:14], flat[14:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({"num_train_epochs": 1, "train_batch_size": 4}, 8, 2),
        ({"num_train_epochs": 1, "train_batch_size": 4}, 9, 2),  # 2.25 rounded
        ({"num_train_epochs": 0.5, "train_batch_size": 4}, 16, 2),
        ({"num_train_epochs": 0.01, "train_batch_size": 4}, 16, 1),  # never none
        ({"max_steps": 5, "train_batch_size": 4}, 16, 5),
        ({"num_train_epochs": 1, "train_batch_size": 32}, 3, 1),  # fewer rows than a step holds
    ],
)
def test_number_of_steps(settings: dict[str, Any], rows: int, steps: int):
    found = steps_of_rows(rows, RankingTrain(**settings), seed=0)
    assert len(found) == steps
    assert {len(step) for step in found} == {settings["train_batch_size"]}


def test_the_order_follows_from_the_seed():
    train = RankingTrain(train_batch_size=5)
    assert steps_of_rows(50, train, 1) == steps_of_rows(50, train, 1)
    assert steps_of_rows(50, train, 1) != steps_of_rows(50, train, 2)


# --- the loop -------------------------------------------------------------------------------------

ROWS = [
    ranked((0, 1), k=2, first=5),
    ranked((0, 1), (0, 2), (1, 2), k=3, first=20, weight=2.0),
    ranked((1, 0), k=2, first=40),
    ranked((3, 0), (3, 1), k=4, first=60),
    ranked((0, 1), k=2, first=80, weight=0.25),
]


def plain_loss(module: Any, batch: PackedBatch, pairs: PairIndex, rows: list[int]) -> LossOutput:
    scores = module("scores", "reward", batch)
    margin = scores[pairs.better] - scores[pairs.worse]
    return LossOutput(
        bradley_terry(scores[pairs.better], scores[pairs.worse]),
        {"reward/margin": margin.detach(), "reward/accuracy": (margin > 0).float()},
    )


def trained(
    make_roles: Callable[..., Roles], rows: Sequence[Ranked] = ROWS, **settings: Any
) -> tuple[Roles, list[dict[str, float]]]:
    """A reward role after fit_rankings, and the lines of metrics it logged."""
    torch.manual_seed(0)
    roles = make_roles(Lora(r=4, alpha=8))
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    given = {
        "train_batch_size": 4, "max_steps": 3, "learning_rate": 0.01, "logging_steps": 1, **settings
    }  # fmt: skip
    logged: list[dict[str, float]] = []
    context: Any = SimpleNamespace(
        step=SimpleNamespace(train=RankingTrain(**given)),
        engine=Engine(),
        seed=3,
        tracker=SimpleNamespace(log=lambda number, metrics: logged.append(metrics)),
    )
    fit_rankings(context, roles, "reward", rows, plain_loss)
    return roles, logged


@pytest.mark.parametrize(("settings", "limit"), [({}, 25), ({"tokens_per_forward": 40}, 40)])
def test_a_part_holds_what_suits_the_device(
    make_roles: Callable[..., Roles], monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int], limit: int,
):  # fmt: skip
    """Here 25 tokens, if no other number is asked for; the largest of three steps has 26."""
    monkeypatch.setattr(forward_size, "ON_CPU", 25)
    held: list[int] = []

    def packed(groups: Sequence[Group], *rest: Any) -> PackedBatch:
        batch = pack(groups, *rest)
        held.append(batch.tokens)
        return batch

    monkeypatch.setattr(rankings, "pack", packed)
    trained(make_roles, **settings)
    assert max(held) <= limit
    assert (len(held) == 3) == (limit == 40)


def test_micro_batches_change_nothing(
    make_roles: Callable[..., Roles], monkeypatch: pytest.MonkeyPatch
):
    """4 rows a step at once, in parts of about 30 tokens, or one by one: parameters and metrics to
    1e-5. Under a mask: Adam makes the rounding of a gradient near 0 as large as any, and attention
    piece by piece rounds otherwise; its gradients are compared below."""
    monkeypatch.setattr(attention, "_goes_piecewise", lambda *_: False)
    at_once, lines = trained(make_roles)
    for tokens in (30, 1):
        parts, part_lines = trained(make_roles, tokens_per_forward=tokens)
        for ours, theirs in zip(
            parts.parameters_of("reward"), at_once.parameters_of("reward"), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        for mine, other in zip(part_lines, lines, strict=True):
            for name in ("train/loss", "reward/margin", "reward/accuracy", "train/grad_norm"):
                assert mine[name] == pytest.approx(other[name], abs=1e-5), name


# A step's gradient, however its rows are ordered, cut into forward passes and shared by ranks.

SCORED = [
    replace(row, judgement=replace(row.judgement, scores=scores, probability=probability))
    for row, scores, probability in zip(
        ROWS,
        [(3.0, 1.0), (5.0, 4.5, 1.0), (None, 2.0), (1.0, 2.0, None, 4.0), None],
        [None, None, 0.3, None, 0.9],
        strict=True,
    )
]
REFERENCE = [torch.arange(k) * -2.0 - 9 for k in (2, 3, 2, 4, 2)]
"""Of each row's completions, summed nats."""
TIED = [
    *SCORED[:4],
    replace(SCORED[4], pairs=(), judgement=replace(judged(1, 1, weight=0.25), scores=(2.0, 2.0))),
    Ranked(replace(judged(3, 1, 1), scores=(1.0, 3.0, 2.5)), ROWS[1].group, ((1, 0), (2, 0))),
]
"""With a tie of two, and a ranking in which two tie."""
SETTINGS: dict[str, DPOTrain | RewardTrain] = {
    "reward": RewardTrain(),
    "reward with all": RewardTrain(
        center_coefficient=0.3, label_smoothing=0.1, margin_from_scores=0.4
    ),
    "davidson": RewardTrain(ties="davidson", label_smoothing=0.1),
    "rao_kupper": RewardTrain(ties="rao_kupper"),
    "half": RewardTrain(ties="half", margin_from_scores=0.4),
    "plackett_luce": RewardTrain(loss="plackett_luce", center_coefficient=0.3),
    "regression": RewardTrain(loss="regression"),
    "sigmoid": DPOTrain(),
    "sigmoid with all": DPOTrain(label_smoothing=0.1, margin=0.2, offset_from_scores=0.7),
    "normalised": DPOTrain(length_normalised=True, beta=2.0),
    "robust": DPOTrain(loss="robust", label_smoothing=0.1, offset_from_scores=0.7),
    "hinge": DPOTrain(loss="hinge"),
    "ipo": DPOTrain(loss="ipo"),
    "simpo": DPOTrain(loss="simpo", beta=2.0, margin=0.5, offset_from_scores=0.7),
    "orpo": DPOTrain(loss="orpo"),
}


class Summed(Training):
    """Leaves the gradients where they add up, over parts as over ranks."""

    def step(self) -> float:
        self.steps_done += 1
        return 0.0

    def close(self) -> None:
        pass


def engine_of(rank: int, ranks: int) -> Engine:
    """A rank that talks to no other: its gradients are added to the others' in place."""
    engine: Any = Engine()
    engine.rank, engine.world_size = rank, ranks
    engine.gather = list

    def training(module: Any, groups: Any, *, total_steps: int, schedule: Any, **_: Any) -> Any:
        optimizer = torch.optim.AdamW([{"params": group.parameters} for group in groups])
        return Summed(engine, module, optimizer, [0.0], total_steps, schedule, 1.0)

    engine.training = training
    return engine


def shaken(make_roles: Callable[..., Roles], shake: Callable[..., None]) -> Roles:
    """A reward role and a policy that tell tokens apart."""
    roles = make_roles(Lora(r=4, alpha=8))
    torch.manual_seed(0)
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    roles.add("policy", fresh=True, trainable=True)
    for role in ("reward", "policy"):
        shake(roles.parameters_of(role), 0, 0.05)
    return roles


def step_gradient(
    roles: Roles, train: DPOTrain | RewardTrain, order: Sequence[int], tokens: int, ranks: int
) -> list[Tensor]:
    """Of one step on the rows in this order."""
    updates: dict[str, Any] = {
        "max_steps": 1, "train_batch_size": len(order), "tokens_per_forward": tokens,
    }  # fmt: skip
    train = train.model_copy(update=updates)
    reward, made, apart = isinstance(train, RewardTrain), None, []
    rows = [(TIED if reward else SCORED)[i] for i in order]
    reference = [REFERENCE[i] for i in order if not reward]

    def loss(module: Any, batch: PackedBatch, pairs: PairIndex, mine: list[int]) -> LossOutput:
        assert isinstance(train, DPOTrain)
        of_rows = torch.cat([reference[i] for i in mine]) if train.needs_reference else None
        return dpo._loss(train, module, batch, pairs, of_rows)

    role = "reward" if reward else "policy"
    of_reward: Any = SimpleNamespace(step=SimpleNamespace(train=train, data="labels"))
    if reward:
        roles.head(role).tie = None
        made = loss_for(of_reward, rows, roles.head(role))
        apart = made.apart
    parameters = roles.parameters_of(role)
    for parameter in parameters:
        parameter.grad = None
    for rank in range(ranks):
        context: Any = SimpleNamespace(
            step=SimpleNamespace(train=train), engine=engine_of(rank, ranks), seed=3,
            tracker=SimpleNamespace(log=lambda number, metrics: None),
        )  # fmt: skip
        fit_rankings(context, roles, role, rows, made or loss, apart)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


@pytest.mark.parametrize("name", SETTINGS)
def test_no_order_and_no_split_changes_a_steps_gradient(
    make_roles: Callable[..., Roles], shake: Callable[..., None], name: str
):
    """In one pass; row by row; in another order in parts of 30 tokens for 2 ranks and of 100 for 3;
    and for 8 ranks, of which two or three have no row. A tie parameter is among what is compared.
    """
    roles = shaken(make_roles, shake)
    last = [5] if isinstance(SETTINGS[name], RewardTrain) else []
    at_once = step_gradient(roles, SETTINGS[name], [*range(5), *last], 8192, 1)
    scale = max(1.0, *(float(one.abs().max()) for one in at_once))
    assert max(float(one.abs().max()) for one in at_once) > 1e-2
    for order, tokens, ranks in (
        ((0, 1, 2, 3, 4), 1, 1), ((4, 2, 0, 3, 1), 30, 2), ((1, 0, 4, 2, 3), 100, 3),
        ((3, 4, 1, 0, 2), 30, 8),
    ):  # fmt: skip
        split = step_gradient(roles, SETTINGS[name], [*last, *order], tokens, ranks)
        for one, other in zip(split, at_once, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale)


def test_a_step_divided_by_its_parts_would_differ(
    make_roles: Callable[..., Roles], shake: Callable[..., None]
):
    """The mean of each part's mean is not the step's: what the test before would find."""
    roles = shaken(make_roles, shake)
    whole = step_gradient(roles, RewardTrain(ties="half"), range(5), 8192, 1)
    first = step_gradient(roles, RewardTrain(ties="half"), (0, 1), 8192, 1)
    second = step_gradient(roles, RewardTrain(ties="half"), (2, 3, 4), 8192, 1)
    apart = [
        float((one - (a + b) / 2).abs().max())
        for one, a, b in zip(whole, first, second, strict=True)
    ]
    assert max(apart) > 1e-3


def test_first_metrics_are_weighted_means_over_the_rows(make_roles: Callable[..., Roles]):
    """The first step's rows, scored by the untrained role, one conversation at a time."""
    torch.manual_seed(0)
    roles = make_roles(Lora(r=4, alpha=8))
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    _, lines = trained(make_roles)
    loss = margin = weight = 0.0
    train = RankingTrain(train_batch_size=4, max_steps=3)
    for row in (ROWS[i] for i in steps_of_rows(len(ROWS), train, seed=3)[0]):
        with torch.no_grad():
            scores = [
                roles.scores("reward", pack([Group(row.group.prompt, (ids,))])).item()
                for ids in row.group.completions
            ]
        gaps = torch.tensor([scores[i] - scores[j] for i, j in row.pairs], dtype=torch.float64)
        loss += row.weight * torch.log1p(torch.exp(-gaps)).mean().item()
        margin += row.weight * gaps.mean().item()
        weight += row.weight
    assert lines[0]["train/loss"] == pytest.approx(loss / weight, abs=1e-5)
    assert lines[0]["reward/margin"] == pytest.approx(margin / weight, abs=1e-5)


def test_training_fits_the_pairs(make_roles: Callable[..., Roles]):
    """5 rankings that contradict each other nowhere: 40 steps learn them all."""
    _, lines = trained(make_roles, max_steps=40)
    assert lines[-1]["reward/accuracy"] == 1.0
    assert lines[-1]["train/loss"] < 0.1


# --- loading --------------------------------------------------------------------------------------


def context_of(folder: Path, test_fraction: float = 0.0) -> Any:
    return SimpleNamespace(
        data={"labels": folder},
        split=lambda source, rows: split(rows, test_fraction, "17"),
        clusters=None,
        engine=SimpleNamespace(is_main=True),
        name="reward",
        step=SimpleNamespace(data="labels"),
    )


def folder_of(path: Path, judgements: Sequence[Judgement]) -> Path:
    import json

    with (path / "judgements.jsonl").open("w") as file:
        file.writelines(json.dumps(judgement.to_json()) + "\n" for judgement in judgements)
    return path


def test_load_rankings_pairs_what_was_ranked(tmp_path: Path, renderer: Renderer):
    """Ranks 2 1 1 None: only the first pair of unequal ranks counts, the tie and None do not."""
    folder = folder_of(tmp_path, [judged(2, 1, 1, None), judged(1, 2, prompt="How?")])
    rankings = load_rankings(context_of(folder), "labels", renderer, 64)
    assert [row.pairs for row in rankings.train] == [((1, 0), (2, 0)), ((0, 1),)]
    assert rankings.test == [] and rankings.left_out == {}
    group = rankings.train[0].group
    rendered = [renderer.render(judged(1, 2).prompt, r) for r in judged(2, 1, 1, None).responses]
    assert group.prompt == rendered[0].prompt
    assert group.completions == tuple(row.completion for row in rendered)


def test_what_is_left_out_is_counted(
    tmp_path: Path, renderer: Renderer, caplog: pytest.LogCaptureFixture
):
    """A control token in the text, a prompt too long, a tie, nobody sure: each by its reason. Where
    ties are trained on, one stays."""
    folder = folder_of(
        tmp_path,
        [
            judged(1, 2),
            judged(1, 2, prompt=f"What is {renderer.tokenizer.eos_token}?"),
            judged(1, 2, prompt="What " * 80),
            judged(1, 1, prompt="Tied?"),
            replace(judged(1, 1, prompt="Unsure?"), ranks=(None, None), outcome="unsure"),
        ],
    )
    rankings = load_rankings(context_of(folder), "labels", renderer, 64)
    assert len(rankings.train) == 1
    rows = rankings.rows
    assert (rows.rows_in, rows.rows_out, rows.quarantined) == (5, 1, 4)
    assert caplog.messages == [
        "reward: 4 of 5 judgements of data.labels are left out: 1 impossible to render, "
        "1 longer than max_length 64, 1 tied, 1 without two ranked answers."
    ]
    rankings = load_rankings(context_of(folder), "labels", renderer, 64, trains="ties")
    assert len(rankings.train) == 2 and "tied" not in rankings.left_out
    rows = rankings.rows
    assert (rows.rows_in, rows.rows_out, rows.quarantined) == (5, 2, 3)


def test_ratings_are_read_of_single_answers_too(tmp_path: Path, renderer: Renderer):
    """A thumb, a rating of one, a pair with ratings, and one without; a control item never."""
    one = Response.from_text("one")
    thumb = Judgement(Prompt.from_text("A?"), (one,), (None,), kind="binary", scores=(1.0,))
    rating = replace(thumb, prompt=Prompt.from_text("B?"), kind="rating", scores=(3.0,))
    control = replace(rated(1.0, 2.0, ranks=(2, 1), prompt="C?"), gold=(1, 2))
    pair, plain = rated(1.0, None, ranks=(1, 2), prompt="D?"), judged(1, 2)
    folder = folder_of(tmp_path, [thumb, rating, control, pair, plain])
    rankings = load_rankings(context_of(folder), "labels", renderer, 64, trains="ratings")
    assert [row.judgement for row in rankings.train] == [thumb, rating, pair]
    assert rankings.left_out == {"without ratings": 1}
    assert len(rankings.train[0].group.completions) == 1


def test_every_rating_is_one_vote(tmp_path: Path, renderer: Renderer):
    folder = folder_of(tmp_path, [rated(1.0, 2.0, ranks=(2, 1))])
    (folder / AGGREGATED_FILE).write_text("")
    with pytest.raises(DataError, match=r"data\.labels\.aggregate makes one verdict of many"):
        load_rankings(context_of(folder), "labels", renderer, 64, trains="ratings")


def test_ties_alone_say_nothing_of_what_is_better(tmp_path: Path, renderer: Renderer):
    """But a soft label that leans does."""
    tie = judged(1, 1)
    context = context_of(folder_of(tmp_path, [tie]))
    with pytest.raises(DataError, match="all of the 1 judgement to train on are ties"):
        load_rankings(context, "labels", renderer, 64, trains="ties")
    folder_of(tmp_path, [replace(tie, probability=0.55)])
    assert len(load_rankings(context, "labels", renderer, 64, trains="ties").train) == 1


def test_a_long_prompt_is_cut_and_counted(
    tmp_path: Path, renderer: Renderer, caplog: pytest.LogCaptureFixture
):
    """Into 64 tokens: what fits stays as it is, a long prompt loses its beginning, one cut for all
    answers; an answer that fills all of max_length is no reason to cut it."""
    long = judged(1, 2, 3, prompt="What " * 80)
    answer = replace(judged(1, 2), responses=(Response.from_text("a " * 80), long.responses[0]))
    folder = folder_of(tmp_path, [judged(1, 2), long, answer, judged(1, 1, prompt="Tied " * 80)])
    rankings = load_rankings(context_of(folder), "labels", renderer, 64, "left")
    rows = rankings.rows
    assert (rows.rows_in, rows.rows_out, rows.quarantined, rankings.cut) == (4, 2, 2, 1)
    assert "data.labels: 1 of 4 judgements lost the beginning of their prompt" in caplog.text
    [short] = [row for row in rankings.train if len(row.judgement.responses) == 2]
    [cut] = [row for row in rankings.train if len(row.judgement.responses) == 3]
    rendered = [renderer.render(long.prompt, response) for response in long.responses]
    assert short.group.prompt == renderer.prompt(short.judgement.prompt)
    assert cut.group.completions == tuple(row.completion for row in rendered)
    kept = 64 - max(map(len, cut.group.completions))
    assert cut.group.prompt == rendered[0].prompt[-kept:]
    assert max(len(ids) for ids in cut.group.completions) + len(cut.group.prompt) == 64
    caplog.clear()
    assert load_rankings(context_of(folder), "labels", renderer, 640, "left").cut == 0
    assert "lost the beginning" not in caplog.text


def test_the_first_token_stays_where_it_begins_every_prompt(tmp_path: Path, renderer: Renderer):
    """A tokenizer whose begin-of-sequence token the template writes in front."""
    tokenizer = renderer.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    folder = folder_of(tmp_path, [judged(1, 2, prompt="What " * 80)])
    [row] = load_rankings(context_of(folder), "labels", renderer, 64, "left").train
    whole = renderer.prompt(row.judgement.prompt)
    assert whole[0] == tokenizer.bos_token_id
    kept = 64 - max(map(len, row.group.completions)) - 1
    assert row.group.prompt == (whole[0], *whole[-kept:])


def test_a_reward_model_scores_the_ids_it_was_trained_on(tmp_path: Path, renderer: Renderer):
    """As a policy's reward, of the prompt and the longest answer; and of all answers as a group."""
    folder = folder_of(tmp_path, [judged(1, 2, 3, prompt="What " * 80)])
    [row] = load_rankings(context_of(folder), "labels", renderer, 64, "left").train
    scoring = Scoring(renderer.fingerprint(), 64, truncation="left")
    whole = renderer.prompt(row.judgement.prompt)
    bos = renderer.tokenizer.bos_token_id
    assert scoring.cut(Group(whole, row.group.completions), bos) == row.group
    longest = max(row.group.completions, key=len)
    assert scoring.cut(Group(whole, (longest,)), bos) == Group(row.group.prompt, (longest,))


def test_a_prompt_that_ends_within_a_word_is_the_same_for_all_answers(
    tmp_path: Path, renderer: Renderer
):
    """` France` is one token, but the prompt ends in ` Fra`: with the answers `nce` and `me` its
    ids are those of inference, and each answer's decode to the answer."""
    renderer.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} Fra{% else %}"
        "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    ids: Callable[[str], list[int]] = lambda text: renderer.tokenizer(text)["input_ids"]  # noqa: E731
    answers = (Response.from_text("nce"), Response.from_text("me"))
    judgement = replace(judged(1, 2, prompt="Capital of"), responses=answers)
    folder = folder_of(tmp_path, [judgement])
    limits: tuple[tuple[Truncation, int], ...] = (("none", 64), ("left", 6))
    for truncation, length in limits:
        context = context_of(folder)
        [row] = load_rankings(context, "labels", renderer, length, truncation).train
        longest = max(map(len, row.group.completions))
        assert list(row.group.prompt) == ids("Capital of Fra")[-(length - longest) :]
        decoded = [renderer.tokenizer.decode(part) for part in row.group.completions]
        assert decoded == ["nce<|end|>", "me<|end|>"]
    assert len(ids(" France")) == 1
    assert len(row.group.prompt) < len(ids("Capital of Fra"))  # the second time it was cut


def test_gaps_that_nothing_knows_are_an_error(
    tmp_path: Path, renderer: Renderer, caplog: pytest.LogCaptureFixture
):
    """Without any rating an offset would do nothing; with some, the others are counted."""
    plain = judged(1, 2)
    context = context_of(folder_of(tmp_path, [plain, rated(1.0, 2.0, ranks=(1, 2), prompt="How?")]))
    rankings = load_rankings(context, "labels", renderer, 64)
    with pytest.raises(DataError) as error:
        check_gaps(context, rankings, "margin_from_scores")
    assert str(error.value) == (
        "steps.reward.train.margin_from_scores: no pair of data.labels has scores that say by how "
        "much it was won; bring ratings, or remove the option."
    )
    folder_of(tmp_path, [plain, rated(3.0, 2.0, ranks=(1, 2), prompt="How?")])
    check_gaps(context, load_rankings(context, "labels", renderer, 64), "margin_from_scores")
    assert "reward: 1 of 2 pairs of data.labels have no scores" in caplog.text
    caplog.clear()
    folder_of(tmp_path, [rated(3.0, 2.0, ranks=(1, 2))])
    check_gaps(context, load_rankings(context, "labels", renderer, 64), "margin_from_scores")
    assert not caplog.records


def test_nothing_to_train_on_is_an_error(tmp_path: Path, renderer: Renderer):
    folder = folder_of(tmp_path, [judged(1, 1)])
    with pytest.raises(
        DataError, match=r"none of the 1 judgement can be trained on: 1 tied; the rest is held"
    ):
        load_rankings(context_of(folder), "labels", renderer, 64)


def test_every_judge_of_a_model_that_cuts_reads_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A reward model of 40 tokens: stored with its truncation, it ranks the held-out side in the
    evaluation as the ids of its own step; PPO's responses and the evaluation's replies are scored
    as they are cut."""
    held_out: dict[str, list[Group]] = {}
    for stage in (reward, evaluate):

        def spied(*arguments: Any, name: str = stage.__name__) -> Any:
            rankings = load_rankings(*arguments)
            held_out[name] = [row.group for row in rankings.test if row.pairs]
            return rankings

        monkeypatch.setattr(stage, "load_rankings", spied)
    steps = {
        "reward": {
            "kind": "reward", "data": "labels",
            "train": {"max_steps": 2, "max_length": 40, "truncation": "left"},
        },
        "ppo": {
            "kind": "ppo", "data": "prompts", "reward": "reward",
            "train": {"iterations": 1, "prompts_per_iteration": 4, "minibatches": 1,
                      "max_new_tokens": 24},
        },
        "evaluate": {
            "kind": "evaluate", "data": "prompts", "policies": ["ppo"], "baseline": "base",
            "judges": ["reward"], "preferences": "labels", "prompts": 4, "bootstrap": 10,
            "max_new_tokens": 24,
        },
    }  # fmt: skip
    tree = {
        "name": "cut", "output_dir": str(tmp_path / "run"), "near_duplicates": None,
        "base": {"architecture": TWO_LAYERS},
        "world": world_of(30, items=60),
        "data": {
            "labels": {"path": "builtin:labels", "test_fraction": 0.3},
            "prompts": {"path": "builtin:prompts", "test_fraction": 0.3},
        },
        "steps": steps,
    }  # fmt: skip
    found = {
        name: step["metrics"] for name, step in Pipeline(build_config(tree)).run()["steps"].items()
    }
    assert found["reward"]["train/cut_prompts"] > 0
    model = RewardModel.from_pretrained(tmp_path / "run" / "reward")
    assert (model.scoring.max_length, model.scoring.truncation) == (40, "left")
    assert math.isfinite(model.score(["What is it? " * 40], ["Nothing."])[0])
    there, here = held_out["align.stages.reward"], held_out["align.stages.evaluate"]
    assert there == here
    assert any(len(group.prompt) + max(map(len, group.completions)) == 40 for group in here)
    assert 0 <= found["evaluate"]["evaluate/reward/accuracy"] <= 1


def test_no_prompt_is_on_both_sides(tmp_path: Path, renderer: Renderer):
    judgements = [judged(*ranks, prompt=f"Q {i % 20}?") for i in range(60) for ranks in [(1, 2)]]
    folder = folder_of(tmp_path, judgements)
    rankings = load_rankings(context_of(folder, test_fraction=0.3), "labels", renderer, 64)
    sides = [
        {row.judgement.prompt.text for row in side} for side in (rankings.train, rankings.test)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(rankings.train) + len(rankings.test) == 60
