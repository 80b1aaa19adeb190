"""Judgements as pairs of ids: their weights, their order in training, and the loop on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.config import Lora, RankingTrain
from align.engine import Engine
from align.losses import LossOutput
from align.rankings import (
    PairIndex,
    Ranked,
    by_group,
    fit_rankings,
    load_rankings,
    pair_index,
    steps_of_rows,
)
from align.roles import Roles
from preference_data.batches import Group, PackedBatch, pack
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Prompt, Response
from preference_data.rendering import Renderer
from preference_data.splits import split
from reward_models.losses import bradley_terry
from reward_models.scalar_head import ScalarHead


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


def reward_loss(module: Any, batch: PackedBatch, pairs: PairIndex, rows: list[int]) -> LossOutput:
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
    fit_rankings(context, roles, "reward", rows, reward_loss)
    return roles, logged


def test_micro_batches_change_nothing(make_roles: Callable[..., Roles]):
    """4 rows a step at once, in parts of about 30 tokens, or one by one: parameters and metrics to
    1e-5."""
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
    assert rankings.test == []
    group = rankings.train[0].group
    rendered = [renderer.render(judged(1, 2).prompt, r) for r in judged(2, 1, 1, None).responses]
    assert group.prompt == rendered[0].prompt
    assert group.completions == tuple(row.completion for row in rendered)


def test_what_is_left_out_is_counted(tmp_path: Path, renderer: Renderer):
    """A control token in the text, a prompt too long, a tie: three reasons, two of them losses."""
    folder = folder_of(
        tmp_path,
        [
            judged(1, 2),
            judged(1, 2, prompt=f"What is {renderer.tokenizer.eos_token}?"),
            judged(1, 2, prompt="What " * 80),
            judged(1, 1, prompt="Tied?"),
        ],
    )
    rankings = load_rankings(context_of(folder), "labels", renderer, 64)
    assert len(rankings.train) == 1
    rows = rankings.rows
    assert (rows.rows_in, rows.rows_out, rows.quarantined) == (4, 2, 2)


def test_nothing_to_train_on_is_an_error(tmp_path: Path, renderer: Renderer):
    folder = folder_of(tmp_path, [judged(1, 1)])
    with pytest.raises(
        DataError, match=r"none of the 1 judgements can be trained on; 0 are longer"
    ):
        load_rankings(context_of(folder), "labels", renderer, 64)


def test_no_prompt_is_on_both_sides(tmp_path: Path, renderer: Renderer):
    judgements = [judged(*ranks, prompt=f"Q {i % 20}?") for i in range(60) for ranks in [(1, 2)]]
    folder = folder_of(tmp_path, judgements)
    rankings = load_rankings(context_of(folder, test_fraction=0.3), "labels", renderer, 64)
    sides = [
        {row.judgement.prompt.text for row in side} for side in (rankings.train, rankings.test)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(rankings.train) + len(rankings.test) == 60
