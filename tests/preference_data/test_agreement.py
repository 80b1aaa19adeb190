"""Agreement: published examples, numbers by hand, an independent program, and what must not matter.

The real votes are in test_real_votes.py.
"""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from math import sqrt

import numpy as np
import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.agreement import (
    Agreement,
    agreement,
    cohen_kappa,
    coincidences,
    fleiss_kappa,
    krippendorff_alpha,
)

RANKS = {"a": (1, 2), "t": (1, 1), "b": (2, 1)}


def judged(item: int, verdict: str, who: str | None) -> Judgement:
    responses = (Response.from_text(f"{item} left"), Response.from_text(f"{item} right"))
    return Judgement(Prompt.from_text("Why?"), responses, RANKS[verdict], who)


def table(*items: str) -> list[Judgement]:
    """Each item is the verdicts of the annotators 0, 1, …; a space is a missing one."""
    return [
        judged(item, verdict, str(who))
        for item, verdicts in enumerate(items)
        for who, verdict in enumerate(verdicts)
        if verdict != " "
    ]


def values(found: Agreement) -> list[float | None]:
    five = (found.percent, found.kappa, found.fleiss, found.alpha_nominal, found.alpha_ordinal)
    return [None if one is None else one.value for one in five]


# --- coefficients ---------------------------------------------------------------------------------


def test_krippendorffs_example_of_four_observers():
    """Krippendorff 2011, section C: 12 units, values 1 to 5, missing data.

    The values of each unit, without the one that only one observer gave: 111, 2232, 3333, 3333,
    2222, 1234, 4444, 1121, 2222, 555, 11. So n = 40, of them 9, 13, 10, 5 and 3.

    Nominal: units 2 and 8 have 6 unequal ordered pairs of weight 1/3, unit 6 has 12: 2 + 2 + 4 = 8
    observed. Expected 40² - (81 + 169 + 100 + 25 + 9) = 1216. 1 - 39 · 8 / 1216 = 0.743.

    Ordinal: mid-ranks 4.5, 15.5, 27, 34.5, 38.5. Observed 2 · 11.5² (unit 2) + 2 · 11² (unit 8)
    + 2/3 (11² + 22.5² + 30² + 11.5² + 19² + 7.5²) (unit 6) = 1891. Expected 2 · (117 · 121
    + 90 · 506.25 + 45 · 900 + 27 · 1156 + 130 · 132.25 + 65 · 361 + 39 · 529 + 50 · 56.25
    + 30 · 132.25 + 15 · 16) = 399480. 1 - 39 · 1891 / 399480 = 0.815.
    """
    units = ("111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11")
    counts = np.array([[unit.count(value) for value in "12345"] for unit in (*units, "3")], float)
    summed = coincidences(counts).sum(axis=0)
    assert summed.sum() == pytest.approx(40)
    assert krippendorff_alpha(summed, ordinal=False) == pytest.approx(1 - 39 * 8 / 1216)
    assert krippendorff_alpha(summed, ordinal=True) == pytest.approx(1 - 39 * 1891 / 399480)


def test_the_example_of_three_coders():
    """Hayes and Krippendorff's data: 15 units, of which 12 have two values or more; n = 26.

    Values 1 to 4 come up 7, 4, 10 and 5 times, and 6 of the 26 coincidences are unequal: one unit
    of 3 and 1, two of 3 and 4, the last of them 334 with 4 ordered pairs of weight 1/2.
    Nominal 1 - 25 · 6 / (676 - 190) = 0.691; ordinal is published as 0.807.
    """
    coders = ("*****34121133*3", "1*213343*******", "**21344*21133*4")
    units = list(zip(*coders, strict=True))
    counts = np.array([[unit.count(value) for value in "1234"] for unit in units], float)
    summed = coincidences(counts).sum(axis=0)
    assert krippendorff_alpha(summed, ordinal=False) == pytest.approx(1 - 25 * 6 / 486)
    assert krippendorff_alpha(summed, ordinal=True) == pytest.approx(0.807, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_alpha_is_that_of_an_independent_program(seed, level):
    program = pytest.importorskip("krippendorff")
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.2, size=(30, 4)).astype(float)
    theirs = program.alpha(value_counts=counts, level_of_measurement=level)
    ours = krippendorff_alpha(coincidences(counts).sum(axis=0), ordinal=level == "ordinal")
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_cohens_kappa_by_hand():
    """0.7 agree; by chance 0.5 · 0.6 + 0.5 · 0.4 = 0.5 would: 0.2 / 0.5."""
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)


def test_fleiss_kappa_by_hand():
    """Values 10, 20 and 10 of 40: chance 1/16 + 1/4 + 1/16 = 0.375; (0.5 - 0.375) / 0.625."""
    assert fleiss_kappa(np.array(0.5), np.array([10.0, 20.0, 10.0])) == pytest.approx(0.2)


# --- of judgements --------------------------------------------------------------------------------


def test_two_annotators_by_hand():
    """Four items: both first, both tie, first and tie, both second; a fifth that one judged.

    Values 3, 3, 2; with sides evened out 2.5, 3, 2.5 of 8. Chance (6.25 + 9 + 6.25) / 64 = 0.3359.
    Kappas (0.75 - 0.3359) / 0.6641 = 0.6235; Cohen's margins, evened out, are (1, 2, 1) / 4 and
    (1.5, 1, 1.5) / 4: chance (1.5 + 2 + 1.5) / 16 = 0.3125, so (0.75 - 0.3125) / 0.6875.
    Nominal 1 - 7 · 2 / (64 - 21.5). Ordinal: mid-ranks 1.25, 4, 6.75; observed 2 · 2.75²; expected
    2 (2 · 7.5 · 2.75² + 6.25 · 5.5²) = 605; 1 - 7 · 15.125 / 605 = 0.825.
    """
    found = agreement(table("aa", "tt", "at", "bb"))
    assert (found.items, found.shared, found.annotators, found.judgements) == (4, 4, 2, 8)
    expected = [0.75, 0.4375 / 0.6875, 0.4140625 / 0.6640625, 1 - 14 / 42.5, 0.825]
    assert values(found) == pytest.approx(expected)


def test_an_item_that_one_annotator_judged_says_nothing():
    found = agreement(table("aa", "tt", "at", "bb", " b"))
    assert (found.items, found.shared, found.judgements) == (5, 4, 9)
    whole = agreement(table("aa", "tt", "at", "bb"))
    assert found.fleiss is None, "the items were not judged equally often"
    assert replace(found, items=4, judgements=8, fleiss=whole.fleiss) == whole


def test_three_annotators_have_no_cohen_and_missing_ones_no_fleiss():
    """Items aab and bbb: evened out 3 and 3 of 6; observed 4 / 2 = 2 of 18: 1 - 5 · 2 / 18."""
    full = agreement(table("aab", "bbb"))
    assert values(full) == pytest.approx([2 / 3, None, 1 / 3, 1 - 10 / 18, 1 - 10 / 18])
    assert agreement(table("aab", "bb ")).fleiss is None


def test_unknown_annotators_are_different_people():
    found = agreement([judged(0, verdict, None) for verdict in "aab"])
    assert (found.annotators, found.shared, found.kappa) == (0, 1, None)
    assert found.percent is not None
    assert found.percent.value == pytest.approx(1 / 3)


def test_what_is_not_defined_is_none():
    nothing = agreement([])
    assert astuple(nothing) == (0, 0, 0, 0, None, None, None, None, None)
    assert values(agreement(table("a ", " b"))) == [None] * 5
    assert values(agreement(table("tt", "tt"))) == [1.0, None, None, None, None]


def test_one_annotators_repeats_do_not_agree_with_each_other():
    rows = table("ab", "bb")
    assert values(agreement([*rows, rows[0], rows[0].swapped()])) == values(agreement(rows))


# --- intervals ------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_share_of_independent_items():
    """75 of 200 items disagree: 0.625, give or take 1.96 sqrt(0.625 · 0.375 / 200) = 0.067."""
    found = agreement(table(*["aa"] * 125, *["ab"] * 75), samples=4000).percent
    assert found is not None
    assert found.value == 0.625
    half = 1.96 * sqrt(0.625 * 0.375 / 200)
    assert (found.low, found.high) == pytest.approx((0.625 - half, 0.625 + half), abs=0.008)


def test_the_pairs_of_a_ranking_are_drawn_together():
    """40 rankings of three by two annotators, 10 of them reversed: 40 things to draw and not 120.

    1.96 sqrt(0.75 · 0.25 / 40) is 0.134 on either side, where 120 would give 0.077.
    """
    rows = []
    for prompt in range(40):
        responses = tuple(Response.from_text(f"{prompt} {letter}") for letter in "xyz")
        second = (3, 2, 1) if prompt < 10 else (1, 2, 3)
        for who, ranks in (("ann", (1, 2, 3)), ("bob", second)):
            rows.append(Judgement(Prompt.from_text(str(prompt)), responses, ranks, who))
    found = agreement(rows, samples=4000)
    assert (found.items, found.judgements) == (120, 80)
    assert found.percent is not None
    assert (found.percent.high - found.percent.low) / 2 == pytest.approx(0.134, abs=0.015)


def test_the_seed_decides_the_samples():
    rows = table(*["aa", "ab", "tb", "bb"] * 5)
    assert agreement(rows, seed=1) == agreement(rows, seed=1)
    assert agreement(rows, seed=1) != agreement(rows, seed=2)


# --- what must not matter -------------------------------------------------------------------------


@pytest.fixture
def crowd() -> list[Judgement]:
    chance = random.Random(3)
    return [
        judged(item, chance.choice("aaatb" if item % 2 else "bbtta"), str(who))
        for item in range(30)
        for who in range(6)
        if chance.random() < 0.6
    ]


@pytest.mark.parametrize("change", ["names", "sides", "rows"])
def test_names_sides_and_row_order_make_no_difference(crowd, change):
    chance = random.Random(4)
    if change == "names":
        changed = [replace(row, annotator=f"x{9 - int(row.annotator)}") for row in crowd]
    elif change == "sides":
        changed = [row.swapped() if chance.random() < 0.5 else row for row in crowd]
    else:
        changed = chance.sample(crowd, len(crowd))
    for one, other in zip(astuple(agreement(changed)), astuple(agreement(crowd)), strict=True):
        assert one == pytest.approx(other)


def test_it_makes_no_difference_which_side_of_a_pair_is_the_better(crowd):
    """Every verdict on some items turned round: the coefficients only know pairs of equals."""
    turned = [
        replace(row, ranks=row.ranks[::-1]) if "1" in row.responses[0].text else row
        for row in crowd
    ]
    assert values(agreement(turned)) == pytest.approx(values(agreement(crowd)))
