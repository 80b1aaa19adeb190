"""Bradley-Terry: strengths by hand, what comparisons join, and ties."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from preference_data.records import Judgement, Prompt, Response
from preference_data.votes.bradley_terry import BradleyTerry, bradley_terry
from preference_data.votes.table import votes_of


def beat(winner: str, loser: str, times: int = 1, prompt: str = "Why?", tie: bool = False):
    responses = (Response.from_text(winner), Response.from_text(loser))
    row = Judgement(Prompt.from_text(prompt), responses, (1, 1 if tie else 2))
    return [row] * times


def strengths(found: BradleyTerry, prompt: str = "Why?") -> dict[str, float]:
    """Of the responses "a" to "d" that were compared."""
    names = {Response.from_text(letter).id: letter for letter in "abcd"}
    asked = Prompt.from_text(prompt).id
    return {
        names[response]: strength
        for (of, _, response), strength in zip(found.responses, found.strength, strict=True)
        if of == asked
    }


def test_one_vote_goes_as_far_as_the_prior_lets_it():
    """The gradient for the winner is 1 - p = 0.1 s, where the strengths s and -s are ln(p/(1-p))
    apart; so p = 0.9 nearly: 0.1 against 0.1 · 2.197 / 2 = 0.1099."""
    found = bradley_terry(votes_of(beat("a", "b")))
    one = strengths(found)
    p = 1 / (1 + np.exp(one["b"] - one["a"]))
    assert 1 - p == pytest.approx(0.05 * log(p / (1 - p)))
    assert p == pytest.approx(0.9, abs=0.01)
    assert max(found.probability[0], 1 - found.probability[0]) == pytest.approx(p)


def test_many_votes_give_the_shares_they_have():
    """a beats b in 9 of 10 and b beats c in 3 of 4: ln 9 and ln 3 apart, the prior all but gone."""
    rows = beat("a", "b", 9000) + beat("b", "a", 1000) + beat("b", "c", 7500) + beat("c", "b", 2500)
    one = strengths(bradley_terry(votes_of(rows)))
    assert one["a"] - one["b"] == pytest.approx(log(9), abs=1e-3)
    assert one["b"] - one["c"] == pytest.approx(log(3), abs=1e-3)
    assert sum(one.values()) == pytest.approx(0.0, abs=1e-6)


def test_other_pairs_of_the_prompt_tell_too():
    """Votes on a and c are split; but a beat b, and b beat c."""
    rows = beat("a", "c") + beat("c", "a") + beat("a", "b", 3) + beat("b", "c", 3)
    one = strengths(bradley_terry(votes_of(rows)))
    assert one["a"] > one["b"] > one["c"]
    assert one["b"] == pytest.approx(0.0, abs=1e-8)


def test_a_tie_is_half_a_win_for_either():
    one = strengths(bradley_terry(votes_of(beat("a", "b", 2, tie=True))))
    assert one == pytest.approx({"a": 0.0, "b": 0.0}, abs=1e-8)
    ties = bradley_terry(votes_of(beat("a", "b", 2, tie=True) + beat("a", "b")))
    wins = bradley_terry(votes_of(beat("a", "b", 2) + beat("b", "a", 1)))
    assert ties.strength == pytest.approx(wins.strength), "1 + 2/2 of 3, as 2 of 3"


def test_what_comparisons_do_not_join_are_components():
    rows = beat("a", "b") + beat("c", "d") + beat("a", "b", prompt="How?")
    found = bradley_terry(votes_of(rows))
    parts = {
        (of, response): part
        for (of, _, response), part in zip(found.responses, found.component, strict=True)
    }
    assert len(set(parts.values())) == 3
    a, b, c = (Response.from_text(letter).id for letter in "abc")
    why, how = Prompt.from_text("Why?").id, Prompt.from_text("How?").id
    assert parts[why, a] == parts[why, b] != parts[why, c]
    assert parts[how, a] == parts[how, b] != parts[why, a]
    joined = bradley_terry(votes_of(rows + beat("b", "c")))
    assert len(set(joined.component.tolist())) == 2


def test_no_votes_have_no_strengths():
    found = bradley_terry(votes_of([]))
    assert (found.responses, found.strength.size, found.probability.size) == ((), 0, 0)
