"""HelpSteer's ratings and preferences, of one person, of several, and of all together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preference_data import sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
RATED = {"prompt": "Name a river.", "response": "The Elbe", **dict.fromkeys(ATTRIBUTES, 4)}
SECOND = {
    "split": "validation", "prompt": "Name a river.", "response_1": "The Elbe",
    "response_2": "A lake", "preference_strength": -2, "preference_statement": "1 is a river.",
}  # fmt: skip
THIRD = {
    "domain": "general", "language": "english",
    "context": [{"role": "user", "content": "Name a river."}],
    "response1": "The Elbe", "response2": "A lake", "overall_preference": -2,
}  # fmt: skip


def read(folder: Path, row: dict, format: str) -> list:
    path = folder / "train.jsonl"
    path.write_text(json.dumps(row))
    assert sniff(str(path), "preferences") == format
    _, items = read_records(str(path), "preferences", format, Reading())
    return list(items)


def test_a_rating_for_each_attribute(tmp_path):
    (judgements,) = read(tmp_path, {**RATED, "verbosity": 0, "complexity": "1"}, "helpsteer")
    assert [(j.criterion, j.scores) for j in judgements] == [
        ("helpfulness", (4.0,)), ("correctness", (4.0,)), ("coherence", (4.0,)),
        ("complexity", (1.0,)), ("verbosity", (0.0,)),
    ]  # fmt: skip
    for judgement in judgements:
        assert (judgement.kind, judgement.scale, judgement.annotator) == ("rating", "0..4", None)
        assert (judgement.annotator_kind, judgement.ranks) == ("human_aggregate", (None,))
        assert judgement.responses[0].text == "The Elbe"


def test_lists_are_the_ratings_of_several_people(tmp_path):
    """Three people, the second with a rating out of range, who does not take the others along."""
    row = {**RATED, **{name: [4, 3, 2] for name in ATTRIBUTES}, "coherence": [4, 5, 2]}
    first, second, third = read(tmp_path, row, "helpsteer")
    assert isinstance(second, Rejected)
    assert (second.reason, second.row) == ("score_invalid", 1)
    assert second.detail == "row 1 (line 1): coherence is 5, not 0 to 4."
    assert [j.scores for j in third] == [(2.0,)] * 5
    assert {j.annotator_kind for j in first + third} == {"human"}
    assert len({j.annotator for j in first + third}) == 2
    assert len({j.id for j in first + third}) == 10


@pytest.mark.parametrize("values", [{"helpfulness": [4, 3]}, {n: [] for n in ATTRIBUTES}])
def test_lists_that_do_not_belong_together(tmp_path, values):
    (item,) = read(tmp_path, {**RATED, **values}, "helpsteer")
    assert isinstance(item, Rejected)
    assert item.reason == "uneven_ratings"


@pytest.mark.parametrize(
    ("strength", "ranks", "outcome", "expected"),
    [
        (-3, (1, 2), None, 1.0),
        (-1, (1, 2), None, 1 / 3),
        (0, (1, 1), "tie", 0.0),
        (2, (2, 1), None, 2 / 3),
        ("3", (2, 1), None, 1.0),
    ],
)
def test_below_zero_the_first_is_better(tmp_path, strength, ranks, outcome, expected):
    second = {**SECOND, "preference_strength": strength}
    third = {**THIRD, "overall_preference": strength}
    for row in (second, third):
        ((judgement,),) = read(tmp_path, row, "helpsteer_preference")
        assert [r.text for r in judgement.responses] == ["The Elbe", "A lake"]
        assert (judgement.ranks, judgement.outcome) == (ranks, outcome)
        assert judgement.strength == pytest.approx(expected)
        assert (judgement.scale, judgement.annotator_kind) == ("-3..3", "human_aggregate")
        assert judgement.prompt.text == "Name a river."


def test_the_second_keeps_its_statement_and_split(tmp_path):
    ((judgement,),) = read(tmp_path, SECOND, "helpsteer_preference")
    assert (judgement.comment, judgement.split) == ("1 is a river.", "validation")


def test_each_person_of_the_third_counts_alone(tmp_path):
    """Three against each other, one without a score; the overall preference is theirs together."""
    people = [
        {"score": -3, "reasoning": "a river", "feedback1": "f", "feedback2": "g"},
        {"score": None, "reasoning": ""},
        {"score": 1, "reasoning": "a lake"},
    ]
    first, second, third = read(
        tmp_path, {**THIRD, "individual_preference": people}, "helpsteer_preference"
    )
    assert isinstance(second, Rejected)
    assert second.reason == "label_missing"
    assert [(j.ranks, j.strength, j.comment) for (j,) in (first, third)] == [
        ((1, 2), 1.0, "a river"), ((2, 1), pytest.approx(1 / 3), "a lake"),
    ]  # fmt: skip
    assert {j.annotator_kind for (j,) in (first, third)} == {"human"}
    assert first[0].annotator != third[0].annotator
    assert first[0].id != third[0].id


def test_markers_are_turns(tmp_path):
    prompt = "Hi\n\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nName a river."
    ((judgement,),) = read(tmp_path, {**SECOND, "prompt": prompt}, "helpsteer_preference")
    turns = [("user", "Hi\n"), ("assistant", "Hello"), ("user", "Name a river.")]
    assert [(m.role, m.content) for m in judgement.prompt.messages] == turns
    asking = f"<extra_id_0>System\nBe brief.\n<extra_id_1>User\n{prompt}\n<extra_id_1>Assistant\n"
    (ratings,) = read(tmp_path, {**RATED, "prompt": asking}, "helpsteer")
    assert [(m.role, m.content) for m in ratings[0].prompt.messages] == [
        ("system", "Be brief."), *turns,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**SECOND, "preference_strength": 4}, "score_invalid"),
        ({**SECOND, "preference_strength": ""}, "label_missing"),
        ({**SECOND, "preference_strength": True}, "score_invalid"),
        ({**SECOND, "response_2": "The Elbe"}, "identical_responses"),
        ({**SECOND, "response_2": ""}, "empty_response"),
        ({**SECOND, "prompt": "Hi\n<extra_id_1>Assistant\nx"}, "invalid_record"),
        ({**SECOND, "prompt": "<extra_id_1>User\n\n<extra_id_1>Assistant\n"}, "empty_prompt"),
        ({**THIRD, "individual_preference": "none"}, "wrong_type"),
        ({**THIRD, "individual_preference": [3]}, "wrong_type"),
    ],
)
def test_preferences_that_are_rejected(tmp_path, row, reason):
    (item,) = read(tmp_path, row, "helpsteer_preference")
    assert isinstance(item, Rejected)
    assert (item.reason, item.expected) == (reason, False)
