"""Votes: which judgements cast one, on which pairs, and the same whichever way round."""

from __future__ import annotations

from itertools import permutations

import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.table import FIRST, SECOND, TIE, UNKNOWN, takes_part, votes_of

PROMPT = Prompt.from_text("Why?")
# By their ids, so that FIRST is the one named first here.
ONE, TWO, THREE, FOUR = sorted(map(Response.from_text, "abcd"), key=lambda response: response.id)


def judged(*ranks: int | None, who: str | None = "ann", **fields: object) -> Judgement:
    responses = (ONE, TWO, THREE, FOUR)[: len(ranks)]
    return Judgement(PROMPT, responses, ranks, who, **fields)  # type: ignore[arg-type]


def said(*judgements: Judgement) -> dict[tuple[str, str], list[int]]:
    """The verdicts on each pair, by the places of the responses in ONE, TWO, …"""
    place = {response.id: str(i) for i, response in enumerate((ONE, TWO, THREE, FOUR), 1)}
    votes = votes_of(judgements)
    found: dict[tuple[str, str], list[int]] = {}
    for pair, verdict in zip(votes.pair, votes.verdict, strict=True):
        key = place[votes.pairs[pair].first], place[votes.pairs[pair].second]
        found.setdefault(key, []).append(int(verdict))
    return found


def test_two_responses_are_one_vote():
    assert said(judged(1, 2), judged(2, 1), judged(1, 1), judged(3, 7)) == {
        ("1", "2"): [FIRST, SECOND, TIE, FIRST]
    }


def test_a_ranking_is_a_vote_on_every_pair_that_it_ranks():
    """Ranks 2, 1, none, 1: one loses to two and to four, which tie; three is in no pair."""
    assert said(judged(2, 1, None, 1)) == {
        ("1", "2"): [SECOND],
        ("1", "4"): [SECOND],
        ("2", "4"): [TIE],
    }


def test_the_losers_of_a_best_of_are_not_compared():
    assert said(judged(2, 1, 2, kind="best_of")) == {("1", "2"): [SECOND], ("2", "3"): [FIRST]}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_the_responses_makes_no_difference(order):
    assert said(judged(1, 3, 2).permuted(order)) == said(judged(1, 3, 2))


def test_two_responses_of_the_same_text_are_no_pair():
    same = Response.from_text(ONE.text, model="another")
    assert said(Judgement(PROMPT, (ONE, same), (1, 2), "ann")) == {}
    assert said(Judgement(PROMPT, (ONE, same, TWO), (1, 1, 2), "ann")) == {
        ("1", "2"): [FIRST, FIRST]
    }


@pytest.mark.parametrize(
    "judgement",
    [
        judged(1, 2, gold=(1, 2)),
        judged(None, None, outcome="unsure"),
        judged(1, 2, annotator_kind="human_aggregate"),
        judged(None, kind="binary", scores=(1.0,)),
    ],
    ids=["control", "unsure", "aggregate", "single"],
)
def test_what_is_no_vote(judgement):
    assert not takes_part(judgement)
    assert said(judgement) == {}


def test_criteria_are_different_items():
    votes = votes_of([judged(1, 2), judged(2, 1, criterion="harmless")])
    assert [pair.criterion for pair in votes.pairs] == ["overall", "harmless"]
    assert votes.counts().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_repeats_of_an_annotator_are_one_vote():
    """Ann: first, second, first. Bob: first and second, in both orders. Two are unknown."""
    rows = [
        judged(1, 2),
        judged(2, 1),
        judged(1, 2, who="bob"),
        judged(1, 2).swapped(),
        judged(2, 1, who="bob").swapped(),
        judged(2, 1, who=None),
        judged(2, 1, who=None),
    ]
    votes = votes_of(rows)
    assert votes.counts().tolist() == [[3, 0, 4]]
    once = votes.once()
    assert once.annotators == ("ann", "bob")
    assert list(zip(once.annotator, once.verdict, strict=True)) == [
        (0, FIRST), (1, TIE), (UNKNOWN, SECOND), (UNKNOWN, SECOND),
    ]  # fmt: skip
    assert once.judgement.tolist() == [0, 2, 5, 6]


def test_no_judgements_are_no_votes():
    votes = votes_of([]).once()
    assert (votes.pairs, votes.annotators, votes.counts().shape) == ((), (), (0, 3))
