"""OpenAI's comparisons and ratings of summaries, and its preference fine-tuning format."""

from __future__ import annotations

import pytest
from one_row import read_row

from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading

POST = {"id": "t3_1", "post": "Long.\nStory.", "title": "A title", "subreddit": "tea"}
ARTICLE = {"id": "9f", "site": "paper", "title": "News", "article": "Much happened."}
COMPARISON = {
    "info": POST,
    "summaries": [
        {"text": " Short.", "policy": "sup1", "note": None},
        {"text": " Tale.", "policy": "ref", "note": "odd"},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch9",
    "split": "valid1",
    "extra": {"confidence": 7},
}
RATED = {
    "info": ARTICLE,
    "summary": {
        "text": "It happened.",
        "policy": "ref",
        "note": "fine",
        "axes": {"overall": 6, "accuracy": 7, "coverage": None, "compatible": True},
    },
    "worker": "w2",
    "split": "test",
}
TUNING = {
    "input": {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "tools": [],
    },
    "preferred_output": [{"role": "assistant", "content": "Hello"}],
    "non_preferred_output": [{"role": "assistant", "content": "What?"}],
}


def test_a_comparison_of_two_summaries(tmp_path):
    (judgement,) = read_row(tmp_path, COMPARISON, "openai_summaries")
    assert judgement.prompt.text == (
        "SUBREDDIT: r/tea\n\nTITLE: A title\n\nPOST: Long.\nStory.\n\nTL;DR:"
    )
    assert [response.text for response in judgement.responses] == [" Short.", " Tale."]
    assert [response.model for response in judgement.responses] == ["sup1", "ref"]
    assert (judgement.ranks, judgement.annotator, judgement.group) == ((2, 1), "w1", "t3_1")
    assert judgement.strength is None  # what the confidence is of is not known
    assert judgement.split == "validation"


def test_the_prompt_of_an_article(tmp_path):
    (judgement,) = read_row(tmp_path, {**COMPARISON, "info": ARTICLE}, "openai_summaries")
    assert judgement.prompt.text == "TITLE: News\n\nARTICLE: Much happened.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"choice": 2}, "label_unknown", "choice is 2, not one of 0, 1."),
        ({"choice": None}, "label_missing", "choice is empty."),
        ({"info": {**POST, "post": ""}}, "empty_prompt", "info.post is empty."),
        ({"info": "t3_1"}, "wrong_type", "info is 't3_1', not a JSON object."),
        (
            {"summaries": COMPARISON["summaries"][:1]},
            "wrong_type",
            "summaries is not a list of two summaries.",
        ),
    ],
)
def test_comparisons_that_are_set_aside(tmp_path, change, reason, detail):
    item = read_row(tmp_path, COMPARISON | change, "openai_summaries")
    assert isinstance(item, Rejected)
    assert (item.reason, item.detail) == (reason, f"row 1 (line 1): {detail}")


def test_each_axis_that_was_rated_is_a_rating(tmp_path):
    ratings = read_row(tmp_path, RATED, "openai_summary_ratings")
    assert [(r.criterion, r.scores, r.scale) for r in ratings] == [
        ("overall", (6.0,), "1..7"),
        ("accuracy", (7.0,), "1..7"),
    ]
    assert {(r.kind, r.comment, r.split, r.annotator) for r in ratings} == {
        ("rating", "fine", "test", "w2")
    }
    assert len({rating.id for rating in ratings}) == 2


@pytest.mark.parametrize(
    ("axes", "reason", "expected"),
    [({"overall": None}, "no_rating", True), ({"overall": 8}, "rating_invalid", False)],
)
def test_ratings_that_are_set_aside(tmp_path, axes, reason, expected):
    row = {**RATED, "summary": {**RATED["summary"], "axes": axes}}
    item = read_row(tmp_path, row, "openai_summary_ratings")
    assert (item.reason, item.expected) == (reason, expected)


def test_a_row_of_preference_fine_tuning(tmp_path):
    reading = Reading()
    (judgement,) = read_row(tmp_path, TUNING, "openai_preferences", reading)
    assert [message.role for message in judgement.prompt.messages] == ["system", "user"]
    assert [response.text for response in judgement.responses] == ["Hello", "What?"]
    assert (judgement.ranks, reading.notes) == ((1, 2), [])


def test_tools_are_left_out_with_a_note(tmp_path):
    reading = Reading()
    row = {**TUNING, "input": {**TUNING["input"], "tools": [{"type": "function"}]}}
    read_row(tmp_path, row, "openai_preferences", reading)
    (note,) = reading.notes
    assert note.endswith("offers tools to the model; their definitions are not read.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"non_preferred_output": TUNING["preferred_output"]}, "identical_responses"),
        ({"input": {"messages": []}}, "empty_prompt"),
        ({"input": None}, "wrong_type"),
        ({"preferred_output": [{"role": "assistant", "content": None}]}, "bad_messages"),
        ({"preferred_output": [{"role": "assistant", "content": " "}]}, "empty_response"),
        ({"preferred_output": [{"role": "user", "content": "Hi"}]}, "invalid_record"),
    ],
)
def test_rows_of_preference_fine_tuning_that_are_set_aside(tmp_path, change, reason):
    assert read_row(tmp_path, TUNING | change, "openai_preferences").reason == reason
