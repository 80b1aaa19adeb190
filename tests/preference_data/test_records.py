"""Records: checked when made, symmetric where they should be, the same after a round trip."""

from __future__ import annotations

import hashlib
import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data import Comparison, Demonstration, Judgement, Message, Prompt, Response, Source

PROMPT = Prompt.from_text("Why?")
FOUR = tuple(Response.from_text(text) for text in "wxyz")


def judged(*ranks: int | None, **fields: object) -> Judgement:
    return Judgement(PROMPT, FOUR[: len(ranks)], ranks, **fields)  # type: ignore[arg-type]


def pairs(judgement: Judgement) -> list[tuple[str, str]]:
    return [(c.chosen.text, c.rejected.text) for c in judgement.comparisons()]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Message("human", "x"),  # type: ignore[arg-type]
            "A message's role is one of system, user, assistant, not 'human'.",
        ),
        (
            lambda: Message("user", True),  # type: ignore[arg-type]
            "A message's content is text, not bool.",
        ),
        (
            lambda: Message("user", "ab\ud83d"),
            "A message holds half of a surrogate pair at character 2.",
        ),
        (lambda: Prompt(()), "A prompt needs at least one message."),
        (
            lambda: Prompt((Message("assistant", "x"),)),
            "A prompt cannot end with an assistant message.",
        ),
        (
            lambda: Prompt((Message("user", "x"), Message("system", "y"))),
            "Only the first message of a prompt can be a system message.",
        ),
        (
            lambda: Response((Message("user", "x"),)),
            "A response must end with an assistant message.",
        ),
        (
            lambda: Response((Message("system", "x"), Message("assistant", "y"))),
            "A response cannot hold a system message.",
        ),
        (lambda: judged(1), "A judgement needs two responses or more, not 1."),
        (lambda: Judgement(PROMPT, FOUR, (1, 2)), "4 responses need 4 ranks, not 2."),
        (lambda: judged(0, 1), "A rank is a whole number from 1 (best) up, not 0."),
        (lambda: judged(True, 2), "A rank is a whole number from 1 (best) up, not True."),
        (lambda: judged(1, None, None), "A judgement ranks two responses or more, not 1."),
        (lambda: judged(1, 2, outcome="tie"), "The outcome 'tie' needs equal ranks, not [1, 2]."),
        (lambda: judged(1, 2, outcome="unsure"), "An unsure judgement ranks no response."),
        (lambda: judged(1, 2, strength=1.5), "A strength lies between 0 and 1, not at 1.5."),
        (
            lambda: judged(1, 2, strength=float("nan")),
            "A strength lies between 0 and 1, not at nan.",
        ),
        (lambda: judged(1, 2, weight=0.0), "A weight is a positive finite number, not 0.0."),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence


def test_the_prompt_id_is_a_hash_of_the_composed_text_while_the_text_stays():
    """sha256 of the JSON of the roles and contents, `[["user", "caf\\u00e9"]]`."""
    expected = hashlib.sha256(b'[["user", "caf\\u00e9"]]').hexdigest()[:16]
    decomposed = Prompt.from_text("cafe\u0301")
    assert Prompt.from_text("caf\u00e9").id == decomposed.id == expected
    assert decomposed.text == "cafe\u0301"
    assert Prompt.from_text("cafe").id != expected


def test_the_boundaries_of_turns_are_part_of_the_id():
    one = Prompt((Message("user", "ab"), Message("user", "c")))
    two = Prompt((Message("user", "a"), Message("user", "bc")))
    assert one.id != two.id


def test_text_is_plain_for_one_turn_and_names_the_roles_for_more():
    assert PROMPT.text == "Why?"
    tail = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    assert Response(tail).text == "assistant: a\nuser: b\nassistant: c"


def test_a_ranking_gives_each_decided_pair_best_first_and_counts_once():
    """Ranks 2, 1, 2, none: x beats w and y, w and y tie, z is in no pair; 3 / 2 each."""
    judgement = judged(2, 1, 2, None, weight=3.0, strength=0.25)
    assert pairs(judgement) == [("x", "w"), ("x", "y")]
    assert [c.weight for c in judgement.comparisons()] == [1.5, 1.5]
    assert {c.strength for c in judgement.comparisons()} == {0.25}
    assert {c.judgement_id for c in judgement.comparisons()} == {judgement.id}


def test_four_distinct_ranks_give_six_pairs_of_a_sixth():
    comparisons = judged(4, 3, 2, 1).comparisons()
    assert len(comparisons) == 6
    assert sum(c.weight for c in comparisons) == pytest.approx(1.0)
    assert comparisons[0].chosen.text == "x" and comparisons[-1].chosen.text == "z"


def test_a_comparison_swaps_its_sides_only():
    (comparison,) = judged(1, 2).comparisons()
    swapped = comparison.swapped()
    assert (swapped.chosen, swapped.rejected) == (comparison.rejected, comparison.chosen)
    assert swapped.swapped() == comparison


@pytest.mark.parametrize(
    ("judgement", "label", "is_tie"),
    [
        (judged(1, 2), "first", False),
        (judged(5, 2), "second", False),
        (judged(1, 1), "tie", True),
        (judged(1, 1, outcome="both_bad"), "both_bad", True),
        (judged(None, None, outcome="unsure"), "unsure", False),
        (judged(3, 1, 2), "ranking", False),
        (judged(1, 1, 2), "ranking_with_ties", False),
        (judged(1, 1, None), "ranking_with_ties", False),
        (judged(2, 2, 2, 2), "tie", True),
    ],
)
def test_the_label_and_the_tie(judgement, label, is_tie):
    assert judgement.label == label
    assert judgement.is_tie is is_tie


def test_no_order_changes_what_is_preferred_or_the_ids():
    judgement = judged(2, None, 1, 2, source=Source("table", "a.csv", 3, 4))
    for order in permutations(range(4)):
        permuted = judgement.permuted(order)
        assert sorted(pairs(permuted)) == sorted(pairs(judgement))
        assert (permuted.id, permuted.item_id) == (judgement.id, judgement.item_id)
    assert judged(1, 2).swapped().ranks == (2, 1)
    assert judged(1, 2).swapped().swapped() == judged(1, 2)


def test_a_wrong_order_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 0\] is not an order of 2 responses\."):
        judged(1, 2).permuted([0, 0])
    with pytest.raises(ValueError, match="Only two responses can be swapped, not 3"):
        judged(1, 2, 3).swapped()


def test_the_judgement_id_tells_rows_and_annotators_apart_but_not_folders():
    def at(file: str, row: int, annotator: str = "ann") -> str:
        return judged(1, 2, annotator=annotator, source=Source("table", file, row, 9)).id

    assert at("/old/a.csv", 1) == at("C:\\new\\a.csv", 1)
    assert len({at("a.csv", 1), at("b.csv", 1), at("a.csv", 2), at("a.csv", 1, "bob")}) == 4


def test_the_json_keys_are_the_published_ones():
    assert list(judged(1, 2).to_json()) == [
        "schema_version", "prompt_id", "prompt", "judgement_id", "item_id", "responses", "ranks",
        "outcome", "strength", "weight", "kind", "criterion", "annotator_id", "annotator_kind",
        "comment", "source_format", "source_file", "source_row", "source_line",
    ]  # fmt: skip
    assert judged(1, 2).to_json()["responses"][0] == {
        "response_id": FOUR[0].id,
        "model": None,
        "messages": [{"role": "assistant", "content": "w"}],
    }


texts = st.text(st.characters(exclude_categories=["Cs"]))
ranks = st.lists(st.none() | st.integers(1, 9), min_size=2, max_size=5).filter(
    lambda found: len([rank for rank in found if rank]) > 1
)


@given(texts, st.lists(texts, min_size=5, max_size=5), ranks, st.none() | texts)
def test_every_record_survives_json(prompt, answers, found, annotator):
    responses = tuple(Response.from_text(text, model="m") for text in answers[: len(found)])
    judgement = Judgement(
        Prompt.from_text(prompt),
        responses,
        tuple(found),
        annotator=annotator,
        source=Source("table", "a.csv", 1, 2),
    )
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement
    for comparison in judgement.comparisons():
        assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))) == comparison
    shown = Demonstration(judgement.prompt, responses[0])
    assert Demonstration.from_json(json.loads(json.dumps(shown.to_json()))) == shown
    assert Prompt.from_json(json.loads(json.dumps(shown.prompt.to_json()))) == shown.prompt


def test_another_schema_version_is_refused():
    with pytest.raises(ValueError, match="The record has schema_version 2; this reads 1"):
        Judgement.from_json({**judged(1, 2).to_json(), "schema_version": 2})
