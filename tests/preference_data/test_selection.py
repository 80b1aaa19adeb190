"""What to label next: the information of a label, and which pairs are asked how."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from preference_data.labelling.selection import (
    Candidates,
    Plan,
    Question,
    choose,
    information,
    on_one_scale,
    select,
)
from preference_data.quarantine import DataError
from preference_data.records import Judgement, Message, Prompt, Response

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven"]


def candidates(name: str, *scores: tuple[float, ...]) -> Candidates:
    """A prompt with one answer for each entry, which holds the scores of every model."""
    answers = tuple(Response.from_text(f"{name} {word}") for word in WORDS[: len(scores)])
    return Candidates(Prompt.from_text(name), answers, scores)


def bare(count: int, **options: Any) -> Plan:
    """A plan without a random share and without repeats, unless told."""
    return Plan(count, **{"random_share": 0.0, "repeats": 0.0, **options})


def words(question: Question) -> frozenset[str]:
    return frozenset(response.text for response in question.responses)


def judged(one: Candidates, places: tuple[int, ...], ranks: Any, **facts: Any) -> Judgement:
    return Judgement(one.prompt, tuple(one.responses[i] for i in places), ranks, **facts)


# --- information ---------------------------------------------------------------------------------


def test_one_model_s_information_is_the_entropy_of_its_prediction():
    """ln 3 is odds of 3 to 1: -3/4 log2 3/4 - 1/4 log2 1/4 = 2 - 3/4 log2 3 = 0.811278."""
    found = information(np.array([[0.0, math.log(3), -math.log(3), 800.0]]))
    assert found == pytest.approx([1.0, 0.811278, 0.811278, 0.0], abs=1e-6)


def test_of_several_models_it_is_what_they_disagree_about():
    """Predictions of 3/4 and 1/4: the mean is 1/2, so 1 - 0.811278. Agreed, even on 1/2, it is 0;
    certain of the opposite, it is the whole bit; 3/4 and 1/2: H(5/8) = 0.954434, less the mean of
    0.811278 and 1."""
    odds = math.log(3)
    found = information(np.array([[odds, 0.0, odds, 800.0, odds], [-odds, 0.0, odds, -800.0, 0.0]]))
    assert found == pytest.approx([0.188722, 0.0, 0.0, 1.0, 0.048795], abs=1e-6)


def test_information_knows_no_sides():
    differences = np.random.default_rng(0).normal(0.0, 3.0, (4, 50))
    assert information(-differences) == pytest.approx(information(differences), abs=1e-12)


def test_differences_are_brought_to_the_scale_of_the_models_on_average():
    """Root mean squares 1 and 4, geometric mean 2."""
    levelled = on_one_scale(np.array([[1.0, -1.0], [4.0, 4.0]]))
    assert levelled == pytest.approx(np.array([[2.0, -2.0], [2.0, 2.0]]))
    alone = np.array([[0.3, -5.0]])
    assert on_one_scale(alone) == pytest.approx(alone)


def test_a_model_that_scores_all_alike_is_named():
    with pytest.raises(DataError, match="Model 2 of 2 gives the answers of each prompt the same"):
        select([candidates("p", (1.0, 3.0), (2.0, 3.0))], bare(1))


# --- the informative choice ----------------------------------------------------------------------


def test_one_model_asks_first_where_it_is_in_doubt():
    """Differences of 3, 0.1 and 1 on three prompts."""
    given = [candidates(name, (0.0,), (gap,)) for name, gap in (("p", 3), ("q", 0.1), ("r", 1))]
    asked = select(given, bare(2))
    assert {question.prompt.text for question in asked} == {"q", "r"}
    assert max(asked, key=lambda one: one.information).prompt.text == "q"


def test_several_models_ask_first_where_they_contradict_each_other():
    """On q both are in doubt, on r they are sure of the opposite; p and s keep the scales alike."""
    given = [
        candidates("p", (4.0, 4.0), (0.0, 0.0)),
        candidates("q", (0.01, 0.0), (0.0, 0.0)),
        candidates("r", (4.0, 0.0), (0.0, 4.0)),
        candidates("s", (0.0, 0.0), (4.0, 4.0)),
    ]
    [question] = select(given, bare(1))
    assert question.prompt.text == "r"
    assert question.information > 0.8
    assert sorted(question.scores) == [(0.0, 4.0), (4.0, 0.0)]


def test_no_model_decides_by_being_loud():
    """One model a hundred times as loud as the other: the same pairs in the same order."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(40, 2, 2))
    usual = [candidates(f"p{n}", *map(tuple, one.tolist())) for n, one in enumerate(scores)]
    # A tenth and ten times: the geometric mean of the two, and so the scale, stays.
    loud = scores * [0.1, 10.0]
    louder = [candidates(f"p{n}", *map(tuple, one.tolist())) for n, one in enumerate(loud)]
    first, second = select(usual, bare(10)), select(louder, bare(10))
    assert [one.id for one in first] == [one.id for one in second]
    assert [one.information for one in first] == pytest.approx([one.information for one in second])


def test_a_prompt_is_asked_about_so_often_and_not_more():
    """All six pairs of p are more informative than that of q."""
    given = [
        candidates("p", (0.0,), (0.01,), (0.02,), (0.03,)),
        candidates("q", (0.0,), (2.0,)),
    ]
    counts = Counter(question.prompt.text for question in select(given, bare(9)))
    assert counts == {"p": 2, "q": 1}
    counts = Counter(one.prompt.text for one in select(given, bare(9, max_per_prompt=5)))
    assert counts == {"p": 5, "q": 1}


def test_turns_of_one_conversation_count_as_one_prompt():
    later = Prompt((Message("user", "p"), Message("assistant", "a"), Message("user", "b")))
    given = [candidates("p", (0.0,), (0.1,)), candidates("q", (0.0,), (9.0,))]
    given.append(Candidates(later, given[0].responses, ((0.0,), (0.2,))))
    asked = select(given, bare(3, max_per_prompt=1))
    assert Counter(len(question.prompt.messages) for question in asked) == {1: 2}


def test_no_pair_is_too_far_down_to_be_asked():
    given = [candidates(f"p{n}", (0.0,), (n / 100,)) for n in range(1, 1102)]
    asked = select(given, bare(2000))
    assert len({question.prompt.text for question in asked}) == len(asked) == 1101


def test_answers_of_the_same_words_are_not_compared():
    """Of three pairs, the two most doubtful would be the same words, and 0.2 apart."""
    texts = ["It is Paris.", "it is PARIS!", "It is Rome."]
    answers = tuple(map(Response.from_text, texts))
    given = [Candidates(Prompt.from_text("p"), answers, ((0.0,), (0.0,), (0.2,)))]
    asked = select(given, bare(3, max_per_prompt=3))
    assert sorted(sorted(words(one)) for one in asked) == [
        ["It is Paris.", "It is Rome."],
        ["It is Rome.", "it is PARIS!"],
    ]
    same = [Candidates(given[0].prompt, answers[:2], ((0.0,), (1.0,)))]
    with pytest.raises(DataError, match="all but the same"):
        select(same, bare(1))


# --- earlier judgements --------------------------------------------------------------------------


def test_what_people_have_judged_is_not_asked_again():
    """Of the pairs ab, ac and bc, a ranking of c over a, with b not ranked, leaves ab and bc."""
    one = candidates("p", (0.0,), (1.0,), (2.0,))
    earlier = [judged(one, (2, 0, 1), (1, 2, None))]
    asked = select([one], bare(3, max_per_prompt=3), earlier)
    assert {words(question) for question in asked} == {
        frozenset({"p amber", "p birch"}),
        frozenset({"p birch", "p cedar"}),
    }


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        ({}, False),
        ({"outcome": "tie", "ranks": (1, 1)}, False),
        ({"outcome": "unsure", "ranks": (None, None)}, True),
        ({"annotator_kind": "model"}, True),
        ({"criterion": "harmless"}, True),
    ],
)
def test_only_people_s_verdicts_overall_count(facts: dict[str, Any], asked: bool):
    given = [candidates("p", (0.0,), (1.0,)), candidates("q", (0.0,), (1.0,))]
    earlier = [judged(given[0], (1, 0), **{"ranks": (1, 2), **facts})]
    found = {question.prompt.text for question in select(given, bare(2), earlier)}
    assert found == ({"p", "q"} if asked else {"q"})


def test_losers_of_a_best_of_were_not_compared():
    one = candidates("p", (0.0,), (1.0,), (2.0,))
    earlier = [judged(one, (0, 1, 2), (1, 2, 2), kind="best_of")]
    [question] = select([one], bare(3, max_per_prompt=3), earlier)
    assert words(question) == {"p birch", "p cedar"}


def test_few_votes_can_be_made_more():
    """p has two votes, once reversed; q an aggregate of three; r one."""
    given = [candidates(name, (0.0,), (1.0,)) for name in "pqr"]
    earlier = [
        judged(given[0], (0, 1), (1, 2), annotator="a"),
        judged(given[0], (1, 0), (1, 2), annotator="b"),
        judged(given[1], (0, 1), (1, 2), annotator_kind="human_aggregate", votes=3),
        judged(given[2], (0, 1), (1, 2)),
    ]
    for votes, left in ((2, {"r"}), (3, {"p", "r"}), (4, {"p", "q", "r"})):
        asked = select(given, bare(3, votes=votes), earlier)
        assert {question.prompt.text for question in asked} == left
    with pytest.raises(DataError, match="of 3 pairs, people have judged all"):
        select(given, bare(3), earlier)


# --- the random share ----------------------------------------------------------------------------


def test_the_random_share_is_uniform():
    """60 pairs, 15 drawn with each of 100 seeds: 25 draws of a pair are expected, whatever its
    information. Chi-square with 59 degrees of freedom is below 98 in 999 of 1,000 worlds."""
    given = [candidates(f"p{n}", (0.0,), (n / 10 + 0.1,)) for n in range(60)]
    drawn: Counter[str] = Counter()
    for seed in range(100):
        asked = select(given, bare(15, random_share=1.0, seed=seed))
        drawn.update(question.prompt.text for question in asked)
    counts = np.array([drawn[f"p{n}"] for n in range(60)])
    assert counts.sum() == 1500
    # Drawn without replacement, a count varies by 45/59 of what a multinomial one does.
    assert ((counts - 25.0) ** 2 / 25.0).sum() * 59 / 45 < 98


def test_the_random_share_has_its_prompts_to_itself():
    given = [candidates(f"p{n}", (0.0,), (n / 40,), (n / 20,)) for n in range(1, 41)]
    asked = select(given, Plan(20, random_share=0.25, repeats=0.0, seed=5))
    by_why = {
        why: [question.prompt.text for question in asked if question.why == why]
        for why in ("random", "informative")
    }
    assert {why: len(prompts) for why, prompts in by_why.items()} == {
        "random": 5,
        "informative": 15,
    }
    assert not set(by_why["random"]) & set(by_why["informative"])


def test_random_pairs_have_their_information_noted_too():
    asked = select([candidates("p", (0.0,), (math.log(3),))], bare(1, random_share=1.0))
    assert [question.why for question in asked] == ["random"]
    assert asked[0].information == pytest.approx(0.811278, abs=1e-6)


# --- how they are shown --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> list[Candidates]:
    """60 prompts of three answers under two models; the first answer is always the better one."""
    rng = np.random.default_rng(1)
    scores = rng.normal(0.0, 0.3, (60, 3, 2)) + np.array([4.0, 2.0, 0.0])[None, :, None]
    return [candidates(f"p{n}", *map(tuple, one.tolist())) for n, one in enumerate(scores)]


def test_the_models_favourite_stands_first_half_of_the_time(many: list[Candidates]):
    for count in (40, 41):
        asked = select(many, Plan(count, repeats=0.0, seed=count))
        firsts = [sum(one.scores[0]) > sum(one.scores[1]) for one in asked]
        assert sum(firsts) in (count // 2, -(-count // 2))
        # Nor by turns: over 40 rows an order is as good as a coin if both halves have both.
        assert len(set(firsts[:10])) == len(set(firsts[-10:])) == 2


def test_repeats_are_turned_and_far_from_the_first_showing(many: list[Candidates]):
    """20 of 60 are the most that can be repeated: 80 rows, at least 60 - 20 - 19 apart."""
    for share, repeats in ((0.05, 3), (1 / 3, 20)):
        asked = select(many, Plan(60, repeats=share, seed=2))
        assert len(asked) == 60 + repeats
        first = {one.item_id: place for place, one in enumerate(asked) if one.why != "repeat"}
        again = {one.item_id: place for place, one in enumerate(asked) if one.why == "repeat"}
        assert (len(first), len(again)) == (60, repeats)
        for item, place in again.items():
            before = asked[first[item]]
            assert asked[place].responses == before.responses[::-1]
            assert asked[place].scores == before.scores[::-1]
            assert asked[place].information == before.information
            assert place - first[item] >= 20


def test_the_order_tells_nothing(many: list[Candidates]):
    """Over 40 seeds the mean place of the random share is the middle: 57 places of 6 draws each
    have a standard deviation of 17.3 / sqrt(240) = 1.1 around 29.5."""
    places = [
        place
        for seed in range(40)
        for place, one in enumerate(select(many, Plan(60, 0.1, 0.0, seed=seed)))
        if one.why == "random"
    ]
    assert len(places) == 240
    assert abs(np.mean(places) - 29.5) < 4.5


def test_ids_are_opaque_and_no_number_to_a_spreadsheet(many: list[Candidates]):
    asked = select(many, Plan(60, repeats=0.2))
    ids = [question.id for question in asked]
    assert len(set(ids)) == 72
    assert all(re.fullmatch("r[0-9a-f]{15}", one) for one in ids)
    assert ids != sorted(ids)
    other = select(many, Plan(60, repeats=0.2, seed=1))
    assert not set(ids) & {question.id for question in other}


def test_the_same_seed_asks_the_same(many: list[Candidates]):
    assert select(many, Plan(30, seed=4)) == select(many, Plan(30, seed=4))
    assert select(many, Plan(30, seed=4)) != select(many, Plan(30, seed=5))


# --- a planted world -----------------------------------------------------------------------------


def test_the_ensemble_s_quarrels_are_found_and_so_are_its_mistakes():
    """600 prompts of four answers with a known worth. Four models read it with a noise of 0.1, but
    in every tenth prompt with one of 2. Of the 3,600 pairs, 60 are asked. Random choice finds a
    noisy prompt in one of ten cases; the informative one must find little else, and there it finds
    the pairs on which the mean of the models is wrong several times as often."""
    rng = np.random.default_rng(11)
    worth = rng.normal(size=(600, 4, 1))
    noise = rng.normal(size=(600, 4, 4))
    noisy = np.arange(600) % 10 == 0
    scores = worth + np.where(noisy[:, None, None], 2.0, 0.1) * noise
    given = [candidates(f"p{n}", *map(tuple, one.tolist())) for n, one in enumerate(scores)]

    def outcome(asked: list[Question]) -> tuple[float, float]:
        """Shares in noisy prompts, and on which the models are wrong on average."""
        places = [int(question.prompt.text[1:]) for question in asked]
        wrong = 0
        for place, question in zip(places, asked, strict=True):
            at = [WORDS.index(one.text.split()[1]) for one in question.responses]
            truth = worth[place, at[0], 0] - worth[place, at[1], 0]
            said = sum(question.scores[0]) - sum(question.scores[1])
            wrong += truth * said < 0
        return float(np.mean(noisy[places])), wrong / len(asked)

    informative, random = (
        outcome(select(given, bare(60, random_share=share, seed=7))) for share in (0.0, 1.0)
    )
    assert informative[0] >= 0.95 and random[0] <= 0.25
    assert informative[1] >= 0.25 and random[1] <= 0.1
    assert informative[1] >= 3 * random[1]


# --- records -------------------------------------------------------------------------------------


def test_a_question_is_written_and_read_back(many: list[Candidates]):
    for question in select(many, Plan(5, repeats=0.2)):
        data = json.loads(json.dumps(question.to_json()))
        assert Question.from_json(data) == question
        assert data["shown_first"] == question.responses[0].id
    with pytest.raises(ValueError, match="schema_version"):
        Question.from_json({**data, "schema_version": 2})
    with pytest.raises(ValueError, match="Why is one of random, informative, repeat, not 'x'"):
        Question.from_json({**data, "why": "x"})


def test_the_item_is_that_of_every_judgement_of_the_pair(many: list[Candidates]):
    [question] = select(many, bare(1))
    judgement = Judgement(question.prompt, question.responses, (1, 2), annotator="ann")
    assert question.item_id == judgement.item_id == judgement.swapped().item_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is a number from 1 up, not 0."),
        ({"max_per_prompt": 0}, "max_per_prompt is a number from 1 up, not 0."),
        ({"votes": 0}, "votes is a number from 1 up, not 0."),
        ({"random_share": 1.5}, "random_share lies between 0 and 1, not at 1.5."),
        ({"random_share": math.nan}, "random_share lies between 0 and 1, not at nan."),
        ({"repeats": 0.5}, "repeats lies between 0 and 1/3, not at 0.5."),
    ],
)
def test_a_plan_out_of_range_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=re.escape(message)):
        Plan(**{"count": 1, **options})


@pytest.mark.parametrize(
    ("texts", "scores"),
    [
        (["a"], ((0.0,),)),
        (["a", "a"], ((0.0,), (1.0,))),
        (["a", "b"], ((0.0,),)),
        (["a", "b"], ((0.0,), (1.0, 2.0))),
        (["a", "b"], ((), ())),
        (["a", "b"], ((0.0,), (math.nan,))),
    ],
)
def test_candidates_that_do_not_fit_are_refused(texts: list[str], scores: Any):
    with pytest.raises(ValueError, match=r"answers|score"):
        Candidates(Prompt.from_text("p"), tuple(map(Response.from_text, texts)), scores)


def test_what_kept_the_other_pairs_from_being_asked_is_counted():
    """p: 3 pairs, 1 judged, 1 may be asked. q: its 2 answers are all but the same. r: 1 pair.

    Of 2 questions, p gives one and r the other; p's third pair is over the limit.
    """
    long = "a sentence that is long enough to be compared with another one, word by word"
    given = [
        candidates("p", (0.0,), (1.0,), (3.0,)),
        Candidates(
            Prompt.from_text("q"),
            (Response.from_text(long), Response.from_text(long + ".")),
            ((0.0,), (1.0,)),
        ),
        candidates("r", (0.0,), (1.0,)),
    ]
    judged = [Judgement(given[0].prompt, given[0].responses[:2], (1, 2))]
    chosen = choose(given, bare(5, max_per_prompt=1), judged)
    assert len(chosen.questions) == 2
    assert chosen.passed_over == {"judged": 1, "alike": 1, "max_per_prompt": 1}
    assert choose(given, bare(2, max_per_prompt=1), judged).passed_over == {}


def test_prompts_of_the_random_share_are_a_limit_of_their_own():
    """Two prompts of three pairs: one random pair bars the other two of its prompt."""
    given = [candidates(name, (0.0,), (1.0,), (3.0,)) for name in "pq"]
    chosen = choose(given, bare(6, random_share=1 / 6, max_per_prompt=3))
    assert len(chosen.questions) == 4
    assert chosen.passed_over == {"random_share": 2}
    # All of them random: then the limit of a prompt is what binds.
    chosen = choose(given, bare(6, random_share=1.0, max_per_prompt=2))
    assert (len(chosen.questions), chosen.passed_over) == (4, {"max_per_prompt": 2})
