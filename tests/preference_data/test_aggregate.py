"""Aggregates: each method's verdict by hand, what becomes of the record, and what must not matter.

The real votes are in test_real_votes.py.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.aggregate import METHODS, Method, aggregate

PROMPT = Prompt.from_text("Why?")
# By their ids: the order of an aggregate's responses.
ONE, TWO, THREE = sorted(map(Response.from_text, "abc"), key=lambda response: response.id)
RANKS = {"a": (1, 2), "t": (1, 1), "b": (2, 1)}
METHOD_NAMES = get_args(Method)


def judged(verdict: str, who: str | None, prompt: str = "Why?", **fields: object) -> Judgement:
    return Judgement(
        Prompt.from_text(prompt), (ONE, TWO), RANKS[verdict], who, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def votes(verdicts: str, prompt: str = "Why?") -> list[Judgement]:
    return [judged(verdict, str(who), prompt) for who, verdict in enumerate(verdicts)]


def ranked(who: str, *ranks: int | None, **fields: object) -> Judgement:
    return Judgement(PROMPT, (ONE, TWO, THREE), ranks, who, **fields)  # type: ignore[arg-type]


def one(rows: list[Judgement], method: Method = "majority") -> Judgement:
    (found,) = aggregate(rows, method)
    return found


def test_every_method_is_named():
    assert tuple(METHODS) == METHOD_NAMES
    with pytest.raises(ValueError, match=r"^A method is one of majority, dawid_skene, bradley_ter"):
        aggregate([], "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "ranks", "probability"),
    [
        ("aab", (1, 2), 2 / 3),
        ("bbat", (2, 1), 1.5 / 4),
        ("ttab", (1, 1), 0.5),
        ("tta", (1, 1), 2 / 3),
        ("ab", (1, 1), 0.5),
        ("ba", (1, 1), 0.5),
        ("at", (1, 1), 0.75),
        ("aabbt", (1, 1), 0.5),
        ("b", (2, 1), 0.0),
    ],
)
def test_the_majority_by_hand(verdicts, ranks, probability):
    """The share of first plus half that of ties; where the most frequent is two, a tie."""
    found = one(votes(verdicts))
    assert (found.ranks, found.votes) == (ranks, len(verdicts))
    assert found.probability == pytest.approx(probability)
    assert found.outcome == ("tie" if ranks == (1, 1) else None)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_votes_that_are_split_are_a_tie_whoever_was_first(method):
    for verdicts in ("ab", "ba"):
        found = one(votes(verdicts), method)
        assert (found.ranks, found.outcome) == ((1, 1), "tie")
        assert found.probability == pytest.approx(0.5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_vote_that_all_share_stands(method):
    found = one(votes("bbbb"), method)
    assert found.ranks == (2, 1)
    assert found.probability is not None
    assert found.probability < 0.1


def test_dawid_skene_outvotes_the_careless():
    """Ann and bob agree on 30 pairs, on which the other three answer at random."""
    chance = random.Random(1)
    rows = []
    for item in range(30):
        rows += [judged("ab"[item % 2], who, str(item)) for who in ("ann", "bob")]
        rows += [judged(chance.choice("ab"), who, str(item)) for who in ("x", "y", "z")]
    rows += [judged("a", who, "last") for who in ("ann", "bob")]
    rows += [judged("b", who, "last") for who in ("x", "y", "z")]
    assert aggregate(rows, "majority")[-1].ranks == (2, 1)
    last = aggregate(rows, "dawid_skene")[-1]
    assert last.ranks == (1, 2)
    assert last.probability is not None
    assert last.probability > 0.9


def test_bradley_terry_knows_the_other_pairs_of_the_prompt():
    """One and three are split by their own votes; one beat two, and two beat three."""
    rows = [
        Judgement(PROMPT, pair, (1, 2), str(who))
        for pair in ((ONE, TWO), (TWO, THREE))
        for who in range(3)
    ]
    rows += [Judgement(PROMPT, (ONE, THREE), ranks, str(ranks)) for ranks in ((1, 2), (2, 1))]
    assert aggregate(rows, "majority")[-1].ranks == (1, 1)
    assert aggregate(rows, "bradley_terry")[-1].ranks == (1, 2)


# --- more than two responses ----------------------------------------------------------------------


def test_rankings_by_their_borda_count():
    """One, two, three twice and two, three, one once. One over two 2/3, over three 2/3; two over
    three 3/3: in sum 4/3, 1/3 + 1 = 4/3 and 1/3. One and two are level."""
    found = one([ranked("ann", 1, 2, 3), ranked("bob", 1, 2, 3), ranked("cas", 3, 1, 2)])
    assert (found.ranks, found.outcome) == ((1, 1, 2), None)
    assert (found.probability, found.votes) == (None, 3)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_ranking_that_all_share_stands(method):
    rows = [ranked("ann", 2, 3, 1), ranked("bob", 4, 9, 2).permuted((2, 0, 1))]
    assert one(rows, method).ranks == (2, 3, 1)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_cycle_is_a_tie(method):
    """1 > 2 > 3, 2 > 3 > 1 and 3 > 1 > 2: the Condorcet paradox."""
    found = one([ranked("ann", 1, 2, 3), ranked("bob", 3, 1, 2), ranked("cas", 2, 3, 1)], method)
    assert (found.ranks, found.outcome) == ((1, 1, 1), "tie")


def test_what_nobody_ranked_is_not_ranked():
    assert one([ranked("ann", 1, None, 2), ranked("bob", 1, None, 2)]).ranks == (1, None, 2)


def test_best_ofs_count_the_times_each_was_best():
    """One best twice, two once: one over two 2/3, over three 1; two over three 1; 7/6, 5/6, 0 of 2
    and so the order."""
    rows = [ranked(who, 1, 2, 2, kind="best_of") for who in ("ann", "bob")]
    found = one([*rows, ranked("cas", 2, 1, 2, kind="best_of")])
    assert (found.kind, found.ranks) == ("ranking", (1, 2, 3))


# --- the record -----------------------------------------------------------------------------------


def test_the_record_says_what_it_stands_for():
    rows = [
        replace(row, responses=(TWO, ONE), ranks=row.ranks[::-1], group="g", split="train")
        for row in votes("aat")
    ]
    found = one(rows)
    assert found.responses == (ONE, TWO)
    assert found.item_id == rows[0].item_id
    assert (found.annotator, found.annotator_kind) == ("majority", "human_aggregate")
    assert (found.group, found.split, found.source, found.kind) == ("g", "train", None, "ranking")
    assert Judgement.from_json(found.to_json()) == found


def test_the_weight_is_the_reliability_of_so_many_votes():
    """Pairs aa, bb, ab, each evened out: n = 6, 3 and 3; observed 2; a = 1 - 5 · 2 / 18 = 4/9.
    Of two votes (8/9) / (13/9) = 8/13, of one 4/9."""
    rows = votes("aa", "p") + votes("bb", "q") + votes("ab", "r") + votes("a", "s")
    weights = [found.weight for found in aggregate(rows, "majority")]
    assert weights == pytest.approx([8 / 13, 8 / 13, 8 / 13, 4 / 9])


def test_the_weight_without_an_alpha_is_one_and_never_zero():
    assert one(votes("a")).weight == 1.0
    opposed = aggregate(votes("ab", "p") + votes("ab", "q"), "majority")
    assert [found.weight for found in opposed] == pytest.approx([0.02 / 1.01] * 2)


def test_a_tie_says_why_if_all_say_the_same():
    bad = [judged("t", who, outcome="both_bad") for who in ("ann", "bob")]
    assert one(bad).outcome == "both_bad"
    assert one([*bad, judged("t", "cas", outcome="both_good")]).outcome == "tie"


def test_the_strictest_split_holds():
    rows = [judged("a", "ann", split="train"), judged("a", "bob", split="test")]
    assert one(rows).split == "test"


def test_models_are_no_humans():
    rows = [replace(row, annotator_kind="model") for row in votes("ab")]
    assert one(rows).annotator_kind == "model"
    assert one([*rows, judged("a", "ann")]).annotator_kind == "human_aggregate"


def test_criteria_are_kept_apart():
    rows = votes("aa") + [replace(row, criterion="harmless") for row in votes("bb")]
    found = {row.criterion: row.ranks for row in aggregate(rows, "majority")}
    assert found == {"overall": (1, 2), "harmless": (2, 1)}


def test_what_takes_no_part():
    single = Judgement(PROMPT, (ONE,), (None,), "ann", kind="binary", scores=(1.0,))
    unsure = Judgement(PROMPT, (ONE, TWO), (None, None), "dan", "unsure")
    same = Judgement(PROMPT, (ONE, ONE), (1, 2), "ann")
    control = judged("b", "eve", gold=(2, 1))
    others = [single, unsure, same, control]
    assert [aggregate(others, method) for method in METHOD_NAMES] == [[], [], []]
    assert aggregate([*others, *votes("a")], "majority") == aggregate(votes("a"), "majority")


def test_an_aggregate_that_came_with_the_data_stands_where_nobody_else_judged():
    given = judged("b", None, annotator_kind="human_aggregate", votes=7)
    assert aggregate([given], "majority") == [given]
    assert one([given, *votes("a")]).ranks == (1, 2)


# --- what must not matter -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd() -> list[Judgement]:
    chance = random.Random(3)
    rows = []
    for item in range(12):
        responses = tuple(Response.from_text(f"{item} {letter}") for letter in "xyz")
        for who in range(5):
            ranks = tuple(chance.sample((1, 1, 2, 3), 3))
            pair = chance.choice("aatb")
            rows.append(Judgement(Prompt.from_text(str(item)), responses, ranks, str(who)))
            rows.append(judged(pair, str(who), f"pair {item}"))
    return chance.sample(rows, 80)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("change", ["names", "places", "rows"])
def test_names_places_and_row_order_make_no_difference(crowd, method, change):
    chance = random.Random(4)
    if change == "names":
        changed = [replace(row, annotator=f"x{9 - int(row.annotator)}") for row in crowd]
    elif change == "places":
        changed = [
            row.permuted(chance.sample(range(len(row.ranks)), len(row.ranks))) for row in crowd
        ]
    else:
        changed = chance.sample(crowd, len(crowd))
    expected = {row.item_id: row for row in aggregate(crowd, method)}
    found = aggregate(changed, method)
    assert len(found) == len(expected) == 24
    for row in found:
        other = expected[row.item_id]
        assert (row.responses, row.ranks, row.votes) == (other.responses, other.ranks, other.votes)
        assert row.probability == pytest.approx(other.probability, abs=1e-6)
        assert row.weight == pytest.approx(other.weight)
