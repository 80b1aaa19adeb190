"""Annotators' records, each measure by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.annotators import AnnotatorQuality, Proportion, annotators

RANKS = {"a": (1, 2), "t": (1, 1), "b": (2, 1), "?": (None, None)}


def judged(item: int, verdict: str, who: str | None = "ann", **fields: object) -> Judgement:
    responses = (Response.from_text(f"{item} x"), Response.from_text(f"{item} y"))
    outcome = "unsure" if verdict == "?" else None
    return Judgement(
        Prompt.from_text("Why?"), responses, RANKS[verdict], who, outcome, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def of(rows: list[Judgement], who: str = "ann") -> AnnotatorQuality:
    (found,) = (one for one in annotators(rows) if one.annotator == who)
    return found


def test_wilsons_interval_by_hand():
    """8 of 10, z² = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half of the width
    1.96 sqrt(0.016 + 0.0096037) / 1.38415 = 0.22658."""
    found = Proportion(8, 10).interval
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    assert Proportion(0, 0).interval is None
    none = Proportion(0, 5).interval
    assert none is not None
    assert (none.value, none.low) == (0.0, 0.0)


def test_the_consensus_is_that_of_the_others():
    """Item 0: the others say a, ann too. Item 1: b, ann does not. Item 2: the others are split.
    Item 3: nobody else. With her own vote item 1 would be split and item 2 be hers."""
    rows = [
        judged(0, "a"), judged(0, "a", "bob"), judged(0, "t", "cas"), judged(0, "a", None),
        judged(1, "a"), judged(1, "b", "bob"),
        judged(2, "a"), judged(2, "a", "bob"), judged(2, "b", "cas"),
        judged(3, "a"),
    ]  # fmt: skip
    assert of(rows).consensus == Proportion(1, 2)


def test_left_is_the_response_shown_first():
    """Won by place: left; left, listed second; right; a tie and an unknown place do not count."""
    rows = [
        judged(0, "a", position=(0, 1)),
        judged(1, "b", position=(1, 0)),
        judged(2, "a", position=(1, 0)),
        judged(3, "t", position=(0, 1)),
        judged(4, "a"),
    ]
    assert of(rows).left == Proportion(2, 3)
    assert of([row.swapped() for row in rows]).left == Proportion(2, 3)


def test_repeats_are_compared_two_by_two_in_either_order():
    """Item 0: a, a, and b given in reversed order, which is a: 3 of 3. Item 1: a and b: 0 of 1."""
    rows = [
        judged(0, "a"), judged(0, "a"), judged(0, "a").swapped(),
        judged(1, "a"), judged(1, "b"), judged(1, "a", "bob"),
        judged(2, "a"),
    ]  # fmt: skip
    assert of(rows).repeats == Proportion(3, 4)
    assert of(rows, "bob").repeats == Proportion(0, 0)


def test_control_items_count_apart():
    rows = [
        judged(0, "a", gold=(1, 2)),
        judged(1, "b", gold=(1, 2)),
        judged(2, "t", gold=(1, 1)),
        judged(3, "a", gold=(1, 1)),
        judged(4, "?", gold=(1, 2)),
        judged(0, "a").swapped(),
    ]
    found = of(rows)
    assert (found.control, found.judgements) == (Proportion(2, 5), 1)
    assert (found.repeats, found.consensus) == (Proportion(0, 0), Proportion(0, 0))


def test_a_control_item_of_many_asks_for_the_pairs_with_a_better_one():
    responses = tuple(map(Response.from_text, "xyz"))

    def row(*ranks: int | None) -> Judgement:
        return Judgement(Prompt.from_text("Why?"), responses, ranks, "ann", gold=(1, 2, 2))

    assert of([row(1, 2, 3), row(1, 2, 2)]).control == Proportion(2, 2)
    assert of([row(2, 1, 3), row(1, 1, 2), row(1, None, 2)]).control == Proportion(0, 3)


def test_ties_leave_abstentions_out():
    found = of([judged(0, "t"), judged(1, "a"), judged(2, "?"), judged(3, "t")])
    assert (found.ties, found.judgements) == (Proportion(2, 3), 4)


def test_the_longest_run_is_of_the_same_side_whatever_was_there():
    """As shown: left, left (listed second), left, right. By the texts the longest run is 2."""
    rows = [
        judged(0, "a", position=(0, 1)),
        judged(1, "b", position=(1, 0)),
        judged(2, "a", position=(0, 1)),
        judged(3, "a", position=(1, 0)),
    ]
    assert of(rows).longest_run == 3
    assert of([judged(i, "?") for i in range(4)]).longest_run == 4


def test_the_run_follows_the_time_if_every_judgement_has_one():
    times = (3, 1, 4, 2)
    rows = [
        judged(i, verdict, created_at=f"2026-01-0{time}T00:00:00Z")
        for i, (verdict, time) in enumerate(zip("abab", times, strict=True))
    ]
    assert of(rows).longest_run == 2
    assert of([replace(rows[0], created_at=None), *rows[1:]]).longest_run == 1


def test_seconds_are_the_median_of_those_known():
    rows = [judged(i, "a", duration=seconds) for i, seconds in enumerate((1.0, None, 9.0, 4.0))]
    assert of(rows).median_seconds == 4.0
    assert of([judged(0, "a")]).median_seconds is None


def test_who_is_listed_and_in_which_order():
    rows = [
        judged(0, "a", "cas"), judged(0, "a", "bob"), judged(1, "a", "bob"), judged(0, "a", "ann"),
        judged(0, "a", None), judged(0, "a", "crowd", annotator_kind="human_aggregate"),
        Judgement(
            Prompt.from_text("Why?"), (Response.from_text("x"),), (None,), "dan",
            kind="binary", scores=(1.0,),
        ),
    ]  # fmt: skip
    assert [(one.annotator, one.judgements) for one in annotators(rows)] == [
        ("bob", 2), ("ann", 1), ("cas", 1),
    ]  # fmt: skip
    assert annotators([]) == []


def test_names_and_row_order_make_no_difference():
    chance = random.Random(5)
    rows = [
        judged(item, chance.choice("aab?t"), who, position=(0, 1), duration=float(item),
               created_at=f"2026-01-01T00:00:{item:02}Z")
        for item in range(20) for who in ("ann", "bob", "cas")
    ]  # fmt: skip
    assert annotators(chance.sample(rows, len(rows))) == annotators(rows)
    renamed = [replace(row, annotator=f"z{row.annotator}") for row in rows]
    assert [replace(one, annotator=one.annotator[1:]) for one in annotators(renamed)] == annotators(
        rows
    )
