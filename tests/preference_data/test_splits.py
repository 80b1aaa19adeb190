"""Splits: by prompt, whatever the order, and as large as asked for."""

from __future__ import annotations

import random

import pytest

from preference_data import Judgement, Prompt, Response, split, split_of

PROMPTS = [Prompt.from_text(f"Question {number}") for number in range(2000)]
PAIR = (Response.from_text("a"), Response.from_text("b"))


def test_no_prompt_is_in_both_sides_and_no_record_is_lost():
    records = [Judgement(prompt, PAIR, ranks) for prompt in PROMPTS for ranks in ((1, 2), (2, 1))]
    train, test = split(records, 0.1)
    assert {r.prompt for r in train} & {r.prompt for r in test} == set()
    assert len(train) + len(test) == len(records)
    assert [r for r in records if r in set(test)] == test


def test_the_share_is_about_what_was_asked():
    """2,000 draws at 0.1: the standard deviation is sqrt(2000 * 0.1 * 0.9) = 13.4."""
    assert len(split(PROMPTS, 0.1)[1]) == pytest.approx(200, abs=4 * 13.4)
    assert split(PROMPTS, 0.0)[1] == [] and split(PROMPTS, 1.0)[0] == []


def test_a_larger_fraction_only_adds_prompts_and_order_changes_nothing():
    small = {p.id for p in split(PROMPTS, 0.1)[1]}
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert small < {p.id for p in split(shuffled, 0.2)[1]}
    assert small == {p.id for p in split(shuffled, 0.1)[1]}


def test_the_salt_draws_anew():
    small, other = (set(split(PROMPTS, 0.1, salt)[1]) for salt in ("", "again"))
    assert 0 < len(small & other) < len(small)


def test_the_side_of_a_prompt_is_pinned():
    """sha256("x" + id) mod 10,000 of "Why?" is 2920 (by `sha256sum`), so test above 0.2920."""
    assert split_of(Prompt.from_text("Why?"), 0.2920, "x") == "train"
    assert split_of(Prompt.from_text("Why?"), 0.2921, "x") == "test"


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match="A test fraction lies between 0 and 1, not at"):
        split_of(PROMPTS[0], fraction)
