"""Chatbot Arena's table and conversations, and MT-bench's judgements."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from one_row import read_judgement

from preference_data import import_data, read_judgements
from preference_data.quarantine import DataError, Rejected
from preference_data.records import Message
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

BATTLE = {
    "id": "30",
    "model_a": "m1",
    "model_b": "m2",
    "prompt": '["Hi", "Why?"]',
    "response_a": '["Hello", "So."]',
    "response_b": '["Hey", "No."]',
    "winner_model_a": "0",
    "winner_model_b": "1",
    "winner_tie": "0",
}
CONVERSATION = {
    "question_id": "q1",
    "model_a": "m1",
    "model_b": "m2",
    "winner": "model_a",
    "judge": "arena_user_9",
    "conversation_a": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ],
    "conversation_b": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hey"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "No."},
    ],
    "turn": 2,
}
VOTE = {**CONVERSATION, "tstamp": 1700000000.0}
USER, ASSISTANT = "user", "assistant"


def read_table(folder: Path, *rows: dict[str, str], reading: Reading | None = None):
    path = folder / "train.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    format, items = read_records(str(path), "preferences", "auto", reading or Reading())
    assert format == "arena"
    return [item if isinstance(item, Rejected) else item[0] for item in items]


def turns(record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


def test_a_battle_of_several_turns(tmp_path):
    (judgement,) = read_table(tmp_path, BATTLE)
    assert turns(judgement.prompt) == [(USER, "Hi")]
    assert turns(judgement.responses[0]) == [
        (ASSISTANT, "Hello"), (USER, "Why?"), (ASSISTANT, "So."),
    ]  # fmt: skip
    assert [response.model for response in judgement.responses] == ["m1", "m2"]
    assert (judgement.ranks, judgement.outcome, judgement.position) == ((2, 1), None, (0, 1))
    assert (judgement.source.format, judgement.source.row) == ("arena", 1)


def test_equal_first_answers_belong_to_the_prompt(tmp_path):
    (judgement,) = read_table(tmp_path, {**BATTLE, "response_b": '["Hello", "No."]'})
    assert turns(judgement.prompt) == [(USER, "Hi"), (ASSISTANT, "Hello"), (USER, "Why?")]
    assert [response.text for response in judgement.responses] == ["So.", "No."]


@pytest.mark.parametrize(
    ("winners", "ranks", "outcome"),
    [
        (("1", "0", "0"), (1, 2), None),
        (("0", "1", "0"), (2, 1), None),
        (("0", "0", "1"), (1, 1), "tie"),
        (("0.0", "0.0", "1.0"), (1, 1), "tie"),
    ],
)
def test_the_winners_are_one_hot(tmp_path, winners, ranks, outcome):
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    (judgement,) = read_table(tmp_path, BATTLE | dict(zip(names, winners, strict=True)))
    assert (judgement.ranks, judgement.outcome) == (ranks, outcome)


def test_a_turn_without_an_answer_is_empty_text_and_the_word_null_stays(tmp_path):
    (judgement,) = read_table(tmp_path, {**BATTLE, "response_a": '[null, "null"]'})
    assert turns(judgement.responses[0])[0] == (ASSISTANT, "")
    assert turns(judgement.responses[0])[2] == (ASSISTANT, "null")


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (
            {"winner_tie": "1"},
            "label_unknown",
            "winner_model_a is '0', winner_model_b is '1', winner_tie is '1': one of them must be "
            "1 and the others 0.",
        ),
        (
            {"winner_model_b": ""},
            "label_unknown",
            "winner_model_a is '0', winner_model_b is '', winner_tie is '0': one of them must be 1 "
            "and the others 0.",
        ),
        ({"prompt": '["Hi", null]'}, "empty_prompt", "a turn of prompt is empty."),
        ({"prompt": "[]"}, "empty_prompt", "a turn of prompt is empty."),
        ({"response_a": '["Hello"]'}, "turns_differ", "prompt has 2 turns and response_a 1."),
        (
            {"response_b": '["Hey", null]'},
            "empty_response",
            "the last answer of response_b is empty.",
        ),
        (
            {"response_b": "['Hey', 'No.']"},
            "json_invalid",
            "response_b is \"['Hey', 'No.']\", not a JSON array of turns.",
        ),
        (
            {"response_b": '["Hey", 3]'},
            "wrong_type",
            "response_b holds a turn that is neither text nor null.",
        ),
        (
            {"response_b": BATTLE["response_a"]},
            "identical_responses",
            "two identical answers are ranked one above the other.",
        ),
    ],
)
def test_battles_that_are_set_aside(tmp_path, change, reason, detail):
    (item,) = read_table(tmp_path, BATTLE | change)
    assert isinstance(item, Rejected)
    assert (item.reason, item.detail) == (reason, f"row 1 (line 2): {detail}")


def test_identical_answers_may_tie(tmp_path):
    tie = {"response_b": BATTLE["response_a"], "winner_model_b": "0", "winner_tie": "1"}
    (judgement,) = read_table(tmp_path, BATTLE | tie)
    assert judgement.is_tie
    assert turns(judgement.prompt)[-1] == (USER, "Why?")


def test_halves_of_surrogate_pairs_are_replaced_and_counted(tmp_path):
    reading = Reading()
    broken = {**BATTLE, "response_a": r'["\ud83d", "\ude00\ud83d\ude00"]'}
    first, _, third = read_table(tmp_path, broken, BATTLE, broken, reading=reading)
    assert first.responses[0].messages[0] == Message("assistant", "\ufffd")
    assert third.responses[0].messages[2] == Message("assistant", "\ufffd\U0001f600")
    assert reading.notes == ["Halves of surrogate pairs were replaced by U+FFFD: 4."]


def test_a_file_without_votes_is_refused(tmp_path):
    unjudged = {name: BATTLE[name] for name in ("id", "prompt", "response_a", "response_b")}
    with pytest.raises(DataError) as error:
        read_table(tmp_path, unjudged)
    assert str(error.value) == (
        f"{tmp_path / 'train.csv'} has no column winner_model_a, winner_model_b, winner_tie: it "
        "holds no votes, as a test file. Read the training file."
    )


def test_every_battle_of_a_file_is_accounted_for(tmp_path):
    read_table(tmp_path, BATTLE, BATTLE | {"winner_tie": "1"}, BATTLE)
    out = tmp_path / "out"
    report = import_data("preferences", str(tmp_path / "train.csv"), out, max_quarantined=0.5)
    assert (report.rows_in, report.rows_out, report.by_reason) == (3, 2, {"label_unknown": 1})
    assert [judgement.source.row for judgement in read_judgements(out)] == [1, 3]


def test_a_vote_on_two_conversations(tmp_path):
    judgement = read_judgement(tmp_path, VOTE, "arena_conversations")
    assert turns(judgement.prompt) == [(USER, "Hi")]
    assert turns(judgement.responses[1])[-1] == (ASSISTANT, "No.")
    assert (judgement.ranks, judgement.annotator) == ((1, 2), "arena_user_9")
    assert (judgement.responses[1].model, judgement.position) == ("m2", (0, 1))
    assert judgement.created_at == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("winner", "label"),
    [
        ("model_a", "first"),
        ("model_b", "second"),
        ("tie", "tie"),
        ("tie (bothbad)", "both_bad"),
        ("tie (inconsistent)", "tie"),
    ],
)
def test_the_winner_in_words(tmp_path, winner, label):
    judgement = read_judgement(tmp_path, {**VOTE, "winner": winner}, "arena_conversations")
    assert judgement.label == label


@pytest.mark.parametrize(
    ("change", "reason", "expected"),
    [
        ({"winner": "error"}, "no_verdict", True),
        ({"winner": "model_c"}, "label_unknown", False),
        ({"winner": None}, "label_missing", False),
        ({"conversation_b": VOTE["conversation_b"][:3]}, "ends_without_answer", False),
        ({"conversation_b": []}, "ends_without_answer", False),
        ({"conversation_b": [{"role": "tool", "content": "x"}]}, "bad_messages", False),
        ({"conversation_b": VOTE["conversation_b"][2:]}, "no_shared_prompt", False),
        ({"tstamp": 1e30}, "number_invalid", False),
    ],
)
def test_votes_that_are_set_aside(tmp_path, change, reason, expected):
    item = read_judgement(tmp_path, VOTE | change, "arena_conversations")
    assert isinstance(item, Rejected)
    assert (item.reason, item.expected) == (reason, expected)


def test_turn_1_judges_the_first_exchange_alone(tmp_path):
    first = read_judgement(tmp_path, {**CONVERSATION, "turn": 1, "question_id": 81}, "mt_bench")
    assert [turns(response) for response in first.responses] == [
        [(ASSISTANT, "Hello")],
        [(ASSISTANT, "Hey")],
    ]
    assert (first.group, first.position) == ("81", None)
    both = read_judgement(tmp_path, CONVERSATION, "mt_bench")
    assert turns(both.responses[0])[-1] == (ASSISTANT, "So.")


@pytest.mark.parametrize(("judge", "kind"), [("expert_17", "human"), ("gpt4_pair", "model")])
def test_a_judge_is_a_person_or_a_model(tmp_path, judge, kind):
    judgement = read_judgement(tmp_path, {**CONVERSATION, "judge": judge}, "mt_bench")
    assert (judgement.annotator, judgement.annotator_kind) == (judge, kind)


def test_another_turn_is_set_aside(tmp_path):
    item = read_judgement(tmp_path, {**CONVERSATION, "turn": 3}, "mt_bench")
    assert item.detail == "row 1 (line 1): turn is 3, not 1 or 2."
