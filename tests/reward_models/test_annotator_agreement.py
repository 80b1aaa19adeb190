"""The model among the annotators, and how far these agree: the ceiling, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from preference_data.records import Judgement, Prompt, Response
from reward_models.annotator_agreement import annotator_agreement

GOOD, BAD = Response.from_text("good"), Response.from_text("bad")


def votes(prompt: str, **sides: int) -> list[Judgement]:
    """Judgements of one pair: 1 for GOOD, -1 for BAD, 0 for a tie; in either order."""
    ranks = {1: (1, 2), -1: (2, 1), 0: (1, 1)}
    found = []
    for who, side in sides.items():
        one = Judgement(Prompt.from_text(prompt), (GOOD, BAD), ranks[side], who)
        found.append(one.swapped() if who == "cleo" else one)
    return found


def scores(**margins: float) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for name, margin in margins.items():
        prompt = Prompt.from_text(name).id
        found |= {(prompt, GOOD.id): margin, (prompt, BAD.id): 0.0}
    return found


ROWS = [
    *votes("one", ann=1, bob=1, cleo=1),
    *votes("two", ann=1, bob=1, cleo=-1),
    *votes("three", ann=1, bob=-1, cleo=0),
    *votes("four", ann=-1),
    *votes("unknown", ann=1, bob=1, cleo=1),
]
MODEL = scores(one=2.0, two=-1.0, three=0.5, four=1.0)


def value(found: Any) -> Any:
    return pytest.approx(found["value"])


def test_the_ceiling_of_three_annotators_by_hand():
    """The model says + on one, - on two, + on three and four; nobody's votes on "unknown" count.

    Decided votes: 3 + 3 + 2 + 1 = 9, of whose opinion the model is 3 + 1 + 1 + 0 = 5 times.
    Pairs of people: one 3 of 3 agree; two 1 of 3; three 0 of 1: (1 + 1/3 + 0) / 3 = 4/9. The model
    with one of them: 1, 1/3, 1/2: mean 11/18.
    Others' majority: one: all + for each of 3. Two: for ann and bob one + and one -, no majority;
    for cleo +. Three: the other's one vote. So 3 + 1 + 2 = 6 votes: of the majority's opinion are
    3 + 0 + 0 = 3 people; the model 3 (one), 0 (two, it says -), and of three, where the others say
    - (for ann) and + (for bob), 1: 4.
    """
    found = annotator_agreement(ROWS, MODEL, seed=0)
    assert found is not None
    assert found["votes"] == 9 and value(found["model"]) == 5 / 9
    assert found["pairwise"]["pairs"] == 3
    assert value(found["pairwise"]["people"]) == 4 / 9
    assert value(found["pairwise"]["model"]) == 11 / 18
    assert found["leave_one_out"]["votes"] == 6
    assert value(found["leave_one_out"]["people"]) == 3 / 6
    assert value(found["leave_one_out"]["model"]) == 4 / 6


def test_each_annotator_by_hand():
    """Ann's 4 votes: + + + -; the model + - + +: 2 of 4. Shared with a majority: one and three, of
    which she has one; the model is with the others on one alone. Cleo's 2: + -, both the
    model's; on two the others are against her, and against the model."""
    found = annotator_agreement(ROWS, MODEL, seed=0)
    assert found is not None
    rows = {row["annotator"]: row for row in found["annotators"]}
    assert [row["annotator"] for row in found["annotators"]] == ["ann", "bob", "cleo"]
    assert (rows["ann"]["votes"], rows["ann"]["shared"]) == (4, 2)
    assert value(rows["ann"]["model"]) == 0.5
    assert value(rows["ann"]["with_others"]) == 0.5
    assert value(rows["ann"]["model_with_others"]) == 0.5
    assert value(rows["cleo"]["model"]) == 1.0
    assert value(rows["cleo"]["with_others"]) == 0.5
    assert value(rows["cleo"]["model_with_others"]) == 0.5


def test_a_model_that_is_one_of_them_has_his_agreement():
    """Scores that say what ann says: in her place, it is of the others' opinion as often as she."""
    same = scores(one=1.0, two=1.0, three=1.0, four=-1.0)
    found = annotator_agreement(ROWS, same, seed=0)
    assert found is not None
    ann = found["annotators"][0]
    assert ann["model"]["value"] == 1.0
    assert ann["with_others"] == ann["model_with_others"]


def test_without_shared_pairs_there_is_no_ceiling():
    rows = [*votes("one", ann=1), *votes("two", bob=1)]
    found = annotator_agreement(rows, scores(one=1.0, two=0.0), seed=0)
    assert found is not None
    assert value(found["model"]) == 0.75  # equal scores are half right
    assert found["pairwise"]["people"] is None and found["leave_one_out"]["people"] is None
    assert annotator_agreement(rows, {}, seed=0) is None
    assert annotator_agreement(votes("one", ann=0), MODEL, seed=0) is None
