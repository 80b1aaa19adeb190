"""Dawid-Skene: a step by hand, planted annotators, and what must not matter."""

from __future__ import annotations

import random

import numpy as np
import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.dawid_skene import dawid_skene
from preference_data.votes.table import FIRST, SECOND, TIE, Votes, votes_of

RANKS = {FIRST: (1, 2), TIE: (1, 1), SECOND: (2, 1)}


def judged(item: int, verdict: int, who: str | None) -> Judgement:
    """A vote for the response with the smaller id is FIRST."""
    pair = sorted(
        (Response.from_text(f"{item} x"), Response.from_text(f"{item} y")), key=lambda one: one.id
    )
    return Judgement(Prompt.from_text("Why?"), tuple(pair), RANKS[verdict], who)


def test_the_first_step_by_hand():
    """Ann: first, first. Bob: first, second. At the start pair 0 is first, pair 1 is half each.

    Prior (1.5, 0, 0.5) / 2, evened out (0.5, 0, 0.5). Ann is right 1.5 + 0 times and wrong 0.5
    times; evened out 0.75 and 0.25. Bob likewise, 1 + 0.5 and 0.5 times. So is the crowd, whose
    one vote of each class changes nothing: right with probability 0.75. Pair 0 is first with
    0.75² / (0.75² + 0.25²) = 0.9; pair 1 stays at a half.
    """
    rows = [judged(0, FIRST, "ann"), judged(1, FIRST, "ann")]
    rows += [judged(0, FIRST, "bob"), judged(1, SECOND, "bob")]
    found = dawid_skene(votes_of(rows), max_steps=1)
    assert found.posterior == pytest.approx(np.array([[0.9, 0, 0.1], [0.5, 0, 0.5]]), abs=1e-6)
    assert not found.converged


@pytest.fixture(scope="module")
def planted() -> tuple[Votes, list[int], list[float]]:
    """600 pairs, a fifth of them ties, by 3 careful annotators and 8 careless ones."""
    chance = random.Random(7)
    right = [0.95] * 3 + [0.42] * 8
    truth = [chance.choices((FIRST, TIE, SECOND), (0.4, 0.2, 0.4))[0] for _ in range(600)]
    rows = []
    for item, true in enumerate(truth):
        for who, accuracy in enumerate(right):
            other = chance.choice([one for one in RANKS if one != true])
            verdict = true if chance.random() < accuracy else other
            rows.append(judged(item, verdict, str(who)))
    return votes_of(rows), truth, right


def test_it_finds_who_is_careful_and_beats_the_majority(planted):
    votes, truth, right = planted
    found = dawid_skene(votes)
    assert found.converged
    accuracy = (found.confusion.diagonal(axis1=1, axis2=2) * found.prior).sum(axis=1)
    assert accuracy == pytest.approx(np.array(right), abs=0.05)
    assert found.prior == pytest.approx(np.array([0.4, 0.2, 0.4]), abs=0.05)
    majority = (votes.counts().argmax(axis=1) == truth).mean()
    ours = (found.posterior.argmax(axis=1) == truth).mean()
    assert majority < 0.92
    assert ours > 0.97


def test_the_posterior_is_calibrated(planted):
    """As often right as it says to be, on average."""
    votes, truth, _ = planted
    posterior = dawid_skene(votes).posterior
    assert posterior.sum(axis=1) == pytest.approx(1.0)
    right = (posterior.argmax(axis=1) == truth).mean()
    assert posterior.max(axis=1).mean() == pytest.approx(right, abs=0.015)


def test_turning_a_pair_round_turns_its_posterior(planted):
    """Which response is first is arbitrary, so no annotator can be learnt to prefer it."""
    votes, _, _ = planted
    turned = votes.pair % 2 == 0
    verdict = np.where(turned, SECOND - votes.verdict, votes.verdict)
    plain = dawid_skene(votes)
    other = dawid_skene(
        Votes(votes.pairs, votes.annotators, votes.pair, votes.annotator, verdict, votes.judgement)
    )
    assert other.posterior[1::2] == pytest.approx(plain.posterior[1::2])
    assert other.posterior[::2] == pytest.approx(plain.posterior[::2, ::-1])
    assert other.confusion == pytest.approx(plain.confusion)


def test_unknown_annotators_are_one():
    rows = [judged(0, FIRST, None), judged(0, FIRST, "ann"), judged(1, TIE, None)]
    assert dawid_skene(votes_of(rows)).confusion.shape == (2, 3, 3)


def test_no_votes_have_no_posterior():
    assert dawid_skene(votes_of([])).posterior.shape == (0, 3)
