"""Splits: by the first user turn, whatever the order, as large as asked for, and without leaks."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from real_data import real_data

from preference_data import (
    DataError,
    Judgement,
    Message,
    Prompt,
    Response,
    read_preferences,
    split,
    split_of,
)
from preference_data.near_duplicates import Clusters, near_duplicates
from preference_data.records import Comparison, Demonstration
from preference_data.splits import check_leaks, given_sides, leaks, opening

PROMPTS = [Prompt.from_text(f"Question {number}") for number in range(2000)]
PAIR = (Response.from_text("a"), Response.from_text("b"))


def judged(text: str, side: str | None = None) -> Judgement:
    return Judgement(Prompt.from_text(text), PAIR, (1, 2), split=side)  # type: ignore[arg-type]


def conversation(*turns: str, system: str | None = None) -> Prompt:
    """Turns of the user and the assistant, in turn."""
    first = () if system is None else (Message("system", system),)
    roles = ("user", "assistant")
    return Prompt((*first, *(Message(roles[i % 2], turn) for i, turn in enumerate(turns))))  # type: ignore[arg-type]


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
    for refused in (lambda: split_of(PROMPTS[0], fraction), lambda: split(PROMPTS, fraction)):
        with pytest.raises(ValueError, match="A test fraction lies between 0 and 1, not at"):
            refused()


def test_the_opening_is_the_first_user_turn():
    assert opening(PROMPTS[0]) == PROMPTS[0]
    assert opening(conversation("Hi", "Hello", "Why?")) == Prompt.from_text("Hi")
    assert opening(conversation("Hi", system="Be kind.")) == Prompt.from_text("Hi")
    greeted = Prompt((Message("assistant", "Welcome"), Message("user", "Hi")))
    assert opening(greeted) == Prompt.from_text("Hi")
    alone = Prompt((Message("system", "Be kind."),))
    assert opening(alone) == alone


def test_all_tails_of_a_conversation_are_on_one_side():
    """Whole prompts as keys would part most of these: 2 tails of 500 at a half, 250 pairs."""
    tails = [
        conversation(f"Hi {number}", answer, "Why?") for number in range(500) for answer in "ab"
    ]
    train, test = split(tails, 0.5)
    assert {p.messages[0] for p in train} & {p.messages[0] for p in test} == set()
    openings = split([Prompt.from_text(f"Hi {number}") for number in range(500)], 0.5)[1]
    assert {p.messages[0] for p in test} == {p.messages[0] for p in openings}
    assert len(test) == 2 * len(openings)


def test_every_kind_of_record_is_split_alike():
    judgements = [Judgement(prompt, PAIR, (1, 2)) for prompt in PROMPTS[:200]]
    held_out = {p.id for p in split(PROMPTS[:200], 0.3)[1]}
    comparisons: list[Comparison] = [c for j in judgements for c in j.comparisons()]
    demonstrations = [Demonstration(prompt, PAIR[0]) for prompt in PROMPTS[:200]]
    assert {r.prompt.id for r in split(judgements, 0.3)[1]} == held_out
    assert {r.prompt.id for r in split(comparisons, 0.3)[1]} == held_out
    assert {r.prompt.id for r in split(demonstrations, 0.3)[1]} == held_out


def test_a_cluster_is_on_the_side_of_its_representative():
    ids = sorted(p.id for p in PROMPTS[:300])
    by_id = {p.id: p for p in PROMPTS[:300]}
    threes = [ids[start : start + 3] for start in range(0, 300, 3)]
    clusters = Clusters({key: three[0] for three in threes for key in three})
    _, test = split(PROMPTS[:300], 0.4, clusters=clusters)
    expected = [t for t in threes if split_of(by_id[t[0]], 0.4) == "test"]
    assert {p.id for p in test} == {key for three in expected for key in three}
    assert 20 < len(expected) < 60
    assert all(
        split_of(by_id[key], 0.4, clusters=clusters) == split_of(by_id[three[0]], 0.4)
        for three in threes
        for key in three
    )


def test_near_duplicates_of_openings_stay_together():
    records = [judged(f"Question {n}{end}") for n in range(200) for end in ("", "?", " !")]
    openings = {opening(r.prompt).id: opening(r.prompt).text for r in records}
    clusters = near_duplicates(openings)
    assert leaks(*split(records, 0.5)) == []
    assert leaks(*split(records, 0.5), clusters) != []
    assert leaks(*split(records, 0.5, clusters=clusters), clusters) == []


def test_a_given_side_is_kept_whatever_the_fraction():
    sides = ["train", "validation", "test"]
    records = [judged(f"Q {number}", sides[number % 3]) for number in range(30)]
    for fraction in (0.0, 0.5, 1.0):
        train, test = split(records, fraction)
        assert Counter(r.split for r in train) == {"train": 10}
        assert Counter(r.split for r in test) == {"validation": 10, "test": 10}


def test_what_has_no_side_follows_its_key_and_else_is_drawn():
    held, kept, free = judged("held"), judged("kept"), judged("free")
    given = [judged("held", "test"), judged("kept", "train")]
    for fraction in (0.0, 1.0):
        train, test = split([held, kept, free, *given], fraction)
        assert held in test and kept in train
        assert (free in test) == (fraction == 1.0)


def test_what_is_given_on_both_sides_is_held_out_where_it_can_be():
    records = [judged("both", "train"), judged("both", "validation"), judged("both")]
    train, test = split(records, 0.0)
    assert train == records[:1] and test == records[1:]
    assert given_sides(records) == given_sides(records[::-1]) == {records[0].prompt.id: "test"}


def test_a_cluster_follows_the_given_side_of_any_member():
    records = [judged("a", "test"), judged("b")]
    keys = sorted(r.prompt.id for r in records)
    assert split(records, 0.0)[1] == records[:1]
    assert split(records, 0.0, clusters=Clusters(dict.fromkeys(keys, keys[0])))[1] == records


def test_other_records_of_the_data_follow_the_given_sides():
    given = given_sides([judged("held", "validation"), judged("kept", "train"), judged("free")])
    assert list(given.values()) == ["test", "train"]
    prompts = [Prompt.from_text(text) for text in ("held", "kept", "free")]
    assert split(prompts, 0.0, given=given)[1] == prompts[:1]
    assert split(prompts, 1.0, given=given)[0] == prompts[1:2]


def test_leaks_are_counted_and_named():
    train = [judged("a", "train"), judged("a", "train"), judged("b", "train")]
    test = [judged("c", "test"), judged("a", "test")]
    (leak,) = leaks(train, test)
    a = Prompt.from_text("a")
    assert (leak.key, leak.train, leak.test) == (a.id, a, a)
    assert (leak.train_records, leak.test_records) == (2, 1)
    with pytest.raises(DataError) as error:
        check_leaks(train, test)
    assert str(error.value) == (
        "1 first user turn is on both sides of the split, such as 'a' (records: 2 in train, 1 in "
        "test). Remove these records from one side, or give them the same split."
    )
    check_leaks(train, test[:1])


def test_tails_and_near_duplicates_leak_too():
    train = [conversation("Why?", "So.", "And?"), Prompt.from_text("x" * 80)]
    test = [conversation("Why?"), Prompt.from_text("X" * 80)]
    keys = sorted(p.id for p in (train[1], test[1]))
    clusters = Clusters(dict.fromkeys(keys, keys[0]))
    assert [leak.train for leak in leaks(train, test)] == train[:1]
    assert [leak.train for leak in leaks(train, test, clusters)] == train
    with pytest.raises(DataError, match="2 first user turns are on both sides"):
        check_leaks(train, test, clusters)
    with pytest.raises(DataError, match=r"such as 'X{59}…', in train as 'x{59}…' "):
        check_leaks(train[1:], test[1:], clusters)


def test_real_conversations_do_not_leak():
    """4,654 prompts of Anthropic's HH have 4,374 openings: split by whole prompts, 40 openings
    are on both sides of a tenth; split by openings, 4 clusters of near duplicates still are."""
    records: list[Judgement] = []
    for part in ("helpful-base", "harmless-base"):
        path = real_data("hh-rlhf", part, "test.jsonl.gz")
        with pytest.warns(UserWarning, match="were left out"):
            records += read_preferences(path)
    openings = {opening(r.prompt).id: opening(r.prompt).text for r in records}
    assert (len({r.prompt.id for r in records}), len(openings)) == (4654, 4374)
    clusters = near_duplicates(openings)
    by_prompt: tuple[list[Judgement], list[Judgement]] = ([], [])
    for record in records:
        by_prompt[_bucket(record.prompt.id) < 1000].append(record)
    assert len(leaks(*by_prompt)) == 40
    assert len(leaks(*split(records, 0.1))) == 0
    assert len(leaks(*split(records, 0.1), clusters)) == 4
    together = split(records, 0.1, clusters=clusters)
    assert leaks(*together, clusters) == []
    assert len(together[1]) == pytest.approx(465.6, rel=0.15)


def _bucket(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10_000
